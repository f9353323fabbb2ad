"""Bits that have flipped in a memory: the cycle on which the parity of their word shows it.

The models have no parity bits: a test tells `sim.machine.Machine` which words are damaged, and the
first read of one is the fault that the hardware raises. Writes do not repair here; damage what the
program only reads.
"""
import numpy as np

from arch.config import Config
from arch.faults import Fault
from arch.hostmap import Space, power_of_two
from arch.queues import QUEUES
from sim.queue_model import index_values

#: From the cycle on which a row pair reads its weight to the fault: two to the multiplier, where
#: the parity is looked at, and two to collect it over the array.
MATMUL_PARITY = 4
#: The same from the cycle on which the banks are read for a read-out.
READ_OUT_PARITY = 6
#: From the cycle on which a word of MEM or a constant is on its stream to the fault.
STREAM_PARITY = 1


def place_of(config: Config, space: Space, address: int) -> tuple:
    """What a 16-bit word of the host belongs to.

    Returns
    -------
    ``(Space.MEM, bank, word)``, ``(Space.CONSTANTS, word)`` or
    ``(Space.WEIGHTS, word, column, pair)``.
    """
    if space == Space.MEM:
        return space, *divmod(address // config.lanes, power_of_two(config.mem_depth))
    if space == Space.CONSTANTS:
        return space, address // config.lanes
    if space == Space.WEIGHTS:
        rest, pair = divmod(address, config.pairs)
        return space, *divmod(rest, config.columns), pair
    raise ValueError(f"words of {space.name} have no parity")


def parity_faults(plan, position: int, token: int, damaged: set) -> list:
    """The faults of a step that reads damaged words.

    Parameters
    ----------
    plan : sim.legality.StepPlan
    damaged : set of tuple
        As `place_of` gives them.
    """
    faults, values = [], index_values(plan.config, position, token)

    def on(segment, addresses, word, delay):
        for cycle in segment.cycle[addresses == word]:
            plan.fault(Fault.PARITY, cycle + delay, segment, f"word {word} is damaged", faults)
    for space, *place in damaged:
        if space == Space.MEM:
            bank, word = place
            for segment in plan.unit("mem_read"):
                if QUEUES[segment.queue].bank == bank:
                    on(segment, segment.address, word, plan.timing.mem_read + STREAM_PARITY)
        elif space == Space.CONSTANTS:
            for segment in plan.unit("const"):
                on(segment, segment.indexed(values), *place,
                   plan.timing.const_read + STREAM_PARITY)
        else:
            _weights(plan, position, token, values, place, on)
    return faults


def _weights(plan, position, token, values, place, on) -> None:
    """Reads of a weight by the array and by a read-out."""
    word, column, pair = place
    config = plan.config
    tile = column % config.half_columns // config.tile_columns
    read = plan.timing.weight_read
    for segment in plan.unit("mxm"):
        on(segment, segment.address, word, read + pair + tile + MATMUL_PARITY)
    for segment in plan.unit("kv"):
        chosen = position if segment["half0"] % 2 else token
        if segment.op == "READ_OUT" and chosen % config.columns == column:
            on(segment, np.asarray(segment.indexed(values)), word, plan.timing.read_out)
