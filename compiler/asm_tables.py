"""Tables of a program in assembler text: the machine, rows, parameters, constants, weights.

A part of `compiler.asm`, whose docstring shows the syntax.
"""
import base64
import dataclasses
import re

import numpy as np

from arch.config import Config, profile
from arch.image import Image
from arch.isa import COUNT_REGISTERS, unit_of
from arch.queues import QUEUES
from arch.timing import FIRST_ISSUE, LOOP_WAIT_MIN, timing

ROW_FIELDS = ("counts", "generate", "prompt")


def number(text: str, what: str) -> int:
    """An integer, decimal or with a prefix 0x or 0b."""
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError(f"{what} must be an integer, not {text!r}") from None


_TERM = re.compile(r"([+-]?)([^+-]+)")


class Tables:
    """What the directives give; methods take the words of a line and raise ValueError."""

    def __init__(self):
        self.config = None
        self.names = {}
        self.params, self.rows, self.patterns, self.constants = {}, {}, {}, {}
        self.weights, self.meta, self.extra = {}, {}, {}

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
        self.names = dataclasses.asdict(timing(self.config)) | {
            "first_issue": FIRST_ISSUE, "loop_wait": LOOP_WAIT_MIN}

    def let(self, name, value):
        """A name for a sum; latencies keep theirs."""
        if not name.isidentifier():
            raise ValueError(f".let needs a name, not {name!r}")
        if name in self.names:
            raise ValueError(f"{name!r} has a meaning already")
        self.names[name] = self.cycles(value, name)

    def cycles(self, text: str, what: str) -> int:
        """A sum or difference of integers and names."""
        if "".join("".join(term) for term in _TERM.findall(text)) != text or not text:
            raise ValueError(f"{what} must be an integer or a sum, not {text!r}")
        total = 0
        for sign, term in _TERM.findall(text):
            value = self.names.get(term)
            if value is None:
                if term.isidentifier():
                    raise ValueError(f"{what}: no name {term!r}; .let makes one, and the latencies "
                                     f"have theirs: {', '.join(sorted(self.names))}")
                value = number(term, what)
            total += -value if sign == "-" else value
        return total

    def numbers(self, texts, low, high, most, what, read=number):
        values = [read(text, what) for text in texts]
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
            given[key] = self.numbers(value.split(","), 0, 0xFFFF, most, key, self.cycles)
        for row in self.row_numbers(which):
            values = self.rows.setdefault(row, [0] * 6)
            counts = given.get("counts", ())
            values[:len(counts)] = counts
            values[4:5] = given.get("generate", values[4:5])
            values[5:6] = given.get("prompt", values[5:6])

    def param(self, queue, which, *values):
        unit_of(queue)
        numbers = self.numbers(values, 0, 0xFFFF, self.config.param_columns, "delay", self.cycles)
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

    def image(self, program: dict) -> Image:
        """The image, with the given instruction words by queue."""
        config = self.config
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
