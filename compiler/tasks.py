"""The compiler's intermediate form: tasks, each a rigid bundle of instructions.

A task starts on one cycle and touches every queue through `Use`: an instruction at a fixed offset.
Offsets, like counts, may grow with n, the number of KV tiles in use, so one list of tasks describes
every row. Tasks exchange values only through memories, never through streams, so that the
scheduler is free to move them; what they touch is declared as `Touch`.
"""
import dataclasses
import functools

from arch.isa import Instruction
from arch.queues import QUEUES, shares_wires


@dataclasses.dataclass(frozen=True)
class Affine:
    """``base + per_n * n``: a count or a time that depends on the KV tiles in use."""
    base: int
    per_n: int = 0

    def __call__(self, n: int) -> int:
        return self.base + self.per_n * n

    def __add__(self, other):
        other = affine(other)
        return Affine(self.base + other.base, self.per_n + other.per_n)

    def __sub__(self, other):
        other = affine(other)
        return Affine(self.base - other.base, self.per_n - other.per_n)

    def __mul__(self, factor: int):
        return Affine(self.base * factor, self.per_n * factor)


def affine(value) -> Affine:
    """An int or `Affine` as `Affine`."""
    return value if isinstance(value, Affine) else Affine(value)


#: n itself.
N = Affine(0, 1)


@dataclasses.dataclass(frozen=True)
class Use:
    """One instruction of a task.

    Parameters
    ----------
    queue : str
    offset : Affine
        First issue, relative to the start of the task.
    instruction : Instruction
        Without ``wait``; counts that depend on n are given below and replaced on emission.
    n1, n2 : Affine
    d1, d2 : int
        d2 may be `Affine` only where n2 is 1.
    label : str
        What a MEM write stores, for checks and the schedule viewer.
    first : int
        Index of the first vector under that label; vector j of the write is ``first + j``.
    """
    queue: str
    offset: Affine
    instruction: Instruction
    n1: Affine = Affine(1)
    n2: Affine = Affine(1)
    d1: int = 1
    d2: int = 1
    label: str = ""
    first: int = 0

    def span(self, n: int) -> int:
        """Cycles from the first to the last issue."""
        inner = (self.n1(n) - 1) * self.d1
        return self.n2(n) * inner + (self.n2(n) - 1) * self.d2


READ, WRITE, ADD = "read", "write", "add"


@dataclasses.dataclass(frozen=True)
class Touch:
    """Words of a memory that a task reads or writes, in effective time.

    A read may begin once every write of the word has ended; a write may begin once every read has
    ended. Effective times have the latencies of `arch.timing` added already.

    Parameters
    ----------
    space : str
        Bank name ("m0"), "acc", "k", "v": any name that tells memories apart.
    word, stride, count : int, int, Affine
    mode : str
        `READ`, `WRITE`, or `ADD` (changes part of the word, or adds to it: order among several
        does not matter to the readers, who wait for all).
    begin, end : Affine
        Of word 0, relative to the start of the task.
    gap : int
        Later by this for each further word.
    ring : int
        Words wrap around after so many; 0: they do not.
    """
    space: str
    word: int
    count: Affine
    mode: str
    begin: Affine
    end: Affine
    gap: int = 1
    stride: int = 1
    ring: int = 0

    def each(self, n: int):
        """``(resource, begin, end)`` of every word."""
        for j in range(self.count(n)):
            word = self.word + j * self.stride
            yield ((self.space, word % self.ring if self.ring else word),
                   self.begin(n) + j * self.gap, self.end(n) + j * self.gap)


@dataclasses.dataclass(frozen=True)
class Task:
    """A rigid bundle: its uses in order of offset, what it touches, and the MACs that count."""
    name: str
    uses: tuple
    touches: tuple

    def stores(self, n: int) -> list:
        """``(cycle, stream)`` of what the MEM banks share wires for, relative to the start.

        That is what `arch.queues.shares_wires` says.
        """
        if n not in self._stores:
            assert all(use.n2(n) == 1 for use in self.uses if use.instruction.op == "WRITE")
            self._stores[n] = sorted({
                (use.offset(n) + j * use.d1, use.instruction["x"]) for use in self.uses
                if use.instruction.op == "WRITE"
                and shares_wires(use.instruction["x"], QUEUES[use.queue].bank)
                for j in range(use.n1(n))})
        return self._stores[n]

    @functools.cached_property
    def _stores(self) -> dict:
        """What `stores` has found, by n."""
        return {}

    def normalised(self) -> "Task":
        """The same task with its earliest offset at 0. Offsets that grow with n come later."""
        shift = min(use.offset.base for use in self.uses)
        return Task(self.name,
                    tuple(dataclasses.replace(use, offset=use.offset - shift)
                          for use in self.uses),
                    tuple(dataclasses.replace(touch, begin=touch.begin - shift,
                                              end=touch.end - shift)
                          for touch in self.touches))


@dataclasses.dataclass(frozen=True)
class Section:
    """Tasks that run ``rounds`` times; ``strides`` is the step of the base address by queue."""
    tasks: tuple
    rounds: int = 1
    strides: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Program:
    """Tasks of one step: before the layers, of one layer (repeated), and after the last.

    ``strides`` gives the step of the base address per layer and queue. ``tail`` holds the sections
    behind the epilogue, which only a generate step has, like the epilogue.
    """
    prologue: tuple
    body: tuple
    epilogue: tuple
    layers: int
    strides: dict
    tail: tuple = ()


def make_use(queue, op, offset, n1=1, n2=1, d1=1, d2=1, label="", first=0, **fields) -> Use:
    """A `Use` from plain values."""
    return Use(queue, affine(offset), Instruction(op, fields), affine(n1), affine(n2), d1, d2,
               label, first)
