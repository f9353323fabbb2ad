"""Bench of the constants: an array in numpy, read ``timing.const_read`` cycles after the issue."""
import cocotb
import numpy as np

from arch.faults import Fault
from arch.hostmap import Space, constant_address
from arch.queues import Stream
from tb.bench import Bench, bench_test
from tb.hostbus import HostBus
from tb.top import CONFIG, DAMAGED_CONST

LANES, DEPTH = CONFIG.lanes, CONFIG.const_depth
OUTSIDE = (DEPTH, DEPTH + 5, 2 * DEPTH - 1, 4 * DEPTH - 1)


class ConstBench(Bench):
    """Schedules reads; constants are written by the bus."""

    def __init__(self, dut):
        super().__init__(dut, "const")
        self.issue, self.host = self.add_issue("issue", "const"), HostBus(self)
        self.results = self.add_result("o", Stream.CONST)
        self.faults = self.add_faults("fault")
        self.words = {}

    async def start(self, fill=(), seed=3):
        """Reset and write; returns the first free cycle."""
        await super().start()
        rng = np.random.default_rng(seed)
        await self.run(2)
        for word in fill:
            self.words[word] = rng.integers(-32768, 32768, LANES)
            for lane, value in enumerate(self.words[word].tolist()):
                await self.host.write(Space.CONSTANTS, constant_address(CONFIG, word, lane), value)
        return self.cycle + 3

    def read(self, cycle, address):
        self.issue.send(cycle, "READ", address=address)
        if 0 <= address < DEPTH:
            self.results.expect(cycle + self.time.const_read, self.words[address])
        else:
            self.faults.expect(cycle, {Fault.ADDRESS})


@bench_test
async def quiet_after_reset(dut):
    bench = ConstBench(dut)
    await bench.start()
    await bench.finish(40)


@bench_test
async def latency(dut):
    bench = ConstBench(dut)
    at = await bench.start(fill=(0, DEPTH - 2))
    for cycle, word in ((0, 0), (5, DEPTH - 2), (6, 0), (8, 0)):
        bench.read(at + cycle, word)
    await bench.until(at + 8)
    await bench.finish()
    assert bench.results.seen == 4


@bench_test
async def address_faults(dut):
    """A read outside of the memory gives no vector, and disturbs none beside it."""
    bench = ConstBench(dut)
    at = await bench.start(fill=(1,))
    for number, address in enumerate(OUTSIDE):
        bench.read(at + 2 * number, address)
        bench.read(at + 2 * number + 1, 1)
    await bench.until(at + 2 * len(OUTSIDE))
    await bench.finish()
    assert bench.faults.seen == len(OUTSIDE)


@bench_test
async def parity(dut):
    """A flipped bit is found with the vector, until the lane is written anew."""
    bench = ConstBench(dut)
    word, bit = DAMAGED_CONST
    assert bit % 18 in (8, 17), "the lane itself reads 0: the flipped bit is that of the parity"
    at = await bench.start(fill=(2,))
    bench.words[word] = np.zeros(LANES, np.int64)
    for cycle, address in enumerate((2, word, word, 2), at):
        bench.read(cycle, address)
        if address == word:
            bench.faults.expect(cycle + bench.time.const_read + 1, {Fault.PARITY})
    await bench.until(at + 10)
    await bench.host.write(Space.CONSTANTS, constant_address(CONFIG, word, bit // 18), 0x1234)
    bench.words[word][bit // 18] = 0x1234
    bench.read(bench.cycle + 2, word)
    await bench.finish()
    assert bench.faults.seen == 2


@bench_test
async def host(dut):
    """Other spaces are left alone; reads of the queue go on after."""
    bench = ConstBench(dut)
    fill = (0, 77, DEPTH - 2)
    await bench.start(fill=fill, seed=4)
    for space in set(Space) - {Space.CONSTANTS}:
        assert await bench.host.is_ignored(space, constant_address(CONFIG, 0, 0))
    for number, word in enumerate(fill, 2):
        bench.read(bench.cycle + number, word)
    await bench.finish()


@bench_test
@cocotb.parametrize(seed=(1, 2))
async def random(dut, seed):
    """Reads mostly back to back, some of them outside."""
    bench, rng = ConstBench(dut), np.random.default_rng(seed)
    words = rng.choice(DEPTH - 1, 12, replace=False).tolist()
    at = await bench.start(fill=words, seed=seed)
    for cycle in range(at, at + 400):
        if rng.random() < 0.8:
            bench.read(cycle, int(rng.choice(OUTSIDE if rng.random() < 0.05 else words)))
    await bench.until(at + 400)
    await bench.finish()
    assert bench.results.seen > 250
