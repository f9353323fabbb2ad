"""Configurations and random programs for the tests of the MXM slice."""
import numpy as np
import pytest

from arch.config import profile
from arch.isa import UNITS, Order, sources_of
from arch.queues import Stream
from tests.hdl.mxm_bench import MxmBench, expand, takes

TINY = profile("tiny").replace(weight_depth=48)
STAGED = TINY.replace(mxm_stages=3, drain_stages=2, activation_bits=10)
FLAT = TINY.replace(mxm_stages=1, rows=8, columns=8, tile_columns=4)
DEEP = TINY.replace(rows=2, columns=8, tile_columns=1, weight_depth=37, accumulators=4)
CONFIGS = pytest.mark.parametrize("config", [TINY, STAGED, FLAT, DEEP],
                                  ids=["tiny", "staged", "flat", "deep"])
EDGES = [0, 1, -1, 127, 128, -128, -129, 511, 512, -512, 32767, -32768, -32767]


def random_weights(rng, config):
    return rng.integers(-127, 128, (config.weight_depth, config.rows, config.columns))


def random_lanes(rng, config, wide=False):
    lanes = rng.integers(-(1 << 15), 1 << 15, config.lanes) >> rng.integers(0, 12, config.lanes)
    lanes = np.where(rng.random(config.lanes) < 0.2, rng.choice(EDGES, config.lanes), lanes)
    return lanes + (rng.integers(-99, 99, config.lanes) << 16 if wide else 0)


def feed(bench, rng, cycle, source):
    if Stream(source) not in bench.streams[cycle]:
        wide = source in (Stream.ACC, Stream.VXM)
        bench.stream(cycle, Stream(source), random_lanes(rng, bench.config, wide))


def random_matmul(bench, rng, cycle, lowest):
    """One MATMUL with its operands; returns the cycle after its last issue."""
    config = bench.config
    order = int(rng.integers(0, 3))
    n1, n2 = int(rng.integers(1, 7)), int(rng.integers(1, 5))
    sources = [int(source) for source in rng.choice(sources_of(UNITS["mxm"].field("x0"), config), 2)]
    fields = {"order": order, "n1": n1, "n2": n2, "x0": sources[0], "x1": sources[1],
              "d1": int(rng.choice([1, 1, 2])), "d2": int(rng.choice([1, 1, 3])),
              "start": int(rng.integers(0, 2)), "half0": int(rng.integers(0, 4)),
              "shift": int(rng.integers(0, 16) if rng.random() < 0.5 else rng.integers(0, 6)),
              "accumulator": int(rng.integers(0, config.accumulators)),
              "s1": 0 if order == Order.HOLD else int(rng.integers(0, 3)),
              "s2": int(rng.integers(0, 3))}
    room = config.weight_depth - (n1 - 1) * fields["s1"] - (n2 - 1) * fields["s2"]
    fields["address"] = int(rng.integers(lowest, room))
    for at, issue in expand(cycle, **fields):
        bench.issue(at, "mxm", "MATMUL", **issue)
        if takes(config, issue):
            for source in sources:
                feed(bench, rng, at, source)
    return at + 1


def random_program(config, seed, length=260, vendor=False, weights=None, first=2,
                   lowest=0):
    """MATMULs back to back or with gaps, and drains on any cycle, sums complete or not."""
    rng = np.random.default_rng(seed)
    bench = MxmBench(config, random_weights(rng, config) if weights is None else weights, vendor)
    cycle = first
    while cycle < first + length:
        cycle = random_matmul(bench, rng, cycle + int(rng.choice([0, 0, 1, 4])), lowest)
    for at in range(first, first + length + 30):
        if rng.random() < 0.6:
            bench.issue(at, "drain", "DRAIN", j=int(rng.integers(0, 8)),
                        accumulator=int(rng.integers(0, config.accumulators)))
    return bench, rng, cycle + 40


def random_kv(bench, rng, length, at=1, lowest=0):
    """Writes and read-outs all over the step, wherever the reference sees no conflict."""
    config, end = bench.config, at + length
    while at < end:
        op = str(rng.choice(["WRITE_K", "WRITE_V", "READ_OUT"]))
        count = int(rng.integers(1, 2 * config.groups + 1))
        fields = {"address": int(rng.integers(lowest, config.weight_depth - count)), "s1": 1,
                  "d1": int(rng.choice([1, 1, 2])), "n1": count, "half0": int(rng.integers(0, 4))}
        for cycle, issue in expand(at, **fields):
            bench.issue(cycle, "kv", op, x=Stream.VXM, **issue)
            if op != "READ_OUT":
                feed(bench, rng, cycle, Stream.VXM)
        at = cycle + int(rng.integers(1, 12))
