"""Monitors: look at outputs once per cycle, in the read-only phase behind the rising edge."""
import numpy as np

from arch.faults import Fault
from tb.checker import Checker, Mismatch


def number(handle, cycle: int) -> int:
    """Value of a control output, which must never have an X."""
    value = handle.value
    if not value.is_resolvable:
        raise Mismatch(f"{handle._name}: cycle {cycle}: {value}")
    return int(value)


class StreamMonitor:
    """Tells a checker every vector of a stream, as int64 lanes; None where a bit is X.

    Parameters
    ----------
    valid, data : handles
    lanes, width : int
    """

    def __init__(self, valid, data, lanes: int, width: int, checker: Checker):
        self._valid, self._data, self._checker = valid, data, checker
        self._bytes, self._type = lanes * width // 8, f"<i{width // 8}"

    def sample(self, cycle: int) -> None:
        if not number(self._valid, cycle):
            return
        value, lanes = self._data.value, None
        if value.is_resolvable:
            raw = value.to_unsigned().to_bytes(self._bytes, "little")
            lanes = np.frombuffer(raw, self._type).astype(np.int64)
        self._checker.observe(cycle, lanes)


class FaultMonitor:
    """Tells a checker ``{faults}`` with the cycle of the event, one before the cause is high."""

    def __init__(self, causes, checker: Checker):
        self._causes, self._checker = causes, checker

    def sample(self, cycle: int) -> None:
        causes = number(self._causes, cycle)
        if causes:
            self._checker.observe(cycle - 1, {fault for fault in Fault
                                              if fault and causes >> fault - 1 & 1})


class PortMonitor:
    """Tells a checker the values of some ports, as a dict by name, on every cycle on which the
    first of them is not 0. None stands for a value with an X.

    Parameters
    ----------
    handles : dict of str to handle
    """

    def __init__(self, handles: dict, checker: Checker):
        self._handles, self._checker = handles, checker
        self._valid = next(iter(handles.values()))

    def sample(self, cycle: int) -> None:
        if number(self._valid, cycle):
            values = {name: handle.value for name, handle in self._handles.items()}
            self._checker.observe(cycle, {
                name: int(value) if value.is_resolvable else None
                for name, value in values.items()})

    def settle(self, cycle: int) -> None:
        """Look when the inputs of the cycle have settled, which the ports follow."""
        self.sample(cycle)
