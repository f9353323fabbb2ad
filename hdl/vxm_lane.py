"""One lane of the vector unit: a multiplier between two shifters, and the function tables."""
from amaranth import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from arch import numerics
from hdl.dsp import Multiplier
from hdl.logic_cells import Table, TableOr, add, gate
from hdl.pipeline import all_equal, clearable, delay, rom, shift_coarse, shift_fine, shift_right

#: Decoded operation as it runs along the pipeline beside the lanes. ``act``: SILU or GELU;
#: ``narrow``: the result saturates to 16 bits; ``post``: 8 for SILU and GELU; the others are as in
#: the instruction.
CONTROL = data.StructLayout({"max": 1, "exp": 1, "act": 1, "silu": 1, "gelu": 1, "pre": 4,
                             "post": 5, "b_float": 1, "narrow": 1, "mask": 1})

_A_BITS = numerics.PRODUCT_INPUT_BITS
#: Bits of the argument inside of a pair of segments, and of all segments.
_PAIR_BITS, _INSIDE_BITS = numerics.ACT_FRAC_BITS + 1, 14
#: GELU's bump ends at the middle of the table, which has only its first half.
_FUNCTIONS = {"silu": (numerics.SILU_BASE, numerics.SILU_SLOPE, _INSIDE_BITS),
              "gelu": (numerics.GELU_BASE, numerics.GELU_SLOPE, _INSIDE_BITS - 1)}


class VxmLane(wiring.Component):
    """One lane of the vector unit.

    Every member that carries control is a copy of the operation delayed to the stage that uses it
    (`Vxm` delays once for all lanes). Cycles count from the issue; operands are on ``a``, ``b``
    and ``c`` on cycle 1 and the result of that operation is on ``o`` on cycle 8, each extra stage
    counting one more.

    For size, registers are cleared where a 0 is wanted, which flip-flops do for free, so that what
    may stand in one place is or-ed; multiplexers in front of sums are part of the carry cells
    (`hdl.logic_cells`).

    SILU and GELU. The bump is a line in every segment. Of the knots between them only the even ones
    are tabulated: the line is followed from the nearest of them, by the signed distance, which is
    just the lowest nine bits of the argument.

    The post shift. The product is wanted times two, for the bit that rounds. That factor and
    the lowest bit of the shift make a shift of b by one or none; the carry cells of the last sum
    take the next bit.

    Members
    -------
    a, b, c : operands, already registered (cycle 1). ``b`` is 0 for EXP2, SILU and GELU, ``c``
        for SILU and GELU.
    a_fits : whether ``a`` fits 16 bits (cycle 1).
    i_prepare, i_multiply, i_fine, i_add, i_result : `CONTROL` on cycles 1, 2, 5, 6 and 7.
    masked : cycle 6: the lane gives the mask value.
    o : result (cycle 8).

    Parameters
    ----------
    within, after : int
        Extra registers before the multiplier and before the saturation.
    vendor : bool
        Instantiate multiplier, multiplexers and carry cells of the FPGA.
    """

    def __init__(self, *, within: int = 0, after: int = 0, vendor: bool = False):
        self._within, self._after, self._vendor = within, after, vendor
        super().__init__({
            "a": In(signed(32)), "a_fits": In(1), "b": In(signed(16)), "c": In(signed(16)),
            "i_prepare": In(CONTROL), "i_multiply": In(CONTROL), "i_fine": In(CONTROL),
            "i_add": In(CONTROL), "i_result": In(CONTROL), "masked": In(1), "o": Out(signed(32)),
        })

    def elaborate(self, platform):
        m = Module()
        u, rest = self._argument(m)
        negative = delay(m, self.a[-1], 1, "negative")
        late = self._within
        a = delay(m, self._factor_a(m, u, negative), late, "a")
        factor, total = self._factor_b(m, u, rest)
        doubled = Cat(C(0, 1), factor).as_signed()
        b = delay(m, Mux(total[0], factor, doubled), late, "b")
        # Cycle 3: the input registers of the multiplier; cycle 5: the product.
        m.submodules.multiplier = multiplier = Multiplier(vendor=self._vendor)
        m.d.comb += [multiplier.a.eq(a), multiplier.b.eq(b)]
        amount = self._amount(m, total)
        shifted = self._post_shift(m, multiplier.p[:35].as_signed(), amount)
        addend = self._addend(m, u, negative)
        self._finish(m, shifted, delay(m, amount[1], 1, "amount_fine"), addend)
        return m

    def _argument(self, m):
        """Cycle 1: ``max(c - sat16(a), 0)`` for EXP2, ``abs(sat16(a))`` for SILU and GELU, else c.

        All are c, 0 for SILU and GELU, plus a, its complement, zeros or ones, and a carry. A
        difference beyond 32767 need not be clamped: the shift of EXP2 leaves nothing long before.

        Returns
        -------
        u : the argument (cycle 2).
        rest : its bits in a pair of segments, 0 but for SILU and GELU (cycle 2).
        """
        control, sign, fits = self.i_prepare, self.a[-1], self.a_fits
        exp, act, top = control.exp, control.act, control.exp & ~sign
        # The limit takes the place of an argument that does not fit 16 bits.
        inverted = exp & (fits | sign) | act & (sign | ~fits)
        straight = ~fits & (act | exp & sign) | act & ~sign
        difference = add(m, 17, lambda a, b, c, d: (a, c & ~b | d & b), a=self.c,
                         b=Cat(self.a[:15], top, top),
                         c=Cat(inverted.replicate(15), C(0, 2)),
                         d=Cat(straight.replicate(15), C(3, 2)), carry=exp | act & sign,
                         vendor=self._vendor)
        return (clearable(m, difference[:16], exp & difference[16], "u"),
                clearable(m, difference[:_PAIR_BITS].as_signed(), ~act, "rest"))

    def _factor_a(self, m, u, negative):
        """Cycles 1 to 3: the pre shift, or a table."""
        control = self.i_prepare
        low, high = shift_coarse(m, self.a, control.pre[2:], _A_BITS, "pre", self._vendor)
        low, high = (clearable(m, value, control.exp | control.act, name)
                     for name, value in (("pre_low", low), ("pre_high", high)))
        control, sign = self.i_multiply, negative
        rounded, over = shift_fine(m, low, high, control.pre[:2], _A_BITS, "pre", self._vendor)
        rounded = clearable(m, rounded, over, "rounded")
        over = delay(m, over, 1, "over")
        exp_high = clearable(m, rom(m, u[4:8], numerics.EXP_HIGH, "exp_high"), ~control.exp,
                              "exp_high_or_0")
        # The slopes enter negated. Where they are 0, b may be anything.
        slopes = []
        for name, (_, slope, bits) in _FUNCTIONS.items():
            table = Table(width=8, table=-slope[:1 << bits - numerics.ACT_FRAC_BITS],
                          vendor=self._vendor)
            m.submodules[f"slope_{name}"] = table
            m.d.comb += table.index.eq(u[numerics.ACT_FRAC_BITS:])
            slopes.append(clearable(m, table.o.as_signed(), self._outside(u, name),
                                    f"slope_{name}_or_0"))
        # Cycle 3. What is rounded to the sign bit of a positive number is beyond the limit.
        beyond = over | rounded[-1]
        sign = delay(m, sign, 1, "sign")
        a = Signal(signed(_A_BITS))
        m.d.comb += a.eq(Cat(rounded[:-1] | (beyond & ~sign).replicate(_A_BITS - 1),
                             beyond & sign).as_signed() | exp_high | slopes[0] | slopes[1])
        return a

    def _outside(self, u, name):
        """Cycle 2: whether the tables of a function do not count."""
        return ~self.i_multiply[name] | u[_FUNCTIONS[name][2]:].any()

    def _factor_b(self, m, u, rest):
        """Cycle 3: the second factor, and the post shift with all that adds to it."""
        control = self.i_multiply
        b = delay(m, self.b, 1, "b")
        exponent = clearable(m, self.b[:4], ~self.i_prepare.b_float, "exponent")
        m.submodules.factor = cell = TableOr(
            width=16, table=numerics.EXP_LOW, vendor=self._vendor,
            function=lambda a, b, c, d: a & ~c | b & c | d)
        factor, total = Signal(signed(16), reset_less=True), Signal(9, reset_less=True)
        m.d.comb += [cell.index.eq(u), cell.look_up.eq(control.exp), cell.a.eq(b),
                     cell.b.eq(b[4:].as_unsigned()), cell.c.eq(control.b_float.replicate(16)),
                     cell.d.eq(rest)]
        m.d.sync += [factor.eq(cell.o),
                     total.eq(add(m, 9, lambda a, b, c, d: (a, b & d | c & ~d), a=control.post,
                                  b=u[8:], c=exponent, d=control.exp, vendor=self._vendor))]
        return factor, total

    def _amount(self, m, total):
        """Cycle 5: the post shift, where one of 36 or more leaves nothing of any product."""
        amount, total = Signal(6, reset_less=True), delay(m, total, self._within, "total")
        with m.If(total[6:].any()):
            m.d.sync += amount.eq(~0)
        with m.Else():
            m.d.sync += amount.eq(total)
        return delay(m, amount, 1, "amount")

    def _addend(self, m, u, negative):
        """Cycle 5: c, 0 for EXP2, or relu of the argument less the bump at the nearest knot."""
        control, late = self.i_multiply, self._within
        addend = clearable(m, u, control.exp | control.act & negative, "addend")
        knot = delay(m, add(m, 6, lambda a, b, c, d: (a, a & 0), a=u[_PAIR_BITS:_INSIDE_BITS],
                            carry=u[_PAIR_BITS - 1], vendor=self._vendor), 1, "knot")
        bumps = []
        for name, (base, _, bits) in _FUNCTIONS.items():
            index_bits = bits - _PAIR_BITS
            bump = rom(m, knot[:index_bits], -base[:2 << index_bits:2], f"bump_{name}")
            bump = clearable(m, bump, delay(m, self._outside(u, name), 1, f"outside_{name}")
                             | knot[index_bits:].any(), f"bump_{name}_or_0")
            bumps.append(delay(m, bump, late, f"bump_{name}_late"))
        total = add(m, 16, lambda a, b, c, d: (a, c | d), a=delay(m, addend, 1 + late, "addend"),
                    c=bumps[0], d=bumps[1], vendor=self._vendor)
        return delay(m, total, 1, "with_bump").as_signed()

    def _post_shift(self, m, product, amount):
        """Cycle 5: the product shifted right by ``amount``, but for its lowest two bits."""
        sign, far, width = product[-1], amount[5], len(product)
        coarse, pair = Signal(product.shape()), Signal(product.shape())
        m.d.comb += coarse.eq(shift_right(m, product, amount[3:5], 8, width, self._vendor))
        m.d.comb += pair.eq(gate(m, width, lambda a, b, c, d: a & ~d | b & d | c, a=coarse,
                                 b=coarse[4:].as_signed(), c=far & sign, d=amount[2],
                                 vendor=self._vendor))
        # A shift by 32 leaves two bits beside the sign.
        last = Mux(far, Mux(amount[2:5].any(), sign.replicate(2), product[32:34]), pair[:2])
        high = clearable(m, pair[2:], far & ~sign, "shifted_high")
        return Cat(delay(m, last, 1, "shifted_low"), high).as_signed()

    def _finish(self, m, shifted, fine, addend):
        """Cycle 6: the rest of the shift; round, add or compare. Cycle 7: saturate or choose."""
        c, control = delay(m, addend, 1, "c_add"), self.i_add
        part = clearable(m, addend, self.i_fine.max, "addend_add")
        rest = {"b": shifted[3:].as_signed(), "c": shifted[1:].as_signed(), "d": fine,
                "carry": Mux(fine, shifted[2], shifted[0]), "vendor": self._vendor}
        total = add(m, 34, lambda a, b, c, d: (a, b & d | c & ~d), a=part, **rest).as_signed()
        # MAX: whether c is no less than the product, which fits 16 bits but for its rounding.
        least = add(m, 18, lambda a, b, c, d: (~a, b & d | c & ~d), a=c, **rest)[-1]
        # A masked lane takes c, in whose place the mask value is put; that of EXP2 is 0 anyway.
        total = clearable(m, total, self.masked, "total")
        chosen, least_or_masked = Signal(signed(16), reset_less=True), Signal(reset_less=True)
        with m.If(self.masked & ~control.exp):
            m.d.sync += chosen.eq(numerics.MASKED)
        with m.Else():
            m.d.sync += chosen.eq(c)
        may_choose = Signal(reset_less=True)
        m.d.sync += [least_or_masked.eq(least | self.masked),
                     may_choose.eq(control.max | self.masked)]
        self._choose(m, *(delay(m, value, self._after, name) for value, name in (
            (total, "total"), (chosen, "chosen"), (least_or_masked, "least"),
            (may_choose, "may_choose"))))

    def _choose(self, m, total, c, least, may_choose):
        """Cycle 7: the sum, its limit, or c."""
        narrow, sign, fits = self.i_result.narrow, total[-1], all_equal(total[15:])
        # What counts where 16 bits are too few.
        fits_wide = ~narrow & all_equal(total[31:])
        take_c = may_choose & Mux(fits, least, sign)
        # Lower bits: 0, the sum, c, or 1.
        sum_or_1 = Mux(fits, ~(may_choose & least), ~sign | fits_wide & ~may_choose)
        c_or_1 = Mux(fits, may_choose & least, Mux(sign, may_choose, ~fits_wide))
        # From bit 15 on: the sum or a sign. A narrow sum that fits is nothing else there.
        follow = fits_wide & ~take_c
        known = Mux(take_c, c[-1], sign)
        upper = Mux(take_c, c[-1], narrow ^ ~sign)
        lower = gate(m, 15, lambda a, b, c, d: a & c | b & d | c & d, a=total, b=c, c=sum_or_1,
                     d=c_or_1, vendor=self._vendor)
        above = gate(m, 17, lambda a, b, c, d: a & d | b & ~d, a=total[15:],
                     b=Cat(upper.replicate(16), known), d=follow, vendor=self._vendor)
        m.d.comb += self.o.eq(delay(m, Cat(lower, above), 1, "result").as_signed())
