"""One lane of the vector unit: a multiplier between two shifters, and the function tables."""
import numpy as np
from amaranth import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from arch import numerics
from hdl.cells import Multiplier
from hdl.pipeline import delay, rom

#: Decoded operation as it runs along the pipeline beside the lanes. ``narrow`` says that the result
#: saturates to 16 bits; the others are as in the instruction.
CONTROL = data.StructLayout({"max": 1, "exp": 1, "act": 1, "gelu": 1, "pre": 4, "post": 5,
                             "b_float": 1, "narrow": 1, "mask": 1})

#: Both functions side by side, upper half GELU; slopes enter the multiplier negated.
_SLOPE = -np.concatenate([numerics.SILU_SLOPE, numerics.GELU_SLOPE])
_BASE = np.concatenate([numerics.SILU_BASE, numerics.GELU_BASE])


def all_equal(value):
    """Whether all bits of a value are the same."""
    return value.all() | ~value.any()


class VxmLane(wiring.Component):
    """One lane of the vector unit.

    Every member that carries control is a copy of the operation delayed to the stage that uses it
    (`Vxm` delays once for all lanes). Cycles count from the issue; operands are on ``a``, ``b``
    and ``c`` on cycle 1 and the result of that operation is on ``o`` on cycle 8, each extra stage
    counting one more.

    Members
    -------
    a, b, c : operands, already registered (cycle 1).
    i_prepare, i_multiply, i_add, i_result : `CONTROL` on cycles 1, 2, 6 and 7.
    masked : cycle 7: the lane gives the mask value.
    o : result (cycle 8).

    Parameters
    ----------
    within, after : int
        Extra registers before the multiplier and before the saturation.
    vendor : bool
        Passed to the multiplier cell.
    """

    def __init__(self, *, within: int = 0, after: int = 0, vendor: bool = False):
        self._within, self._after, self._vendor = within, after, vendor
        super().__init__({
            "a": In(signed(32)), "b": In(signed(16)), "c": In(signed(16)),
            "i_prepare": In(CONTROL), "i_multiply": In(CONTROL), "i_add": In(CONTROL),
            "i_result": In(CONTROL), "masked": In(1),
            "o": Out(signed(32)),
        })

    def elaborate(self, platform):
        m = Module()
        x, high = self._pre_shift(m)
        u, negative = self._argument(m)
        factor_b, amount, addend = self._prepare(m)
        a, b, amount, addend, base = self._factors(m, x, high, u, negative, factor_b, amount,
                                                   addend)
        product, amount, addend = self._multiply(m, a, b, amount, addend, base)
        shifted, addend = self._post_shift(m, product, amount, addend)
        self._finish(m, shifted, addend)
        return m

    def _pre_shift(self, m):
        """Cycle 1: a times two, shifted right by the multiple of four in ``pre``.

        Only the 22 bits that the fine shift can reach go on; ``high`` tells whether a bit above
        them differs from the sign.
        """
        doubled = Cat(C(0, 1), self.a).as_signed()
        choices = Cat(*(~all_equal(doubled[21 + low:]) for low in (0, 4, 8)), C(0, 1))
        x, high = Signal(signed(22), reset_less=True), Signal(reset_less=True)
        coarse = self.i_prepare.pre[2:]
        m.d.sync += [x.eq(doubled >> Cat(C(0, 2), coarse)), high.eq(choices.bit_select(coarse, 1))]
        return x, high

    def _argument(self, m):
        """Cycle 1: ``clip(c - sat16(a), 0, 32767)`` for EXP2, ``abs(sat16(a))`` for SILU, GELU."""
        control, sign = self.i_prepare, self.a[31]
        x = Signal(signed(16))
        m.d.comb += x.eq(Mux(all_equal(self.a[15:]), self.a[:16],
                             Cat((~sign).replicate(15), sign)).as_signed())
        difference = Signal(signed(17))
        m.d.comb += difference.eq(Mux(control.exp, self.c, 0) - x)
        u, negative = Signal(16, reset_less=True), Signal(reset_less=True)
        zero = control.exp & difference[16]
        top = control.exp & ~difference[16] & difference[15]
        subtract = control.exp | sign
        m.d.sync += [negative.eq(sign),
                     u.eq(Mux(subtract, Mux(zero, 0, Mux(top, 0x7FFF, difference[:16])), x))]
        return u, negative

    def _prepare(self, m):
        """Cycle 1: the multiplier's second operand, the post shift and the addend of a MAC."""
        control = self.i_prepare
        b, amount = Signal(signed(16), reset_less=True), Signal(6, reset_less=True)
        m.d.sync += [
            b.eq(Mux(control.b_float, self.b.as_unsigned()[4:], self.b)),
            amount.eq(Mux(control.act, numerics.ACT_FRAC_BITS,
                          control.post + Mux(control.b_float, self.b[:4], 0))),
        ]
        return b, amount, delay(m, self.c, 1, "addend_multiply")

    def _factors(self, m, x, high, u, negative, factor_b, amount, addend):
        """Cycle 2: fine shift, rounding and saturation; tables; the choice of the factors."""
        control = self.i_multiply
        fine = Signal(signed(22))
        m.d.comb += fine.eq(x >> control.pre[:2])
        rounded = Signal(signed(18))
        m.d.comb += rounded.eq(fine[1:19].as_signed() + fine[0])
        sign = negative
        over = high | ~all_equal(fine[18:])
        saturated = Mux(over | ~sign & rounded[17], Cat((~sign).replicate(17), sign), rounded)

        segment = Cat(u[8:14], control.gelu)
        inside = u[14:] == 0
        slope = rom(m, segment, _SLOPE, "slope")
        base = rom(m, segment, _BASE, "base")
        exp_high = rom(m, u[4:8], numerics.EXP_HIGH, "exp_high")
        exp_low = rom(m, u[:4], numerics.EXP_LOW, "exp_low")
        # A shift of 36 or more leaves nothing of any product, so 6 bits are enough.
        exp_amount = Signal(8)
        m.d.comb += exp_amount.eq(amount + u[8:15])

        a, b = Signal(signed(18)), Signal(signed(17))
        with m.If(control.exp):
            m.d.comb += [a.eq(exp_high), b.eq(exp_low)]
        with m.Elif(control.act):
            m.d.comb += [a.eq(slope), b.eq(Mux(inside, u[:8], 0))]
        with m.Else():
            m.d.comb += [a.eq(saturated), b.eq(factor_b)]
        relu = Mux(negative, 0, u)
        return (delay(m, a, self._within, "a"), delay(m, b, self._within, "b"),
                delay(m, Mux(control.exp, exp_amount[:6] | exp_amount[6:].any().replicate(6),
                             amount), 1 + self._within, "amount"),
                delay(m, Mux(control.exp, 0, Mux(control.act, relu, addend)).as_signed()[:16]
                      .as_signed(), 1 + self._within, "addend"),
                delay(m, Mux(control.act & inside, base, 0), 1 + self._within, "base"))

    def _multiply(self, m, a, b, amount, addend, base):
        """Cycle 3: the multiplier's input registers hold the factors; addend minus base."""
        m.submodules.multiplier = multiplier = Multiplier(vendor=self._vendor)
        m.d.comb += [multiplier.a.eq(a), multiplier.b.eq(b)]
        product, rest = Signal(signed(34)), Signal(signed(16), reset_less=True)
        m.d.comb += product.eq(multiplier.p)
        m.d.sync += rest.eq(addend - base)
        return product, delay(m, amount, 1, "amount_product"), rest

    def _post_shift(self, m, product, amount, addend):
        """Cycles 4 and 5: the product times two, shifted right; bit 0 will round."""
        coarse, shifted = Signal(signed(35), reset_less=True), Signal(signed(35), reset_less=True)
        fine = delay(m, amount[:2], 1, "fine")
        doubled = Cat(C(0, 1), product).as_signed()
        m.d.sync += [coarse.eq(doubled >> Cat(C(0, 2), amount[2:])), shifted.eq(coarse >> fine)]
        return shifted, delay(m, addend, 2, "addend_add")

    def _finish(self, m, shifted, addend):
        """Cycle 6: round, add (or compare), and cycle 7: saturate, choose, mask."""
        control = self.i_add
        total, less = Signal(signed(34), reset_less=True), Signal(reset_less=True)
        part = Mux(control.max, 0, addend)
        # MAX takes c when product - c - 1 is negative; valid where the product has 16 bits.
        # The product has one bit more here, because rounding may bring it into range.
        compare = Signal(signed(18))
        m.d.comb += compare.eq(shifted[1:18].as_signed() + ~addend + shifted[0])
        m.d.sync += [total.eq(shifted[1:].as_signed() + part + shifted[0]), less.eq(compare[17])]
        total, less = (delay(m, value, self._after, name)
                       for value, name in ((total, "total"), (less, "less")))
        c = delay(m, addend, 1 + self._after, "c")

        control, sign = self.i_result, total[33]
        narrow_fits, wide_fits = all_equal(total[15:]), all_equal(total[31:])
        over = ~Mux(control.narrow, narrow_fits, wide_fits)
        take_c = control.max & Mux(narrow_fits, less, sign)
        limit = Mux(control.narrow, Mux(sign, C(-(1 << 15), signed(32)), C((1 << 15) - 1, 32)),
                    Mux(sign, C(-(1 << 31), signed(32)), C((1 << 31) - 1, 32)))
        result = Signal(signed(32), reset_less=True)
        with m.If(self.masked):
            m.d.sync += result.eq(Mux(control.exp, 0, numerics.MASKED))
        with m.Elif(take_c):
            m.d.sync += result.eq(c)
        with m.Elif(over):
            m.d.sync += result.eq(limit)
        with m.Else():
            m.d.sync += result.eq(total)
        m.d.comb += self.o.eq(result)
