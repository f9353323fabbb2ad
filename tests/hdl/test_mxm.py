"""The MXM slice against numpy: every sum and every fault on its cycle."""

import numpy as np
import pytest

from arch.config import profile
from arch.faults import Fault
from arch.hostmap import weight_address
from arch.isa import Order
from arch.queues import Stream
from arch.timing import timing
from hdl.signatures import streams_of
from tests.hdl import ecp5_models
from tests.hdl.mxm_bench import MxmBench, Reference, check, expand, takes

TINY = profile("tiny").replace(weight_depth=48)
STAGED = TINY.replace(mxm_stages=3, drain_stages=2, activation_bits=10)
FLAT = TINY.replace(mxm_stages=1, rows=8, columns=8, tile_columns=4)
DEEP = TINY.replace(rows=2, columns=8, tile_columns=1, weight_depth=37, accumulators=4)
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


def random_matmul(bench, rng, cycle):
    """One MATMUL with its operands; returns the cycle after its last issue."""
    config = bench.config
    order = int(rng.integers(0, 3))
    n1, n2 = int(rng.integers(1, 7)), int(rng.integers(1, 5))
    sources = [int(source) for source in rng.choice(streams_of(config), 2)]
    fields = {"order": order, "n1": n1, "n2": n2, "x0": sources[0], "x1": sources[1],
              "d1": int(rng.choice([1, 1, 2])), "d2": int(rng.choice([1, 1, 3])),
              "start": int(rng.integers(0, 2)), "half0": int(rng.integers(0, 4)),
              "shift": int(rng.integers(0, 16) if rng.random() < 0.5 else rng.integers(0, 6)),
              "accumulator": int(rng.integers(0, config.accumulators)),
              "s1": 0 if order == Order.HOLD else int(rng.integers(0, 3)),
              "s2": int(rng.integers(0, 3))}
    room = config.weight_depth - (n1 - 1) * fields["s1"] - (n2 - 1) * fields["s2"]
    fields["address"] = int(rng.integers(0, room))
    for at, issue in expand(cycle, **fields):
        bench.issue(at, "mxm", "MATMUL", **issue)
        if takes(config, issue):
            for source in sources:
                feed(bench, rng, at, source)
    return at + 1


def random_program(config, seed, length=260, vendor=False, weights=None):
    """MATMULs back to back or with gaps, and drains on any cycle, sums complete or not."""
    rng = np.random.default_rng(seed)
    bench = MxmBench(config, random_weights(rng, config) if weights is None else weights, vendor)
    cycle = 2
    while cycle < length:
        cycle = random_matmul(bench, rng, cycle + int(rng.choice([0, 0, 1, 4])))
    for at in range(2, length + 30):
        if rng.random() < 0.6:
            bench.issue(at, "drain", "DRAIN", j=int(rng.integers(0, 8)),
                        accumulator=int(rng.integers(0, config.accumulators)))
    return bench, rng, cycle + 40


@pytest.mark.parametrize("config", [TINY, STAGED, FLAT, DEEP],
                         ids=["tiny", "staged", "flat", "deep"])
def test_random_matmuls(config):
    bench, _, cycles = random_program(config, 1)
    assert len(check(bench, cycles)) > 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["tiny", "small", "ecp5_85k"])
def test_random_matmuls_of_profiles(name, seed):
    config = profile(name).replace(weight_depth=64, mxm_stages=seed % 4, drain_stages=seed // 2 % 4)
    bench, _, cycles = random_program(config, seed, 400)
    check(bench, cycles)


def test_matmul_by_hand():
    """acc[c] = sum over 8 k of x[k] * W[k][c], two words of four rows, drained at the bound."""
    weights = np.zeros((48, 4, 8), np.int64)
    weights[5] = [[1] * 8, [10] * 8, [100] * 8, [-1, -2, -3, -4, -5, -6, -7, -8]]
    weights[6] = [[0] * 8, [1, 2, 3, 4, 5, 6, 7, 8], [127] * 8, [-127] * 8]
    bench = MxmBench(TINY, weights)
    # Shifted by 4 with rounding, saturated to 127: 2, -1, 0, 3 | 9, 5, 127, -127.
    x = [24, -24, 7, 48, 144, 80, 32767, -32768]
    bench.stream(3, Stream.M1, x)
    bench.instruction(3, "mxm", "MATMUL", n1=2, address=5, s1=1, order=Order.K_INNER, start=1,
                      x0=Stream.M1, x1=Stream.M1, shift=4, accumulator=2)
    at = 4 + timing(TINY).matmul_to_drain
    bench.issue(at, "drain", "DRAIN", accumulator=2)
    acc, faults, _ = bench.run(at + 4)
    first = np.array([2 - 10 - 3 * (column + 1) for column in range(8)])
    second = np.array([5 * (column + 1) + 127 * 127 + 127 * 127 for column in range(8)])
    assert not faults and list(acc) == [at + 1]
    np.testing.assert_array_equal(acc[at + 1], first + second)


@pytest.mark.parametrize("order", [Order.K_INNER, Order.K_OUTER])
def test_matmul_is_a_matrix_product(order):
    """A vector of 16 times a 16 x 24 matrix: four k steps, three tiles of 8 columns."""
    rng = np.random.default_rng(3)
    x, matrix = rng.integers(-127, 128, 16), rng.integers(-127, 128, (16, 24))
    weights = np.zeros((48, 4, 8), np.int64)
    for tile in range(3):
        for k in range(4):
            weights[8 + 4 * tile + k] = matrix[4 * k:4 * k + 4, 8 * tile:8 * tile + 8]
    bench = MxmBench(TINY, weights)
    fields = {"x0": Stream.M0, "x1": Stream.M0, "order": order, "start": 1, "address": 8}
    if order == Order.K_INNER:
        fields |= {"n1": 4, "s1": 1, "n2": 3, "s2": 4}
    else:
        fields |= {"n1": 3, "s1": 4, "n2": 4, "s2": 1}
    last = bench.instruction(1, "mxm", "MATMUL", **fields)
    for at, issue in expand(1, **fields):
        if takes(TINY, issue):
            k = issue["j"] if order == Order.K_INNER else issue["i"]
            bench.stream(at, Stream.M0, x[8 * (k // 2):8 * (k // 2) + 8])
    at = last + timing(TINY).matmul_to_drain
    bench.instruction(at, "drain", "DRAIN", n1=3)
    acc, faults, _ = bench.run(at + 6)
    assert not faults
    np.testing.assert_array_equal(np.concatenate([acc[at + 1 + tile] for tile in range(3)]),
                                  x @ matrix)


def test_weights_held():
    """The weight-stationary use: five vectors on five cycles meet one word."""
    rng = np.random.default_rng(4)
    weights, x = random_weights(rng, TINY), rng.integers(-127, 128, (5, 8))
    bench = MxmBench(TINY, weights)
    bench.instruction(1, "mxm", "MATMUL", n1=5, address=7, order=Order.HOLD, start=1, half0=1,
                      x0=Stream.M2, x1=Stream.M2, accumulator=TINY.accumulators - 2)
    for vector in range(5):
        bench.stream(1 + vector, Stream.M2, x[vector])
    at = 1 + timing(TINY).matmul_to_drain
    bench.instruction(at, "drain", "DRAIN", n1=5, accumulator=TINY.accumulators - 2)
    acc, faults, _ = bench.run(at + 8)
    assert not faults
    np.testing.assert_array_equal([acc[at + 1 + vector] for vector in range(5)],
                                  x[:, 4:] @ weights[7])


# The second port.


def random_kv(bench, rng, length):
    """Writes and read-outs all over the step, wherever the reference sees no conflict."""
    config, at = bench.config, 1
    while at < length:
        op = str(rng.choice(["WRITE_K", "WRITE_V", "READ_OUT"]))
        count = int(rng.integers(1, 2 * config.groups + 1))
        fields = {"address": int(rng.integers(0, config.weight_depth - count)), "s1": 1,
                  "d1": int(rng.choice([1, 1, 2])), "n1": count, "half0": int(rng.integers(0, 4))}
        for cycle, issue in expand(at, **fields):
            source = int(rng.choice(streams_of(config)))
            bench.issue(cycle, "kv", op, x=source, **issue)
            if op != "READ_OUT":
                feed(bench, rng, cycle, source)
        at = cycle + int(rng.integers(1, 12))


@pytest.mark.parametrize("config", [TINY, STAGED, FLAT, DEEP],
                         ids=["tiny", "staged", "flat", "deep"])
def test_random_writes_and_read_outs(config):
    rng = np.random.default_rng(5)
    bench = MxmBench(config, random_weights(rng, config))
    bench.position = int(rng.integers(0, config.context))
    bench.token = int(rng.integers(0, config.vocab_max))
    random_kv(bench, rng, 400)
    assert len(check(bench, 420)) > 10


@pytest.mark.parametrize("config", [TINY, STAGED, FLAT, DEEP],
                         ids=["tiny", "staged", "flat", "deep"])
@pytest.mark.parametrize("position", [0, 7, 13])
def test_writes_among_matmuls(config, position):
    """Whatever is written is used by steps before, during and after; what conflicts is left out."""
    bench, rng, cycles = random_program(config, position)
    bench.position = bench.token = position
    at = 3
    while at < 250:
        op, address = str(rng.choice(["WRITE_K", "WRITE_V"])), int(rng.integers(0, 24))
        bench.issue(at, "kv", op, address=address, x=Stream.M3, half0=int(rng.integers(0, 4)))
        if any(fault == Fault.CONFLICT for _, _, fault in Reference(bench).run(cycles)[1]):
            for name, (signal, _, idle) in list(bench._schedule[at].items()):
                if signal.name.startswith("issue_kv"):
                    del bench._schedule[at][name]
            del bench.issues["kv"][at]
        else:
            feed(bench, rng, at, Stream.M3)
        at += int(rng.integers(1, 9))
    assert len(bench.issues["kv"]) > 20
    check(bench, cycles)
