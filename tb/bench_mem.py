"""Bench of a MEM bank: an array in numpy, read and written as `arch.timing` says."""
import itertools

import cocotb
import numpy as np

from arch import numerics
from arch.faults import Fault
from arch.hostmap import Space, mem_address
from arch.queues import Stream
from hdl.signatures import stream_width, streams_of
from tb.bench import Bench, bench_test
from tb.checker import ANYTHING
from tb.drivers import pack
from tb.hostbus import HostBus
from tb.top import BANK, CONFIG, DAMAGED_MEM
from tb.wires import reserved, wired

STREAMS, WIRED = streams_of(CONFIG), wired("mem_write", "x")
OTHERS = [bank for bank in range(CONFIG.mem_banks) if bank != BANK]
TRACED = ("valid", "address", "halves", "data")
LANES, DEPTH = CONFIG.lanes, CONFIG.mem_depth
OUTSIDE = (DEPTH, DEPTH + 1, 2 * DEPTH - 1, 4 * DEPTH - 1)


class MemBench(Bench):
    """Schedules reads and writes in the order of cycles."""

    def __init__(self, dut):
        super().__init__(dut, "mem")
        self.reads = self.add_issue(f"issue_r{BANK}", "mem_read")
        self.writes = self.add_issue(f"issue_w{BANK}", "mem_write")
        self.others = [self.add_issue(f"issue_w{bank}", "mem_write") for bank in OTHERS]
        self.other_faults = [self.add_faults(f"fault_w{bank}") for bank in OTHERS]
        self.streams, self.host = self.add_streams(), HostBus(self)
        self.results = self.add_result(f"o_{BANK}", Stream.M0 + BANK)
        self.read_faults = self.add_faults(f"fault_r{BANK}")
        self.write_faults = self.add_faults(f"fault_w{BANK}")
        self.trace = self.add_ports(*(f"w{BANK}_{name}" for name in TRACED), direct=True)
        self.words = np.zeros((DEPTH, LANES), np.int64)
        #: Writes that reads do not see yet: the cycle from which on they do, word, which lanes, what.
        self.under_way = []

    async def start(self, fill=range(0)):
        """Reset, and write random vectors to some words by the bus."""
        await super().start()
        rng = np.random.default_rng(7)
        await self.run(2)
        for word in fill:
            self.words[word] = rng.integers(-32768, 32768, LANES)
            for lane in range(LANES):
                await self.host.write(Space.MEM, mem_address(self.config, BANK, word, lane),
                                      int(self.words[word, lane]))
        return self.cycle + 3

    def read(self, cycle, address):
        self.reads.send(cycle, "READ", address=address)
        while self.under_way and self.under_way[0][0] <= cycle:
            _, word, chosen, lanes = self.under_way.pop(0)
            self.words[word] = np.where(chosen, lanes, self.words[word])
        if 0 <= address < DEPTH:
            self.results.expect(cycle + self.time.mem_read, self.words[address].copy())
        else:
            self.read_faults.expect(cycle, {Fault.ADDRESS})

    def write(self, cycle, address, source, lanes, halves=3):
        """Write what ``source`` carries; ``lanes`` None: it carries nothing."""
        if lanes is not None:
            self.streams.put(cycle, source, lanes)
        self.writes.send(cycle, "WRITE", address=address, x=source, halves=halves)
        faults, inside = set(), 0 <= address < DEPTH
        if not inside:
            faults.add(Fault.ADDRESS)
        if source not in WIRED:
            faults.add(Fault.ENCODING)
        elif lanes is None:
            faults.add(Fault.OPERAND)
        if faults:
            self.write_faults.expect(cycle, faults)
            return
        chosen = np.repeat([halves & 1, halves >> 1], LANES // 2) == 1
        self.trace.expect(cycle + 1, {f"w{BANK}_{name}": value for name, value in zip(
            TRACED, (1, address, halves, pack(lanes, 16)))})
        self.under_way.append((cycle + self.time.mem_write_to_read, address, chosen,
                               numerics.as_lane(lanes)))


def lanes_for(rng, stream):
    bits = stream_width(stream)
    if stream == Stream.RED:
        # The same on every lane.
        return np.full(LANES, rng.integers(-32768, 32768))
    return rng.integers(-(1 << bits - 1), 1 << bits - 1, LANES)


@bench_test
async def quiet_after_reset(dut):
    bench = MemBench(dut)
    await bench.start()
    await bench.finish(40)


@bench_test
async def latency(dut):
    """A read on its cycle; a write seen ``mem_write_to_read`` later and not sooner."""
    bench = MemBench(dut)
    at = await bench.start(fill=(0, DEPTH - 2))
    bench.read(at, 0)
    bench.read(at + 1, DEPTH - 2)
    # Until then the old word is read.
    for apart in range(bench.time.mem_write_to_read + 1):
        at += 10
        bench.write(at, 0, Stream.VXM, np.arange(LANES) - 7 * apart)
        bench.read(at + apart, 0)
    await bench.until(at)
    await bench.finish()
    assert bench.results.seen == 5


@bench_test
async def halves(dut):
    """Each choice of halves changes its lanes and leaves the others."""
    bench = MemBench(dut)
    at = await bench.start(fill=range(4))
    for chosen in range(4):
        bench.write(at + chosen, chosen, Stream.CONST, range(100, 100 + LANES), chosen)
        bench.read(at + chosen + bench.time.mem_write_to_read, chosen)
    await bench.until(at + 6)
    await bench.finish()


@bench_test
async def every_source(dut):
    """Each stream while all carry values; 32-bit streams are cut to their low half."""
    bench, rng = MemBench(dut), np.random.default_rng(2)
    at = await bench.start()
    for number, source in enumerate(WIRED):
        for stream in STREAMS:
            bench.streams.put(at + number, stream, lanes_for(rng, stream))
        bench.write(at + number, number, source, lanes_for(rng, source))
        bench.read(at + number + 5, number)
    await bench.until(at + 20)
    await bench.finish()


@bench_test
async def write_faults(dut):
    """No operand, no source, no such word; nothing is written."""
    bench = MemBench(dut)
    at = await bench.start(fill=range(2))
    bench.streams.put(at - 1, Stream.RED, range(LANES))
    bench.write(at, 0, Stream.RED, None)
    bench.streams.put(at + 1, Stream.RED, range(LANES))
    for number, source in enumerate(reserved("mem_write", "x"), 2):
        bench.write(at + number, 1, source, None)
    at += 2 + len(reserved("mem_write", "x"))
    for address in OUTSIDE:
        bench.write(at, address, Stream.PERM, range(LANES))
        bench.write(at + 1, address, Stream.PERM, None)
        bench.write(at + 2, address, 15, None)
        at += 3
    for address in range(2):
        bench.read(at + address, address)
    await bench.until(at + 2)
    await bench.finish()
    assert bench.write_faults.seen == 1 + len(reserved("mem_write", "x")) + 3 * len(OUTSIDE)


@bench_test
async def read_faults(dut):
    """A read outside of the bank gives no vector, and disturbs none beside it."""
    bench = MemBench(dut)
    at = await bench.start(fill=range(1))
    for number, address in enumerate(OUTSIDE):
        bench.read(at + 2 * number, address)
        bench.read(at + 2 * number + 1, 0)
    await bench.until(at + 8)
    await bench.finish()
    assert bench.read_faults.seen == len(OUTSIDE)


@bench_test
async def parity(dut):
    """A flipped bit is found by every read, a cycle behind the vector, until its lane is written."""
    bench = MemBench(dut)
    # Of the parity, which has a bit a lane.
    word, lane = DAMAGED_MEM
    at = await bench.start(fill=(word - 1,))

    def damaged_read(cycle):
        bench.read(cycle, word)
        bench.read_faults.expect(cycle + bench.time.mem_read + 1, {Fault.PARITY})
    damaged_read(at)
    damaged_read(at + 1)
    bench.read(at + 2, word - 1)
    # The half without the flipped bit is written: nothing gets better.
    bench.write(at + 3, word, Stream.CONST, range(LANES), 1 if lane >= LANES // 2 else 2)
    at += 3 + bench.time.mem_write_to_read
    damaged_read(at)
    bench.write(at + 1, word, Stream.CONST, range(LANES), 3)
    at += 1 + bench.time.mem_write_to_read
    bench.read(at, word)
    await bench.until(at)
    await bench.finish()
    assert bench.read_faults.seen == 3


@bench_test
async def host(dut):
    """Lanes are written one by one, by no access to another bank or space."""
    bench = MemBench(dut)
    await bench.start(fill=(0, 5, DEPTH - 2))
    for bank in OTHERS:
        await bench.host.write(Space.MEM, mem_address(CONFIG, bank, 5, 0), 0x7654)
    for space in set(Space) - {Space.MEM}:
        assert await bench.host.is_ignored(space, mem_address(CONFIG, BANK, 0, 0))
    for number, word in enumerate((0, 5, DEPTH - 2)):
        bench.read(bench.cycle + 2 + number, word)
    await bench.finish()
    assert bench.results.seen == 3


@bench_test
async def store_bus(dut):
    """Banks that write together: the same, RED on the wires of odd banks, and another stream."""
    bench, rng = MemBench(dut), np.random.default_rng(8)
    at = await bench.start()
    below = [number for number, bank in enumerate(OTHERS) if bank < BANK]
    for source in WIRED:
        for number, other in itertools.product(range(len(OTHERS)), WIRED):
            lanes = lanes_for(rng, source)
            bench.streams.put(at, other, lanes_for(rng, other))
            bench.streams.put(at, source, lanes)
            bench.others[number].send(at, "WRITE", address=3, x=other, halves=3)
            another = source != other and (other != Stream.RED or OTHERS[number] % 2 == 0)
            if another and number in below:
                bench.writes.send(at, "WRITE", address=3, x=source, halves=0)
                bench.write_faults.expect(at, {Fault.CONFLICT})
                bench.trace.expect(at + 1, ANYTHING)
            else:
                bench.write(at, 3, source, lanes)
                if another:
                    bench.other_faults[number].expect(at, {Fault.CONFLICT})
            bench.read(at + bench.time.mem_write_to_read, 3)
            at += 4
    await bench.until(at)
    await bench.finish()
    # Of the four sources every pair that differs, but RED of bank 1.
    assert [OTHERS[number] for number in below] == [0, 1]
    assert bench.write_faults.seen == 4 * 3 + 3 * 3


@bench_test
@cocotb.parametrize(seed=(1, 2))
async def random(dut, seed):
    """Both ports busy with few words, some of it at fault."""
    bench, rng = MemBench(dut), np.random.default_rng(seed)
    words = range(6)
    at = await bench.start(fill=words)
    for cycle in range(at, at + 500):
        def address():
            return int(rng.choice(OUTSIDE) if rng.random() < 0.05 else rng.integers(len(words)))
        if rng.random() < 0.8:
            bench.read(cycle, address())
        if rng.random() < 0.7:
            source = WIRED[rng.integers(len(WIRED))]
            lanes = lanes_for(rng, source)
            if rng.random() < 0.1:
                source, lanes = int(rng.integers(16)), None
            bench.write(cycle, address(), source, lanes, int(rng.integers(4)))
    await bench.until(at + 500)
    await bench.finish()
    assert bench.results.seen > 300 and bench.trace.seen > 200
