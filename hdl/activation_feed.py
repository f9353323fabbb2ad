"""Activation feed of one half of the MXM columns: takes a vector, holds it, scales its parts."""
from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from arch import isa
from arch.config import Config
from hdl.choose import choose, operand
from hdl.signatures import StreamsSignature


def scaled(m, value, shift, within, bits: int, prefix: str):
    """``activation`` of `arch.numerics`: shift-round an int16 value, saturate it symmetrically.

    The saturation is decided beside the rounding adder, not behind it: at the upper limit nothing
    is added, at the one value below the lower limit 1 is.

    Parameters
    ----------
    within : Value
        Bit i: after the shift, bit ``bits - 1 + i`` of the value still counts; see `still_counts`.
    """
    sign, limit = value[15], (1 << bits - 1) - 1
    # One bit below the point takes the rounding bit along. First by 0, 4, 8 or 12, then 0 to 3.
    padded = Cat(0, value, sign.replicate(16))
    coarse, fine = Signal(bits + 4, name=f"{prefix}_coarse"), Signal(bits + 1, name=f"{prefix}_fine")
    m.d.comb += [
        coarse.eq(choose([padded[4 * step:][:bits + 4] for step in range(4)], shift[2:])),
        fine.eq(choose([coarse[step:][:bits + 1] for step in range(4)], shift[:2]))]
    rounding, low = fine[0], fine[1:]
    outside = (within & (value[bits - 1:15] ^ sign.replicate(len(within)))).any()
    carry = rounding & (low != limit) | (low == limit + 1)
    total = Signal(bits, name=f"{prefix}_total")
    m.d.comb += total.eq(low + carry)
    return Mux(outside, Mux(sign, -limit, limit), total.as_signed())


def still_counts(shift, bits: int):
    """Which bits of an int16 value, from ``bits - 1`` to 14, a right shift leaves beyond ``bits``.
    """
    return Cat(shift <= place for place in range(16 - bits))


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
    o_valid, o_defined : whether the source carries a vector, and whether its number names a
        stream, on the cycle of ``i_source``.
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
        lanes, valid, defined = operand(m, self.streams, self.i_source, "mxm", "x0", config)
        m.d.comb += [self.o_valid.eq(valid), self.o_defined.eq(defined)]
        held = [Signal(16, name=f"held_{lane}", reset_less=True)
                for lane in range(config.lanes)]
        with m.If(self.i_take):
            m.d.sync += [held[lane].eq(lanes[lane]) for lane in range(config.lanes)]
        bits = config.activation_bits
        part = Signal.like(self.i_part, reset_less=True)
        shift = Signal.like(self.i_shift, reset_less=True)
        within = Signal(16 - bits, reset_less=True)
        m.d.sync += [part.eq(self.i_part), shift.eq(self.i_shift),
                     within.eq(still_counts(self.i_shift, bits))]
        # Cycle t + 1: choose the part, shift, round, saturate.
        for row in range(rows):
            lane = Signal(16, name=f"lane_{row}")
            m.d.comb += lane.eq(choose(held[row::rows], part))
            result = Signal(signed(bits), name=f"o_{row}", reset_less=True)
            m.d.sync += result.eq(scaled(m, lane, shift, within, bits, f"lane_{row}"))
            m.d.comb += self.o[row].eq(result)
        return m
