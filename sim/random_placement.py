"""Instructions with times by row, and how they become the words of a queue.

Parts of `sim.random_program`: a count may be a count register, so that every time is an array over
the rows of the machine; waits that differ between the rows become delay parameters.
"""
import dataclasses
import random

import numpy as np

from arch.config import Config
from arch.isa import COUNT_REGISTERS, Index, Instruction, encode
from arch.queues import QUEUES, Stream, shares_wires
from arch.timing import FIRST_ISSUE, timing

#: Longest wait that an instruction can hold is 1023; a NOP takes up to this.
NOP_WAIT = 500


class NoRoom(Exception):
    """A placement does not fit; it is given up."""


@dataclasses.dataclass(frozen=True)
class Count:
    """A count: its value by row and, if it is one, the number of the count register."""
    values: np.ndarray
    register: int | None = None

    def fields(self, name: str) -> dict:
        if self.register is None:
            return {name: int(self.values[0])}
        return {name: self.register, f"{name}_param": 1}

    @property
    def most(self) -> int:
        return int(self.values.max())


@dataclasses.dataclass(frozen=True)
class Pattern:
    """When an instruction issues, relative to its first issue."""
    n1: Count
    d1: int
    n2: Count
    d2: int

    @property
    def period(self) -> np.ndarray:
        return (self.n1.values - 1) * self.d1 + self.d2

    @property
    def span(self) -> np.ndarray:
        """Cycles from the first to the last issue, by row."""
        return (self.n2.values - 1) * self.period + (self.n1.values - 1) * self.d1

    @property
    def flat(self) -> bool:
        """Whether formats without outer repeats can issue it."""
        return self.n2.most == 1 and self.n2.register is None

    def cycles(self, row: int) -> np.ndarray:
        i, j = np.mgrid[:self.n2.values[row], :self.n1.values[row]]
        return (i * self.period[row] + j * self.d1).ravel()


@dataclasses.dataclass
class Item:
    """An instruction in a block; ``start`` is by row, from the begin of the block."""
    queue: str
    op: str
    fields: dict
    pattern: Pattern
    start: np.ndarray

    @property
    def last(self) -> np.ndarray:
        return self.start + self.pattern.span


class Block:
    """Instructions that are placed together.

    ``rounds`` is how often it runs (a loop if more than once), ``steps`` by how much LOOP moves the
    base of each queue, ``busy`` the reserved cycles of streams that two units share, ``carried`` the
    stream that MEM banks write by row and cycle.
    """

    def __init__(self, rounds: Count, steps: dict):
        self.rounds, self.steps = rounds, steps
        self.items, self.busy, self.carried, self.effects = [], set(), {}, 0

    def base(self, queue: str) -> tuple:
        """Lowest and highest base that the rounds give."""
        last = self.steps.get(queue, 0) * (self.rounds.most - 1)
        return min(0, last), max(0, last)

    def of(self, queue: str) -> list:
        """Instructions of a queue, in order."""
        return sorted((item for item in self.items if item.queue == queue),
                      key=lambda item: item.start[0])

    @property
    def length(self) -> np.ndarray:
        """Cycles until nothing of it is under way, by row."""
        ends = [item.last for item in self.items]
        return np.max(ends, axis=0) + self.effects + 4


class Placer:
    """Draws numbers and places instructions in the current block.

    Parameters
    ----------
    config : Config
    seed : int
    """

    def __init__(self, config: Config, seed: int):
        self.config, self.timing = config, timing(config)
        self.random = random.Random(seed)
        rows = config.param_rows
        self.counts = np.array([[self.random.randrange(1, 4) for _ in range(COUNT_REGISTERS)]
                                for _ in range(rows)])
        self.ones = np.ones(rows, np.int64)
        self.block = None

    # Drawing numbers.

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def pick(self, *values):
        return self.random.choice(values)

    def fixed(self, value: int) -> Count:
        return Count(self.ones * value)

    def count(self, most: int) -> Count:
        """A count of up to ``most``; sometimes a count register."""
        if most >= 3 and self.chance(0.3):
            register = self.random.randrange(COUNT_REGISTERS)
            return Count(self.counts[:, register], register)
        return self.fixed(self.random.randrange(1, most + 1))

    def pattern(self, n2: bool) -> Pattern:
        most = self.pick(1, 1, 2, 4, 6)
        return Pattern(self.count(most), self.pick(1, 1, 1, 2, 4),
                       self.count(self.pick(1, 2, 3)) if n2 else self.fixed(1),
                       self.pick(1, 1, 2, 5))

    def single(self) -> Pattern:
        return Pattern(self.fixed(1), 1, self.fixed(1), 1)

    # Placing.

    def put(self, queue: str, op: str, fields: dict, pattern: Pattern, start, after: int = 0):
        """Place an instruction; ``after`` is how long its effects last behind the last issue."""
        start = np.asarray(start) + 0 * self.ones
        item = Item(queue, op, fields, pattern, start)
        if start.min() < FIRST_ISSUE:
            raise NoRoom
        for other in self.block.items:
            if other.queue == queue:
                gap = self.timing.perm_gap if queue == "perm" else 1
                before = (other.last + gap <= item.start).all()
                if not before and not (item.last + gap <= other.start).all():
                    raise NoRoom
        self.block.items.append(item)
        self.block.effects = max(self.block.effects, after)
        return item

    def reserve(self, stream: Stream, cycles_by_row) -> None:
        """Take cycles of a stream that several units write."""
        wanted = {(stream, row, int(cycle)) for row, cycles in enumerate(cycles_by_row)
                  for cycle in cycles}
        if wanted & self.block.busy:
            raise NoRoom
        self.block.busy |= wanted

    def carry(self, write: Item) -> None:
        """Take the store bus for what a MEM write takes; other banks may write the same."""
        if not shares_wires(write.fields["x"], QUEUES[write.queue].bank):
            return
        for row, start in enumerate(write.start):
            for cycle in start + write.pattern.cycles(row):
                held = self.block.carried.setdefault((row, int(cycle)), write.fields["x"])
                if held != write.fields["x"]:
                    raise NoRoom

    def address(self, queue: str, depth: int, pattern: Pattern, reach: int = 0) -> dict:
        """Address and strides that stay inside a memory; ``reach`` is the most an index adds."""
        low, high = self.block.base(queue)
        n1, n2 = pattern.n1.most - 1, pattern.n2.most - 1
        s1 = self.pick(0, 1, 1, -1, 3, -2)
        s2 = self.pick(0, 1, -1, 5, -4) if n2 else 0
        low += min(0, s1 * n1) + min(0, s2 * n2)
        high += max(0, s1 * n1) + max(0, s2 * n2) + reach
        if high - low >= depth:
            raise NoRoom
        fields = {"address": self.random.randrange(-low, depth - high), "s1": s1}
        return fields | ({"s2": s2} if n2 else {})

    def index(self, room: int) -> tuple:
        """Index fields, and the most that they add (at most ``room``)."""
        index = self.pick(Index.NONE, Index.POSITION, Index.TOKEN)
        largest = {Index.NONE: 0, Index.POSITION: self.config.context - 1,
                   Index.TOKEN: self.config.vocab_max - 1}[index]
        shift = self.random.randrange(16)
        if largest >> shift > room:
            shift = 15
        return {"index": int(index), "index_shift": shift}, largest >> shift

    def attempt(self, function, *arguments) -> bool:
        """Place something with all its producers, or nothing."""
        block = self.block
        kept = list(block.items), set(block.busy), dict(block.carried), block.effects
        try:
            function(*arguments)
            return True
        except NoRoom:
            block.items, block.busy, block.carried, block.effects = kept
            return False


class Writer:
    """Instruction words of one queue.

    Parameters
    ----------
    generator : sim.random_program.Generator
    queue : str
    """

    def __init__(self, generator, queue: str):
        self.generator, self.queue = generator, queue
        self.words, self.columns = [], []
        self.last = 0 * generator.ones

    def wait(self, waits: np.ndarray) -> dict:
        """Wait fields for waits by row."""
        if (waits == waits[0]).all() and not self.generator.chance(0.05):
            return {"wait": int(waits[0])}
        column = waits.tolist()
        if column not in self.columns:
            self.columns.append(column)
        if len(self.columns) > self.generator.config.param_columns:
            raise NoRoom
        return {"wait": self.columns.index(column), "wait_param": 1}

    def word(self, op: str, fields: dict) -> None:
        config = self.generator.config
        if len(self.words) == config.depth_of(self.queue):
            raise NoRoom
        self.words.append(encode(self.queue, Instruction(op, fields), config))

    def emit(self, op: str, fields: dict, first: np.ndarray, nops: bool = True) -> None:
        """An instruction whose first issue is on the cycles ``first``, with NOPs where needed."""
        waits = first - self.last
        while nops and (waits.max() > 1000
                        or waits.min() > 2 * FIRST_ISSUE and self.generator.chance(0.1)):
            most = min(NOP_WAIT, int(waits.min()) - 1)
            part = self.generator.random.randrange(min(FIRST_ISSUE, most), most + 1)
            self.word("NOP", {"wait": part})
            self.last, waits = self.last + part, waits - part
        self.word(op, fields | self.wait(waits))
        self.last = first

    def block(self, block: Block, start: np.ndarray, period: np.ndarray) -> None:
        items = block.of(self.queue)
        if not items:
            return
        for item in items:
            pattern = item.pattern
            fields = dict(item.fields) | pattern.n1.fields("n1") | {"d1": pattern.d1}
            if not pattern.flat:
                fields |= pattern.n2.fields("n2") | {"d2": pattern.d2}
            self.emit(item.op, fields, start + item.start, item is items[0])
            self.last = start + item.last
        if block.rounds.most > 1 or block.rounds.register is not None:
            fields = block.rounds.fields("n1") | {"d1": len(items)}
            if block.steps.get(self.queue):
                fields["s1"] = block.steps[self.queue]
            busy = items[-1].last - items[0].start
            self.word("LOOP", fields | self.wait(period - busy))
            self.last = self.last + (block.rounds.values - 1) * period
