"""Multiplexers: every place of every list, as trees and as cells of the FPGA."""
import numpy as np
import pytest
from amaranth import Const, Instance, Module, Signal, signed
from amaranth.back import rtlil
from amaranth.sim import Simulator

import hdl.cells
from hdl.choose import choose
from tests.hdl import ecp5_models

WIDTH = 5


def found(values, vendor):
    """What each index gives, for all values at once; None entries are holes."""
    m, index = Module(), Signal(max(1, (len(values) - 1).bit_length()))
    signals = [None if value is None else Const(value, signed(WIDTH)) for value in values]
    result = Signal(signed(WIDTH + 2))
    m.d.comb += result.eq(choose(signals, index, m, vendor))
    seen = []

    async def testbench(ctx):
        for number in range(len(values)):
            ctx.set(index, number)
            await ctx.delay(1e-6)
            seen.append(ctx.get(result))
    simulator = Simulator(m)
    simulator.add_testbench(testbench)
    simulator.run()
    return seen


@pytest.mark.parametrize("vendor", [False, True], ids=["tree", "cells"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 20])
def test_every_place(count, vendor, monkeypatch):
    ecp5_models.install(monkeypatch)
    values = np.random.default_rng(count).integers(-16, 16, count).tolist()
    assert found(values, vendor) == values


@pytest.mark.parametrize("vendor", [False, True], ids=["tree", "cells"])
@pytest.mark.parametrize("holes", [(0,), (2,), (3,), (0, 1), (1, 2), (0, 1, 2, 3), (4, 5, 6),
                                   (0, 2, 4, 6), (0, 9)])
def test_holes(holes, vendor, monkeypatch):
    """The places that exist are found wherever the others are missing."""
    ecp5_models.install(monkeypatch)
    values = [None if at in holes else at - 7 for at in range(10)]
    seen = found(values, vendor)
    assert all(value is None or value == got for value, got in zip(values, seen))


def test_cells_are_used(monkeypatch):
    """Sixteen inputs take eight LUTs, four PFUMX and three L6MUX21 a bit."""
    kinds = []

    def instance(kind, **ports):
        kinds.append(kind)
        return Instance(kind, **ports)
    monkeypatch.setattr(hdl.cells, "Instance", instance)
    m, result = Module(), Signal()
    inputs, index = Signal(16), Signal(4)
    m.d.comb += result.eq(choose(list(inputs), index, m, True))
    rtlil.convert(m, ports=[inputs, index, result])
    assert {kind: kinds.count(kind) for kind in kinds} == {"LUT4": 8, "PFUMX": 4, "L6MUX21": 3}
