"""Pipeline registers: plain delays shared by the vector, lane-moving and sampling slices."""
from amaranth import Signal, Value


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
