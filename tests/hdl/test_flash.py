"""Reader of an SPI flash against a model of one: bytes from an address on, wherever a read ends."""
import pytest
from amaranth.sim import Simulator

from hdl.flash import READ, WAKE, WAKE_CYCLES, FlashReader


def byte_at(address: int) -> int:
    return (37 * address + address // 256 + 11) % 256


class Flash:
    """Takes bits with the rising edge of its clock, gives them with the falling one."""

    def __init__(self):
        self.commands, self._bits, self._clock, self.out = [], [], 0, 0

    def step(self, select: int, clock: int, bit: int) -> None:
        if not select:
            self._bits, self._clock = [], 0
            return
        if clock and not self._clock:
            self._bits.append(bit)
            if len(self._bits) in (8, 32):
                self.commands.append(int("".join(map(str, self._bits)), 2))
        elif self._clock and not clock and len(self._bits) >= 32:
            place = len(self._bits) - 32
            self.out = byte_at(self.commands[-1] % (1 << 24) + place // 8) >> 7 - place % 8 & 1
        self._clock = clock


def reads(wanted: list, ready: bool = True, every: int = 50) -> tuple:
    """Bytes taken and commands seen. ``wanted``: address, bytes to take, cycles to wait after them.

    They are taken on every so many cycles. ``read`` then falls for one cycle, on which bytes would be
    taken if ``ready``.
    """
    dut, model, got = FlashReader(), Flash(), []

    async def cycle(ctx, address, read):
        ctx.set(dut.read, read)
        ctx.set(dut.address, address)
        ctx.set(dut.in_, model.out)
        if ctx.get(dut.o.valid) and ctx.get(dut.o.ready):
            got.append(ctx.get(dut.o.payload))
        await ctx.tick()
        model.step(ctx.get(dut.select), ctx.get(dut.clock), ctx.get(dut.out))

    async def testbench(ctx):
        for address, count, more in wanted:
            end, left = len(got) + count, more
            for number in range(3 * WAKE_CYCLES):
                # A byte waits until it is taken.
                ctx.set(dut.o.ready, len(got) < end and number % every == 0)
                if len(got) == end:
                    left -= 1
                    if left < 0:
                        break
                await cycle(ctx, address, 1)
            assert len(got) == end
            ctx.set(dut.o.ready, ready)
            await cycle(ctx, 0x555555, 0)

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.run()
    return got, model.commands


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("more", [0, 1, 2, 10, 31, 33, 100])
def test_a_read_may_end_anywhere(more, ready):
    """Right behind a byte, within the next one, and while that one is on offer."""
    wanted = [(0x200100, 3, more), (0xFEDCB8, 2, more), (0x000000, 1, 0)]
    got, commands = reads(wanted, ready)
    assert got == [byte_at(address + place) for address, count, _ in wanted
                   for place in range(count)]
    addressed = [command for command in commands if command > 255]
    assert commands[0] == WAKE and addressed == [READ << 24 | address for address, *_ in wanted]


def test_a_byte_is_taken_once():
    """By whoever always takes."""
    got, _ = reads([(0x200100, 20, 0)], every=1)
    assert got == [byte_at(0x200100 + place) for place in range(20)]


def test_a_read_that_ends_within_its_command():
    got, commands = reads([(0x123456, 0, 2 * WAKE_CYCLES + 100), (0x777777, 2, 0)])
    assert got == [byte_at(0x777777), byte_at(0x777778)]
    assert commands[0] == WAKE and commands[-1] == READ << 24 | 0x777777
