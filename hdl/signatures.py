"""Interfaces between the slices: issued operations, streams and faults."""
import types

from amaranth import Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import Out

from arch.config import Config
from arch.faults import Fault
from arch.isa import UNITS
from arch.queues import Stream

#: Bits of a lane in memories, and of most streams.
LANE_BITS = 16
#: Fields that the queue consumes; the slice never sees them.
_QUEUE_FIELDS = {"wait_param", "wait", "n1_param", "n1", "d1", "n2_param", "n2", "d2", "s1", "s2",
                 "address"}
#: Index fields of the formats whose queue adds the index to an address.
_INDEX_FIELDS = {"index", "index_shift"}


class IssueSignature(wiring.Signature):
    """One operation per cycle from a queue to its slice, on the cycle before it is issued.

    So every slice has a cycle to decode, at no cost: all queues are one cycle ahead.

    Members
    -------
    valid : an operation is issued on the next cycle.
    i, j : its repeat indices; ``i_first``, ``i_last``, ``j_first``, ``j_last`` flag their ends.
    address : where the format has one: with strides, layer base and index already added, two bits
        wider than the field, so that the slice can see a range error.
    op and every further field of the format, as in the instruction.
    """

    def __init__(self, unit: str, config: Config):
        self.unit, self.config = UNITS[unit], config
        members = {"valid": Out(1), "i": Out(config.count_bits), "j": Out(config.count_bits)}
        members |= {name: Out(1) for name in ("i_first", "i_last", "j_first", "j_last")}
        has_address = self.unit.field("address") is not None
        for field in self.unit.fields:
            if (field.reserved or field.name in _QUEUE_FIELDS
                    or has_address and field.name in _INDEX_FIELDS):
                continue
            members[field.name] = Out(field.bits(config))
        if has_address:
            members["address"] = Out(self.unit.field("address").bits(config) + 2)
        super().__init__(members)


def issued(m, coming, name: str = "issued") -> types.SimpleNamespace:
    """What is issued on this cycle: a register for every member of an issue port."""
    registers = {}
    for member in coming.signature.members:
        value = getattr(coming, member)
        register = Signal.like(value, name=f"{name}_{member}", reset_less=member != "valid")
        m.d.sync += register.eq(value)
        registers[member] = register
    return types.SimpleNamespace(**registers)


class StreamSignature(wiring.Signature):
    """A vector on the move: ``data`` holds ``lanes`` signed values while ``valid``."""

    def __init__(self, width: int, lanes: int):
        super().__init__({"valid": Out(1),
                          "data": Out(data.ArrayLayout(signed(width), lanes))})


def stream_width(stream: Stream) -> int:
    """Bits per lane of a stream."""
    return 32 if stream in (Stream.ACC, Stream.VXM) else LANE_BITS


def streams_of(config: Config) -> tuple:
    """The streams that a machine has."""
    return tuple(stream for stream in Stream
                 if Stream.M0 <= stream < Stream.M0 + config.mem_banks
                 or stream in (Stream.CONST, Stream.ACC, Stream.VXM, Stream.PERM, Stream.RED))


class StreamsSignature(wiring.Signature):
    """All streams side by side, members named in lower case: ``m0``, ..., ``const``, ``red``."""

    def __init__(self, config: Config):
        super().__init__({stream.name.lower(): Out(StreamSignature(stream_width(stream),
                                                                   config.lanes))
                          for stream in streams_of(config)})


class FaultSignature(wiring.Signature):
    """One bit per cause, bit ``Fault.X - 1``, high on cycle e + 1 for an event on cycle e."""

    def __init__(self):
        super().__init__({"causes": Out(len(Fault) - 1)})


def fault_bit(fault: Fault) -> int:
    """Position of a cause in `FaultSignature`."""
    return fault - 1


def rounded_shift(value, shift, width: int):
    """``rshift`` of `arch.numerics` for a signed value and an unsigned shift, kept exact.

    One more bit below the point takes the rounding bit along.
    """
    return ((((value << 1) >> shift) + 1) >> 1)[:width].as_signed()


def clamp(value, low: int, high: int):
    """Saturate a signed value to ``low .. high``."""
    return Mux(value < low, low, Mux(value > high, high, value))
