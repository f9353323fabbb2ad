"""Which words a machine holds, and reads of words that were never written.

The functions take a `sim.legality.StepPlan` and the state before the step, and add to ``faults``.
"""
import numpy as np

from arch.faults import Fault
from arch.image import Image
from arch.queues import QUEUES

#: First write of a word that is not written; a word written before the step has -NEVER.
NEVER = np.iinfo(np.int64).max


class Written:
    """Which words a machine holds: true where something was loaded or written.

    Members
    -------
    mem : bool array, [banks, words, halves]
    accumulators : bool array, [entries]
    weights : bool array, [words, rows, columns]
    full : bool array, [words]
        Weight words that are written in every byte.
    """

    def __init__(self, image: Image):
        config = image.config
        self.mem = np.zeros((config.mem_banks, config.mem_depth, 2), bool)
        self.accumulators = np.zeros(config.accumulators, bool)
        self.weights = np.zeros((config.weight_depth, config.rows, config.columns), bool)
        self.weights[:len(image.weights)] = True
        self.full = self.weights.all(axis=(1, 2))

    def write_weights(self, writes) -> None:
        """Mark ``(op, address, lane)`` of `sim.weight_rules.weight_writes`."""
        for op, address, lane in writes:
            if op == "WRITE_K":
                self.weights[address, :, lane] = True
            else:
                self.weights[address, lane, :] = True
            self.full[address] = self.weights[address].all()


def unwritten_mem(plan, written: Written, faults: list) -> None:
    """READ of a word of MEM of which a half was never written."""
    first = np.where(written.mem, -NEVER, plan.first_write).max(axis=2)
    for segment in plan.unit("mem_read"):
        bank = QUEUES[segment.queue].bank
        known = first[bank][np.clip(segment.address, 0, plan.config.mem_depth - 1)]
        early = np.flatnonzero(known > segment.cycle - plan.timing.mem_write_to_read)
        if len(early):
            plan.fault(Fault.UNWRITTEN, segment.cycle[early[0]], segment,
                       f"word {segment.address[early[0]]} was never written", faults)


def unwritten_constants(plan, values: tuple, faults: list) -> None:
    """READ of a constant that the image does not have."""
    for segment in plan.unit("const"):
        addresses = segment.indexed(values)
        beyond = np.flatnonzero(addresses >= len(plan.image.constants))
        if len(beyond):
            plan.fault(Fault.UNWRITTEN, segment.cycle[beyond[0]], segment,
                       f"constant {addresses[beyond[0]]} is not loaded", faults)


def unwritten_accumulators(plan, written: Written, faults: list) -> None:
    """DRAIN of, or adding to, an accumulator that no MATMUL started."""
    first = np.where(written.accumulators, -NEVER, plan.first_start)
    for segment, entries, start in plan.used_accumulators:
        known = first[entries]
        if segment.op == "DRAIN":
            early = known > segment.cycle - plan.timing.matmul_to_drain
        else:
            early = ~start & (known >= segment.cycle)
        if early.any():
            bad = np.flatnonzero(early)[0]
            plan.fault(Fault.UNWRITTEN, segment.cycle[bad], segment,
                       f"accumulator {entries[bad]} was never written", faults)
