"""Host port, sequencer and registers: frames in, frames out, steps between barriers."""
import functools
import operator
import struct

import pytest
from amaranth import Cat, Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.sim import Simulator

from arch.config import profile
from arch.faults import Fault
from arch.hostmap import (ABORT, CLEAR, NO_TOKEN, RUN, Command, EventFlag, Register, Space, Status,
                          mem_address, row_address)
from arch.queues import QUEUES
from hdl.host import HostPort
from hdl.mem import Mem
from hdl.perm import Perm
from hdl.sequencer import Sequencer
from tests.hdl.host_wire import Wire, header, stuffed, with_crc, write_frame

CONFIG = profile("tiny")
CAUSES = len(Fault) - 1


class Core(wiring.Component):
    """Host port, sequencer and MEM on the bus, PERM, which reads it; queues and sampler are inputs."""

    def __init__(self):
        self.sequencer = Sequencer(config=CONFIG)
        super().__init__({"rx": In(stream.Signature(8)), "tx": Out(stream.Signature(8)),
                          "ended": In(len(QUEUES), init=-1), "sampled": In(CONFIG.token_bits),
                          "causes": In(len(QUEUES) * CAUSES)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.host = host = HostPort(config=CONFIG)
        m.submodules.sequencer = sequencer = self.sequencer
        m.submodules.mem, m.submodules.perm = mem, perm = Mem(config=CONFIG), Perm(config=CONFIG)
        for bank in range(CONFIG.mem_banks):
            m.d.comb += getattr(perm.streams, f"m{bank}").data.eq(getattr(mem, f"o_{bank}").data)
        connect(m, flipped(self.rx), host.rx)
        connect(m, flipped(self.tx), host.tx)
        connect(m, sequencer.event, host.event)
        ends = (sequencer.host, mem.host, perm.bus)
        for end in ends:
            m.d.comb += [getattr(end, name).eq(getattr(host.bus, name))
                         for name in ("space", "address", "w_en", "r_en", "w_data")]
        m.d.comb += [host.bus.r_data.eq(functools.reduce(operator.or_, (end.r_data for end in ends))),
                     host.bus.ack.eq(Cat(end.ack for end in ends).any()),
                     host.busy.eq(sequencer.busy), sequencer.ended.eq(self.ended),
                     sequencer.sampled.eq(self.sampled),
                     sequencer.causes.as_value().eq(self.causes)]
        return m


def simulate(scenario):
    """Run ``scenario(wire, dut)`` on a `Core`; returns the cycles on which there was a barrier."""
    dut, barriers = Core(), []

    async def testbench(ctx):
        wire = Wire(dut, ctx)
        await scenario(wire, dut)

    async def barrier_monitor(ctx):
        cycle = 0
        async for _, _, barrier in ctx.tick().sample(dut.sequencer.barrier):
            if barrier:
                barriers.append(cycle)
            cycle += 1

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.add_testbench(barrier_monitor, background=True)
    simulator.run()
    return barriers


def test_write_and_read_back():
    async def scenario(wire, dut):
        address = mem_address(CONFIG, 1, 5, 0)
        words = [(0x1234 + 0x777 * index) & 0xFFFF for index in range(3 * CONFIG.lanes)]
        started = wire.cycles
        await wire.write(Space.MEM, address, words)
        # A word of 16 bits lasts 500 cycles on the line of a board.
        assert wire.cycles - started < 7 * len(words) + 64
        assert await wire.read(Space.MEM, address, len(words)) == words
        assert await wire.read(Space.MEM, address + 3, 2) == words[3:5]
        await wire.write(Space.MEM, address + 9, [0xBEEF])
        assert await wire.read(Space.MEM, address + 8, 3) == [words[8], 0xBEEF, words[10]]
        await wire.write(Space.TOKENS, 3, [7, 8, 9])
        assert await wire.read(Space.TOKENS, 2, 4) == [0, 7, 8, 9]
        # Of a token as many bits are kept as tokens have.
        await wire.write(Space.TOKENS, 4, [0xA55A, 0xFFFF])
        assert await wire.read(Space.TOKENS, 3, 3) == [7, 0x5A, 0xFF]
        await wire.write(Space.ROWS, row_address(2, 3), [11, 12, 13])
        assert await wire.read(Space.ROWS, row_address(2, 2), 5) == [0, 11, 12, 13, 0]
        await wire.write(Space.ROWS, 0, [])
        assert await wire.read(Space.ROWS, 0, 0) == []
    simulate(scenario)


def test_bytes_wait_on_a_quiet_line():
    """Two bytes of a request are taken while a reply cannot leave, and the rest comes much later."""
    async def scenario(wire, dut):
        first, second = (stuffed(with_crc(header(Command.READ, tag, Space.REGISTERS,
                                                 Register.MAGIC, 1))) for tag in (1, 2))
        await wire.send(first)
        wire.ctx.set(dut.tx.ready, 0)
        await wire.send(second[:2])
        for cycle in range(300):
            wire.ctx.set(dut.tx.ready, cycle >= 50)
            await wire.tick()
        await wire.send(second[2:])
        for tag in (1, 2):
            await wire.reply(tag, Space.REGISTERS, Register.MAGIC, 1)
            assert await wire.take(6) == with_crc(struct.pack("<H", 0x4D45))
    simulate(scenario)


def test_identity_and_settings():
    async def scenario(wire, dut):
        digest = struct.unpack("<4H", CONFIG.digest())
        assert await wire.read(Space.REGISTERS, Register.MAGIC, 6) == [0x4D45, 2, *digest]
        settings = list(range(100, 110))
        await wire.write(Space.REGISTERS, Register.FIRST, settings)
        assert await wire.read(Space.REGISTERS, Register.COMMAND, 12) == [0, *settings, 0]
        assert await wire.read(Space.REGISTERS, Register.STATUS, 3) == [0, 0, 0xFF]
        first = await wire.read(Space.REGISTERS, Register.TIME0, 4)
        mark = wire.cycles
        second = await wire.read(Space.REGISTERS, Register.TIME0, 4)
        assert first[1:] == second[1:] == [0, 0, 0]
        assert 0 < second[0] - first[0] <= wire.cycles - mark + 60
    simulate(scenario)


@pytest.mark.parametrize("space, address, count", [
    (Space.REGISTERS, 42, 1), (Space.MEM, CONFIG.mem_banks * 64 * CONFIG.lanes - 1, 2),
    (Space.TOKENS, CONFIG.context, 1), (9, 0, 1), (Space.ROWS, 1 << 24, 1),
    (Space.TOKENS, 0xFFFFFFFF, 1), (255, 0, 3)])
def test_range(space, address, count):
    async def scenario(wire, dut):
        await wire.send(stuffed(with_crc(header(Command.READ, 1, space, address, count))))
        await wire.reply(1, space, address, count, Status.RANGE)
        await wire.write(space, address, [1] * count, status=Status.RANGE)
        assert await wire.read(Space.REGISTERS, Register.MAGIC, 1) == [0x4D45]
    simulate(scenario)


@pytest.mark.parametrize("command", [0, 5, 255])
def test_unknown_command(command):
    async def scenario(wire, dut):
        await wire.send(stuffed(with_crc(header(command, 1, Space.TOKENS, 0, 1))))
        await wire.reply(1, Space.TOKENS, 0, 1, Status.RANGE)
        assert await wire.read(Space.REGISTERS, Register.MAGIC, 1) == [0x4D45]
    simulate(scenario)


def test_damaged_frames():
    async def scenario(wire, dut):
        good = write_frame(1, Space.TOKENS, 0, [21, 22])
        # A header with a wrong CRC is not answered, and what follows is skipped.
        bad = bytearray(good[:14])
        bad[6] ^= 1
        await wire.send(bytes(bad) + b"\x00\x11\x6d\x65")
        # Bytes that are no frame, then a good one.
        await wire.send(good)
        await wire.reply(1, Space.TOKENS, 0, 2)
        # A damaged payload has been written, and is reported.
        good = write_frame(2, Space.TOKENS, 0, [31, 32])
        bad = bytearray(good)
        bad[14] ^= 0x80
        await wire.send(bytes(bad))
        await wire.reply(2, Space.TOKENS, 0, 2, Status.CRC)
        assert await wire.read(Space.TOKENS, 0, 2) == [31 ^ 0x80, 32]
        bad = bytearray(good)
        bad[-1] ^= 1
        await wire.send(bytes(bad))
        await wire.reply(2, Space.TOKENS, 0, 2, Status.CRC)
        # Sent again with the same tag, it is done.
        await wire.send(good)
        await wire.reply(2, Space.TOKENS, 0, 2)
        assert await wire.read(Space.TOKENS, 0, 2) == [31, 32]
    simulate(scenario)


@pytest.mark.parametrize("size", [*range(1, 22), 33, 37])
def test_a_sync_byte_ends_what_was_begun(size):
    """A frame that is cut anywhere costs nothing of the one behind it."""
    async def scenario(wire, dut):
        await wire.send(write_frame(1, Space.TOKENS, 0, range(21, 31))[:size])
        await wire.write(Space.TOKENS, 4, [31, 32])
        assert await wire.read(Space.TOKENS, 4, 2) == [31, 32]
    simulate(scenario)


def test_one_word_is_written_when_its_crc_was_right():
    async def scenario(wire, dut):
        await wire.write(Space.TOKENS, 0, [5])
        for place in range(14, 20):
            bad = bytearray(write_frame(2, Space.TOKENS, 0, [6]))
            bad[place] ^= 4
            await wire.send(bytes(bad))
            await wire.reply(2, Space.TOKENS, 0, 1, Status.CRC)
            assert await wire.read(Space.TOKENS, 0, 1) == [5]
        # Commands are one word: a run starts by no other frame.
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN, 0], status=Status.RANGE)
        assert await wire.read(Space.REGISTERS, Register.STATUS, 1) == [0]
    simulate(scenario)


def test_a_write_is_done_once():
    async def scenario(wire, dut):
        first = write_frame(1, Space.TOKENS, 0, [21, 22])
        second = write_frame(2, Space.TOKENS, 0, [31, 32])
        for frame, tag in ((first, 1), (second, 2), (second, 2)):
            await wire.send(frame)
            await wire.reply(tag, Space.TOKENS, 0, 2)
        # An old one again, and one from the future.
        for tag in (1, 0, 4, 130):
            await wire.send(stuffed(write_frame(tag, Space.TOKENS, 0, [41, 42])))
            await wire.reply(tag, Space.TOKENS, 0, 2, Status.ORDER)
        assert await wire.read(Space.TOKENS, 0, 2) == [31, 32]
        # The tag of the last one does not make another write of it; OPEN sets the tag.
        await wire.send(write_frame(2, Space.TOKENS, 0, [41, 42]))
        await wire.reply(2, Space.TOKENS, 0, 2)
        assert await wire.read(Space.TOKENS, 0, 2) == [31, 32]
        await wire.send(stuffed(with_crc(header(Command.OPEN, 0xF5, Space.REGISTERS, 0, 0))))
        await wire.reply(0xF5, Space.REGISTERS, 0, 0)
        await wire.send(stuffed(write_frame(0xF6, Space.ROWS, 0, [0xF5F6, 0xF6F5])))
        await wire.reply(0xF6, Space.ROWS, 0, 2)
        assert await wire.read(Space.ROWS, 0, 2) == [0xF5F6, 0xF6F5]
    simulate(scenario)


def test_check_gives_the_crc_of_what_a_read_gives():
    async def scenario(wire, dut):
        words = [7, 0xFFFF, 0xF5F6, 9]
        await wire.write(Space.ROWS, 3, words)
        for count in (4, 0):
            await wire.send(with_crc(header(Command.CHECK, 3, Space.ROWS, 3, count)))
            await wire.reply(3, Space.ROWS, 3, count)
            payload = struct.pack(f"<{count}H", *words[:count])
            assert await wire.take(4) == with_crc(payload)[-4:]
        assert await wire.read(Space.ROWS, 3, 4) == words
        await wire.send(with_crc(header(Command.CHECK, 3, Space.TOKENS, CONFIG.context, 1)))
        await wire.reply(3, Space.TOKENS, CONFIG.context, 1, Status.RANGE)
    simulate(scenario)


def test_receiver_that_pauses():
    async def scenario(wire, dut):
        await wire.write(Space.TOKENS, 0, [1, 2, 3])
        await wire.send(stuffed(with_crc(header(Command.READ, 1, Space.TOKENS, 0, 3))))
        data = bytearray()
        for cycle in range(400):
            wire.ctx.set(dut.tx.ready, cycle % 3 == 0)
            await wire.tick()
        data = bytes(wire.received)
        assert data[14:] == with_crc(struct.pack("<3H", 1, 2, 3))
    simulate(scenario)


async def prepare(wire, rows, prompt, **registers):
    """Step lengths by row, as ``(generate, prompt)``; tokens of the prompt; registers."""
    for row, (generate, given) in enumerate(rows):
        await wire.write(Space.ROWS, row_address(row, 0),
                         [row + 1, row + 2, row + 3, row + 4, generate, given])
    await wire.write(Space.TOKENS, 0, prompt)
    await wire.write(Space.REGISTERS, Register.PROMPT, [len(prompt)])
    for name, value in {"FIRST": 0, "LIMIT": CONFIG.context, "STOP": NO_TOKEN, **registers}.items():
        await wire.write(Space.REGISTERS, Register[name], [value])


ROWS = [(20, 30), (41, 52), (43, 54), (45, 56)]


def test_steps_tokens_and_events():
    """Prompt of three, generation across a row boundary up to LIMIT."""

    async def scenario(wire, dut):
        sequencer = dut.sequencer
        await prepare(wire, ROWS, [50, 51, 52], LIMIT=10)
        wire.ctx.set(dut.sampled, 99)
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN])
        # The first step is over before the reply is on its way.
        await wire.send(stuffed(with_crc(header(Command.READ, 9, Space.REGISTERS,
                                                Register.STATUS, 1))))
        events = [await wire.event()]
        await wire.reply(9, Space.REGISTERS, Register.STATUS, 1)
        assert await wire.take(6) == with_crc(struct.pack("<H", 1))
        lengths = []
        for position in range(10):
            flags, at, token, cycles = events.pop() if events else await wire.event()
            lengths.append(cycles)
            assert at == position
            expected = EventFlag(0) if position < 2 else EventFlag.SAMPLED
            assert flags == expected | (EventFlag.LAST if position == 9 else 0)
            assert token == (99 if position >= 2 else 0)
        assert lengths == [30, 30, 20, 20, 20, 20, 20, 20, 41, 41]
        assert await wire.read(Space.TOKENS, 0, 12) == [50, 51, 52] + [99] * 8 + [0]
        assert await wire.read(Space.REGISTERS, Register.STATUS, 8) == [0, 0, 0xFF, 0, 0, 9, 41, 0]
        assert not wire.ctx.get(sequencer.busy)

    barriers = simulate(scenario)
    distances = [after - before for before, after in zip(barriers, barriers[1:])]
    assert distances == [30, 30, 20, 20, 20, 20, 20, 20, 41, 41]


def test_state_of_a_step():
    """Position, token, row and kind change with cycle 0 and hold to the last cycle.

    Counts are a cycle ahead.
    """
    states = []

    async def scenario(wire, dut):
        await prepare(wire, ROWS, [60, 61, 62], FIRST=7, LIMIT=9)
        await wire.write(Space.REGISTERS, Register.PROMPT, [9])
        await wire.write(Space.TOKENS, 7, [70, 71, 72])
        wire.ctx.set(dut.sampled, 5)
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN])
        await wire.event()
        await wire.event()

    dut = Core()

    async def testbench(ctx):
        await scenario(Wire(dut, ctx), dut)

    async def monitor(ctx):
        sequencer = dut.sequencer
        inside = False
        ahead = None
        async for _, _, barrier, stop, position, token, row, prompt, count in ctx.tick().sample(
                sequencer.barrier, sequencer.stop, sequencer.position, sequencer.token,
                sequencer.row, sequencer.prompt, sequencer.counts[2]):
            if inside and not stop:
                states.append((position, token, row, prompt, ahead))
            ahead = count
            inside = (inside or barrier) and not stop

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.add_testbench(monitor, background=True)
    simulator.run()
    # The run is over two cycles after its last one; on the first of them everything changes.
    assert states[:-1] == [(7, 70, 0, 1, 3)] * 30 + [(8, 71, 1, 0, 4)] * 41


def test_stop_token_and_second_run():
    async def scenario(wire, dut):
        await prepare(wire, ROWS, [50], STOP=33)
        wire.ctx.set(dut.sampled, 33)
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN])
        assert await wire.event() == (EventFlag.SAMPLED | EventFlag.LAST, 0, 33, 20)
        await prepare(wire, ROWS, [50], FIRST=8, LIMIT=9, STOP=34)
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN])
        assert await wire.event() == (EventFlag.SAMPLED | EventFlag.LAST, 8, 33, 41)
    assert len(simulate(scenario)) == 4


def test_abort_acts_at_the_barrier():
    async def scenario(wire, dut):
        await prepare(wire, [(300, 300)] * 4, [50])
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN])
        assert await wire.event() == (EventFlag.SAMPLED, 0, 0, 300)
        await wire.write(Space.REGISTERS, Register.COMMAND, [ABORT])
        assert await wire.event() == (EventFlag.SAMPLED | EventFlag.LAST, 1, 0, 300)
        # The next run starts with the abort forgotten.
        await wire.write(Space.REGISTERS, Register.LIMIT, [2])
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN])
        assert (await wire.event())[0] == EventFlag.SAMPLED
        assert (await wire.event())[0] == EventFlag.SAMPLED | EventFlag.LAST
    simulate(scenario)


def test_last_position_of_the_context():
    async def scenario(wire, dut):
        last = CONFIG.context - 1
        await prepare(wire, ROWS, [50], FIRST=last, LIMIT=0xFFFF)
        wire.ctx.set(dut.sampled, 200)
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN])
        assert await wire.event() == (EventFlag.SAMPLED | EventFlag.LAST, last, 200, 45)
        assert await wire.read(Space.TOKENS, 0, 2) == [50, 0]
    simulate(scenario)


def test_busy():
    async def scenario(wire, dut):
        await prepare(wire, [(400, 400)] * 4, [50], LIMIT=1)
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN])
        await wire.write(Space.TOKENS, 0, [1, 2], status=Status.BUSY)
        await wire.send(stuffed(with_crc(header(Command.READ, 1, Space.MEM, 0, 4))))
        await wire.reply(1, Space.MEM, 0, 4, Status.BUSY)
        await wire.event()
        assert await wire.read(Space.TOKENS, 0, 1) == [50]
    simulate(scenario)


def test_a_full_context_of_events_waits_for_a_slow_host():
    async def scenario(wire, dut):
        await prepare(wire, [(8, 8)] * 4, [50])
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN])
        wire.ctx.set(dut.tx.ready, 0)
        for _ in range(8 * CONFIG.context + 50):
            await wire.tick()
        wire.ctx.set(dut.tx.ready, 1)
        for position in range(CONFIG.context):
            flags, at, _, cycles = await wire.event()
            assert (at, cycles) == (position, 8)
        assert flags & EventFlag.LAST
    simulate(scenario)


def test_a_run_that_ends_where_rows_end():
    """The row of the step that does not begin was never written."""
    async def scenario(wire, dut):
        await prepare(wire, ROWS[:1], [50], FIRST=7, LIMIT=8)
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN])
        assert await wire.event() == (EventFlag.SAMPLED | EventFlag.LAST, 7, 0, 20)
        assert await wire.read(Space.REGISTERS, Register.STATUS, 1) == [0]
    barriers = simulate(scenario)
    assert [after - before for before, after in zip(barriers, barriers[1:])] == [20]


async def after_barrier(ctx, dut, cycles):
    """Wait for the first barrier and ``cycles`` more: 1 is cycle 0 of the step."""
    while not ctx.get(dut.sequencer.barrier):
        await ctx.tick()
    for _ in range(cycles):
        await ctx.tick()


@pytest.mark.parametrize("cycle", [1, 57, 299])
def test_fault_ends_the_run_at_its_step(cycle):
    """Of two causes the lower counts, of two queues with it the lower; later ones do not."""
    def lines(*faults):
        return sum(1 << QUEUES[queue].id * CAUSES + fault - 1 for queue, fault in faults)

    dut = Core()

    async def testbench(ctx):
        wire = Wire(dut, ctx)
        await prepare(wire, [(300, 300)] * 4, [50])
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN])
        flags, position, _, cycles = await wire.event()
        assert flags == EventFlag.SAMPLED | EventFlag.LAST | EventFlag.FAULT
        assert (position, cycles) == (0, 300)
        assert await wire.read(Space.REGISTERS, Register.STATUS, 5) == [
            2, Fault.ADDRESS, QUEUES["r1"].id, cycle - 1, 0]
        # Cleared, the machine runs again.
        await wire.write(Space.REGISTERS, Register.COMMAND, [CLEAR])
        assert await wire.read(Space.REGISTERS, Register.STATUS, 4) == [0, 0, 0xFF, 0]
        await wire.write(Space.REGISTERS, Register.LIMIT, [1])
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN])
        assert (await wire.event())[0] == EventFlag.SAMPLED | EventFlag.LAST

    async def faulty(ctx):
        await after_barrier(ctx, dut, cycle + 1)
        ctx.set(dut.causes, lines(("vxm", Fault.UNDERRUN), ("w2", Fault.ADDRESS),
                                  ("r1", Fault.ADDRESS), ("r1", Fault.PARITY)))
        await ctx.tick()
        ctx.set(dut.causes, lines(("mxm", Fault.OPERAND)))
        await ctx.tick()
        ctx.set(dut.causes, 0)

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.add_testbench(faulty, background=True)
    simulator.run()


def test_fault_on_the_last_cycle_ends_the_next_step():
    """Its line rises on cycle 0 of the next step; the registers still tell its own cycle."""
    dut = Core()

    async def testbench(ctx):
        wire = Wire(dut, ctx)
        await prepare(wire, [(300, 300)] * 4, [50])
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN])
        assert (await wire.event())[0] == EventFlag.SAMPLED
        assert (await wire.event())[0] == EventFlag.SAMPLED | EventFlag.LAST | EventFlag.FAULT
        assert (await wire.read(Space.REGISTERS, Register.FAULT_CYCLE0, 1)) == [299]

    async def faulty(ctx):
        await after_barrier(ctx, dut, 301)
        ctx.set(dut.causes, 1)
        await ctx.tick()
        ctx.set(dut.causes, 0)

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.add_testbench(faulty, background=True)
    simulator.run()


def test_length_fault():
    async def scenario(wire, dut):
        await prepare(wire, ROWS, [50])
        wire.ctx.set(dut.ended, ((1 << len(QUEUES)) - 1) & ~(1 << QUEUES["red"].id | 1 << 14))
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN])
        flags, position, _, cycles = await wire.event()
        assert flags == EventFlag.SAMPLED | EventFlag.LAST | EventFlag.FAULT
        assert await wire.read(Space.REGISTERS, Register.STATUS, 5) == [
            2, Fault.LENGTH, QUEUES["red"].id, 19, 0]
    simulate(scenario)
