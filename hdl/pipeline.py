"""Building blocks of the vector, lane-moving and sampling slices: delays, tables, right shifts.

A saturating ``rshift`` of `arch.numerics` takes two stages: `shift_coarse` moves a value down by a
multiple of four and keeps only the bits that can still matter, `shift_fine` moves the rest and
rounds.
"""
from amaranth import C, Cat, Mux, Signal, Value, signed

from hdl.choose import choose
from hdl.logic_cells import add


def delay(m, value, cycles: int, name: str, *, reset: bool = False) -> Value:
    """``value`` of ``cycles`` cycles ago.

    Parameters
    ----------
    m : Module
        Gets one register per cycle in its ``sync`` domain.
    name : str
        Prefix of the registers; the number of cycles follows.
    reset : bool
        Whether the registers reset (to 0). Valid bits do, data do not.
    """
    value = Value.cast(value)
    for cycle in range(1, cycles + 1):
        register = Signal(value.shape(), name=f"{name}_{cycle}", reset_less=not reset)
        m.d.sync += register.eq(value)
        value = register
    return value


def clearable(m, value, clear, name: str) -> Signal:
    """A register of ``value`` that takes 0 where ``clear``, which flip-flops do for free."""
    value = Value.cast(value)
    register = Signal(value.shape(), name=name, reset_less=True)
    with m.If(clear):
        m.d.sync += register.eq(0)
    with m.Else():
        m.d.sync += register.eq(value)
    return register


def rom(m, index, table, name: str) -> Value:
    """The entry of a constant table at ``index``, in the same cycle; the table fills the index."""
    if len(table) != 1 << len(index):
        raise ValueError(f"table must have {1 << len(index)} entries, not {len(table)!r}")
    low, high = int(min(table)), int(max(table))
    entry = Signal(range(low, high + 1), name=name)
    with m.Switch(index):
        for number, value in enumerate(table):
            with m.Case(number):
                m.d.comb += entry.eq(int(value))
    return entry


def all_equal(value) -> Value:
    """Whether all bits of a value are the same; so for none."""
    return value.all() | ~value.any()


def shift_coarse(m, value, coarse, bits: int, name: str, vendor: bool = False) -> tuple:
    """First stage: ``value`` times two, shifted right by four times ``coarse``.

    Returns
    -------
    low : Signal
        The lowest ``bits + 4`` bits: what a fine shift of up to 3 can reach, the rounding bit and
        one bit of overflow included.
    high : Signal
        Whether a bit above those differs from the sign.
    """
    doubled, width = Cat(C(0, 1), value).as_signed(), bits + 4
    high, low = Signal(name=f"{name}_high"), Signal(signed(width), name=f"{name}_low")
    differs = [~all_equal(doubled[width - 1 + 4 * step:]) if width + 4 * step < len(doubled)
               else C(0, 1) for step in range(1 << len(coarse))]
    m.d.comb += [low.eq(shift_right(m, doubled, coarse, 4, width, vendor)),
                 high.eq(Cat(differs).bit_select(coarse, 1))]
    return low, high


def shift_right(m, value, amount, step: int, width: int, vendor: bool) -> Value:
    """The lowest ``width`` bits of ``value >> amount * step``, ``value`` signed.

    Multiplexer cells (`hdl.choose`) where three inputs or more differ; else Yosys does as well.
    """
    places, full = 1 << len(amount), min(width, max(0, len(value) - step - 1))
    parts = [(value >> step * place)[:full] for place in range(places)]
    above = (value >> Cat(C(0, step.bit_length() - 1), amount))[full:width]
    return Cat(choose(parts, amount, m, vendor), above) if full else above


def shift_fine(m, low, high, fine, bits: int, name: str, vendor: bool = False) -> tuple:
    """Second stage: shift by ``fine`` (0 to 3) and round.

    Parameters
    ----------
    low, high : what `shift_coarse` gave.

    Returns
    -------
    rounded : Value
        The lowest ``bits`` bits of the result.
    over : Value
        Whether the result does not fit them already before it is rounded. Rounding overflows only
        upwards, from the largest value to the sign bit.
    """
    pair = Signal(bits + 2, name=f"{name}_pair")
    m.d.comb += pair.eq(Mux(fine[1], low[2:], low))
    # The rest of the shift fits into the carry cells that round.
    rounded = add(m, bits, lambda a, b, c, d: (a & 0, b & d | c & ~d), b=pair[2:], c=pair[1:],
                  d=fine[0], carry=Mux(fine[0], pair[1], pair[0]), vendor=vendor)
    return rounded, high | ~all_equal((low >> fine)[bits:])


def limit(sign, bits: int) -> Value:
    """The largest value of ``bits`` bits, or the smallest if ``sign`` is set."""
    return Cat((~sign).replicate(bits - 1), sign).as_signed()
