"""The page ``docs/isa.md``: formats, operations, latencies and faults from `arch`, then sketches.

The hand-written part is ``docs/isa_sketches.md``; its listings of compiled programs come from
`scripts.sketches`. Write the page with ``python -m scripts.pages docs/isa.md``.
"""
import dataclasses
import inspect
import re

from arch import isa
from arch.config import PROFILES, profile
from arch.faults import Fault
from arch.isa import UNITS, Control, Index, Order
from arch.queues import QUEUES, Stream
from arch.timing import FIRST_ISSUE, LOOP_WAIT_MIN, PATH, Timing, timing
from scripts.pages import ROOT, table

SHOWN = "ecp5_85k"
#: Where results go, and the latency that says when.
RESULTS = {"drain": ("ACC", "drain"), "kv": ("ACC (READ_OUT)", "read_out"), "vxm": ("VXM", "vxm"),
           "perm": ("PERM", "perm"), "red": ("RED", "reduce, reduce_function"),
           "const": ("CONST", "const_read"), "mem_read": ("M0 to M3", "mem_read")}
_INCLUDE = re.compile(r"^<!-- include: (\w+) -->$", re.MULTILINE)


def md(text: str) -> str:
    """Plain text for a table cell: what Markdown would take for markup is escaped."""
    parts = text.split("`")
    for number in range(0, len(parts), 2):
        parts[number] = re.sub(r"([*_<])", r"\\\1", parts[number])
    return "`".join(parts).replace("|", "\\|")


def members(thing) -> dict:
    """Name to description, from the ``Members`` section of a docstring."""
    text = inspect.getdoc(thing).split("-------\n", 1)[1]
    found, names = {}, ()
    for line in text.splitlines():
        match = re.match(r"(\w+(?:, \w+)*) : (.*)", line)
        if match:
            names = match[1].split(", ")
            found |= {name: match[2] for name in names}
        elif line.startswith(" "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            break
    return found


def _described(thing) -> list:
    said = members(thing)
    return [[member.value, f"`{name}`", md(said[name])]
            for name, member in thing.__members__.items()]


def _depths(queues, config) -> str:
    """Depths of the program memories of some queues; one number if they are equal."""
    depths = [str(config.depth_of(queue.name)) if queue.exists(config) else "-" for queue in queues]
    return " / ".join(depths if len({*depths}) > 1 else depths[:1])


def _queues() -> str:
    config = profile(SHOWN)
    units = {}
    for name, queue in QUEUES.items():
        units.setdefault(queue.unit, []).append(queue)
    rows = []
    for unit, queues in units.items():
        ids = [queue.id for queue in queues]
        stream, latency = RESULTS.get(unit, ("-", "-"))
        rows.append([", ".join(f"`{queue.name}`" for queue in queues),
                     f"{ids[0]} to {ids[-1]}" if len(ids) > 1 else str(ids[0]), f"`{unit}`",
                     UNITS[unit].doc.rstrip(":."), stream, latency,
                     isa.word_bits(UNITS[unit], config),
                     _depths(queues, config)])
    head = ["queue", "id", "format", "does", "result on", "after", "word, bits", "depth"]
    return table(head, [[md(str(cell)) for cell in row] for row in rows])


def _streams() -> str:
    said = members(Stream)
    rows = [[int(stream), f"`{stream.name}`", md(said[stream.name])] for stream in Stream]
    rows.append(["12 to 15", "-", "reserved"])
    return table(["number", "stream", "carries"], rows)


def _meaning(field: isa.Field) -> str:
    names = ", ".join(stream.name for stream in sorted(field.sources))
    return f"{field.doc}; has wires from {names}" if names else field.doc


def _format(unit: isa.Unit) -> str:
    config = profile(SHOWN)
    place = isa.layout(unit, config)
    rows = []
    for field in unit.fields:
        offset, width, signed = place[field.name]
        bits = f"{offset + width - 1}:{offset}" if width > 1 else str(offset)
        others = " / ".join(str(field.bits(other)) for other in PROFILES.values())
        rows.append([f"`{field.name}`", bits, others, "signed" if signed else "", md(_meaning(field))])
    queues = ", ".join(f"`{name}`" for name, queue in QUEUES.items() if queue.unit == unit.name)
    ops = table(["code", "operation", "meaning"],
                [[op.code, f"`{op.name}`", md(op.doc)] for op in unit.ops])
    words = " / ".join(str(isa.word_bits(unit, other)) for other in PROFILES.values())
    fields = table(["field", "bits", " / ".join(PROFILES), "", "meaning"], rows)
    return (f"### `{unit.name}`: {unit.doc[0].lower()}{unit.doc[1:]}\n\nQueues: {queues}. "
            f"Word: {words} bits in the four profiles.\n\n{ops}\n{fields}")


def _latencies() -> str:
    said = members(Timing)
    values = {name: dataclasses.asdict(timing(config)) for name, config in PROFILES.items()}
    rows = [[f"`{name}`", *(values[config][name] for config in PROFILES), md(said[name])]
            for name in said]
    return table(["latency", *PROFILES, "from .. to"], rows)


def _listing(match) -> str:
    from scripts import sketches
    return sketches.listing(match[1])


def page() -> str:
    """The whole page."""
    source = (ROOT / "docs" / "isa_sketches.md").read_text(encoding="utf-8")
    before, after = source.split("<!-- reference -->\n")
    before = before.split("<!-- begin -->\n", 1)[1]
    said = members(Control)
    control = table(["code", "operation", "meaning"], [
        [0, "-", "reserved, so that an unwritten word faults"],
        *[[code.value, f"`{name}`", md(said[name])] for name, code in Control.__members__.items()]])
    parts = [
        "<!-- Generated by scripts/isa_page.py from arch/ and docs/isa_sketches.md: edit those, "
        "then run python -m scripts.pages. -->\n",
        before,
        "## Queues\n\n" + _queues(),
        "## Streams\n\nA source field holds the number of a stream. Each operand has wires from some streams only; any "
        "other number faults. What has to go elsewhere passes the VXM.\n\n"
        + _streams(),
        f"## Issue rule\n\n{_issue_rule()}",
        "### Control operations\n\nEvery queue has them. Codes 4 and up belong to the unit.\n\n"
        + control,
        "### Index modes\n\n" + table(["code", "`index`", "adds"], [
            [Index.NONE.value, "`NONE`", "nothing"],
            [Index.POSITION.value, "`POSITION`", "position of the step `>> index_shift`"],
            [Index.TOKEN.value, "`TOKEN`", "input token of the step `>> index_shift`"],
            [3, "-", "reserved"]])
        + "\nIn `perm` the value is shifted left and exclusive-ored into the lane numbers.\n",
        "### Orders of a `MATMUL`\n\n" + table(["code", "`order`", "meaning"], [
            *_described(Order), [3, "-", "reserved"]]),
        "## Formats\n\nBit positions are those of `" + SHOWN + "`, lowest first. The third column "
        "gives the width in every profile. Fields left out in assembly are 0; counts, gaps and "
        "`wait` are 1.\n",
        *[_format(unit) for unit in UNITS.values()],
        f"## Latencies\n\n{_LATENCY_TEXT}\n{_latencies()}",
        "## Faults\n\n" + _FAULT_TEXT + table(["code", "cause", "meaning"], _described(Fault)),
        _INCLUDE.sub(_listing, after),
    ]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _issue_rule() -> str:
    doc = inspect.getdoc(isa)
    rule = doc.split("Issue rule. ", 1)[1].split("\n\nRef:", 1)[0]
    prose, code = rule.split("::\n\n", 1)
    code, rest = code.split("\n\n", 1)
    code = inspect.cleandoc("\n" + code)
    return (f"{md(' '.join(prose.split()))}:\n\n```python\n{code}\n```\n\n{md(rest)}\n\n"
            f"The first issue of a step comes on cycle {FIRST_ISSUE} or later. The first issue of "
            f"a further round of a loop comes {LOOP_WAIT_MIN} cycles or more after the last issue "
            "of the round before. A `wait` or a count may come from a table instead of the word: "
            "`wait_param` and `n1_param`, `n2_param` choose it. That table has one row per "
            "KV tile, and the row is chosen at the barrier. So the order of instructions never "
            "depends on the position; delays and counts may.\n")


_LATENCY_TEXT = f"""An operation issued on cycle `t` takes its operands from their streams on cycle
`t + skew` and puts its result on its own stream on cycle `t + delay`. A value is on a stream for
one cycle. The rule is an equality:

    issue(consumer) + skew(consumer) = issue(producer) + delay(producer) + path

The path delay is {PATH} between any two slices, and the skew is 0 everywhere but in `sample`. Extra
pipeline stages of a `Config` (`mem_stages` and so on) add to the delay of their slice; the compiler
follows. The table comes from `arch/timing.py`; tests measure the latencies on the RTL.
"""
_FAULT_TEXT = """The first fault of a run is kept with its cause, queue and cycle; the run ends.
When several arise in one cycle the lowest code wins. The schedule checker and the machine model
refuse the same programs before they run.

"""
