"""The assembler: text to image. `compiler.disasm` is its inverse.

A line is a directive, a label or an instruction; ``;`` begins a comment::

    .profile tiny mem_stages=1      ; the machine: a profile, with fields changed
    .row * counts=3,0,0,0 generate=120 prompt=90   ; cycles of a step; * is every row
    .param vxm * 7 9                ; delay parameters of a queue, from column 0
    .pattern 0 1 0 3 2 5 4 7 z      ; source lanes of a permutation; z gives 0
    .const 4 100 -200 300           ; a word of the constant SRAM; lanes left out are 0
    .weights 0 1 2 3                ; bytes of the weight banks from word 0, row after row
    .meta title "a demonstration"   ; a JSON value for people and tools
    .queue vxm
    again:
        MAC wait=5 n1=4 a=ACC b=CONST post=12
        MAC at=60 n1=#0 a=M0 c=RED  ; on cycle 60; as often as count register 0 says
        LOOP n1=5 n2=again s2=4 wait=$P1   ; back to the label; delay parameter 1
        END

Streams, orders and indices go by name. ``wait`` counts from the last issue before; ``at`` is the
cycle in the step and needs everything before it to be known. A line that ends in ``\\`` goes on. A
queue that the text does not name ends at once; ``.bare`` leaves such queues without program.
"""
import base64
import dataclasses
import json
import re

import numpy as np

from arch.config import PROFILES, Config, ConfigError, profile
from arch.image import Image
from arch.isa import (COUNT_REGISTERS, END_ALWAYS, END_IF_PROMPT, Control, Index, Instruction,
                      IsaError, Order, encode, op_code, unit_of, word_bits)
from arch.queues import QUEUES, Stream
from arch.timing import FIRST_ISSUE
from compiler.errors import MetronomeError

#: Names that stand for numbers, by field.
NAMES = {"order": Order, "index": Index}
NAMES |= {field: Stream for field in ("x", "x0", "x1", "a", "b", "c")}
END_NAMES = {"ALWAYS": END_ALWAYS, "PROMPT": END_IF_PROMPT}
ROW_FIELDS = ("counts", "generate", "prompt")
_LABEL = re.compile(r"([A-Za-z_]\w*):$")


class AsmError(MetronomeError):
    """Text that is no program; the message begins with the line number."""

    def __init__(self, line: int, message: str):
        super().__init__(f"line {line}: {message}")
        self.line = line


@dataclasses.dataclass
class _Section:
    """A queue under construction. ``cursor`` is the cycle of the last issue, None if unknown;
    ``times`` holds it before each instruction, ``firsts`` the first issue of each."""
    words: list = dataclasses.field(default_factory=list)
    labels: dict = dataclasses.field(default_factory=dict)
    cursor: int | None = 0
    firsts: list = dataclasses.field(default_factory=list)


def number(text: str, what: str) -> int:
    """An integer, decimal or with a prefix 0x or 0b."""
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError(f"{what} must be an integer, not {text!r}") from None


class _Assembler:
    def __init__(self):
        self.config = None
        self.sections, self.queue = {}, None
        self.params, self.rows, self.patterns, self.constants = {}, {}, {}, {}
        self.weights, self.meta, self.extra, self.bare = {}, {}, {}, False

    # Directives.

    def profile(self, name, *fields):
        self.machine(profile(name), fields)

    def config_(self, name, *fields):
        self.machine(Config(name=name), fields)

    def machine(self, config, fields):
        if self.config is not None:
            raise ValueError("a second .profile: a program is for one machine")
        known = [entry.name for entry in dataclasses.fields(Config)
                 if entry.name not in ("name", "program_depth")]
        changes, depths = {}, {}
        for field in fields:
            key, _, value = field.partition("=")
            if key in QUEUES or key == "*":
                depths[key] = number(value, key)
            elif key in known:
                changes[key] = number(value, key)
            else:
                raise ValueError(f"no machine field {key!r}; there are {', '.join(known)}")
        if depths:
            # With the default depth given, the list is complete.
            kept = {} if "*" in depths else dict(config.program_depth)
            changes["program_depth"] = tuple((kept | depths).items())
        self.config = config.replace(**changes)

    def numbers(self, texts, low, high, most, what):
        values = [number(text, what) for text in texts]
        for value in values:
            if not low <= value <= high:
                raise ValueError(f"{what} must be {low} to {high}, not {value}")
        if len(values) > most:
            raise ValueError(f"{len(values)} values, {most} fit")
        return values

    def row_numbers(self, text):
        rows = self.config.param_rows
        if text == "*":
            return range(rows)
        return self.numbers([text], 0, rows - 1, 1, "row")

    def row(self, which, *fields):
        given = {}
        for field in fields:
            key, _, value = field.partition("=")
            if key not in ROW_FIELDS:
                raise ValueError(f"no row field {key!r}; there are {', '.join(ROW_FIELDS)}")
            most = COUNT_REGISTERS if key == "counts" else 1
            given[key] = self.numbers(value.split(","), 0, 0xFFFF, most, key)
        for row in self.row_numbers(which):
            values = self.rows.setdefault(row, [0] * 6)
            counts = given.get("counts", ())
            values[:len(counts)] = counts
            values[4:5] = given.get("generate", values[4:5])
            values[5:6] = given.get("prompt", values[5:6])

    def param(self, queue, which, *values):
        unit_of(queue)
        numbers = self.numbers(values, 0, 0xFFFF, self.config.param_columns, "delay")
        for row in self.row_numbers(which):
            self.params.setdefault(queue, {})[row] = numbers

    def pattern(self, which, *values):
        [entry] = self.numbers([which], 0, self.config.patterns - 1, 1, "pattern")
        values = [-1 if value == "z" else value for value in values]
        lanes = self.config.lanes
        numbers = self.numbers(map(str, values), -1, lanes - 1, lanes, "lane")
        self.patterns[entry] = numbers + list(range(len(numbers), lanes))

    def const(self, which, *values):
        [word] = self.numbers([which], 0, self.config.const_depth - 1, 1, "word")
        numbers = self.numbers(values, -32768, 32767, self.config.lanes, "constant")
        self.constants[word] = numbers + [0] * (self.config.lanes - len(numbers))

    def weights_(self, which, *values):
        [word] = self.numbers([which], 0, self.config.weight_depth - 1, 1, "word")
        size = self.config.rows * self.config.columns
        most = (self.config.weight_depth - word) * size
        numbers = self.numbers(values, -128, 127, most, "weight")
        numbers += [0] * (-len(numbers) % size)
        for offset in range(0, len(numbers), size):
            self.weights[word + offset // size] = numbers[offset:offset + size]

    def extra_(self, name, dtype, shape, data):
        sizes = tuple(int(size) for size in shape.split(",") if size)
        self.extra[name] = np.frombuffer(base64.b64decode(data), dtype).reshape(sizes)

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
                at = number(value, key)
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
        if op == "LOOP" and key == "n2" and value in section.labels:
            return {key: len(section.words) - section.labels[value]}
        if op == "END" and key == "n1" and value in END_NAMES:
            return {key: END_NAMES[value]}
        if key in NAMES and value in NAMES[key].__members__:
            return {key: int(NAMES[key][value])}
        if op == "LOOP" and key == "n2" and value.isidentifier():
            raise ValueError(f"no label {value!r} before this line in queue {self.queue}")
        if key in NAMES and value.isidentifier():
            raise ValueError(f"{key} must be one of {', '.join(NAMES[key].__members__)}, "
                             f"not {value}")
        return {key: number(value, key)}

    def advance(self, section, instruction):
        """Follow the cycle of the last issue as long as it is known."""
        known = not any(instruction[f"{name}_param"] for name in ("wait", "n1", "n2"))
        before, wait = section.cursor, instruction["wait"]
        if instruction.op == "LOOP":
            begin = len(section.firsts) - instruction["n2"]
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
                      ".weights": (self.weights_, 1, None), ".extra": (self.extra_, 4, 4),
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

    def image(self):
        config = self.config
        program = {queue: section.words for queue, section in self.sections.items()}
        if not self.bare:
            end = Instruction("END", {"wait": FIRST_ISSUE})
            program |= {queue: [encode(queue, end, config)] for queue in config.queues
                        if queue not in program}
        params = {}
        for queue, table in self.params.items():
            columns = max(map(len, table.values()))
            params[queue] = np.zeros((max(table) + 1, columns), np.int64)
            for row, values in table.items():
                params[queue][row, :len(values)] = values
        size = (config.rows, config.columns)
        return Image(config, program, params,
                     _table(self.rows, [0] * 6, np.int64).reshape(-1, 6),
                     _table(self.patterns, list(range(config.lanes)), np.int64
                            ).reshape(-1, config.lanes),
                     _table(self.constants, [0] * config.lanes, np.int16
                            ).reshape(-1, config.lanes),
                     _table(self.weights, [0] * (size[0] * size[1]), np.int8).reshape(-1, *size),
                     self.meta, self.extra)


def _table(words, missing, dtype):
    """Words 0 to the highest given, those between filled."""
    count = max(words, default=-1) + 1
    return np.array([words.get(word, missing) for word in range(count)], dtype)


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
    return assembler.image()
