"""float12 of the reciprocal or reciprocal square root of a sum: normalise, interpolate, pack."""
import numpy as np
from amaranth import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from arch import numerics
from hdl.cells import Multiplier
from hdl.pipeline import delay, rom

FRACTION_BITS, REST_BITS = numerics.FUNCTION_BITS, numerics.FUNCTION_FRAC_BITS
GROUP = 4

#: Both functions side by side, upper half RSQRT. The bases carry the rounding to 12 bits.
_BASE = np.concatenate([numerics.RECIP_BASE, numerics.RSQRT_BASE]) + 2
_SLOPE = np.concatenate([numerics.RECIP_SLOPE, numerics.RSQRT_SLOPE])


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
        padded = Cat(C(0, FRACTION_BITS), total)
        with m.Switch(group):
            for number in range(groups):
                with m.Case(number):
                    m.d.sync += window.eq(padded[number * GROUP:])
        return window, delay(m, group, 1, "group"), delay(m, below_one, 1, "below_one")

    def _fine(self, m, window, group):
        """Cycle 2: the leading one within the group; the fraction below it."""
        place, fraction = Signal(2), Signal(FRACTION_BITS, reset_less=True)
        exponent = Signal(range(numerics.SUM_BITS), reset_less=True)
        for number in range(GROUP):
            with m.If(window[FRACTION_BITS + number]):
                m.d.comb += place.eq(number)
        m.d.sync += [fraction.eq(window >> place), exponent.eq(Cat(place, group))]
        return fraction, exponent

    def _interpolate(self, m, fraction, odd):
        """Cycle 3: tables and factors. Cycle 5: product, added to the base."""
        root = delay(m, self.root, 3, "root")
        high = numerics.FUNCTION_BITS - REST_BITS
        # RSQRT has a fraction bit less; its highest segment bit tells odd from even exponents.
        segment = Mux(root, Cat(fraction[-(high - 1):], odd), fraction[-high:])
        rest = Mux(root, fraction[1:1 + REST_BITS], fraction[:REST_BITS])
        slope = rom(m, Cat(segment, root), _SLOPE, "slope")
        base = rom(m, Cat(segment, root), _BASE, "base")
        m.submodules.multiplier = multiplier = Multiplier(width_a=9, width_b=9,
                                                          vendor=self._vendor)
        m.d.comb += [multiplier.a.eq(slope), multiplier.b.eq(rest)]
        product, base = multiplier.p, delay(m, base, multiplier.LATENCY, "base")
        sum14 = Signal(FRACTION_BITS + 1, reset_less=True)
        m.d.sync += sum14.eq(base + (product >> REST_BITS) + product[REST_BITS - 1])
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
