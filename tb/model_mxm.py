"""Transaction model of the MXM: what operations give that keep the distances of `arch.timing`.

Operations are recorded in any order; `Model.predict` then says what stream ACC shows and when. A
pair of operations that is closer than its distance makes `Illegal`: the model knows no stages.
"""
import dataclasses

import numpy as np

from arch import numerics
from arch.isa import Order


class Illegal(ValueError):
    """Two operations are closer than `arch.timing` allows."""


@dataclasses.dataclass
class Step:
    """One MATMUL issue: activations by row and column, and what it does to an accumulator."""
    cycle: int
    address: int
    entry: int
    overwrite: bool
    x: np.ndarray


@dataclasses.dataclass
class Write:
    """One WRITE_K or WRITE_V issue: the values of all places that it writes."""
    cycle: int
    address: int
    place: np.ndarray
    values: np.ndarray


def expand(cycle, n1=1, n2=1, d1=1, d2=1, address=0, s1=0, s2=0):
    """Issues of one instruction by the issue rule of `arch.isa`: cycle, and members of the port."""
    for i in range(n2):
        for j in range(n1):
            yield cycle, {"i": i, "j": j, "i_first": i == 0, "i_last": i == n2 - 1,
                          "j_first": j == 0, "j_last": j == n1 - 1,
                          "address": address + i * s2 + j * s1}
            cycle += d1 if j < n1 - 1 else d2


def takes(config, order, half0, i, j) -> bool:
    """Whether a MATMUL issue takes new vectors (`arch.isa.Order`)."""
    if order == Order.HOLD:
        return True
    k = j if order == Order.K_INNER else i
    wraps = (half0 + k) % config.groups == 0
    return wraps or j == 0 if order == Order.K_INNER else j == 0 and (wraps or i == 0)


class Model:
    """Weights, accumulators and the operations on them.

    Parameters
    ----------
    config : Config, time : Timing
    weights : int array, [words, rows, columns]
        Of the first words, before any operation.
    position, token : int
    """

    def __init__(self, config, time, weights, position=0, token=0):
        self.config, self.time, self.weights = config, time, weights
        self.position, self.token = position, token
        self.steps, self.writes, self.drains, self.reads = [], [], [], []

    def step(self, cycle, address, entry, overwrite, held, part, shift) -> None:
        """``held`` : the vectors of both halves, [2, lanes]."""
        config = self.config
        rows = numerics.as_lane(held)[:, part * config.rows:(part + 1) * config.rows]
        x = numerics.activation(rows, shift, config.activation_bits)
        self.steps.append(Step(cycle, address, entry % config.accumulators, overwrite,
                               np.repeat(x, config.half_columns, 0).T))

    def write_k(self, cycle, address, part, lanes) -> None:
        config = self.config
        place = np.zeros((config.rows, config.columns), bool)
        place[:, self.position % config.columns] = True
        column = numerics.saturate_symmetric(numerics.as_lane(lanes), 8)
        column = column[part * config.rows:(part + 1) * config.rows, None]
        self.writes.append(Write(cycle, address, place, np.broadcast_to(column, place.shape)))

    def write_v(self, cycle, address, lanes) -> None:
        place = np.zeros((self.config.rows, self.config.columns), bool)
        place[self.position % self.config.rows] = True
        row = numerics.saturate_symmetric(numerics.as_lane(lanes), 8)[None]
        self.writes.append(Write(cycle, address, place, np.broadcast_to(row, place.shape)))

    def drain(self, cycle, entry) -> None:
        self.drains.append((cycle, entry % self.config.accumulators))

    def read_out(self, issues) -> None:
        """``issues`` : cycle and address of each part of one vector, the first with part 0."""
        self.reads.append(tuple(issues))

    def _word(self, address, before) -> np.ndarray:
        """A word as it is after the writes issued up to ``before``."""
        word = self.weights[address].copy()
        for write in sorted(self.writes, key=lambda write: write.cycle):
            if write.address == address and write.cycle <= before:
                word = np.where(write.place, write.values, word)
        return word

    def _distances(self, steps, writes, drains) -> None:
        """Raise if one of the steps is too close to one of the others.

        Parameters
        ----------
        steps : (cycle, address, entry), writes : (cycle, address), drains : (cycle, entry)
        """
        time = self.time
        for at, address, entry in steps:
            for cycle, word in writes:
                if word == address and (at - time.kv_write_to_matmul < cycle
                                        < at + time.matmul_to_kv_write):
                    raise Illegal(f"MATMUL on {at} and a write on {cycle}")
            for cycle, drained in drains:
                if drained == entry and (cycle - time.matmul_to_drain < at
                                         < cycle + time.drain_to_matmul):
                    raise Illegal(f"MATMUL on {at} and DRAIN on {cycle}")

    def _recorded(self) -> tuple:
        return ([(step.cycle, step.address, step.entry) for step in self.steps],
                [(write.cycle, write.address) for write in self.writes], self.drains)

    def shown(self) -> list:
        """Cycles on which ACC carries a vector."""
        return ([cycle + self.time.drain for cycle, _ in self.drains]
                + [issues[-1][0] + self.time.read_out for issues in self.reads])

    def allows(self, steps=(), writes=(), drains=(), shown=()) -> bool:
        """Whether further operations keep their distance from all recorded ones.

        Parameters are as in `_distances`; ``shown`` are cycles of further vectors on ACC.
        """
        old_steps, old_writes, old_drains = self._recorded()
        try:
            self._distances(steps, old_writes, old_drains)
            self._distances(old_steps, writes, drains)
        except Illegal:
            return False
        return not set(shown) & set(self.shown())

    def predict(self) -> dict:
        """Cycle to lanes of stream ACC; None for an accumulator that was never overwritten."""
        self._distances(*self._recorded())
        shown, time, config = {}, self.time, self.config
        steps = sorted(self.steps, key=lambda step: step.cycle)

        def show(cycle, lanes):
            if cycle in shown:
                raise Illegal(f"two vectors for ACC on {cycle}")
            shown[cycle] = lanes
        for cycle, entry in self.drains:
            total = None
            for step in steps:
                if step.entry == entry and step.cycle <= cycle - time.matmul_to_drain:
                    word = self._word(step.address, step.cycle - time.kv_write_to_matmul)
                    product = (step.x * word).sum(0)
                    if step.overwrite:
                        total = product
                    elif total is not None:
                        total = total + product
            show(cycle + time.drain, total)
        for issues in self.reads:
            lanes = np.zeros(config.lanes, np.int64)
            for part, (cycle, address) in enumerate(issues):
                word = self._word(address, cycle - time.kv_write_to_read_out)
                lanes[part * config.rows:(part + 1) * config.rows] = word[
                    :, self.token % config.columns]
            show(issues[-1][0] + time.read_out, lanes)
        return shown
