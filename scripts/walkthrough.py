"""Blocks of ``docs/architecture.md`` and the picture ``docs/layer.svg``: one instruction and one
decoder layer followed cycle by cycle, with the numbers of `arch.timing` and of the compiler."""
from arch.config import profile
from arch.timing import FIRST_ISSUE, timing
from scripts.draw_machine import Drawing
from scripts.measure import flagship
from scripts.pages import table

SHOWN = "ecp5_85k"
#: First word of a task's name to the phase of a layer it belongs to.
PHASES = {"att squares": "norm", "att multipliers": "norm", "k": "q, k, v and RoPE",
          "q": "q, k, v and RoPE", "v": "q, k, v and RoPE", "scores": "scores and softmax",
          "exp": "scores and softmax", "values": "values", "attention": "attention output",
          "ffn squares": "norm", "ffn multipliers": "norm", "gate,": "gate and up",
          "gate": "gate and up", "up": "gate and up", "silu": "SiLU, hidden",
          "hidden": "SiLU, hidden", "down": "down", "feed-forward": "down"}
COLOURS = {"norm": "#c9a227", "q, k, v and RoPE": "#2f6fb0", "scores and softmax": "#b0532f",
           "values": "#7a4fa3", "attention output": "#2f8f6b", "gate and up": "#4f8fd0",
           "SiLU, hidden": "#c46aa0", "down": "#5f9e3a"}


def phase_of(name: str) -> str:
    """The phase of a task of the layer."""
    return PHASES.get(name) or PHASES.get(" ".join(name.split()[:2])) or PHASES[name.split()[0]]


def _instruction() -> str:
    """One tile of a matmul, 64 inputs, from activation to the vector that the next one reads."""
    config = profile(SHOWN)
    t, steps = timing(config), 64 // config.rows
    hops = config.half_columns // config.tile_columns - 1
    first = 100
    last = first + steps - 1
    drain = last + t.matmul_to_drain
    acc = drain + t.drain
    done = acc + t.vxm
    again = done + t.mem_write_to_read
    arrive = first + 5 + config.pairs + config.mxm_stages
    rows = [
        [first - t.mem_read, "`r0`", f"`READ n1={steps // config.groups} d1={config.groups}`: "
         f"the first of {steps // config.groups} vectors leaves MEM bank 0"],
        [first, "`mxm`", f"`MATMUL n1={steps}` issues k = 0. The vector is on `M0`; both feeds "
         f"take {config.rows} of its lanes"],
        [first + t.weight_read, "", "the first banks read their weights"],
        [first + 3, "", f"the lanes, rounded and saturated to {config.activation_bits} bits, reach "
         "row pair 0; each further pair follows one cycle later, each further tile one after "
         "that"],
        [last, "`mxm`", f"k = {steps - 1} issues: one step per cycle, so {steps} cycles a tile"],
        [arrive, "", f"the sum of k = 0 enters the accumulators of tile 0, one cycle later those "
         f"of tile {hops}"],
        [drain, "`drain`", f"`DRAIN`: {last} + {t.matmul_to_drain}, the earliest cycle that sees "
         "the last sum"],
        [acc - t.mem_read, "`r1`", "`READ`: the multipliers of the output channels"],
        [acc, "`vxm`", "`MAC a=ACC b=M1`: both operands are on their streams in this one cycle"],
        [done, "`w2`", f"`WRITE x=VXM`: {acc} + {t.vxm}"],
        [again, "`r2`", "`READ`: the vector is there for the next pass"],
        [again + t.mem_read, "", "it is on `M2`"]]
    return table(["cycle", "queue", "what happens"], rows)


def _spans(compiled, row: int) -> list:
    """``(begin, end, task)`` of one layer, from its first issue on, in order."""
    program, times = compiled.lowered.program, compiled.schedules[row]
    begin = min(times.body)
    return sorted(((start - begin, max(start - begin + use.offset(row + 1) + use.span(row + 1)
                                       for use in task.uses) + 1, task)
                   for task, start in zip(program.body, times.body)), key=lambda span: span[:2])


def _layer() -> str:
    compiled = flagship().compiled
    first, last = compiled.schedules[0], compiled.schedules[-1]
    rows = []
    for phase in COLOURS:
        cells = [phase]
        for row in (0, len(compiled.schedules) - 1):
            spans = [span for span in _spans(compiled, row) if phase_of(span[2].name) == phase]
            busy = sum(use.n1(row + 1) * use.n2(row + 1) for _, _, task in spans
                       for use in task.uses if use.queue == "mxm")
            cells += [f"{min(s[0] for s in spans)} .. {max(s[1] for s in spans)}",
                      str(busy) if busy else "-"]
        rows.append(cells)
    positions = compiled.config.columns
    rows.append(["the whole layer", f"{first.period}", "", f"{last.period}", ""])
    for column, row in ((2, 0), (4, len(compiled.schedules) - 1)):
        rows[-1][column] = str(sum(int(cells[column]) for cells in rows[:-1]
                                   if cells[column] != "-"))
    return table(["phase", f"cycles, positions 0 to {positions - 1}", "MXM busy",
                  f"cycles, positions {(len(compiled.schedules) - 1) * positions} to "
                  f"{compiled.model.context - 1}", "MXM busy"], rows)


def _step() -> str:
    compiled = flagship().compiled
    row = compiled.schedules[0]
    layers, prompt = compiled.lowered.program.layers, compiled.predicted(0, True)
    start = min(row.body)
    rows = [[f"0 .. {FIRST_ISSUE - 1}", "the queues fetch"],
            [f"{FIRST_ISSUE} .. {start - 1}", "embedding, RoPE factors of the position"],
            *[[f"{start + layer * row.period} .. {start + (layer + 1) * row.period - 1}",
               f"layer {layer}"] for layer in range(layers)],
            [f"{start + layers * row.period} .. {compiled.predicted(0) - 1}",
             "final norm, logits, sampling; a prompt step ends after "
             f"{prompt:,} cycles instead"]]
    return table(["cycles", "what"], rows)


def page() -> str:
    """``docs/layer.svg``: issues of every queue in one layer."""
    compiled = flagship().compiled
    queues = [queue for queue in compiled.config.queues if queue != "sample"]
    left, top, lane, width = 70, 62, 20, 900
    period = compiled.schedules[0].period
    end = max(span[1] for span in _spans(compiled, 0))
    scale = width / end
    drawing = Drawing(left + width + 20, top + lane * len(queues) + 40,
                      "One decoder layer: what every queue issues on which cycle")
    drawing.text(left, 22, f"One decoder layer at position 0: {period} cycles from layer to layer",
                 True, anchor="start", size=14)
    at = left
    for phase, colour in COLOURS.items():
        drawing.bar(at, 34, 10, 10, colour)
        drawing.text(at + 14, 43, phase, anchor="start", size=11.5)
        at += 30 + 6.4 * len(phase)
    for number, queue in enumerate(queues):
        y = top + lane * number
        drawing.text(left - 10, y + 14, queue, anchor="end", size=11.5)
        drawing.bar(left, y + 1, width, lane - 3, "#f3f5f7")
    for cycle in range(0, end, 50):
        x = left + cycle * scale
        drawing.text(x, top + lane * len(queues) + 18, str(cycle), size=11)
    for begin, _, task in _spans(compiled, 0):
        base = begin - min(use.offset(1) for use in task.uses)
        for use in task.uses:
            y = top + lane * queues.index(use.queue)
            for x, length in _issues(use):
                drawing.bar(left + (base + use.offset(1) + x) * scale, y + 1,
                            max(1.0, length * scale), lane - 3, COLOURS[phase_of(task.name)],
                            f"{queue_label(use)}, {task.name}, cycle {base + use.offset(1) + x}")
    return drawing.svg()


def queue_label(use) -> str:
    return f"{use.queue} {use.instruction.op}"


def _issues(use):
    """``(first, length)`` of runs of issues on consecutive cycles."""
    cycles = [i * ((use.n1(1) - 1) * use.d1 + use.d2) + j * use.d1
              for i in range(use.n2(1)) for j in range(use.n1(1))]
    runs = []
    for cycle in cycles:
        if runs and cycle == sum(runs[-1]):
            runs[-1][1] += 1
        else:
            runs.append([cycle, 1])
    return runs


def blocks() -> dict:
    """Blocks of ``docs/architecture.md``."""
    return {"instruction": _instruction(), "layer": _layer(), "step": _step()}
