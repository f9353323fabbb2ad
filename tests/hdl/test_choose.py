"""Multiplexers: every place of every list, as trees and as cells of the FPGA."""
import numpy as np
import pytest
from amaranth import Const, Instance, Module, Signal, signed
from amaranth.back import rtlil
from amaranth.hdl import Value
from amaranth.sim import Simulator

import hdl.cells
from arch.config import profile
from arch.isa import UNITS, sources_of
from arch.queues import Stream
from hdl.choose import choose, operand
from hdl.signatures import StreamsSignature, stream_width
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
                                   (0, 2, 4, 6), (0, 9), (0, 6, 7, 8, 9),
                                   (1, 3, 6, 8, 9), (0, 1, 2, 8, 9), (5, 6, 7, 8, 9)])
def test_holes(holes, vendor, monkeypatch):
    """The places that exist are found wherever the others are missing."""
    ecp5_models.install(monkeypatch)
    values = [None if at in holes else at - 7 for at in range(10)]
    seen = found(values, vendor)
    assert all(value is None or value == got for value, got in zip(values, seen))


@pytest.mark.parametrize("vendor", [False, True], ids=["tree", "cells"])
def test_nothing_gates_the_inputs(vendor, monkeypatch):
    """Within an ``If`` that does not hold, the multiplexer still gives what is chosen.

    Gated inputs would take a LUT for each of them.
    """
    ecp5_models.install(monkeypatch)
    m, gate, inside, always = Module(), Signal(), Signal(8), Signal(8)
    with m.If(gate):
        chosen = choose([Const(number + 100, 8) for number in range(8)], Const(5, 3), m, vendor)
        m.d.comb += inside.eq(chosen)
    m.d.comb += always.eq(chosen)

    async def testbench(ctx):
        await ctx.delay(1e-6)
        assert (ctx.get(inside), ctx.get(always)) == (0, 105)
    simulator = Simulator(m)
    simulator.add_testbench(testbench)
    simulator.run()


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


@pytest.mark.parametrize("vendor", [False, True], ids=["tree", "cells"])
@pytest.mark.parametrize("unit, name, width", [("vxm", "a", 32), ("vxm", "c", 16), ("perm", "x", 16),
                                               ("red", "x", 32), ("mem_write", "x", 16)])
def test_operand(unit, name, width, vendor, monkeypatch):
    """Every number of a source, which comes a cycle before, while all streams carry values: cut or
    extended, else unknown."""
    ecp5_models.install(monkeypatch)
    config, rng = profile("tiny"), np.random.default_rng(3)
    m, streams, source = Module(), StreamsSignature(config).create(), Signal(4)
    *lanes, valid, known = [Signal(signed(width)) for _ in range(config.lanes)] + [
        Signal(), Signal()]
    found_lanes, *flags = operand(m, streams, source, unit, name, config, width, vendor=vendor)
    m.d.comb += [to.eq(of) for to, of in zip([*lanes, valid, known], [*found_lanes, *flags])]
    sources = [stream for stream in sources_of(UNITS[unit].field(name), config)
               if stream != Stream.NONE]

    async def testbench(ctx):
        for _ in range(5):
            values, carried = {}, {}
            for stream in sources:
                bits, side = stream_width(stream), getattr(streams, stream.name.lower())
                low, high = -(1 << bits - 1), (1 << bits - 1) - 1
                values[stream] = rng.choice([low, high, -1, *rng.integers(low, high, 5)],
                                            config.lanes).tolist()
                carried[stream] = int(rng.integers(2))
                ctx.set(Value.cast(side.data), sum((value & (1 << bits) - 1) << bits * lane
                                                   for lane, value in enumerate(values[stream])))
                ctx.set(side.valid, carried[stream])
            for number in range(16):
                ctx.set(source, number)
                await ctx.tick()
                ctx.set(source, int(rng.integers(16)))
                assert ctx.get(known) == (number in sources)
                if number in sources:
                    whole = (unit, name, number) in {("vxm", "a", Stream.ACC),
                                                     ("red", "x", Stream.VXM)}
                    half = 1 << 31 if whole else 1 << 15
                    assert [ctx.get(lane) for lane in lanes] == [
                        (value + half) % (2 * half) - half for value in values[number]]
                    assert ctx.get(valid) == carried[number]
    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
