"""Serial line: frames against waveforms made by hand, at rates that divide the clock and do not."""
import numpy as np
import pytest
from amaranth.sim import Simulator

from hdl.uart import UartReceiver, UartTransmitter, phase_step

CLOCK = 80e6
RATES = [CLOCK / 4, 3e6, CLOCK / 3.1, 115200 * 20]


def waveform(data: bytes, cycles_per_bit: float, idle: float = 0) -> np.ndarray:
    """Levels of a pin that carries bytes: start bit, bits from the lowest on, stop bit."""
    bits = []
    for byte in data:
        bits += [0, *(byte >> bit & 1 for bit in range(8)), 1] + [1] * int(idle)
    edges = np.arange(len(bits) + 1) * cycles_per_bit
    levels = np.ones(int(edges[-1]) + 1, int)
    for bit, begin, end in zip(bits, edges, edges[1:]):
        levels[int(np.ceil(begin)):int(np.ceil(end))] = bit
    return levels


def receive(levels, baud, ready=lambda cycle: True):
    """Bytes and errors that a receiver gives for the levels of its pin."""
    dut = UartReceiver(clock_hz=CLOCK, baud=baud)
    taken, errors = [], []

    async def testbench(ctx):
        for cycle, level in enumerate([1] * 5 + list(levels) + [1] * int(2 * CLOCK / baud + 8)):
            ctx.set(dut.pin, int(level))
            ctx.set(dut.o.ready, ready(cycle))
            if ctx.get(dut.o.valid) and ready(cycle):
                taken.append(ctx.get(dut.o.payload))
            if ctx.get(dut.error):
                errors.append(cycle)
            await ctx.tick()
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    return bytes(taken), errors


@pytest.mark.parametrize("baud, off", [
    (baud, off) for baud in RATES for off in (-0.02, 0, 0.02) if off == 0 or CLOCK / baud >= 4])
def test_receiver(baud, off):
    """All bytes, back to back, from a sender whose clock is up to 2 % off.

    Three samples a bit leave no room for one that is off.
    """
    data = bytes(range(0, 256, 3)) + b"\x00\xff\x00\x55\xaa"
    assert receive(waveform(data, CLOCK / baud * (1 + off), 0), baud) == (data, [])


def test_receiver_drops_what_is_no_frame():
    """A spike shorter than half a bit is nothing; a frame whose stop bit is 0 is an error."""
    period = 20
    spike = [0] * 8 + [1] * 60
    broken = waveform(b"\x41", period)
    broken[9 * period:10 * period] = 0
    data, errors = receive(spike + list(broken) + [1] * 100 + list(waveform(b"B", period)),
                           CLOCK / period)
    assert data == b"B" and len(errors) == 1


def test_receiver_tells_that_a_byte_was_lost():
    """Two bytes while nobody takes: the first stays, the second is lost."""
    levels = waveform(b"12", 10)
    data, errors = receive(levels, CLOCK / 10, ready=lambda cycle: cycle > len(levels) + 10)
    assert data == b"1" and len(errors) == 1


@pytest.mark.parametrize("baud", RATES)
@pytest.mark.parametrize("gap", [0, 7])
def test_transmitter(baud, gap):
    """Every edge is within a cycle of where it should be, from the first start bit on."""
    data, dut, levels = b"U\x00\xff\x96Metronome", UartTransmitter(clock_hz=CLOCK, baud=baud), []
    bit = CLOCK / baud

    async def testbench(ctx):
        waiting, left = 0, list(data)
        for _ in range(int((len(data) * 10 + 2) * bit) + len(data) * (gap + int(bit))):
            ctx.set(dut.i.valid, bool(left) and not waiting)
            ctx.set(dut.i.payload, left[0] if left else 0)
            levels.append(ctx.get(dut.pin))
            if left and not waiting and ctx.get(dut.i.ready):
                left.pop(0)
                waiting = gap and int(10 * bit) + gap
            elif waiting:
                waiting -= 1
            await ctx.tick()
        assert not left
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    found, at = bytearray(), 0
    while (start := next((k for k in range(at, len(levels)) if not levels[k]), None)) is not None:
        samples = [levels[round(start + (k + 0.5) * bit)] for k in range(10)]
        assert samples[0] == 0 and samples[9] == 1
        found.append(sum(level << k for k, level in enumerate(samples[1:9])))
        at = round(start + 9.5 * bit)
    assert bytes(found) == data


def test_rates_that_do_not_work():
    assert phase_step(80e6, 20e6) == 16384
    for baud in (CLOCK / 2, 100):
        with pytest.raises(ValueError, match="baud must be at most clock_hz / 3"):
            phase_step(CLOCK, baud)
