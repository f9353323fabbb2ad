"""Serial line of a board: bytes to and from one pin each, 8 data bits, no parity, one stop bit.

Bit times are kept by an accumulator that overflows ``baud`` times a second, so that no clock has to
be a multiple of the baud rate: an edge is at most one cycle off, and nothing adds up.

Ref: the FT231X of the ULX3S board sends at up to 3 Mbaud (FTDI data sheet DS_FT231X, section 4).
"""
from amaranth import Cat, Module, Signal
from amaranth.lib import cdc, stream, wiring
from amaranth.lib.wiring import In, Out

PHASE_BITS = 16
#: Bits of a frame: start, eight of data, stop.
FRAME_BITS = 10
#: Least cycles per bit: a receiver samples in the middle and needs an edge to either side of it.
BIT_CYCLES_MIN = 3


def phase_step(clock_hz: float, baud: float) -> int:
    """What the accumulator grows by per cycle.

    Raises
    ------
    ValueError
        If a bit is shorter than `BIT_CYCLES_MIN` cycles, or too long for the accumulator.
    """
    step = round((1 << PHASE_BITS) * baud / clock_hz)
    if not 1 <= step <= (1 << PHASE_BITS) // BIT_CYCLES_MIN:
        raise ValueError(f"baud must be at most clock_hz / {BIT_CYCLES_MIN} and at least clock_hz / "
                         f"{1 << PHASE_BITS}, not {baud!r} at {clock_hz!r} Hz")
    return step


class UartReceiver(wiring.Component):
    """Bytes from a pin.

    The pin is asynchronous. A byte is on ``o`` from the middle of its stop bit on; if it is not
    taken before the next one is complete, that one is lost. A frame without stop bit is dropped.

    Parameters
    ----------
    clock_hz, baud : float

    Members
    -------
    pin : idle high.
    o : bytes.
    error : a frame was dropped on this cycle, or a byte lost.
    """

    def __init__(self, *, clock_hz: float, baud: float):
        self._step = phase_step(clock_hz, baud)
        super().__init__({"pin": In(1, init=1), "o": Out(stream.Signature(8)), "error": Out(1)})

    def elaborate(self, platform):
        m = Module()
        level, phase = Signal(init=1), Signal(PHASE_BITS)
        m.submodules.pin = cdc.FFSynchronizer(self.pin, level, init=1)
        left, bits = Signal(range(FRAME_BITS + 1)), Signal(FRAME_BITS - 1)
        sum_ = Signal(PHASE_BITS + 1)
        m.d.comb += sum_.eq(phase + self._step)
        m.d.sync += self.error.eq(0)
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(left == 0):
            # Half a bit after the edge that starts a frame comes the middle of its start bit.
            m.d.sync += phase.eq(1 << PHASE_BITS - 1)
            with m.If(~level):
                m.d.sync += left.eq(FRAME_BITS)
        with m.Else():
            m.d.sync += phase.eq(sum_)
            with m.If(sum_[-1]):
                m.d.sync += [left.eq(left - 1), bits.eq(Cat(bits[1:], level))]
                with m.If((left == FRAME_BITS) & level):
                    m.d.sync += left.eq(0)      # no start bit: a spike
                with m.If(left == 1):
                    with m.If(level & (~self.o.valid | self.o.ready)):
                        m.d.sync += [self.o.payload.eq(bits[1:]), self.o.valid.eq(1)]
                    with m.Else():
                        m.d.sync += self.error.eq(1)
        return m


class UartTransmitter(wiring.Component):
    """Bytes to a pin, back to back as long as there are any.

    Parameters
    ----------
    clock_hz, baud : float

    Members
    -------
    i : bytes.
    pin : idle high.
    """

    def __init__(self, *, clock_hz: float, baud: float):
        self._step = phase_step(clock_hz, baud)
        super().__init__({"i": In(stream.Signature(8)), "pin": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        phase, left = Signal(PHASE_BITS), Signal(range(FRAME_BITS + 1))
        frame = Signal(FRAME_BITS - 1, init=-1)
        sum_, last = Signal(PHASE_BITS + 1), Signal()
        m.d.comb += [sum_.eq(phase + self._step), last.eq(sum_[-1] & (left == 1)),
                     self.i.ready.eq((left == 0) | last)]
        m.d.sync += phase.eq(sum_)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [self.pin.eq(0), frame.eq(Cat(self.i.payload, 1)), left.eq(FRAME_BITS)]
            with m.If(left == 0):
                m.d.sync += phase.eq(0)
        with m.Elif(sum_[-1] & (left != 0)):
            m.d.sync += [self.pin.eq(frame[0]), frame.eq(Cat(frame[1:], 1)), left.eq(left - 1)]
        return m
