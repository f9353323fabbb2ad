"""Run-time writes of the weight banks against the wavefronts of the matmuls that read them.

A write issued on cycle t lands at the end of t + ``weight_write`` (`arch.timing`). Row pair p of
column tile c of a MATMUL issued on u reads on u + ``weight_read`` + p + c. The functions take a
`sim.legality.StepPlan` and add to ``faults``.
"""
import dataclasses

import numpy as np

from arch.faults import Fault
from arch.isa import Index
from sim.queue_model import index_values


@dataclasses.dataclass(frozen=True)
class KvWrite:
    """A write: its cycle of issue, and the column (WRITE_K) or row (WRITE_V) in ``lane``."""
    cycle: int
    op: str
    address: int
    lane: int


def kv_writes(plan, position: int, token: int) -> list:
    """Run-time weight writes inside the memory, in order."""
    values, writes = index_values(plan.config, position, token), []
    for segment in plan.unit("kv"):
        if segment.op == "READ_OUT":
            continue
        lanes = plan.config.columns if segment.op == "WRITE_K" else plan.config.rows
        writes += [KvWrite(int(cycle), segment.op, int(address), position % lanes)
                   for cycle, address in zip(segment.cycle, segment.indexed(values))
                   if 0 <= address < plan.config.weight_depth]
    return writes


def weight_writes(plan, position: int, token: int) -> list:
    """``(op, address, lane)`` of every run-time weight write of the step."""
    return [(write.op, write.address, write.lane)
            for write in kv_writes(plan, position, token)]


def column_tile(plan, column: int) -> int:
    """Systolic tile of a column, counted within its half."""
    return column % plan.config.half_columns // plan.config.tile_columns


def conflicts(plan, writes: list, faults: list) -> None:
    """Writes that reach a word in the cycle in which a MATMUL reads it."""
    pairs, apart = plan.config.pairs, plan.timing.weight_write - plan.timing.weight_read
    for write in writes:
        # One write meets matmuls of a run of consecutive cycles.
        if write.op == "WRITE_K":
            low, count = column_tile(plan, write.lane), pairs
        else:
            low, count = write.lane // 2, plan.hops + 1
        last = write.cycle + apart - low
        window = plan.matmul_at[max(0, last - count + 1):max(0, last + 1)]
        if (window == write.address).any():
            plan.fault(Fault.CONFLICT, write.cycle + plan.timing.weight_write, "kv",
                       f"{write.op} to weight word {write.address} meets a MATMUL that "
                       "reads it", faults)


def later_v_words(plan, position: int) -> set:
    """Words that WRITE_V reaches at later positions of the row: a MATMUL over all of the row may
    read them before, times activations of 0."""
    words = set()
    last = (plan.row + 1) * plan.config.columns
    for segment in plan.unit("kv"):
        if segment.op == "WRITE_V" and segment["index"] == Index.POSITION:
            steps = {later >> segment["index_shift"] for later in range(position + 1, last)}
            words.update(int(address) + step for address in segment.address for step in steps)
    return words


def unwritten_weights(plan, position, token, writes, written, faults) -> None:
    """MATMUL reads of words that were never written, or are written later in the step.

    A word of which some byte is written may be read: masks and zero activations hide the others.
    """
    config, time = plan.config, plan.timing
    by_word, later_words = _by_word(writes), None
    rows = np.arange(config.rows)[:, None]
    tiles = np.array([column_tile(plan, column) for column in range(config.columns)])
    for segment in plan.unit("mxm"):
        inside = np.clip(segment.address, 0, config.weight_depth - 1)
        for index in np.flatnonzero(~written.full[inside]):
            address, cycle = int(segment.address[index]), int(segment.cycle[index])
            read_cycle = cycle + time.weight_read + rows // 2 + tiles
            known, late = written.weights[inside[index]].copy(), False
            for write in by_word.get(address, ()):
                place = np.zeros_like(known)
                if write.op == "WRITE_K":
                    place[:, write.lane] = True
                else:
                    place[write.lane, :] = True
                sees = read_cycle > write.cycle + time.weight_write
                late = late or bool((place & ~known & ~sees).any())
                known |= place & sees
            if known.any() and not late:
                continue
            if later_words is None:
                later_words = later_v_words(plan, position)
            if late or address not in later_words:
                plan.fault(Fault.UNWRITTEN, cycle, segment, f"weight word {address} " + (
                    "is written later in this step" if late else "was never written"), faults)
                break


def _by_word(writes: list) -> dict:
    words = {}
    for write in writes:
        words.setdefault(write.address, []).append(write)
    return words


def unwritten_read_out(plan, position, token, writes, written, faults) -> None:
    """READ_OUT of bytes that were never written."""
    by_word = _by_word(writes)
    values = index_values(plan.config, position, token)
    for segment in plan.unit("kv"):
        if segment.op != "READ_OUT":
            continue
        addresses = segment.indexed(values)
        column = (position if segment["half0"] % 2 else token) % plan.config.columns
        inside = np.clip(addresses, 0, plan.config.weight_depth - 1)
        for index in np.flatnonzero(~written.full[inside]):
            known = written.weights[inside[index], :, column].copy()
            for write in by_word.get(int(addresses[index]), ()):
                if write.cycle < segment.cycle[index]:
                    if write.op == "WRITE_V":
                        known[write.lane] = True
                    elif write.lane == column:
                        known[:] = True
            if not known.all():
                plan.fault(Fault.UNWRITTEN, segment.cycle[index], segment,
                           f"weight word {addresses[index]} was never written", faults)
                break
