"""Matmuls and drains of the MXM slice against numpy: every sum on its cycle."""
import numpy as np
import pytest

from arch.config import profile
from arch.hostmap import weight_address
from arch.isa import Order
from arch.queues import Stream
from arch.timing import timing
from tests.hdl import ecp5_models
from tests.hdl.mxm_bench import MxmBench, check, expand, takes
from tests.hdl.mxm_programs import CONFIGS, TINY, random_kv, random_program, random_weights


@CONFIGS
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
    assert not faults and list(acc) == [at + 2]
    np.testing.assert_array_equal(acc[at + 2], first + second)


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
    np.testing.assert_array_equal(np.concatenate([acc[at + 2 + tile] for tile in range(3)]),
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
    np.testing.assert_array_equal([acc[at + 2 + vector] for vector in range(5)],
                                  x[:, 4:] @ weights[7])


@pytest.mark.parametrize("depth", [16, 2100])
def test_vendor_cells(depth, monkeypatch):
    """The same on models of the primitives, the weights loaded through the host port."""
    ecp5_models.install(monkeypatch)
    config = TINY.replace(weight_depth=depth)
    # The deep bank has a boundary between its blocks at 2048.
    lowest = max(0, depth - 64)
    used = range(lowest, depth)
    weights = np.zeros((depth, config.rows, config.columns), np.int64)
    weights[used] = random_weights(np.random.default_rng(13), config)[used]
    loads = [(weight_address(config, word, column, pair),
              weights[word, 2 * pair:2 * pair + 2, column]) for word in used
             for column in range(config.columns) for pair in range(config.pairs)]
    bench, rng, cycles = random_program(config, 13, 120, vendor=True, weights=weights,
                                        first=len(loads) + 2, lowest=lowest)
    for at, (address, (low, high)) in enumerate(loads):
        bench.host(at, address, int(low) & 255 | (int(high) & 255) << 8)
    bench.position, bench.token = 11, 13
    random_kv(bench, rng, 60, cycles, lowest)
    acc = check(bench, cycles + 80)
    assert len(acc) > 60 and sum(lanes.any() for lanes in acc.values()) > 40
