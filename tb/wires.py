"""Which streams an operand has wires from, for drivers and checkers of the benches."""
from arch.isa import UNITS, sources_of
from arch.queues import Stream
from tb.top import CONFIG


def wired(unit: str, name: str) -> list:
    """The streams that an operand field may name, NONE left out."""
    return [stream for stream in sources_of(UNITS[unit].field(name), CONFIG)
            if stream != Stream.NONE]


def reserved(unit: str, name: str) -> list:
    """The numbers that fault in an operand field."""
    return [number for number in range(16)
            if number not in sources_of(UNITS[unit].field(name), CONFIG)]
