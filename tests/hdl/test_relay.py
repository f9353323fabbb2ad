"""A register on the way of a stream: nothing is lost, doubled or withdrawn, at any pace."""
import numpy as np
import pytest
from amaranth.sim import Simulator

from hdl.relay import Relay


@pytest.mark.parametrize("offered, taken", [(1.0, 1.0), (0.4, 1.0), (1.0, 0.3), (0.5, 0.5)])
def test_every_item_comes_out_once(offered, taken):
    dut, rng = Relay(shape=8), np.random.default_rng(3)
    items, got, cycles = rng.integers(0, 256, 100).tolist(), [], []

    async def testbench(ctx):
        waiting, left, cycle = None, list(items), 0
        while len(got) < len(items):
            if not ctx.get(dut.i.valid) and left and rng.random() < offered:
                ctx.set(dut.i.valid, 1)
                ctx.set(dut.i.payload, left[0])
            open_ = bool(rng.random() < taken)
            before = ctx.get(dut.i.ready)
            ctx.set(dut.o.ready, open_)
            # What is ready here does not follow from what is ready there in the same cycle.
            assert ctx.get(dut.i.ready) == before
            out = ctx.get(dut.o.payload) if ctx.get(dut.o.valid) else None
            assert waiting is None or out == waiting
            waiting = None if open_ else out
            if open_ and out is not None:
                got.append(out)
                cycles.append(cycle)
            accepted = ctx.get(dut.i.valid) and ctx.get(dut.i.ready)
            await ctx.tick()
            cycle += 1
            if accepted:
                left.pop(0)
                ctx.set(dut.i.valid, 0)
    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.run()
    assert got == items
    if offered == taken == 1:
        assert {after - before for before, after in zip(cycles, cycles[1:])} == {2}
