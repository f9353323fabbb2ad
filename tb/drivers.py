"""Drivers: put scheduled values on inputs, at the falling edge in the middle of their cycle."""
import collections

import cocotb
from cocotb.types import LogicArray

from arch.config import Config
from arch.isa import Control, IsaError, Unit
from arch.queues import Stream
from hdl.signatures import IssueSignature, stream_width, streams_of


class Driver:
    """Schedules values for handles; a value stays until the next one, if it is not a pulse."""

    def __init__(self):
        self._plan = collections.defaultdict(dict)

    def set(self, cycle: int, handle, value) -> None:
        """``value`` from ``cycle`` on."""
        self._plan[cycle][handle] = value

    def pulse(self, cycle: int, handle, value, idle) -> None:
        """``value`` on ``cycle``, and ``idle`` from the next cycle on if that says nothing else."""
        self._plan[cycle][handle] = value
        self._plan[cycle + 1].setdefault(handle, idle)

    def drive(self, cycle: int) -> None:
        for handle, value in self._plan.pop(cycle, {}).items():
            handle.value = value


def op_code(unit: Unit, op) -> int:
    """Number of an operation by name, or the number itself."""
    if isinstance(op, int):
        return op
    for candidate in unit.ops:
        if candidate.name == op:
            return candidate.code
    if op in Control.__members__:
        return int(Control[op])
    raise IsaError(f"{unit.name} has no operation {op!r}")


class IssueDriver(Driver):
    """Issue port of a unit. Between issues the fields keep their last values.

    Parameters
    ----------
    port : callable
        Name of a member of the port to its handle.
    """

    def __init__(self, port, unit: str, config: Config):
        super().__init__()
        members = IssueSignature(unit, config).members
        self.unit = IssueSignature(unit, config).unit
        self._valid = port("valid")
        self._fields = {name: (port(name), member.shape)
                        for name, member in members.items() if name != "valid"}
        self._last = {}
        self._plan_valid = set()
        self.set(0, self._valid, 0)

    def send(self, cycle: int, op, **fields) -> None:
        """Issue ``op`` on ``cycle``: fields of `arch.isa`, ``address`` with everything added.

        Repeat indices and their flags are those of a single issue unless given.
        """
        # Operations are on the port on the cycle before.
        early = cycle - 1
        if cycle in self._plan_valid:
            raise ValueError(f"{self.unit.name} has an issue on cycle {cycle} already")
        self._plan_valid.add(cycle)
        values = {"i_first": 1, "i_last": 1, "j_first": 1, "j_last": 1} | fields
        values["op"] = op_code(self.unit, op)
        unknown = set(values) - set(self._fields)
        if unknown:
            raise IsaError(f"{self.unit.name} has no field {sorted(unknown)[0]!r}")
        self.pulse(early, self._valid, 1, 0)
        for name, (handle, width) in self._fields.items():
            self.set(early, handle, int(values.get(name, 0)) & (1 << width) - 1)

    def drive(self, cycle: int) -> None:
        for handle, value in self._plan.pop(cycle, {}).items():
            if self._last.get(handle) != value:
                handle.value = self._last[handle] = value


def pack(values, width: int) -> int:
    """Lanes to one number, lane 0 lowest."""
    mask = (1 << width) - 1
    return sum((int(value) & mask) << width * lane for lane, value in enumerate(values))


class StreamsDriver(Driver):
    """Operand streams of a slice. A stream without a value has X on its data in Icarus, and junk in
    a simulator of two states, so that an operand taken on the wrong cycle is seen.

    Parameters
    ----------
    port : callable
        Path of a member to its handle.
    """

    def __init__(self, port, config: Config):
        super().__init__()
        self._lanes, self._sides = config.lanes, {}
        for stream in streams_of(config):
            bits = stream_width(stream) * config.lanes
            junk = pack([-0x5A5B - 77 * lane for lane in range(config.lanes)],
                        stream_width(stream))
            if cocotb.SIM_NAME.lower().startswith("icarus"):
                junk = LogicArray("X" * bits)
            side = (port(f"{stream.name.lower()}__valid"), port(f"{stream.name.lower()}__data"))
            self._sides[stream] = (*side, junk)
            self.set(0, side[0], 0)
            self.set(0, side[1], junk)

    def put(self, cycle: int, stream: Stream, values) -> None:
        """One vector on a stream, for one cycle."""
        stream = Stream(stream)
        valid, data, junk = self._sides[stream]
        if len(values) != self._lanes:
            raise ValueError(f"a vector must have {self._lanes} lanes, not {len(values)}")
        self.pulse(cycle, valid, 1, 0)
        self.pulse(cycle, data, pack(values, stream_width(stream)), junk)
