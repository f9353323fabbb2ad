"""Bench of the lane reduction: sums, maxima and functions of sums, and results that meet."""
import collections

import cocotb
import numpy as np

from arch import numerics
from arch.faults import Fault
from arch.isa import UNITS
from arch.queues import Stream
from hdl.signatures import stream_width, streams_of
from tb.bench import Bench, bench_test
from tb.checker import ANYTHING
from tb.top import CONFIG
from tb.wires import reserved, wired

OPS = tuple(op.name for op in UNITS["red"].ops)
STREAMS, LANES = streams_of(CONFIG), CONFIG.lanes


def result(op, vectors, post) -> int:
    """One value for all lanes of all vectors, from `arch.numerics`."""
    if op == "MAX":
        return max(int(numerics.as_lane(lanes).max()) for lanes in vectors)
    total = sum(int(lanes.sum()) for lanes in vectors)
    if op == "SUM":
        # In plain integers: shifts of 48 and more do not fit numpy.
        return int(numerics.saturate(total + (1 << post >> 1) >> post, 16))
    return int({"RECIP": numerics.recip, "RSQRT": numerics.rsqrt}[op](total, post))


class RedBench(Bench):
    """Schedules instructions; `settle` tells the checkers what they give."""

    def __init__(self, dut):
        super().__init__(dut, "red")
        self.issue, self.streams = self.add_issue("issue", "red"), self.add_streams()
        self.results = self.add_result("o_red", Stream.RED)
        self.faults = self.add_faults("fault")
        self.given = collections.defaultdict(list)

    def latency(self, op):
        return self.time.reduce if op in ("SUM", "MAX") else self.time.reduce_function

    def send(self, cycle, op, vectors, post=0, source=Stream.VXM, gap=1):
        """One instruction; returns the cycle of its last issue."""
        for j, lanes in enumerate(vectors):
            at = cycle + j * gap
            self.streams.put(at, source, lanes)
            self.issue.send(at, op, x=source, post=post, j=j, j_first=j == 0,
                            j_last=j == len(vectors) - 1)
        self.given[at + self.latency(op)].append(result(op, vectors, post))
        return at

    async def settle(self):
        for cycle, values in self.given.items():
            self.results.expect(cycle, np.full(LANES, values[0]) if len(values) == 1 else ANYTHING)
            if len(values) > 1:
                self.faults.expect(cycle, {Fault.COLLISION})
        await self.until(max([self.cycle, *self.given]))
        await self.finish()


@bench_test
async def quiet_after_reset(dut):
    bench = RedBench(dut)
    await bench.start()
    await bench.finish(40)


@bench_test
@cocotb.parametrize(op=OPS)
async def latency(dut, op):
    """One issue alone, and an instruction of three with gaps."""
    bench = RedBench(dut)
    await bench.start()
    bench.send(3, op, [np.arange(LANES) + 5])
    bench.send(30, op, [np.arange(LANES) * 100 - 7, np.full(LANES, 3), np.arange(LANES)], gap=3)
    await bench.settle()
    assert bench.results.seen == 2


#: Operation, value of lane 0, of the others, post and the result, by hand (8 lanes).
BY_HAND = (
    ("SUM", 10, -1, 0, 3), ("SUM", -10, -1, 1, -8), ("SUM", -16, 1, 1, -4),
    ("SUM", 2**31 - 1, 0, 0, 32767), ("SUM", -2**31, -2**31, 0, -32768),
    ("SUM", -2**31, -2**31, 34, -1), ("SUM", 2**31 - 1, 0, 63, 0),
    ("MAX", -5, -9, 7, -5), ("MAX", 3, 2**31 - 1, 0, 3),
    # Of the low 16 bits, -1 and 1.
    ("MAX", -2**31 + 0xFFFF, -2**31 + 1, 0, 1),
    # 1 / 1 is 2**11 (mantissa) * 2**-11, of 12 bits the largest: 4095 with a shift of 12.
    ("RECIP", 1, 0, 0, (4095 << 4 | 12) - 0x10000), ("RECIP", 4, 0, 5, (4095 << 4 | 9) - 0x10000),
    ("RECIP", 0, 0, 3, -16), ("RECIP", -4, 0, 3, -16), ("RSQRT", 0, 0, 0, -16),
    ("RSQRT", 4, 0, 1, (4095 << 4 | 12) - 0x10000),
)


@bench_test
async def by_hand(dut):
    bench = RedBench(dut)
    await bench.start()
    assert LANES == 8
    for number, (op, first, others, post, y) in enumerate(BY_HAND):
        cycle = 3 + 6 * number
        bench.streams.put(cycle, Stream.VXM, [first] + [others] * (LANES - 1))
        bench.issue.send(cycle, op, x=Stream.VXM, post=post)
        bench.results.expect(cycle + bench.latency(op), np.full(LANES, y))
    await bench.finish(6 * len(BY_HAND) + 30)


@bench_test
async def every_source(dut):
    """Each stream while all carry values."""
    bench, rng = RedBench(dut), np.random.default_rng(6)
    await bench.start()
    for cycle, source in enumerate(wired("red", "x"), 2):
        vectors = {stream: rng.integers(-(1 << stream_width(stream) - 1),
                                        1 << stream_width(stream) - 1, LANES) for stream in STREAMS}
        for stream, lanes in vectors.items():
            bench.streams.put(cycle, stream, lanes)
        bench.send(cycle, "SUM", [vectors[source]], post=18, source=source)
    await bench.settle()


@bench_test
async def issue_faults(dut):
    """No operand, no source and reserved opcodes, each on its cycle."""
    bench = RedBench(dut)
    await bench.start()
    codes = {op.code for op in UNITS["red"].ops}
    bad = [("SUM", Stream.VXM, Fault.OPERAND), ("RSQRT", Stream.VXM, Fault.OPERAND)]
    bad += [("MAX", source, Fault.ENCODING) for source in reserved("red", "x")]
    bad += [(code, Stream.VXM, Fault.ENCODING) for code in range(16) if code not in codes]
    at = 3
    for op, source, fault in bad:
        for beside in (-1, 1):
            bench.streams.put(at + beside, Stream.VXM, range(LANES))
        if fault == Fault.ENCODING:
            bench.streams.put(at, Stream.VXM, range(LANES))
        bench.issue.send(at, op, x=source)
        bench.faults.expect(at, {fault})
        bench.results.expect(at + (bench.latency(op) if isinstance(op, str) else bench.time.reduce),
                             ANYTHING)
        at += 12
    # What follows is as ever.
    bench.send(at, "SUM", [np.arange(LANES)])
    await bench.settle()
    assert bench.faults.seen == len(bad)


@bench_test
@cocotb.parametrize(function=("RECIP", "RSQRT"), plain=("SUM", "MAX"), apart=(-1, 0, 1))
async def collision(dut, function, plain, apart):
    """A function and a plain result for the same cycle of stream RED."""
    bench = RedBench(dut)
    await bench.start()
    bench.send(3, function, [np.arange(LANES)])
    bench.send(3 + bench.time.reduce_function - bench.time.reduce + apart, plain,
               [np.arange(LANES)])
    bench.send(30, plain, [np.full(LANES, 9)])
    await bench.settle()
    assert bench.faults.seen == int(apart == 0)


@bench_test
@cocotb.parametrize(seed=(1, 2))
async def random(dut, seed):
    """Instructions back to back, of one to five vectors; some results meet."""
    bench, rng = RedBench(dut), np.random.default_rng(seed)
    await bench.start()
    at, count = 2, 200
    for _ in range(count):
        op = str(rng.choice(OPS))
        bits = 32 - int(rng.integers(32))
        low = -(1 << bits - 1) if op in ("SUM", "MAX") or rng.random() < 0.2 else 0
        vectors = [rng.integers(low, 1 << bits - 1, LANES) if bits > 1 else np.full(LANES, low)
                   for _ in range(rng.integers(1, 6))]
        post = int(rng.integers(64) if rng.random() < 0.2 else rng.integers(20))
        at = bench.send(at, op, vectors, post, gap=int(rng.choice([1, 1, 1, 3])))
        at += 1 if rng.random() < 0.7 else int(rng.integers(2, 9))
    await bench.settle()
    assert bench.faults.seen > 5 and bench.results.seen + bench.faults.seen == count
