"""The assembler: text to image. `compiler.disasm` is its inverse.

A line is a directive, a label or an instruction; ``;`` begins a comment::

    .profile tiny mem_stages=1      ; the machine: a profile, with fields changed
    .row * counts=3,0,0,0 generate=120 prompt=90   ; cycles of a step; * is every row
    .param vxm * 7 9                ; delay parameters of a queue, from column 0
    .pattern 0 1 0 3 2 5 4 7 z      ; source lanes of a permutation; z gives 0
    .const 4 100 -200 300           ; a word of the constant SRAM; lanes left out are 0
    .weights 0 1 2 3                ; bytes of the weight banks from word 0, row after row
    .meta title "a demonstration"   ; a JSON value for people and tools
    .let sums first_issue+const_read+matmul_to_drain   ; a name for a cycle
    .queue vxm
    again:
        MAC wait=5 n1=4 a=ACC b=CONST post=12
        MAC at=sums+drain n1=#0 a=ACC      ; as often as count register 0 says
        LOOP n1=5 d1=again s1=4 wait=$P1   ; back to the label; delay parameter 1
        END

Streams, orders and indices go by name. ``wait`` counts from the last issue before; ``at`` is the
cycle in the step and needs everything before it to be known. Both, counts, gaps and delay parameters
may be sums and differences of numbers, names of ``.let``, and latencies of `arch.timing` (with
``first_issue`` and ``loop_wait``), so that a program fits machines with other pipelines as well. A
line that ends in ``\\`` goes on. A queue that the text does not name ends at once; ``.bare`` leaves
such queues without program.
"""
import dataclasses
import json
import re

from arch.config import PROFILES, ConfigError
from arch.image import Image
from arch.isa import (COUNT_REGISTERS, END_ALWAYS, END_IF_PROMPT, Control, Index, Instruction,
                      IsaError, Order, encode, op_code, unit_of, word_bits)
from arch.queues import Stream
from arch.timing import FIRST_ISSUE
from compiler.asm_tables import Tables, number
from compiler.errors import MetronomeError

#: Names that stand for numbers, by field.
NAMES = {"order": Order, "index": Index}
NAMES |= {field: Stream for field in ("x", "x0", "x1", "a", "b", "c")}
END_NAMES = {"ALWAYS": END_ALWAYS, "PROMPT": END_IF_PROMPT}
_LABEL = re.compile(r"([A-Za-z_]\w*):$")


class AsmError(MetronomeError):
    """Text that is no program; the message begins with the line number."""

    def __init__(self, line: int, message: str):
        super().__init__(f"line {line}: {message}")
        self.line = line


@dataclasses.dataclass
class _Section:
    """A queue under construction. ``cursor`` is the cycle of the last issue so far, ``firsts`` those
    of the first issue of every instruction; None where a cycle is not known."""
    words: list = dataclasses.field(default_factory=list)
    labels: dict = dataclasses.field(default_factory=dict)
    cursor: int | None = 0
    firsts: list = dataclasses.field(default_factory=list)


class _Assembler(Tables):
    """Sections of instructions, besides the tables."""

    def __init__(self):
        super().__init__()
        self.sections, self.queue, self.bare = {}, None, False

    def queue_(self, name):
        unit_of(name)
        if name not in self.config.queues:
            raise ValueError(f"the machine has no queue {name!r}; it has "
                             f"{', '.join(self.config.queues)}")
        if name in self.sections:
            raise ValueError(f"queue {name} appears twice")
        self.queue = name
        self.sections[name] = _Section()

    def word(self, value):
        """An instruction word as it is."""
        section, bits = self.section(), word_bits(unit_of(self.queue), self.config)
        [word] = self.numbers([value], 0, (1 << bits) - 1, 1, "word")
        section.words.append(word)
        section.firsts.append(None)
        section.cursor = None

    def section(self):
        if self.queue is None:
            raise ValueError("an instruction outside a queue; put .queue NAME before it")
        section = self.sections[self.queue]
        if len(section.words) >= self.config.depth_of(self.queue):
            raise ValueError(f"queue {self.queue} is full: its program memory holds "
                             f"{self.config.depth_of(self.queue)} instructions")
        return section

    # Instructions.

    def instruction(self, op, *texts):
        section = self.section()
        op_code(unit_of(self.queue), op)
        fields, at = {}, None
        for text in texts:
            key, equals, value = text.partition("=")
            if key in fields or key == "at" and at is not None:
                raise ValueError(f"{key} is given twice")
            if not equals:
                raise ValueError(f"{text!r} must be FIELD=VALUE")
            if key == "at":
                at = self.cycles(value, key)
            else:
                fields |= self.field(section, op, key, value)
        if at is not None:
            if "wait" in fields:
                raise ValueError("wait and at exclude each other")
            if section.cursor is None:
                raise ValueError("at needs a known cycle; parameters, count registers or raw "
                                 "words come before it: use wait")
            fields["wait"] = at - section.cursor
            if fields["wait"] < 1:
                raise ValueError(f"cycle {at} is too early, the instruction before issues last "
                                 f"on cycle {section.cursor}")
        instruction = Instruction(op, fields)
        section.words.append(encode(self.queue, instruction, self.config))
        self.advance(section, instruction)

    def field(self, section, op, key, value):
        """Field values that ``key=value`` stands for."""
        if value.startswith("$P") and key == "wait":
            return {"wait": number(value[2:], "parameter"), "wait_param": 1}
        if value.startswith("#") and key in ("n1", "n2"):
            register = number(value[1:], "count register")
            if not 0 <= register < COUNT_REGISTERS:
                raise ValueError(f"count register must be 0 to {COUNT_REGISTERS - 1}, "
                                 f"not {register}")
            return {key: register, f"{key}_param": 1}
        if op == "LOOP" and key == "d1" and value in section.labels:
            return {key: len(section.words) - section.labels[value]}
        if op == "END" and key == "n1" and value in END_NAMES:
            return {key: END_NAMES[value]}
        if key in NAMES and value in NAMES[key].__members__:
            return {key: int(NAMES[key][value])}
        if op == "LOOP" and key == "d1" and value.isidentifier():
            raise ValueError(f"no label {value!r} before this line in queue {self.queue}")
        if key in NAMES and value.isidentifier():
            raise ValueError(f"{key} must be one of {', '.join(NAMES[key].__members__)}, "
                             f"not {value}")
        return {key: self.cycles(value, key)}

    def advance(self, section, instruction):
        """Follow the cycle of the last issue as long as it is known."""
        known = not any(instruction[f"{name}_param"] for name in ("wait", "n1", "n2"))
        before, wait = section.cursor, instruction["wait"]
        if instruction.op == "LOOP":
            begin = len(section.firsts) - instruction["d1"]
            first = section.firsts[begin] if begin >= 0 and known else None
            section.firsts.append(None)
            if before is None or first is None:
                section.cursor = None
            else:
                section.cursor += (instruction["n1"] - 1) * (wait + before - first)
            return
        first = before + wait if known and before is not None else None
        section.firsts.append(first)
        if first is None or instruction.op in Control.__members__:
            section.cursor = first
            return
        period = (instruction["n1"] - 1) * instruction["d1"]
        section.cursor = first + period + (instruction["n2"] - 1) * (period + instruction["d2"])

    # Lines.

    def line(self, text):
        words = split(text)
        if not words:
            return
        head, *rest = words
        label = _LABEL.match(head)
        if head.startswith("."):
            self.directive(head, rest, text)
        elif label:
            section = self.section()
            if label[1] in section.labels:
                raise ValueError(f"label {label[1]!r} appears twice in queue {self.queue}")
            section.labels[label[1]] = len(section.words)
            if rest:
                self.instruction(*rest)
        else:
            self.instruction(head, *rest)

    def directive(self, head, rest, text):
        if head == ".bare":
            self.bare = True
            return
        directives = {".profile": (self.profile, 1, None), ".config": (self.config_, 1, None),
                      ".row": (self.row, 1, None), ".param": (self.param, 2, None),
                      ".pattern": (self.pattern, 1, None), ".const": (self.const, 1, None),
                      ".weights": (self.weights_, 1, None), ".let": (self.let, 2, 2),
                      ".extra": (self.extra_, 4, 4),
                      ".queue": (self.queue_, 1, 1), ".word": (self.word, 1, 1)}
        if head == ".meta":
            _, key, value = [*text.split(None, 2), "", ""][:3]
            try:
                self.meta[key] = json.loads(value)
            except json.JSONDecodeError as error:
                raise ValueError(f".meta takes a name and a JSON value: {error}") from None
            return
        if head not in directives:
            raise ValueError(f"no directive {head}; there are "
                             f"{', '.join([*directives, '.meta', '.bare'])}")
        if self.config is None and head not in (".profile", ".config"):
            raise ValueError(f"put .profile NAME first; there are {', '.join(PROFILES)}")
        function, least, most = directives[head]
        if len(rest) < least or most is not None and len(rest) > most:
            raise ValueError(f"{head} takes {least}{' or more' if most is None else ''} words, "
                             f"not {len(rest)}")
        function(*rest)

    def program(self) -> dict:
        """Instruction words by queue."""
        words = {queue: section.words for queue, section in self.sections.items()}
        if not self.bare:
            end = Instruction("END", {"wait": FIRST_ISSUE})
            words |= {queue: [encode(queue, end, self.config)] for queue in self.config.queues
                      if queue not in words}
        return words


def split(text: str) -> list:
    """Words of a line without its comment."""
    return text.split(";", 1)[0].split()


def assemble(text: str) -> Image:
    """The image that a text describes.

    Raises
    ------
    AsmError
        With the line number, what is wrong there and what would help.
    """
    assembler = _Assembler()
    kept, first = "", 0
    for line, part in enumerate(text.splitlines(), 1):
        first = first if kept else line
        code = part if part.lstrip().startswith(".meta") else part.split(";", 1)[0].rstrip()
        if code.endswith("\\"):
            kept += code[:-1] + " "
            continue
        try:
            assembler.line(kept + code)
        except (ValueError, ConfigError, IsaError, TypeError) as error:
            raise AsmError(first, str(error)) from None
        kept = ""
    if kept:
        raise AsmError(first, "the text ends in the middle of a line that goes on")
    if assembler.config is None:
        raise AsmError(1, f"put .profile NAME first; there are {', '.join(PROFILES)}")
    return assembler.image(assembler.program())
