"""MEM banks and constants: every cycle against a numpy array, then faults and parity."""
import numpy as np
import pytest
from amaranth.hdl import Value
from amaranth.sim import Simulator

from arch.config import profile
from arch.faults import Fault
from arch.hostmap import Space, constant_address, mem_address
from arch.isa import UNITS, sources_of
from arch.numerics import as_lane
from arch.queues import Stream
from arch.timing import timing
from hdl.const import ConstBank
from hdl.mem import Mem
from hdl.signatures import fault_bit, stream_width

TINY = profile("tiny")
CONFIGS = [TINY, TINY.replace(mem_stages=3, const_stages=3), profile("ecp5_85k")]
BANK = 2
LANES = TINY.lanes


def pack(values, width):
    return sum((int(value) & (1 << width) - 1) << width * lane
               for lane, value in enumerate(values))


def unpack(value, lanes):
    return np.frombuffer(int(value).to_bytes(2 * lanes, "little"), "<i2")


def stored(values):
    """The word as it must lie in memory: nine bits a byte, the ninth for even parity."""
    word = 0
    for index, byte in enumerate(np.asarray(values, "<i2").view(np.uint8)):
        word |= (int(byte) | (int(byte).bit_count() & 1) << 8) << 9 * index
    return word


class Bank:
    """The ports of one bank of a `Mem`."""

    def __init__(self, *, config, bank=BANK):
        self.dut = dut = Mem(config=config)
        self.streams, self.host = dut.streams, dut.host
        self.o = getattr(dut, f"o_{bank}")
        for name, short in (("read", "r"), ("write", "w")):
            for kind in ("issue", "fault"):
                setattr(self, f"{kind}_{name}", getattr(dut, f"{kind}_{short}{bank}"))
        for name in ("valid", "address", "halves", "data"):
            setattr(self, f"w_{name}", getattr(dut, f"w{bank}_{name}"))
        self.store, self.checks = dut.banks[bank].store, dut.banks[bank].checks


def simulate(dut, testbench):
    simulator = Simulator(getattr(dut, "dut", dut))
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.run()


def causes(ctx, port):
    return {fault for fault in Fault if fault and ctx.get(port.causes) >> fault_bit(fault) & 1}


async def access(ctx, dut, space, address, word=None, limit=10):
    host = dut.host
    ctx.set(host.space, int(space))
    ctx.set(host.address, address)
    ctx.set(host.w_data, 0 if word is None else int(word) & 0xFFFF)
    enable = host.r_en if word is None else host.w_en
    ctx.set(enable, 1)
    await ctx.tick()
    ctx.set(enable, 0)
    for _ in range(limit):
        if ctx.get(host.ack):
            data = ctx.get(host.r_data)
            await ctx.tick()
            assert not ctx.get(host.ack) and not ctx.get(host.r_data)
            return data
        await ctx.tick()
    return None


async def word_of(ctx, dut, word):
    """A word of the bank as its queue reads it."""
    issue(ctx, dut.issue_read, address=word)
    await ctx.tick()
    issue(ctx, dut.issue_read)
    for _ in range(timing(TINY).mem_read):
        await ctx.tick()
    return unpack(ctx.get(Value.cast(dut.o.data)), LANES).tolist()


def issue(ctx, port, **fields):
    """Drive an issue port on this cycle: what it carries is issued on the next one. Without fields,
    nothing is."""
    ctx.set(port.valid, int(bool(fields)))
    for name, value in fields.items():
        ctx.set(getattr(port, name), int(value))


def drive(ctx, dut, stream, values=None):
    """Put values on a stream, or junk that is not valid."""
    side, width = getattr(dut.streams, stream.name.lower()), stream_width(stream)
    ctx.set(side.valid, int(values is not None))
    ctx.set(Value.cast(side.data), pack(values if values is not None else [-12345] * 64, width)
            & (1 << len(Value.cast(side.data))) - 1)


@pytest.mark.parametrize("config", CONFIGS, ids=["tiny", "stages", "ecp5_85k"])
def test_random_reads_and_writes(config):
    """A read and a write on most cycles; a read sees every write of two cycles before it, with an
    extra stage in front of the bank also those of one."""
    dut, rng = Bank(config=config), np.random.default_rng(3)
    late, asked = min(1, config.mem_stages), {}
    latency, lanes, half = timing(config).mem_read, config.lanes, config.lanes // 2
    array = np.zeros((config.mem_depth, lanes), np.int64)
    expected, cycles = {}, 300
    sources = sources_of(UNITS["mem_write"].field("x"), config)

    async def testbench(ctx):
        for stream in sources:
            drive(ctx, dut, stream)
        written, shown = None, None
        for cycle in range(cycles):
            result = expected.pop(cycle, None)
            assert ctx.get(dut.o.valid) == (result is not None)
            if result is not None:
                np.testing.assert_array_equal(unpack(ctx.get(Value.cast(dut.o.data)), lanes),
                                              result)
            assert not causes(ctx, dut.fault_read) and not causes(ctx, dut.fault_write)
            # What a queue writes is shown on the cycle behind the issue.
            assert ctx.get(dut.w_valid) == (shown is not None)
            if shown is not None:
                address, halves, values = shown
                assert ctx.get(dut.w_address) == address and ctx.get(dut.w_halves) == halves
                np.testing.assert_array_equal(unpack(ctx.get(dut.w_data), lanes), as_lane(values))
                mask = np.repeat([halves & 1, halves >> 1], half).astype(bool)
                array[address, mask] = as_lane(values)[mask]
            shown = None
            for stream in sources:
                drive(ctx, dut, stream)
            if written is not None:
                address, stream, halves = written
                width = stream_width(stream)
                values = rng.integers(-(1 << width - 1), 1 << width - 1, lanes)
                if stream == Stream.RED:
                    values[:] = values[0]
                drive(ctx, dut, stream, values)
                shown = address, halves, values
            # What is issued on the next cycle; of few addresses, so that reads often meet the
            # writes just before them.
            read, write = rng.integers(0, 6, 2) * (config.mem_depth // 6)
            issue(ctx, dut.issue_read)
            if rng.random() < 0.8:
                issue(ctx, dut.issue_read, address=read)
                asked[cycle + late] = read
            if cycle in asked:
                expected[cycle - late + 1 + latency] = array[asked[cycle]].copy()
            issue(ctx, dut.issue_write)
            written = None
            if rng.random() < 0.8:
                written = write, sources[rng.integers(len(sources))], int(rng.integers(0, 4))
                issue(ctx, dut.issue_write, address=write, x=int(written[1]), halves=written[2])
            await ctx.tick()
    simulate(dut, testbench)
    assert any(array.ravel())


def test_write_is_seen_two_cycles_later_not_before():
    dut = Bank(config=TINY)

    async def testbench(ctx):
        issue(ctx, dut.issue_write, address=9, x=int(Stream.VXM), halves=2)
        issue(ctx, dut.issue_read, address=9)
        await ctx.tick()
        assert not ctx.get(dut.o.valid)
        drive(ctx, dut, Stream.VXM, [0x12345 + lane for lane in range(LANES)])
        issue(ctx, dut.issue_write)
        for _ in range(2):
            await ctx.tick()
            drive(ctx, dut, Stream.VXM)
            assert ctx.get(dut.o.valid) and ctx.get(Value.cast(dut.o.data)) == 0
        issue(ctx, dut.issue_read)
        await ctx.tick()
        found = unpack(ctx.get(Value.cast(dut.o.data)), LANES)
        assert found.tolist() == [0, 0, 0, 0, 0x2349, 0x234A, 0x234B, 0x234C]
        await ctx.tick()
        assert not ctx.get(dut.o.valid)
    simulate(dut, testbench)


@pytest.mark.parametrize("fields, drive_it, port, fault", [
    ({"address": 3, "x": Stream.PERM, "halves": 3}, False, "write", Fault.OPERAND),
    ({"address": 3, "x": Stream.NONE, "halves": 3}, True, "write", Fault.ENCODING),
    ({"address": 3, "x": Stream.LINK1, "halves": 3}, True, "write", Fault.ENCODING),
    ({"address": 3, "x": 15, "halves": 3}, True, "write", Fault.ENCODING),
    ({"address": 64, "x": Stream.PERM, "halves": 3}, True, "write", Fault.ADDRESS),
    ({"address": 255, "x": Stream.PERM, "halves": 3}, True, "write", Fault.ADDRESS),
    ({"address": 64}, True, "read", Fault.ADDRESS),
    ({"address": 195}, True, "read", Fault.ADDRESS),
])
def test_faults(fields, drive_it, port, fault):
    """The cause is high on the cycle after the issue, and the access is not done."""
    dut = Bank(config=TINY)

    async def testbench(ctx):
        for lane in range(LANES):
            await access(ctx, dut, Space.MEM, mem_address(TINY, BANK, 3, lane), 77)
        issue(ctx, getattr(dut, f"issue_{port}"), **fields)
        await ctx.tick()
        drive(ctx, dut, Stream.PERM, [5] * LANES if drive_it else None)
        issue(ctx, getattr(dut, f"issue_{port}"))
        assert causes(ctx, getattr(dut, f"fault_{port}")) == set()
        await ctx.tick()
        drive(ctx, dut, Stream.PERM)
        assert causes(ctx, getattr(dut, f"fault_{port}")) == {fault}
        assert not ctx.get(dut.o.valid)
        await ctx.tick()
        assert causes(ctx, getattr(dut, f"fault_{port}")) == set()
        for word in range(TINY.mem_depth):
            found = await word_of(ctx, dut, word)
            assert found == [77 if word == 3 else 0] * LANES
    simulate(dut, testbench)


def test_host_access():
    """The host writes lanes one by one, of this bank alone; another space is not answered. A word
    that it reads is on the stream, without being valid, until it reads another."""
    dut = Bank(config=TINY)

    async def testbench(ctx):
        for lane in range(LANES):
            assert await access(ctx, dut, Space.MEM, mem_address(TINY, BANK, 40, lane),
                                0x8001 + lane) == 0
        assert await access(ctx, dut, Space.MEM, mem_address(TINY, 1, 40, 0), 5) == 0
        assert await access(ctx, dut, Space.WEIGHTS, mem_address(TINY, BANK, 40, 0), 5) is None
        assert await word_of(ctx, dut, 40) == [0x8001 + lane - 0x10000 for lane in range(LANES)]
        assert await word_of(ctx, dut, 41) == [0] * LANES
        for word in (40, 41):
            assert await access(ctx, dut, Space.MEM, mem_address(TINY, BANK, word, 3)) is None
            assert not ctx.get(dut.o.valid)
            assert unpack(ctx.get(Value.cast(dut.o.data)), LANES).tolist() == [
                0x8001 + lane - 0x10000 if word == 40 else 0 for lane in range(LANES)]
    simulate(dut, testbench)


@pytest.mark.parametrize("bank, first, second, conflict", [
    (2, Stream.VXM, Stream.VXM, False), (2, Stream.VXM, Stream.RED, False),
    (2, Stream.RED, Stream.RED, False), (2, Stream.RED, Stream.CONST, True),
    (1, Stream.RED, Stream.CONST, False), (1, Stream.VXM, Stream.RED, True),
    (1, Stream.RED, Stream.RED, False), (2, Stream.PERM, Stream.CONST, True),
    (2, Stream.VXM, Stream.PERM, True), (2, Stream.VXM, Stream.NONE, True)])
def test_two_banks_write(bank, first, second, conflict):
    """The same stream, or RED if odd; else the higher bank is at fault, and the lower one writes."""
    dut = Bank(config=TINY, bank=bank)
    other, other_fault = getattr(dut.dut, f"issue_w{bank + 1}"), getattr(dut.dut, f"fault_w{bank + 1}")

    async def testbench(ctx):
        issue(ctx, dut.issue_write, address=1, x=int(first), halves=3)
        issue(ctx, other, address=1, x=int(second), halves=3)
        await ctx.tick()
        for number, stream in enumerate((Stream.VXM, Stream.CONST, Stream.PERM, Stream.RED)):
            # RED is the same on every lane.
            drive(ctx, dut, stream, [100 * number + (lane if number < 3 else 0)
                                     for lane in range(LANES)])
        number = {Stream.VXM: 0, Stream.PERM: 2, Stream.RED: 3}[first]
        issue(ctx, dut.issue_write)
        issue(ctx, other)
        await ctx.tick()
        assert causes(ctx, dut.fault_write) == set()
        assert causes(ctx, other_fault) == ({Fault.CONFLICT} if conflict else set()) | (
            {Fault.ENCODING} if second == Stream.NONE else set())
        assert await word_of(ctx, dut, 1) == [100 * number + (lane if number < 3 else 0)
                                              for lane in range(LANES)]
    simulate(dut, testbench)


async def is_damaged(ctx, dut, config, word, by_host=False) -> bool:
    """Whether a read of a word gives PARITY, on the cycle behind the stream and on no other."""
    due = 1 + timing(config).mem_read + 2
    if by_host:
        ctx.set(dut.host.address, mem_address(config, BANK, word, 0))
        ctx.set(dut.host.space, int(Space.MEM))
        ctx.set(dut.host.r_en, 1)
    else:
        issue(ctx, dut.issue_read, address=word)
    # The queue reads on cycle 1, and so does the host.
    found = set()
    for cycle in range(1, due + 3):
        await ctx.tick()
        issue(ctx, dut.issue_read)
        ctx.set(dut.host.r_en, 0)
        if causes(ctx, dut.fault_read):
            assert causes(ctx, dut.fault_read) == {Fault.PARITY} and cycle == due
            found.add(cycle)
    return bool(found)


@pytest.mark.parametrize("stages", [0, 2])
def test_parity(stages):
    """Each of the 17 bits of every lane is checked, whether the host has written it or a queue: one
    that flips gives PARITY."""
    config, rng = TINY.replace(mem_stages=stages), np.random.default_rng(5)
    dut, rows = Bank(config=config), {7: "host", 8: "queue"}

    async def testbench(ctx):
        for word, writer in rows.items():
            values = rng.integers(-32768, 32768, LANES)
            if writer == "host":
                for lane, value in enumerate(values):
                    await access(ctx, dut, Space.MEM, mem_address(config, BANK, word, lane), value)
            else:
                issue(ctx, dut.issue_write, address=word, x=int(Stream.VXM), halves=3)
                await ctx.tick()
                issue(ctx, dut.issue_write)
                drive(ctx, dut, Stream.VXM, values)
                await ctx.tick().repeat(2)
            lanes, checks = dut.store.data[word], dut.checks.data[word]
            assert ctx.get(lanes) == pack(values, 16)
            assert ctx.get(checks) == sum(((int(value) & 0xFFFF).bit_count() & 1) << lane
                                          for lane, value in enumerate(values))
            for by_host in (False, True):
                assert not await is_damaged(ctx, dut, config, word, by_host)
            for lane in range(LANES):
                for bit in range(17):
                    cell, place = (checks, lane) if bit == 16 else (lanes, 16 * lane + bit)
                    ctx.set(cell, ctx.get(cell) ^ 1 << place)
                    for by_host in (False, True):
                        assert await is_damaged(ctx, dut, config, word, by_host), (lane, bit)
                    ctx.set(cell, ctx.get(cell) ^ 1 << place)
            assert not await is_damaged(ctx, dut, config, word)
    simulate(dut, testbench)


@pytest.mark.parametrize("lane", [0, 3, 4, 7])
@pytest.mark.parametrize("of_parity", [False, True])
def test_the_host_repairs_the_lane_that_it_writes(lane, of_parity):
    """A lane is damaged until it is written itself: no other lane of its half repairs or hides it."""
    dut = Bank(config=TINY)

    async def testbench(ctx):
        for other in range(LANES):
            # Lanes of either parity.
            await access(ctx, dut, Space.MEM, mem_address(TINY, BANK, 5, other), 6 + other)
        cell, place = (dut.checks, lane) if of_parity else (dut.store, 16 * lane + 9)
        ctx.set(cell.data[5], ctx.get(cell.data[5]) ^ 1 << place)
        for other in range(LANES):
            if other != lane:
                await access(ctx, dut, Space.MEM, mem_address(TINY, BANK, 5, other), 1 + other)
                assert await is_damaged(ctx, dut, TINY, 5)
        await access(ctx, dut, Space.MEM, mem_address(TINY, BANK, 5, lane), 1 + lane)
        assert not await is_damaged(ctx, dut, TINY, 5)
        assert await word_of(ctx, dut, 5) == list(range(1, 1 + LANES))
    simulate(dut, testbench)


@pytest.mark.parametrize("config", CONFIGS, ids=["tiny", "stages", "ecp5_85k"])
def test_constants(config):
    """Loaded by the host, read by it onto the stream, then streamed with a read on most cycles."""
    dut, rng = ConstBank(config=config), np.random.default_rng(4)
    lanes, latency = config.lanes, timing(config).const_read
    array = rng.integers(-32768, 32768, (config.const_depth, lanes))
    words = [0, 1, config.const_depth - 1, *rng.integers(0, config.const_depth, 5).tolist()]
    expected = {}

    async def testbench(ctx):
        for word in words:
            for lane in range(lanes):
                await access(ctx, dut, Space.CONSTANTS, constant_address(config, word, lane),
                             array[word, lane])
        for word in words:
            address = constant_address(config, word, int(rng.integers(lanes)))
            assert await access(ctx, dut, Space.CONSTANTS, address) is None
            assert not ctx.get(dut.o.valid)
            np.testing.assert_array_equal(unpack(ctx.get(Value.cast(dut.o.data)), lanes),
                                          array[word])
        assert ctx.get(dut.store.data[words[1]]) == stored(array[words[1]])
        for cycle in range(100):
            result = expected.pop(cycle, None)
            assert ctx.get(dut.o.valid) == (result is not None)
            if result is not None:
                np.testing.assert_array_equal(unpack(ctx.get(Value.cast(dut.o.data)), lanes),
                                              result)
            assert not causes(ctx, dut.fault)
            issue(ctx, dut.issue)
            if rng.random() < 0.8:
                word = words[rng.integers(len(words))]
                issue(ctx, dut.issue, address=word)
                expected[cycle + 1 + latency] = array[word]
            await ctx.tick()
    simulate(dut, testbench)


@pytest.mark.parametrize("stages", [0, 1])
def test_constant_faults(stages):
    config = TINY.replace(const_stages=stages)
    dut = ConstBank(config=config)
    latency = timing(config).const_read

    async def testbench(ctx):
        issue(ctx, dut.issue, address=config.const_depth)
        await ctx.tick()
        issue(ctx, dut.issue)
        assert causes(ctx, dut.fault) == set()
        await ctx.tick()
        assert causes(ctx, dut.fault) == {Fault.ADDRESS}
        for _ in range(latency + 2):
            assert not ctx.get(dut.o.valid)
            await ctx.tick()
        assert causes(ctx, dut.fault) == set()
        cell = dut.store.data[11]
        ctx.set(cell, ctx.get(cell) ^ 1 << 26)
        issue(ctx, dut.issue, address=11)
        await ctx.tick()
        issue(ctx, dut.issue)
        for cycle in range(1, latency + 4):
            await ctx.tick()
            assert ctx.get(dut.o.valid) == (cycle == latency)
            assert causes(ctx, dut.fault) == ({Fault.PARITY} if cycle == latency + 2 else set())
        # The host reads a lane of the word, which is not the flipped one.
        ctx.set(dut.host.space, int(Space.CONSTANTS))
        ctx.set(dut.host.address, constant_address(config, 11, 0))
        ctx.set(dut.host.r_en, 1)
        await ctx.tick()
        ctx.set(dut.host.r_en, 0)
        for cycle in range(1, latency + 4):
            await ctx.tick()
            assert causes(ctx, dut.fault) == ({Fault.PARITY} if cycle == latency + 2 else set())
    simulate(dut, testbench)
