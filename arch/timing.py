"""Every latency of the machine, as a function of `Config`: the only place that knows them.

Convention. An operation issued on cycle ``t`` takes its operands from their streams on cycle
``t + skew`` and has its result on its own stream on cycle ``t + delay``. A stream carries a value
for exactly one cycle. Hence, with equality::

    issue(consumer) + skew(consumer) = issue(producer) + delay(producer) + path

Ref: Abts et al., ISCA 2020, section II.F (the timing contract between producer and consumer).
"""
import dataclasses

from arch.config import Config
from arch.hostmap import power_of_two
from arch.queues import queue_ids

#: Cycles from the barrier to the earliest issue of a queue: fetch, operand substitution, load, and one
#: for the slice to decode.
FIRST_ISSUE = 4
#: Least distance between the last issue before a LOOP and the next one behind it, in the next round
#: or behind the last one. A wait that is shorter than legal faults where the shortest would be.
LOOP_WAIT_MIN = 4
#: Path delay between any two slices.
PATH = 0
#: Rounds of the counter-based generator, one pipeline stage each (see `arch.numerics.threefry`).
GENERATOR_ROUNDS = 13
#: Passes of a permutation: each moves as many bits of every lane.
PERM_PASSES = 4


@dataclasses.dataclass(frozen=True)
class Timing:
    """Latencies of one machine, in cycles.

    Members
    -------
    mem_read : issue to stream M*.
    mem_write_to_read : issue of a write to the earliest issue of a read that sees it.
    const_read : issue to stream CONST.
    matmul_to_drain : issue of a MATMUL step to the earliest DRAIN that sees its sum.
    drain_to_matmul : issue of a DRAIN to the earliest MATMUL step that may overwrite the entry;
        negative, because the sum arrives late.
    drain : issue to stream ACC.
    read_out : issue of the last READ_OUT of a group to stream ACC.
    weight_read : issue of a MATMUL to the cycle on which its first row pair reads the first tile;
        row pair p of tile c reads p + c cycles later.
    weight_write : issue of a WRITE_K or WRITE_V to the cycle at whose end it lands.
    kv_write_to_matmul : issue of a WRITE_K or WRITE_V to the earliest MATMUL that sees it.
    matmul_to_kv_write : issue of a MATMUL to the earliest write that may change its word.
    kv_write_to_read_out : issue of a write to the earliest READ_OUT that sees it.
    vxm : issue to stream VXM.
    perm : issue to stream PERM.
    perm_gap : least cycles between two issues of PERM.
    reduce : last issue of a SUM or MAX to stream RED.
    reduce_function : last issue of a RECIP or RSQRT to stream RED.
    sample_skew : issue of ARGMAX to the cycle that takes the logits.
    sample_gap : least cycles between two issues of ARGMAX.
    sample : last issue of ARGMAX to the earliest last cycle of the step.
    """
    mem_read: int
    mem_write_to_read: int
    const_read: int
    matmul_to_drain: int
    drain_to_matmul: int
    drain: int
    read_out: int
    weight_read: int
    weight_write: int
    kv_write_to_matmul: int
    matmul_to_kv_write: int
    kv_write_to_read_out: int
    vxm: int
    perm: int
    perm_gap: int
    reduce: int
    reduce_function: int
    sample_skew: int
    sample_gap: int
    sample: int


def row_load(config: Config) -> int:
    """Cycles that dealing out the delay parameters of a row takes.

    A run loads its first row and the one behind it before its first barrier; every other row is
    loaded during the ``config.columns`` steps of the row before it.
    """
    return power_of_two(queue_ids(config)) * power_of_two(config.param_columns) + 6


def step_minimum(config: Config) -> int:
    """Cycles that every step of a row with delay parameters behind it must have: see `row_load`."""
    return -(-row_load(config) // config.columns)


def timing(config: Config) -> Timing:
    """Latencies of the machine that ``config`` describes."""
    hops = config.half_columns // config.tile_columns - 1
    # Activation take, shift and saturate (3), multiplier input and product registers (2), one
    # partial-sum register per bank pair, systolic hops, accumulator write (1); the drain reads one
    # cycle after its issue.
    matmul_to_drain = 5 + config.pairs + hops + config.mxm_stages
    # The activations of the first row pair meet their weights on the third cycle; the banks take
    # two. A run-time write is taken, saturated, moved to its lines, sent to the tiles and written.
    weight_read, weight_write = 1, 4
    sample_skew = GENERATOR_ROUNDS + 6
    return Timing(
        mem_read=1 + config.mem_stages,
        # A register between the wires to the banks and what is chosen for them; an extra stage of a
        # read in front of the banks makes up for it.
        mem_write_to_read=2 - min(1, config.mem_stages),
        const_read=2 + config.const_stages,
        matmul_to_drain=matmul_to_drain,
        # A step issued on cycle u writes the first tile's accumulators at the end of cycle
        # u + matmul_to_drain - hops; a drain reads them one cycle after its issue. The difference
        # is negative: the overwriting step may be issued before the drain.
        drain_to_matmul=1 + hops - matmul_to_drain,
        drain=2 + config.drain_stages,
        read_out=weight_write + 6,
        weight_read=weight_read,
        weight_write=weight_write,
        kv_write_to_matmul=weight_write + 1 - weight_read,
        # The last pair of the last tile reads its bank pairs - 1 + hops cycles after the first.
        matmul_to_kv_write=weight_read + config.pairs + hops - weight_write,
        kv_write_to_read_out=1,
        vxm=8 + config.vxm_stages,
        perm=1 + PERM_PASSES + config.perm_stages,
        perm_gap=PERM_PASSES,
        reduce=6 + config.reduce_stages,
        reduce_function=11 + config.reduce_stages,
        sample_skew=sample_skew,
        sample_gap=config.lanes // 2,
        # Product (2), key, comparisons (2), token; the last pair of lanes comes lanes / 2 cycles after
        # the take.
        sample=sample_skew + config.lanes // 2 + 6,
    )
