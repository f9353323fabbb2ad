"""Timing edges and faults of the MXM slice.

What `arch.timing` promises holds on the cycle it names, and not one cycle earlier.
"""
import numpy as np
import pytest

from arch.faults import Fault
from arch.isa import Order
from arch.queues import Stream
from arch.timing import timing
from tests.hdl.mxm_bench import MxmBench
from tests.hdl.mxm_programs import CONFIGS, TINY, random_weights


def one_word(config, value):
    weights = np.zeros((config.weight_depth, config.rows, config.columns), np.int64)
    weights[9] = value
    return weights


def one_step(bench, at, value=1):
    """A MATMUL of word 9 with activations that are all ``value``, overwriting accumulator 0."""
    bench.issue(at, "mxm", "MATMUL", address=9, order=Order.HOLD, x0=Stream.CONST, x1=Stream.CONST,
                start=1)
    bench.stream(at, Stream.CONST, [value] * bench.config.lanes)


@CONFIGS
def test_drain_at_its_bound(config):
    """On the bound every column has the sum; a cycle earlier the last tile has not."""
    bench = MxmBench(config, one_word(config, 3))
    one_step(bench, 2)
    at = 2 + timing(config).matmul_to_drain
    for early in (0, 1):
        bench.issue(at - early, "drain", "DRAIN")
    acc, faults, _ = bench.run(at + 8)
    full, out = 3 * config.rows, at + timing(config).drain
    late = np.arange(config.columns) % config.half_columns
    late = late >= config.half_columns - config.tile_columns
    assert not faults and sorted(acc) == [out - 1, out]
    np.testing.assert_array_equal(acc[out], full)
    np.testing.assert_array_equal(acc[out - 1], np.where(late, 0, full))


@CONFIGS
@pytest.mark.parametrize("early", [0, 1])
def test_overwrite_after_drain(config, early):
    """The step issued ``drain_to_matmul`` after a drain leaves it alone; one cycle earlier the
    first tile overwrites."""
    bench = MxmBench(config, one_word(config, 3))
    drain = 40
    one_step(bench, 2)
    one_step(bench, drain + timing(config).drain_to_matmul - early, 5)
    bench.issue(drain, "drain", "DRAIN")
    acc, faults, _ = bench.run(drain + 8)
    first = np.arange(config.columns) % config.half_columns < config.tile_columns
    wanted = np.where(first & (early == 1), 15, 3) * config.rows
    assert not faults
    np.testing.assert_array_equal(acc[drain + timing(config).drain], wanted)


@CONFIGS
@pytest.mark.parametrize("op", ["WRITE_K", "WRITE_V"])
@pytest.mark.parametrize("late", [0, 1, 2])
def test_write_before_matmul(config, op, late):
    """A step sees a write issued ``kv_write_to_matmul`` before; closer, it conflicts or not at
    all: the first row pair of the first tile reads first."""
    bench = MxmBench(config, one_word(config, 3))
    bench.issue(5, "kv", op, address=9, x=Stream.VXM)
    bench.stream(5, Stream.VXM, [-7] * config.lanes)
    at = 5 + timing(config).kv_write_to_matmul - late
    one_step(bench, at)
    drain, lands = at + timing(config).matmul_to_drain, 5 + timing(config).weight_write
    bench.issue(drain, "drain", "DRAIN")
    acc, faults, _ = bench.run(drain + 8)
    wanted = np.full(config.columns, 3 * config.rows)
    if op == "WRITE_K":
        wanted[0] = -7 * config.rows
    else:
        wanted -= 10
    if late == 0:
        assert not faults
        np.testing.assert_array_equal(acc[drain + timing(config).drain], wanted)
    elif late == 1 or config.pairs > 1 and op == "WRITE_K":
        assert faults == {(lands, "kv", Fault.CONFLICT)}
    elif config.columns // 2 > config.tile_columns:
        # The next tile reads on the cycle of a WRITE_V.
        assert faults == ({(lands, "kv", Fault.CONFLICT)} if op == "WRITE_V" else set())


@CONFIGS
@pytest.mark.parametrize("op", ["WRITE_K", "WRITE_V"])
@pytest.mark.parametrize("early", [0, 1])
def test_write_after_matmul(config, op, early):
    """The last row pair of the last tile has read when a write issued ``matmul_to_kv_write`` later
    lands; one cycle earlier it meets the write."""
    bench = MxmBench(config, one_word(config, 3))
    bench.position = config.context - 1
    one_step(bench, 5)
    at = 5 + timing(config).matmul_to_kv_write - early
    bench.issue(at, "kv", op, address=9, x=Stream.VXM)
    bench.stream(at, Stream.VXM, [-7] * config.lanes)
    drain = 5 + timing(config).matmul_to_drain
    bench.issue(drain, "drain", "DRAIN")
    acc, faults, _ = bench.run(drain + 8)
    if early:
        assert faults == {(at + timing(config).weight_write, "kv", Fault.CONFLICT)}
    else:
        assert not faults
        np.testing.assert_array_equal(acc[drain + timing(config).drain], 3 * config.rows)


@CONFIGS
def test_read_out_after_write(config):
    """READ_OUT one cycle after a write sees it, on the same word no earlier; ten cycles on it
    is on ACC."""
    weights = random_weights(np.random.default_rng(8), config)
    bench = MxmBench(config, weights)
    bench.token = bench.position = config.columns + 2
    groups = config.groups
    bench.instruction(4, "kv", "READ_OUT", n1=groups, address=20, s1=1)
    bench.issue(4 + groups, "kv", "WRITE_K", address=20, x=Stream.VXM)
    bench.stream(4 + groups, Stream.VXM, [300, -300] * (config.lanes // 2))
    again = 4 + groups + timing(config).kv_write_to_read_out
    bench.instruction(again, "kv", "READ_OUT", n1=groups, address=20, s1=1)
    acc, faults, _ = bench.run(40)
    before = weights[20:20 + groups, :, 2].reshape(-1)
    after = np.concatenate([[127, -127] * config.pairs, before[config.rows:]])
    assert not faults
    assert sorted(acc) == [4 + groups - 1 + 10, again + groups - 1 + 10]
    np.testing.assert_array_equal(acc[4 + groups + 9], before)
    np.testing.assert_array_equal(acc[again + groups + 9], after)


def test_operand_only_when_taken():
    """K_INNER over four k steps of two parts: vectors on the first and third cycle."""
    for missing in range(4):
        bench = MxmBench(TINY, one_word(TINY, 1))
        bench.instruction(4, "mxm", "MATMUL", n1=4, order=Order.K_INNER, x0=Stream.CONST,
                          x1=Stream.M1)
        for at in range(4, 8):
            bench.stream(at, Stream.CONST, [1] * 8)
            if at - 4 != missing:
                bench.stream(at, Stream.M1, [1] * 8)
        _, faults, _ = bench.run(12)
        assert faults == ({(4 + missing, "mxm", Fault.OPERAND)} if missing in (0, 2) else set())


def test_operand_of_writes():
    bench = MxmBench(TINY, one_word(TINY, 1))
    for at, op in enumerate(("WRITE_K", "WRITE_V", "READ_OUT"), 3):
        bench.issue(at, "kv", op, address=1, x=Stream.VXM)
    _, faults, _ = bench.run(12)
    assert faults == {(3, "kv", Fault.OPERAND), (4, "kv", Fault.OPERAND)}


@pytest.mark.parametrize("address", [48, 64, 255, -1])
def test_address_beyond_the_banks(address):
    """Refused and without effect."""
    bench = MxmBench(TINY, one_word(TINY, 1))
    bench.issue(3, "mxm", "MATMUL", address=address, order=Order.HOLD, x0=Stream.CONST, x1=Stream.CONST)
    for at, op in enumerate(("WRITE_K", "WRITE_V", "READ_OUT"), 3):
        bench.issue(at, "kv", op, address=address, x=Stream.VXM)
        for stream in (Stream.CONST, Stream.VXM):
            bench.stream(at, stream, [1] * 8)
    one_step(bench, 8)
    bench.issue(30, "drain", "DRAIN")
    bench.instruction(20, "kv", "READ_OUT", n1=2, address=address & 31)
    acc, faults, _ = bench.run(40)
    assert faults == {(3, "mxm", Fault.ADDRESS), *((at, "kv", Fault.ADDRESS) for at in (3, 4, 5))}
    np.testing.assert_array_equal(acc[32], 4)
    np.testing.assert_array_equal(acc[31], 0)
    assert sorted(acc) == [31, 32]


def test_encoding():
    bench = MxmBench(TINY, one_word(TINY, 1))
    good = {"order": Order.HOLD, "x0": Stream.CONST, "x1": Stream.CONST}
    bad = [("mxm", "MATMUL", good | {"order": 3}), ("mxm", "MATMUL", good | {"x0": 10}),
           ("mxm", "MATMUL", good | {"x1": 0}), ("mxm", 5, good), ("mxm", 0, good),
           ("drain", 0, {}), ("drain", 5, {}), ("kv", 0, {"x": Stream.VXM}),
           ("kv", 7, {"x": Stream.VXM}), ("kv", "WRITE_K", {"x": Stream.CONST}),
           ("kv", "WRITE_K", {"x": Stream.PERM}), ("kv", "WRITE_V", {"x": 0}),
           ("kv", "WRITE_V", {"x": 15})]
    for index, (queue, op, fields) in enumerate(bad):
        bench.issue(2 + index, queue, op, **fields)
        for stream in (Stream.CONST, Stream.VXM, Stream.PERM):
            bench.stream(2 + index, stream, [1] * 8)
    # Not at fault: a read-out has no source.
    bench.issue(2 + len(bad), "kv", "READ_OUT", address=0, x=12)
    _, faults, _ = bench.run(8 + len(bad))
    assert faults == {(2 + index, queue, Fault.ENCODING)
                      for index, (queue, _, _) in enumerate(bad)}


@pytest.mark.parametrize("apart", [-1, 0, 1])
@CONFIGS
def test_collision_on_acc(config, apart):
    bench = MxmBench(config, one_word(config, 1))
    bench.instruction(4, "kv", "READ_OUT", n1=config.groups, address=0)
    shown = 4 + config.groups - 1 + timing(config).read_out
    bench.issue(shown - timing(config).drain + apart, "drain", "DRAIN")
    acc, faults, _ = bench.run(shown + 5)
    assert faults == ({(shown, "drain", Fault.COLLISION)} if apart == 0 else set())
    assert sorted(acc) == sorted({shown, shown + apart})


@pytest.mark.parametrize("column, pair, bit", [(0, 0, 0), (2, 1, 8), (7, 1, 9), (5, 0, 17)])
def test_parity(column, pair, bit):
    """A flipped bit is found where it is used, by a step or by a read-out, and not elsewhere."""
    weights = random_weights(np.random.default_rng(bit), TINY)
    for token in (column, column ^ 1):
        bench = MxmBench(TINY, weights)
        bench.token = token
        init = list(bench.dut.bank(column, pair).memory.init)
        init[9] ^= 1 << bit
        # Word 0 is what an idle queue points at.
        init[0] ^= 1 << bit
        bench.dut.bank(column, pair).memory.init = init
        for at, address in ((2, 8), (20, 9), (30, 10)):
            bench.issue(at, "mxm", "MATMUL", address=address, order=Order.HOLD, x0=Stream.CONST,
                        x1=Stream.CONST)
            bench.stream(at, Stream.CONST, [1] * 8)
        bench.instruction(40, "kv", "READ_OUT", n1=4, address=8, s1=1)
        _, faults, _ = bench.run(60)
        # At the multiplier three cycles after the issue; two more to collect (see `Mxm`).
        used = 20 + pair + column % 4 // 2 + 3
        wanted = {(used + 2, "mxm", Fault.PARITY)}
        assert faults == wanted | ({(51, "kv", Fault.PARITY)} if token == column else set())
