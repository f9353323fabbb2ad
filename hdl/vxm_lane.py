"""One lane of the vector unit: a multiplier between two shifters, and the function tables."""
import numpy as np
from amaranth import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from arch import numerics
from hdl.cells import Multiplier
from hdl.pipeline import all_equal, delay, rom, shift_coarse, shift_fine

#: Decoded operation as it runs along the pipeline beside the lanes. ``act``: SILU or GELU;
#: ``narrow``: the result saturates to 16 bits; ``post``: 8 for SILU and GELU; the others are as in
#: the instruction.
CONTROL = data.StructLayout({"max": 1, "exp": 1, "act": 1, "gelu": 1, "pre": 4, "post": 5,
                             "b_float": 1, "narrow": 1, "mask": 1})

#: Both functions side by side, upper half GELU; slopes enter the multiplier negated.
_SLOPE = -np.concatenate([numerics.SILU_SLOPE, numerics.GELU_SLOPE])
_BASE = np.concatenate([numerics.SILU_BASE, numerics.GELU_BASE])
_A_BITS = numerics.PRODUCT_INPUT_BITS


def _clearable(m, value, clear, name):
    """A register of ``value`` that takes 0 where ``clear``."""
    register = Signal(value.shape(), name=name, reset_less=True)
    with m.If(clear):
        m.d.sync += register.eq(0)
    with m.Else():
        m.d.sync += register.eq(value)
    return register


class VxmLane(wiring.Component):
    """One lane of the vector unit.

    Every member that carries control is a copy of the operation delayed to the stage that uses it
    (`Vxm` delays once for all lanes). Cycles count from the issue; operands are on ``a``, ``b``
    and ``c`` on cycle 1 and the result of that operation is on ``o`` on cycle 8, each extra stage
    counting one more.

    For size, registers are cleared where a 0 is wanted, which flip-flops do for free, and
    multiplexers take at most two data inputs and two bits of control, which is one LUT.

    Members
    -------
    a, b, c : operands, already registered (cycle 1). ``c`` is 0 for SILU and GELU.
    i_prepare, i_multiply, i_fine, i_result : `CONTROL` on cycles 1, 2, 5 and 7.
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
            "i_prepare": In(CONTROL), "i_multiply": In(CONTROL), "i_fine": In(CONTROL),
            "i_result": In(CONTROL), "masked": In(1), "o": Out(signed(32)),
        })

    def elaborate(self, platform):
        m = Module()
        # Cycle 1.
        low, high = shift_coarse(m, self.a, self.i_prepare.pre[2:], _A_BITS, "pre")
        low, high = delay(m, low, 1, "pre_low"), delay(m, high, 1, "pre_high")
        negative = delay(m, self.a[-1], 1, "negative")
        u = self._argument(m)
        # Cycle 2.
        a = self._factor_a(m, low, high, negative, u)
        b, amount = self._factor_b(m, u)
        addend = self._addend(m, u, negative)
        # Cycle 3: the input registers of the multiplier; cycle 4: the product.
        m.submodules.multiplier = multiplier = Multiplier(vendor=self._vendor)
        m.d.comb += [multiplier.a.eq(delay(m, a, self._within, "a")),
                     multiplier.b.eq(delay(m, b, self._within, "b"))]
        shifted = self._post_shift(m, multiplier.p[:34].as_signed(), amount)
        self._finish(m, shifted, addend)
        return m

    def _argument(self, m):
        """Cycle 1: ``max(c - sat16(a), 0)`` for EXP2, ``abs(sat16(a))`` for SILU and GELU, else c.

        All are c minus something: sat16(a), 0, or, as c is 0, the argument made negative, which
        takes a one's complement and a borrow. A difference beyond 32767 need not be clamped: the
        shift of EXP2 leaves nothing long before.
        """
        control, sign, fits = self.i_prepare, self.a[-1], all_equal(self.a[15:])
        pass_a = fits & (control.exp | control.act)
        invert = Mux(control.act, fits, control.exp & ~fits) & ~sign
        top = control.act | control.exp & sign
        minus = self.a[:15] & pass_a.replicate(15) ^ invert.replicate(15)
        difference = Signal(signed(18))
        m.d.comb += difference.eq(Cat(C(0, 1), self.c).as_signed()
                                  - Cat(control.act & ~sign, minus, top).as_signed())
        return _clearable(m, difference[1:17], control.exp & difference[17], "u")

    def _factor_a(self, m, low, high, negative, u):
        """Cycle 2: the rest of the pre shift, or a table."""
        control = self.i_multiply
        rounded, over = shift_fine(m, low, high, negative, control.pre[:2], _A_BITS, "pre")
        exp_high = rom(m, u[4:8], numerics.EXP_HIGH, "exp_high")
        slope = rom(m, Cat(u[numerics.ACT_FRAC_BITS:14], control.gelu), _SLOPE, "slope")
        table, a = Signal(signed(_A_BITS)), Signal(signed(_A_BITS))
        m.d.comb += table.eq(Mux(control.exp, exp_high, slope))
        # Out of range, a bit is that of the limit.
        from_table = control.exp | control.act
        follow = from_table | ~over
        for bits, limit in ((slice(0, _A_BITS - 1), from_table | over & ~negative),
                            (slice(_A_BITS - 1, _A_BITS), from_table | over & negative)):
            inside = Mux(limit, table[bits], rounded[bits])
            m.d.comb += a[bits].eq(Mux(follow, inside, limit.replicate(len(inside))))
        return a

    def _factor_b(self, m, u):
        """Cycles 1 and 2: the second factor. Cycles 2 and 3: the post shift."""
        control = self.i_prepare
        no_b = control.exp | control.act
        factor = _clearable(m, Mux(control.b_float, self.b.as_unsigned()[4:], self.b)[:16], no_b,
                            "factor")
        exponent = _clearable(m, self.b[:4], ~control.b_float, "exponent")

        control = self.i_multiply
        exp_low = rom(m, u[:4], numerics.EXP_LOW, "exp_low")
        part = control.act & (u[14:] == 0)
        rest = Cat(factor[bit] | u[bit] & part for bit in range(numerics.ACT_FRAC_BITS))
        b = Mux(control.exp, exp_low, Cat(rest, factor[numerics.ACT_FRAC_BITS:]).as_signed())

        total, amount = Signal(9, reset_less=True), Signal(6, reset_less=True)
        m.d.sync += total.eq(control.post + Mux(control.exp, u[8:], exponent))
        # A shift of 36 or more leaves nothing of any product, so 6 bits are enough.
        late = delay(m, total, self._within, "total")
        with m.If(late[6:].any()):
            m.d.sync += amount.eq(~0)
        with m.Else():
            m.d.sync += amount.eq(late)
        return b, amount

    def _addend(self, m, u, negative):
        """Cycle 2: c, 0 for EXP2, or relu of the argument. Cycle 3: the base is taken off."""
        control = self.i_multiply
        base = rom(m, Cat(u[numerics.ACT_FRAC_BITS:14], control.gelu), _BASE, "base")
        addend = _clearable(m, u, control.exp | control.act & negative, "addend")
        base = _clearable(m, base, ~control.act | u[14:].any(), "base_or_0")
        rest = Signal(signed(16), reset_less=True)
        m.d.sync += rest.eq(delay(m, addend, self._within, "addend_late")
                            - delay(m, base, self._within, "base_late"))
        return rest

    def _post_shift(self, m, product, amount):
        """Cycles 4 and 5: the product times two, shifted right; bit 0 will round."""
        coarse, shifted = Signal(signed(35), reset_less=True), Signal(signed(35), reset_less=True)
        fine = delay(m, amount[:2], 1, "fine")
        doubled = Cat(C(0, 1), product).as_signed()
        m.d.sync += [coarse.eq(doubled >> Cat(C(0, 2), amount[2:])), shifted.eq(coarse >> fine)]
        return shifted

    def _finish(self, m, shifted, addend):
        """Cycle 6: round, add or compare. Cycle 7: saturate, choose, mask."""
        addend = delay(m, addend, 1, "addend_fine")
        c = delay(m, addend, 1, "c_add")
        part = _clearable(m, addend, self.i_fine.max, "addend_add")
        total, least = Signal(signed(34), reset_less=True), Signal(reset_less=True)
        # MAX: whether c is no less than the product, which fits 16 bits but for its rounding.
        m.d.sync += [total.eq(shifted[1:].as_signed() + part + shifted[0]),
                     least.eq(Cat(C(0, 1), c).as_signed() >= shifted[:18].as_signed())]
        total, least, c = (delay(m, value, cycles, name) for value, cycles, name in (
            (total, self._after, "total"), (least, self._after, "least"),
            (c, 1 + self._after, "c_result")))

        control, sign = self.i_result, total[-1]
        fits = all_equal(total[15:])
        over = Mux(control.narrow, ~fits, ~all_equal(total[31:]))
        take_c = control.max & Mux(fits, least, sign) & ~self.masked
        follow = ~(self.masked | take_c | over)
        # Lower bits: the sum, c, or a constant; from bit 15 on, the sum or a sign.
        lower = Mux(follow, 0, Mux(take_c, 1, ~self.masked & ~sign))
        known = Mux(self.masked, ~control.exp, Mux(take_c, c[-1], sign))
        upper = Mux(self.masked | take_c | control.narrow, known, ~sign)
        result = Signal(signed(32), reset_less=True)
        m.d.sync += [
            result[:15].eq(Mux(follow | take_c, Mux(lower, c[:15], total[:15]),
                               lower.replicate(15))),
            result[15:31].eq(Mux(follow, total[15:31], upper.replicate(16))),
            result[31].eq(Mux(follow, total[31], known))]
        m.d.comb += self.o.eq(result)
