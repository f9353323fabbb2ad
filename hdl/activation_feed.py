"""Activation feed of one half of the MXM columns: takes a vector, holds it, scales its parts."""
from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from arch import isa
from arch.config import Config
from hdl.signatures import StreamsSignature, select


def scaled(m, value, shift, bits: int, prefix: str):
    """``activation`` of `arch.numerics`: shift-round an int16 value, saturate it symmetrically.

    The saturation is decided beside the rounding adder, not behind it: at the upper limit nothing
    is added, at the one value below the lower limit 1 is.
    """
    shifted = Signal(17, name=f"{prefix}_shifted")
    m.d.comb += shifted.eq(Cat(0, value).as_signed() >> shift)
    rounding, rest = shifted[0], shifted[1:]
    sign, low = rest[-1], rest[:bits]
    outside = rest[bits - 1:].any() & ~rest[bits - 1:].all()
    limit = (1 << bits - 1) - 1
    carry = rounding & (low != limit) | (low == 1 << bits - 1)
    return Mux(outside, Mux(sign, -limit, limit), (low + carry)[:bits].as_signed())


class ActivationFeed(wiring.Component):
    """Takes the lanes of a stream on cycle t and gives one part of them, scaled, on cycle t + 2.

    Parameters
    ----------
    config : Config

    Members
    -------
    i_source : stream to take; ``i_take`` : hold it from the end of this cycle on.
    i_part, i_shift : for every issue, which ``rows`` lanes of the held vector and how much to
        shift; they meet the vector taken on the same cycle or before.
    o : activations, ``rows`` of them.
    o_valid, o_defined : on the same cycle, whether the source carries a vector and whether its
        number names a stream.
    """

    def __init__(self, *, config: Config):
        self._config = config
        source, shift = (isa.UNITS["mxm"].field(name).bits(config) for name in ("x0", "shift"))
        super().__init__({
            "streams": In(StreamsSignature(config)),
            "i_source": In(source), "i_take": In(1), "i_part": In((config.groups - 1).bit_length()),
            "i_shift": In(shift),
            "o": Out(data.ArrayLayout(signed(config.activation_bits), config.rows)),
            "o_valid": Out(1), "o_defined": Out(1)})

    def elaborate(self, platform):
        m = Module()
        config = self._config
        rows = config.rows
        # Cycle t: take.
        lanes, valid, defined = select(m, self.streams, self.i_source, config, 16, "x")
        m.d.comb += [self.o_valid.eq(valid), self.o_defined.eq(defined & (self.i_source != 0))]
        held = [Signal(signed(16), name=f"held_{lane}", reset_less=True)
                for lane in range(config.lanes)]
        with m.If(self.i_take):
            m.d.sync += [held[lane].eq(lanes[lane]) for lane in range(config.lanes)]
        part = Signal.like(self.i_part, reset_less=True)
        shift = Signal.like(self.i_shift, reset_less=True)
        m.d.sync += [part.eq(self.i_part), shift.eq(self.i_shift)]
        # Cycle t + 1: choose the part, shift, round, saturate.
        for row in range(rows):
            lane = Signal(signed(16), name=f"lane_{row}")
            with m.Switch(part):
                for group in range(config.groups):
                    with m.Case(group):
                        m.d.comb += lane.eq(held[group * rows + row])
            result = Signal(signed(config.activation_bits), name=f"o_{row}", reset_less=True)
            m.d.sync += result.eq(scaled(m, lane, shift, config.activation_bits, f"lane_{row}"))
            m.d.comb += self.o[row].eq(result)
        return m
