"""The instruction queues and the streams: who issues, and where operands travel.

Plain names and numbers that `arch.config` (sizes) and `arch.isa` (formats) both need.
"""
import dataclasses
import enum

MEM_BANKS_MAX = 4


class Stream(enum.IntEnum):
    """Where an operand comes from. A stream is a register of ``lanes`` values, valid for one cycle.

    The lowest two or three bits of the number tell the sources of each operand apart: they are the
    address of its multiplexer as they stand.

    Members
    -------
    NONE : no operand; see the instruction for what stands in its place.
    M0, M1, M2, M3 : read port of a MEM bank, int16 lanes.
    CONST : read port of the constant SRAM, int16 lanes.
    ACC : accumulator drain or weight read-out of the MXM, int32 lanes.
    VXM : result of the vector unit, int32 lanes (int16 in value unless the instruction is wide).
    PERM : result of the lane permutation, int16 lanes.
    RED : result of the lane reduction, one int16 value on every lane.
    LINK0, LINK1 : reserved for chip-to-chip links.
    """
    NONE = 0
    M0 = 1
    M1 = 2
    M2 = 3
    M3 = 4
    CONST = 5
    ACC = 6
    VXM = 7
    PERM = 8
    LINK0 = 9
    RED = 10
    LINK1 = 11


STREAM_BITS = 4


def mem_stream(bank: int) -> Stream:
    """The stream that MEM bank ``bank`` reads onto."""
    return Stream(Stream.M0 + bank)


def shares_wires(source: Stream, bank: int) -> bool:
    """Whether what MEM bank ``bank`` writes comes on the wires that all banks share.

    They carry one stream on a cycle. To banks of odd number RED has wires of its own: it is the same
    on every lane, and what is reduced is written while something else is.
    """
    return source != Stream.RED or bank % 2 == 0


@dataclasses.dataclass(frozen=True)
class Queue:
    """One in-order instruction queue.

    ``unit`` names the instruction format (`arch.isa`), ``bank`` tells the MEM queues apart.
    """
    name: str
    id: int
    unit: str
    bank: int = 0

    def exists(self, config) -> bool:
        """Whether a machine of this `Config` has the queue."""
        if self.unit in ("send", "receive"):
            return config.links > 0
        return self.unit not in ("mem_read", "mem_write") or self.bank < config.mem_banks


_ORDER = [("mxm", "mxm", 0), ("drain", "drain", 0), ("kv", "kv", 0), ("vxm", "vxm", 0),
          ("perm", "perm", 0), ("red", "red", 0), ("const", "const", 0), ("sample", "sample", 0),
          *[(f"r{bank}", "mem_read", bank) for bank in range(MEM_BANKS_MAX)],
          *[(f"w{bank}", "mem_write", bank) for bank in range(MEM_BANKS_MAX)],
          ("send", "send", 0), ("receive", "receive", 0)]

#: Every queue by name. Those of links are reserved: no machine has them.
QUEUES = {name: Queue(name, number, unit, bank)
          for number, (name, unit, bank) in enumerate(_ORDER)}


def queue_ids(config) -> int:
    """One more than the highest id of a queue of this machine."""
    return max(queue.id for queue in QUEUES.values() if queue.exists(config)) + 1
