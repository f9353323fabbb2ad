"""Bench of the lane permutation: table, index and timing."""
import cocotb
import numpy as np

from arch import numerics
from arch.faults import Fault
from arch.hostmap import PATTERN_ZERO, Space, pattern_address
from arch.isa import Index
from arch.queues import Stream
from hdl.signatures import stream_width, streams_of
from tb.bench import Bench, bench_test
from tb.checker import ANYTHING
from tb.hostbus import HostBus
from tb.top import CONFIG
from tb.wires import reserved, wired

STREAMS, LANES = streams_of(CONFIG), CONFIG.lanes
#: What the table holds; it outlives a reset.
_TABLE = np.zeros((CONFIG.patterns, LANES), np.int64)


class PermBench(Bench):
    """Loads the table by the bus and schedules permutations."""

    def __init__(self, dut):
        super().__init__(dut, "perm")
        self.issue, self.streams = self.add_issue("issue", "perm"), self.add_streams()
        self.results = self.add_result("o_perm", Stream.PERM)
        self.faults, self.host = self.add_faults("fault"), HostBus(self, "bus")
        self.index = {}

    async def start(self, table=(), position=0, token=0):
        """Reset and write the table; entries are lanes, -1 for 0. Returns the first free cycle."""
        await super().start()
        self.index = {Index.NONE: 0, Index.POSITION: position, Index.TOKEN: token}
        self.driver.set(0, self.port("position"), position)
        self.driver.set(0, self.port("token"), token)
        await self.run(2)
        for pattern, row in enumerate(table):
            for lane, source in enumerate(row):
                word = PATTERN_ZERO if source < 0 else int(source)
                await self.host.write(Space.PATTERNS, pattern_address(CONFIG, pattern, lane), word)
                _TABLE[pattern, lane] = source
        return self.cycle + 3

    def send(self, cycle, source, lanes, pattern, index=Index.NONE, shift=0):
        self.streams.put(cycle, source, lanes)
        self.issue.send(cycle, "PERM", x=source, pattern=pattern, index=index, index_shift=shift)
        row, flip = _TABLE[pattern], (self.index[index] << shift) % LANES
        self.results.expect(cycle + self.time.perm,
                            np.where(row < 0, 0, numerics.as_lane(lanes)[row ^ flip & LANES - 1]))


def random_table(rng):
    table = rng.integers(LANES, size=(CONFIG.patterns, LANES))
    return np.where(rng.random(table.shape) < 0.2, -1, table)


@bench_test
async def latency_by_hand(dut):
    """A reversal, a rotation and a broadcast with zeros, one alone and three as close as may be."""
    bench = PermBench(dut)
    rows = [range(LANES)[::-1], np.roll(range(LANES), -1), [3, -1] * (LANES // 2)]
    at = await bench.start(rows, position=1)
    lanes = [10, 11, 12, 13, 14, 15, 16, 17]
    assert LANES == len(lanes)
    wanted = ([17, 16, 15, 14, 13, 12, 11, 10], [11, 12, 13, 14, 15, 16, 17, 10],
              [13, 0, 13, 0, 13, 0, 13, 0], [13, 12, 15, 14, 17, 16, 11, 10])
    for number, (pattern, y) in enumerate(zip((0, 1, 2, 0), wanted)):
        cycle = at + bench.time.perm_gap * number + (10 if number else 0)
        # The last one turns bit 2 of the lane numbers, then bit 1: position 1, shifted by 2.
        flip = {"index": Index.POSITION, "index_shift": 2} if number == 3 else {}
        if number == 3:
            y = [lanes[lane ^ 4] for lane in rows[0]]
        bench.streams.put(cycle, Stream.M3, lanes)
        bench.issue.send(cycle, "PERM", x=Stream.M3, pattern=pattern, **flip)
        bench.results.expect(cycle + bench.time.perm, y)
    await bench.until(at + 40)
    await bench.finish()
    assert bench.results.seen == 4


@bench_test
async def too_close(dut):
    """An operation while the one before is under way."""
    bench = PermBench(dut)
    at = await bench.start([range(LANES)])
    for gap in range(1, bench.time.perm_gap):
        for cycle in (at, at + gap):
            bench.streams.put(cycle, Stream.M0, range(LANES))
            bench.issue.send(cycle, "PERM", x=Stream.M0)
            bench.results.expect(cycle + bench.time.perm, ANYTHING)
        bench.faults.expect(at + gap, {Fault.CONFLICT})
        at += 10
    bench.send(at, Stream.M0, range(LANES), 0)
    bench.send(at + bench.time.perm_gap, Stream.M0, range(LANES), 0)
    await bench.until(at + 20)
    await bench.finish()
    assert bench.faults.seen == bench.time.perm_gap - 1


@bench_test
async def every_source(dut):
    """Each stream while all carry values; 32-bit streams are cut to their low half."""
    bench, rng = PermBench(dut), np.random.default_rng(4)
    at = await bench.start(random_table(rng)[:1])
    for cycle, source in zip(range(at, at + 100, bench.time.perm_gap), wired("perm", "x")):
        vectors = {stream: rng.integers(-(1 << stream_width(stream) - 1),
                                        1 << stream_width(stream) - 1, LANES) for stream in STREAMS}
        for stream, lanes in vectors.items():
            bench.streams.put(cycle, stream, lanes)
        bench.send(cycle, source, vectors[source], 0)
    await bench.until(at + bench.time.perm_gap * len(STREAMS))
    await bench.finish()


@bench_test
async def faults(dut):
    """No operand, no source, reserved opcodes and index; each on its cycle."""
    bench = PermBench(dut)
    at = await bench.start([range(LANES)])
    bad = [({"op": "PERM", "x": Stream.M2}, Fault.OPERAND)]
    bad += [({"op": "PERM", "x": source}, Fault.ENCODING)
            for source in reserved("perm", "x")]
    bad += [({"op": code, "x": Stream.M0}, Fault.ENCODING) for code in range(16) if code != 4]
    bad += [({"op": "PERM", "x": Stream.M0, "index": 3}, Fault.ENCODING)]
    for fields, fault in bad:
        bench.streams.put(at, Stream.M0, range(LANES))
        bench.issue.send(at, fields.pop("op"), **fields)
        bench.faults.expect(at, {fault})
        bench.results.expect(at + bench.time.perm, ANYTHING)
        at += bench.time.perm_gap
        bench.streams.put(at, Stream.M2, range(LANES))
        bench.send(at, Stream.M0, range(LANES), 0)
        at += bench.time.perm_gap + 1
    await bench.until(at)
    await bench.finish()
    assert bench.faults.seen == len(bad)


@bench_test
async def host(dut):
    """The table is read back, zeros included; other spaces are left alone."""
    bench, rng = PermBench(dut), np.random.default_rng(9)
    await bench.start(random_table(rng))
    for pattern in range(CONFIG.patterns):
        for lane in range(LANES):
            got = await bench.host.read(Space.PATTERNS, pattern_address(CONFIG, pattern, lane))
            entry = int(_TABLE[pattern, lane])
            assert got & PATTERN_ZERO == (PATTERN_ZERO if entry < 0 else 0)
            assert entry < 0 or got == entry
    for space in set(Space) - {Space.PATTERNS, Space.MEM, Space.CONSTANTS}:
        assert await bench.host.is_ignored(space, 0)
    bench.send(bench.cycle + 2, Stream.M0, range(LANES), 1)
    await bench.finish()


@bench_test
@cocotb.parametrize(seed=(1, 2))
async def random(dut, seed):
    bench, rng = PermBench(dut), np.random.default_rng(seed)
    at = await bench.start(random_table(rng), int(rng.integers(CONFIG.context)),
                           int(rng.integers(CONFIG.vocab_max)))
    for _ in range(300):
        source = wired("perm", "x")[rng.integers(len(wired("perm", "x")))]
        bits = stream_width(source)
        bench.send(at, source, rng.integers(-(1 << bits - 1), 1 << bits - 1, LANES),
                   int(rng.integers(CONFIG.patterns)), Index(int(rng.integers(3))),
                   int(rng.integers(16) if rng.random() < 0.2 else rng.integers(4)))
        at += bench.time.perm_gap + (0 if rng.random() < 0.8 else int(rng.integers(1, 6)))
    await bench.until(at)
    await bench.finish()
    assert bench.results.seen == 300
