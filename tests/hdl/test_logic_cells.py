"""Sums and look-ups with more in a cell: against integers, as twins and as cells of the FPGA."""
import numpy as np
import pytest
from amaranth import Module, Signal
from amaranth.hdl import Fragment
from amaranth.sim import Simulator

from hdl import logic_cells
from hdl.logic_cells import Gate, Sum, Table, TableOr, add
from tests.hdl import ecp5_models

#: Summands by name, and what they are as integers of ``w`` bits.
SUMS = {
    "plain": (lambda a, b, c, d: (a, b & d), lambda a, b, c, d: a + (b & d)),
    "difference": (lambda a, b, c, d: (~a, b & d), lambda a, b, c, d: ~a + (b & d)),
    "either": (lambda a, b, c, d: (a, b & d | c & ~d), lambda a, b, c, d: a + (b & d | c & ~d)),
    "any": (lambda a, b, c, d: (a, c & ~b | d & b), lambda a, b, c, d: a + (c & ~b | d & b)),
    "more": (lambda a, b, c, d: (a & 0, b & d | c & ~d), lambda a, b, c, d: b & d | c & ~d),
}


def outputs(build, names, samples, monkeypatch):
    """What ``build(vendor)`` gives for each sample, as twin and as cells."""
    ecp5_models.install(monkeypatch)
    m, cells, seen = Module(), [build(False), build(True)], []
    m.submodules += cells

    async def testbench(ctx):
        for sample in samples:
            for cell in cells:
                for name, value in zip(names, sample):
                    ctx.set(getattr(cell, name), int(value))
            await ctx.delay(1e-6)
            seen.append([ctx.get(cell.o) for cell in cells])
    simulator = Simulator(m)
    simulator.add_testbench(testbench)
    simulator.run()
    return np.array(seen)


@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize("width", [1, 6, 7])
@pytest.mark.parametrize("kind", SUMS)
def test_sum(kind, width, carried, monkeypatch):
    summands, integers = SUMS[kind]
    rng = np.random.default_rng(width)
    samples = np.column_stack([rng.integers(0, 1 << width, (200, 4)), rng.integers(0, 2, 200)])
    got = outputs(lambda vendor: Sum(width=width, summands=summands, carried=carried,
                                     vendor=vendor), ("a", "b", "c", "d", "carry"), samples,
                  monkeypatch)
    want = (integers(*samples[:, :4].T) + samples[:, 4] * carried) % (1 << width)
    assert np.array_equal(got[:, 0], want) and np.array_equal(got[:, 1], want)


def test_summands_that_no_cell_adds():
    """a and b, both gated: the carry of a = b = d = 1 would need the gate."""
    with pytest.raises(ValueError, match="do not fit a carry cell at d c b a = 1011"):
        Sum(width=4, summands=lambda a, b, c, d: (a & d, b & d))


@pytest.mark.parametrize("carry", [None, 1])
def test_operands_are_extended(carry):
    """Signed ones by their sign, a single bit as c or d over all bits."""
    m, a, b, flag = Module(), Signal(4), Signal(4), Signal()
    result = Signal(7)
    m.d.comb += result.eq(add(m, 7, lambda a, b, c, d: (a, b & d | c), a=a.as_signed(), b=b,
                              c=flag, d=flag, carry=carry))
    seen = []

    async def testbench(ctx):
        for values in ((-3 & 15, 5, 0), (-3 & 15, 5, 1)):
            for signal, value in zip((a, b, flag), values):
                ctx.set(signal, value)
            await ctx.delay(1e-6)
            seen.append(ctx.get(result))
    simulator = Simulator(m)
    simulator.add_testbench(testbench)
    simulator.run()
    assert seen == [(-3 + (carry or 0)) & 127, (-3 - 1 + (carry or 0)) & 127]


def test_table_or_function(monkeypatch):
    rng, width = np.random.default_rng(3), 5
    table = rng.integers(0, 1 << width, 16)
    samples = np.column_stack([rng.integers(0, 1 << width, (400, 4)), rng.integers(0, 16, 400),
                               rng.integers(0, 2, 400)])
    got = outputs(lambda vendor: TableOr(width=width, table=table, vendor=vendor,
                                         function=lambda a, b, c, d: a & ~c | b & c | d),
                  ("a", "b", "c", "d", "index", "look_up"), samples, monkeypatch)
    a, b, c, d, index, look_up = samples.T
    want = np.where(look_up, table[index], a & ~c | b & c | d) % (1 << width)
    assert np.array_equal(got[:, 0], want) and np.array_equal(got[:, 1], want)


def test_gate(monkeypatch):
    samples = np.random.default_rng(5).integers(0, 1 << 6, (300, 4))
    got = outputs(lambda vendor: Gate(width=6, vendor=vendor,
                                      function=lambda a, b, c, d: a & c | b & d | c & d),
                  "abcd", samples, monkeypatch)
    a, b, c, d = samples.T
    assert np.array_equal(got, np.column_stack([a & c | b & d | c & d] * 2))


@pytest.mark.parametrize("words, used", [(16, 16), (32, 32), (32, 9), (64, 64), (64, 40),
                                         (64, 24), (64, 7)])
def test_table(words, used, monkeypatch):
    """All words; the further ones of a column may be 0."""
    table = np.zeros(words, np.int64)
    table[:used] = np.random.default_rng(used).integers(-64, 64, used)
    got = outputs(lambda vendor: Table(width=7, table=table, vendor=vendor), ["index"],
                  np.arange(words)[:, None], monkeypatch)
    assert np.array_equal(got, np.column_stack([table % 128] * 2))


def test_cells_are_used(monkeypatch):
    """Half a CCU2C a bit and half of one for the carry; two LUT4 and a PFUMX a bit of a small
    table, four, two and an L6MUX21 of a large one."""
    kinds = []
    monkeypatch.setattr(logic_cells, "Instance",
                        lambda kind, **ports: kinds.append(kind) or Module())
    Fragment.get(Sum(width=7, summands=SUMS["any"][0], vendor=True), None)
    assert kinds == ["CCU2C"] * 4
    kinds.clear()
    Fragment.get(Sum(width=8, summands=SUMS["any"][0], carried=False, vendor=True), None)
    assert kinds == ["CCU2C"] * 4
    kinds.clear()
    Fragment.get(TableOr(width=2, table=range(16), function=lambda a, b, c, d: a, vendor=True),
                 None)
    assert sorted(kinds) == ["LUT4"] * 4 + ["PFUMX"] * 2
    kinds.clear()
    Fragment.get(Gate(width=3, function=lambda a, b, c, d: a & d, vendor=True), None)
    assert kinds == ["LUT4"] * 3
    kinds.clear()
    Fragment.get(Table(width=1, table=[0, 1] * 32, vendor=True), None)
    assert sorted(kinds) == ["L6MUX21"] + ["LUT4"] * 4 + ["PFUMX"] * 2
