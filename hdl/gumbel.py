"""Gumbel noise of random words: the place of a word in the quantile table, and the table."""
from amaranth import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from arch import numerics
from hdl.pipeline import delay

BASE_BITS, SLOPE_BITS = 16, 9
_PIECE_BITS, REST_BITS = 3, numerics.GUMBEL_FRAC_BITS
#: Bits below the leading one that matter.
_FRACTION = _PIECE_BITS + REST_BITS


def _parity(base: int, slope: int) -> int:
    """1 if the two fields have an odd number of ones."""
    fields = (int(base) % (1 << BASE_BITS), int(slope) % (1 << SLOPE_BITS))
    return sum(field.bit_count() for field in fields) % 2


class GumbelTable(wiring.Component):
    """Base, slope and place of the linear piece of `arch.numerics.gumbel` that a word falls into.

    The noise is ``base + rshift(slope * rest, GUMBEL_FRAC_BITS)``. The piece of the word that is
    on ``word`` on cycle t is on the outputs on cycle t + `LATENCY`. The table is read
    synchronously, so that it fits a block RAM; one register behind it hides how slow that is,
    another how far away.

    Members
    -------
    word : uniform 32 bits.
    o_base, o_slope, o_rest : the piece.
    o_odd : a bit of base or slope has flipped, two cycles behind them.
    """
    LATENCY = 5

    word: In(32)
    o_base: Out(signed(BASE_BITS))
    o_slope: Out(signed(SLOPE_BITS))
    o_rest: Out(REST_BITS)
    o_odd: Out(1)

    def elaborate(self, platform):
        m = Module()
        segment, rest = self._place(m)
        # The last bit makes the parity even; block RAM has it to spare.
        layout = data.StructLayout({"base": signed(BASE_BITS), "slope": signed(SLOPE_BITS),
                                    "check": 1})
        m.submodules.table = table = memory.Memory(shape=layout, depth=len(numerics.GUMBEL_BASE),
                                                   init=[
            {"base": int(base), "slope": int(slope), "check": _parity(base, slope)}
            for base, slope in zip(numerics.GUMBEL_BASE, numerics.GUMBEL_SLOPE)])
        # Cycle 2: the read. Cycle 3: its register. Cycle 4: another.
        read = table.read_port()
        m.d.comb += read.addr.eq(segment)
        base, slope, check = (delay(m, getattr(read.data, name), 2, name) for name in (
            "base", "slope", "check"))
        m.d.comb += [self.o_base.eq(base), self.o_slope.eq(slope),
                     self.o_rest.eq(delay(m, rest, 3, "rest"))]
        checked = Cat(base, slope, check)
        parts = Signal(-(-len(checked) // 4), reset_less=True)
        m.d.sync += [parts.eq(Cat(checked[first:first + 4].xor()
                                  for first in range(0, len(checked), 4))),
                     self.o_odd.eq(parts.xor())]
        return m

    def _place(self, m):
        """Cycle 0: leading half, leading nibble in it. Cycle 1: leading one, segment and rest."""
        side = self.word[31]
        # The 31 bits of w with a 0 below, so that they make eight nibbles.
        w = Cat(C(0, 1), self.word[:31] ^ side.replicate(31))
        nibbles = [w[4 * number:4 * number + 4].any() for number in range(8)]
        high = nibbles[4] | nibbles[5] | nibbles[6] | nibbles[7]
        window = Signal(16 + _FRACTION, reset_less=True)
        nibble = Signal(2, reset_less=True)
        top = Signal(2)
        for number in range(1, 4):
            with m.If(Mux(high, nibbles[4 + number], nibbles[number])):
                m.d.comb += top.eq(number)
        m.d.sync += [nibble.eq(top),
                     window.eq(Mux(high, w[16 - _FRACTION:], Cat(C(0, _FRACTION), w[:16])))]
        side, high = delay(m, side, 1, "side"), delay(m, high, 1, "high")

        near = (window >> Cat(C(0, 2), nibble))[:4 + _FRACTION]
        # No one at all: bit 0 of w counts as the leading one, and the fraction is 0 as it is.
        place = Signal(2, init=1)
        for number in (0, 1, 2, 3):
            with m.If(near[_FRACTION + number]):
                m.d.comb += place.eq(number)
        fraction, octave = (near >> place)[:_FRACTION], ~Cat(place, nibble, high)
        segment, rest = Signal(9, reset_less=True), Signal(REST_BITS, reset_less=True)
        m.d.sync += [segment.eq(Cat(fraction[REST_BITS:], octave, side)), rest.eq(fraction)]
        return segment, rest
