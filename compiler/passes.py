"""Builders of tasks: a vector pass through the VXM, and a matmul, with all their queues.

They know the latencies, so that `compiler.lower` speaks only of buffers and operations.
"""
import dataclasses

from arch.config import Config
from arch.isa import Index
from arch.queues import Stream, mem_stream
from arch.timing import timing
from compiler.layout import Buffer
from compiler.tasks import ADD, READ, WRITE, Affine, Task, Touch, affine, make_use


@dataclasses.dataclass(frozen=True)
class Mem:
    """Vectors ``start, start + stride, ...`` of a buffer; ``period`` vectors repeat, if given."""
    buffer: Buffer
    start: int = 0
    stride: int = 1
    period: int = 0


@dataclasses.dataclass(frozen=True)
class Const:
    """Constants from ``address`` on, with an optional run-time index."""
    address: int
    stride: int = 1
    index: int = 0
    index_shift: int = 0


@dataclasses.dataclass(frozen=True)
class Acc:
    """Accumulators from ``entry`` on."""
    entry: int


@dataclasses.dataclass(frozen=True)
class Perm:
    """Another operand through the lane permutation."""
    operand: object
    pattern: int
    index: int = 0
    index_shift: int = 0


@dataclasses.dataclass(frozen=True)
class ReadOut:
    """Weights of the column of a token or a position: ``groups`` words make a vector."""
    address: int
    stride: int
    index_shift: int
    index: int = int(Index.TOKEN)


class TaskBuilder:
    """Collects the uses and touches of one task, times relative to the VXM issue (or MXM's)."""

    def __init__(self, config: Config, name: str):
        self.config, self.timing, self.name = config, timing(config), name
        self.uses, self.touches = [], []

    def use(self, *args, **fields):
        self.uses.append(make_use(*args, **fields))

    def touch(self, space, word, count, mode, begin, end=None, gap=1, stride=1):
        end = begin if end is None else end
        ring = self.config.accumulators if space == "acc" else 0
        self.touches.append(Touch(space, word, affine(count), mode, affine(begin), affine(end),
                                  gap, stride, ring))

    def done(self) -> Task:
        return Task(self.name, tuple(self.uses), tuple(self.touches)).normalised()

    # Operands: each puts vector j on a stream on cycle at + j*gap and names the stream.

    def operand(self, source, at: int, count, gap: int = 1) -> Stream:
        if source is None:
            return Stream.NONE
        kind = type(source).__name__.lower()
        return getattr(self, f"_from_{kind}")(source, at, affine(count), gap)

    def _from_mem(self, source, at, count, gap):
        issue = at - self.timing.mem_read
        queue, word = f"r{source.buffer.bank}", source.buffer.base + source.start
        space = f"m{source.buffer.bank}"
        if source.period:
            rounds = count(0) // source.period
            assert not count.per_n and rounds * source.period == count(0)
            self.use(queue, "READ", issue, source.period, rounds, gap, gap, address=word, s1=1)
            last = issue + (count(0) - source.period) * gap
            self.touch(space, word, source.period, READ, issue, last, gap)
        elif source.stride == 0:
            self.use(queue, "READ", issue, count, d1=gap, address=word, s1=0)
            self.touch(space, word, 1, READ, issue, (count - 1) * gap + issue)
        else:
            self.use(queue, "READ", issue, count, d1=gap, address=word, s1=source.stride)
            self.touch(space, word, count, READ, issue, gap=gap, stride=source.stride)
        return mem_stream(source.buffer.bank)

    def _from_const(self, source, at, count, gap):
        self.use("const", "READ", at - self.timing.const_read, count, d1=gap,
                 address=source.address, s1=source.stride, index=source.index,
                 index_shift=source.index_shift)
        return Stream.CONST

    def _from_acc(self, source, at, count, gap):
        issue = at - self.timing.drain
        self.use("drain", "DRAIN", issue, count, d1=gap, accumulator=source.entry)
        # An entry is free for a sum that lands after the drain: see timing.drain_to_matmul.
        late = self.timing.drain_to_matmul + self.timing.matmul_to_drain - 1
        self.touch("acc", source.entry, count, READ, issue, issue + late, gap)
        return Stream.ACC

    def _from_perm(self, source, at, count, gap):
        assert gap >= self.timing.perm_gap or count == Affine(1)
        issue = at - self.timing.perm
        stream = self.operand(source.operand, issue, count, gap)
        self.use("perm", "PERM", issue, count, d1=gap, x=int(stream), pattern=source.pattern,
                 index=source.index, index_shift=source.index_shift)
        return Stream.PERM

    def _from_readout(self, source, at, count, gap):
        groups = self.config.groups
        assert gap == groups
        first = at - self.timing.read_out - (groups - 1)
        self.use("kv", "READ_OUT", first, count * groups, address=source.address,
                 s1=source.stride, index=source.index, index_shift=source.index_shift,
                 half0=int(source.index == Index.POSITION))
        return Stream.ACC

    # Results.

    def store(self, stream: Stream, targets, at, count, gap=1, label="", first=0, halves=3,
              stride=1):
        """Write vector j, on ``stream`` on cycle at + j*gap, to every target buffer."""
        at = affine(at)
        for target in targets:
            word = target.buffer.base + target.start
            self.use(f"w{target.buffer.bank}", "WRITE", at, count, d1=gap, label=label,
                     first=first, address=word, s1=target.stride, x=int(stream), halves=halves)
            seen = at + self.timing.mem_write_to_read
            self.touch(f"m{target.buffer.bank}", word, count, WRITE if halves == 3 else ADD,
                       seen, gap=gap, stride=target.stride)

    def reduce(self, op, at, count, target: Mem, post=0, halves=3, label="", first=0):
        """Reduce VXM vectors from cycle ``at`` on; the scalar goes to one word."""
        count = affine(count)
        latency = (self.timing.reduce_function if op in ("RECIP", "RSQRT")
                   else self.timing.reduce)
        self.use("red", op, at, count, x=int(Stream.VXM), post=post)
        self.store(Stream.RED, [target], count - 1 + (at + latency), 1, label=label, first=first,
                   halves=halves)


def vector_pass(config, name, op, count, a, b=None, c=None, *, into=(), label="", first=0, gap=1,
                square=False, reduce=None, tail=None, **fields) -> Task:
    """One VXM instruction with operands and results.

    Parameters
    ----------
    a, b, c : Mem, Const, Acc, Perm, ReadOut or None
    into : list of Mem
        Buffers that store the result.
    square : bool
        b is a again.
    reduce : dict or None
        Arguments of `TaskBuilder.reduce` but ``at`` and ``count``.
    tail : callable or None
        ``tail(builder, at)`` adds further consumers of the VXM stream.
    """
    builder = TaskBuilder(config, name)
    sources = {"a": int(builder.operand(a, 0, count, gap))}
    sources["b"] = sources["a"] if square else int(builder.operand(b, 0, count, gap))
    sources["c"] = int(builder.operand(c, 0, count, gap))
    builder.use("vxm", op, 0, count, d1=gap, **sources, **fields)
    at = builder.timing.vxm
    builder.store(Stream.VXM, into, at, count, gap, label, first)
    if reduce:
        builder.reduce(at=at, count=count, **reduce)
    if tail:
        tail(builder, at)
    return builder.done()


@dataclasses.dataclass(frozen=True)
class Feed:
    """Activations of a matmul: vectors of a buffer from ``start`` on."""
    buffer: Buffer
    start: int = 0


def matmul(config, name, address, feeds, *, order, steps, tiles, s1, s2, accumulator, start=True,
           half0=0, shift=0, cadence=None, touches=()) -> Task:
    """One MATMUL with its activation reads.

    Parameters
    ----------
    feeds : pair of Feed
        Halves 0 and 1; equal feeds are read once.
    order : "inner" or "outer"
        See `arch.isa.Order`. Either ``steps`` or ``tiles`` may be `Affine`, but not with an inner
        order over several tiles.
    steps, tiles : int or Affine
        Length of the reduction in words, and output tiles.
    cadence : int or None
        Cycles per tile when longer than ``steps`` (inner order).
    touches : list of Touch-like tuples
        ``(space, word, count, begin step)``: weight words written at run time.
    """
    builder = TaskBuilder(config, name)
    matmul_uses(builder, 0, address, feeds, order=order, steps=steps, tiles=tiles, s1=s1, s2=s2,
                accumulator=accumulator, start=start, half0=half0, shift=shift, cadence=cadence)
    late = builder.timing.matmul_to_kv_write + builder.timing.kv_write_to_matmul - 1
    for space, word, count, begin in touches:
        begin = affine(begin)
        builder.touch(space, word, count, READ, begin, begin + late)
    return builder.done()


def matmul_uses(builder, at, address, feeds, *, order, steps, tiles, s1, s2, accumulator,
                start=True, half0=0, shift=0, cadence=None):
    """Add a MATMUL whose first step issues on cycle ``at`` to a builder."""
    config, lag = builder.config, builder.timing.matmul_to_drain
    steps, tiles, groups = affine(steps), affine(tiles), config.groups
    vectors = (steps * 1)(0)
    streams = []
    for feed in dict.fromkeys(feeds):
        queue, word = f"r{feed.buffer.bank}", feed.buffer.base + feed.start
        issue = at - builder.timing.mem_read
        if order == "inner" and steps.per_n:
            # Whole vectors: steps is groups * n.
            count = Affine(steps.base // groups, steps.per_n // groups)
            builder.use(queue, "READ", issue, count, d1=groups, address=word, s1=1)
            builder.touch(f"m{feed.buffer.bank}", word, count, READ, issue, gap=groups)
        elif order == "inner":
            assert half0 == 0
            count = -(-vectors // groups)
            pace = max(cadence or 0, vectors)
            rest = pace - (count - 1) * groups
            builder.use(queue, "READ", issue, count, tiles, groups, rest, address=word, s1=1)
            builder.touch(f"m{feed.buffer.bank}", word, count, READ, issue,
                          (tiles - 1) * pace + issue, gap=groups)
        else:
            count = -(-(half0 + vectors) // groups)
            assert count == 1 or (not tiles.per_n and half0 == 0)
            pace = groups * tiles(0) if count > 1 else 1
            builder.use(queue, "READ", issue, 1, count, 1, pace, address=word, s2=1)
            builder.touch(f"m{feed.buffer.bank}", word, count, READ, issue, gap=pace)
    streams = [int(mem_stream(feed.buffer.bank)) for feed in feeds]
    fields = dict(address=address, s1=s1, s2=s2, start=int(start), half0=half0, x0=streams[0],
                  x1=streams[1], shift=shift, accumulator=accumulator)
    mode = WRITE if start else ADD
    if order == "inner":
        pace = max(cadence or 0, steps(0)) if not steps.per_n else 0
        gap = pace - steps(0) + 1 if pace else 1
        builder.use("mxm", "MATMUL", at, steps, tiles, 1, gap, order=0, **fields)
        builder.touch("acc", accumulator, tiles, mode, at + lag, steps - 1 + (at + lag),
                      gap=pace or 1)
    else:
        builder.use("mxm", "MATMUL", at, tiles, steps, 1, 1, order=1, **fields)
        builder.touch("acc", accumulator, tiles, mode, at + lag,
                      tiles * (steps(0) - 1) + (at + lag))
