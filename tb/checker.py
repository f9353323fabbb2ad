"""In-order checker: what must be seen, with its cycle, against what is seen."""
import heapq

import numpy as np

#: Expected value that anything matches, X included: the result of a faulty operation.
ANYTHING = object()


class Mismatch(AssertionError):
    """A value or its cycle is not the expected one."""


class Checker:
    """Expects values in the order of their cycles; compares value and cycle, with equality.

    Parameters
    ----------
    name : str
        For messages.
    """

    def __init__(self, name: str):
        self.name = name
        self._expected, self._count = [], 0
        self.seen = 0

    def expect(self, cycle: int, value) -> None:
        """``value`` on ``cycle``: an int array of lanes, something comparable, or `ANYTHING`."""
        heapq.heappush(self._expected, (int(cycle), self._count, value))
        self._count += 1

    def observe(self, cycle: int, value) -> None:
        """A monitor saw ``value``; None stands for one with an X."""
        if not self._expected:
            raise Mismatch(f"{self.name}: cycle {cycle}: {value}, nothing more expected")
        at, _, wanted = heapq.heappop(self._expected)
        if at != cycle:
            raise Mismatch(f"{self.name}: {value} on cycle {cycle}, expected {wanted} on {at}")
        if wanted is not ANYTHING and (value is None or not np.array_equal(value, wanted)):
            raise Mismatch(f"{self.name}: cycle {cycle}: {'X' if value is None else value}, "
                           f"not {wanted}")
        self.seen += 1

    def finish(self) -> None:
        """Nothing must be left to be seen."""
        if self._expected:
            at, _, wanted = min(self._expected, key=lambda entry: entry[:2])
            raise Mismatch(f"{self.name}: never saw {wanted}, expected on cycle {at}; "
                           f"{len(self._expected)} missing in all")
