"""Building blocks of the vector, lane-moving and sampling slices: delays, tables, right shifts.

A saturating ``rshift`` of `arch.numerics` takes two stages: `shift_coarse` moves a value down by a
multiple of four and keeps only the bits that can still matter, `shift_fine` moves the rest and
rounds.
"""
from amaranth import C, Cat, Signal, Value, signed


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


def shift_coarse(m, value, coarse, bits: int, name: str) -> tuple:
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
    m.d.comb += [low.eq(doubled >> Cat(C(0, 2), coarse)),
                 high.eq(Cat(differs).bit_select(coarse, 1))]
    return low, high


def shift_fine(m, low, high, sign, fine, bits: int, name: str) -> tuple:
    """Second stage: shift by ``fine`` (0 to 3) and round.

    Parameters
    ----------
    low, high : what `shift_coarse` gave.
    sign : sign of the value that was shifted.

    Returns
    -------
    rounded : Signal
        The lowest ``bits`` bits of the result.
    over : Value
        Whether the result does not fit them and saturates to `limit`.
    """
    shifted, rounded = (Signal(signed(width), name=f"{name}_{part}")
                        for width, part in ((bits + 4, "shifted"), (bits, "rounded")))
    m.d.comb += [shifted.eq(low >> fine),
                 rounded.eq(shifted[1:bits + 1].as_signed() + shifted[0])]
    # Rounding itself overflows only upwards, from the largest value to the sign bit.
    return rounded, high | ~all_equal(shifted[bits:]) | ~sign & rounded[-1]


def limit(sign, bits: int) -> Value:
    """The largest value of ``bits`` bits, or the smallest if ``sign`` is set."""
    return Cat((~sign).replicate(bits - 1), sign).as_signed()
