"""float12 of the reciprocal or reciprocal square root of a sum: normalise, interpolate, pack."""
from amaranth import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from arch import numerics
from hdl.choose import choose
from hdl.dsp import Multiplier
from hdl.logic_cells import add
from hdl.pipeline import clearable, delay, rom

FRACTION_BITS, REST_BITS = numerics.FUNCTION_BITS, numerics.FUNCTION_FRAC_BITS
GROUP = 4

#: RECIP and RSQRT. The bases carry the rounding to 12 bits.
_BASES = numerics.RECIP_BASE + 2, numerics.RSQRT_BASE + 2
_SLOPES = numerics.RECIP_SLOPE, numerics.RSQRT_SLOPE


class Reciprocal(wiring.Component):
    """`arch.numerics.recip` and `rsqrt`.

    The result of the operands of cycle t is on ``o`` on cycle t + `LATENCY`; it is not registered
    and leaves the rest of that cycle to its user. New operands may come every cycle.

    Parameters
    ----------
    vendor : bool
        Passed to the multiplier cell.

    Members
    -------
    total : the sum.
    root : 1 for RSQRT, 0 for RECIP.
    bias : subtracted from the exponent.
    o : float12.
    """
    LATENCY = 6

    def __init__(self, *, vendor: bool = False):
        self._vendor = vendor
        super().__init__({"total": In(signed(numerics.SUM_BITS)), "root": In(1), "bias": In(6),
                          "o": Out(16)})

    def elaborate(self, platform):
        m = Module()
        window, group, tiny = self._coarse(m)
        fraction, exponent = self._fine(m, window, group)
        sum14 = self._interpolate(m, fraction, exponent[0])
        self._pack(m, sum14, exponent, tiny)
        return m

    def _coarse(self, m):
        """Cycles 0 and 1: find the highest group of four bits with a one; move it to the top."""
        groups = numerics.SUM_BITS // GROUP
        total = delay(m, self.total, 1, "total")
        highest, group = Signal(range(groups)), Signal(range(groups), reset_less=True)
        for number in range(groups):
            with m.If(self.total[number * GROUP:(number + 1) * GROUP].any()):
                m.d.comb += highest.eq(number)
        m.d.sync += group.eq(highest)
        below_one = self.total[-1] | ~self.total.any()
        # The window: the group and as many bits below it as the fraction needs.
        window = Signal(GROUP + FRACTION_BITS, reset_less=True)
        width, four = len(window), 4 * GROUP
        padded = Cat(C(0, FRACTION_BITS), total)
        rough = choose([padded[start:start + width + four - GROUP]
                        for start in range(0, numerics.SUM_BITS, four)], group[2:], m, self._vendor)
        m.d.sync += window.eq(choose([rough[start:start + width]
                                      for start in range(0, four, GROUP)], group[:2], m,
                                     self._vendor))
        return window, delay(m, group, 1, "group"), delay(m, below_one, 1, "below_one")

    def _fine(self, m, window, group):
        """Cycle 2: the leading one within the group; the fraction below it."""
        place, fraction = Signal(2), Signal(FRACTION_BITS, reset_less=True)
        exponent = Signal(range(numerics.SUM_BITS), reset_less=True)
        for number in range(GROUP):
            with m.If(window[FRACTION_BITS + number]):
                m.d.comb += place.eq(number)
        m.d.sync += [fraction.eq(choose([window[start:start + FRACTION_BITS]
                                         for start in range(GROUP)], place, m, self._vendor)),
                     exponent.eq(Cat(place, group))]
        return fraction, exponent

    def _interpolate(self, m, fraction, odd):
        """Cycle 3: tables and factors. Cycle 5: product, added to the base."""
        root = delay(m, self.root, 3, "root")
        high = numerics.FUNCTION_BITS - REST_BITS
        # RSQRT has a fraction bit less; its highest segment bit tells odd from even exponents.
        segments = fraction[-high:], Cat(fraction[-(high - 1):], odd)
        rest = Mux(root, fraction[1:1 + REST_BITS], fraction[:REST_BITS])
        m.submodules.multiplier = multiplier = Multiplier(width_a=9, width_b=9,
                                                          vendor=self._vendor)
        slopes, bases = [], []
        for name, segment, unwanted, slope, base in zip(("recip", "rsqrt"), segments, (root, ~root),
                                                        _SLOPES, _BASES):
            slopes.append(rom(m, segment, slope, f"slope_{name}"))
            base = clearable(m, rom(m, segment, base, f"base_{name}"), unwanted,
                             f"base_{name}_or_0")
            bases.append(delay(m, base, multiplier.LATENCY - 1, f"base_{name}"))
        m.d.comb += [multiplier.a.eq(Mux(root, slopes[1], slopes[0])), multiplier.b.eq(rest)]
        product, sum14 = multiplier.p, Signal(FRACTION_BITS + 1, reset_less=True)
        m.d.sync += sum14.eq(add(m, len(sum14), lambda a, b, c, d: (a, c | d),
                                 a=product[REST_BITS:].as_signed(), c=bases[0], d=bases[1],
                                 carry=product[REST_BITS - 1], vendor=self._vendor))
        return sum14

    def _pack(self, m, sum14, exponent, below_one):
        """Cycles 3 to 5: exponent and clamps. Cycle 6: mantissa, shifted and clamped."""
        root, bias = delay(m, self.root, 3, "root_pack"), delay(m, self.bias, 3, "bias")
        # Cycle 3: 12 + e - bias lies in -51 .. 59.
        power = Signal(signed(7), reset_less=True)
        m.d.sync += power.eq(12 + Mux(root, exponent[1:], exponent) - bias)
        below_one = delay(m, below_one, 3, "below_one_pack")
        # Cycle 4: clamps.
        field, over = Signal(4, reset_less=True), Signal(4, reset_less=True)
        largest, excess = Signal(reset_less=True), Signal(signed(8))
        m.d.comb += excess.eq(power - 15)
        m.d.sync += [largest.eq(below_one | (power < 0)),
                     field.eq(Mux(below_one | (power < 0), 0, Mux(excess > 0, 15, power))),
                     over.eq(Mux(excess > 12, 12, Mux(excess > 0, excess, 0)))]
        field, over, largest = (delay(m, value, 1, name) for value, name in (
            (field, "field"), (over, "over"), (largest, "largest")))
        # Cycle 6: a rounded mantissa of 4096 becomes 4095.
        mantissa = sum14[2:] | sum14[-1].replicate(12)
        m.d.comb += self.o.eq(Cat(field, Mux(largest, 0xFFF, mantissa[:12] >> over)))
