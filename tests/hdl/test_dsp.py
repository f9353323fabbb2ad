"""DSP slices: latencies, and the portable twins against models of the ECP5 primitives."""
import random

import pytest
from amaranth.back import rtlil

from hdl.dsp import Multiplier, ProductSum
from tests.hdl import ecp5_models
from tests.hdl.test_cells import both, simulate


def edges(rng, bits):
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    return rng.choice([low, low + 1, -1, 0, 1, high, rng.randint(low, high)])


@pytest.mark.parametrize("vendor", [False, True])
def test_multiplier_by_hand(vendor, monkeypatch):
    ecp5_models.install(monkeypatch)
    dut = Multiplier(width_a=10, width_b=8, vendor=vendor)
    operands = [(3, 5), (-511, 127), (-512, -128), (0, 0), (0, 0)]
    seen = []

    async def testbench(ctx):
        for a, b in operands:
            ctx.set(dut.a, a)
            ctx.set(dut.b, b)
            seen.append(ctx.get(dut.p))
            await ctx.tick()

    simulate(dut, testbench)
    assert seen[2:] == [15, -64897, 65536]


@pytest.mark.parametrize("widths", [(18, 18), (10, 8), (8, 8), (2, 18)])
def test_multiplier_equals_primitive(widths, monkeypatch):
    rng = random.Random(str(widths))
    m, twin, primitive = both(lambda vendor: Multiplier(width_a=widths[0], width_b=widths[1],
                                                        vendor=vendor), monkeypatch)
    history = []

    async def testbench(ctx):
        for cycle in range(300):
            a, b = (edges(rng, width) for width in widths)
            history.append(a * b)
            for dut in (twin, primitive):
                ctx.set(dut.a, a)
                ctx.set(dut.b, b)
            if cycle >= Multiplier.LATENCY:
                expected = history[cycle - Multiplier.LATENCY]
                assert (ctx.get(twin.p), ctx.get(primitive.p)) == (expected, expected)
            await ctx.tick()

    simulate(m, testbench)


@pytest.mark.parametrize("vendor", [False, True])
def test_sum_by_hand(vendor, monkeypatch):
    """Operands of one cycle, the addend of the cycle after the next."""
    ecp5_models.install(monkeypatch)
    dut = ProductSum(width_a=10, width_b=8, width_c=20, width_o=20, vendor=vendor)
    operands = [(3, 5, -2, 7), (-511, 127, -511, -127), (511, 127, 511, 127), (0, 0, 0, 0)]
    addends, seen = [9, 9, 100, -100000, 1000, 0], []

    async def testbench(ctx):
        for cycle, addend in enumerate(addends):
            values = operands[min(cycle, 3)]
            for name, value in zip(("a0", "b0", "a1", "b1"), values):
                ctx.set(getattr(dut, name), value)
            ctx.set(dut.c, addend)
            seen.append(ctx.get(dut.o))
            await ctx.tick()

    simulate(dut, testbench)
    assert seen[3:] == [3 * 5 - 2 * 7 + 100, -100000, 2 * 511 * 127 + 1000]


@pytest.mark.parametrize("widths", [(18, 18, 54, 54), (10, 8, 0, 18), (10, 8, 20, 20), (8, 8, 16, 17),
                                    (2, 18, 19, 5)])
def test_sum_equals_primitives(widths, monkeypatch):
    rng = random.Random(str(widths))
    width_a, width_b, width_c, width_o = widths
    m, twin, primitives = both(lambda vendor: ProductSum(
        width_a=width_a, width_b=width_b, width_c=width_c, width_o=width_o, vendor=vendor),
        monkeypatch)
    products, history = [], []

    async def testbench(ctx):
        for cycle in range(300):
            values = {"a0": edges(rng, width_a), "b0": edges(rng, width_b),
                      "a1": edges(rng, width_a), "b1": edges(rng, width_b)}
            addend = edges(rng, width_c) if width_c else 0
            products.append(values["a0"] * values["b0"] + values["a1"] * values["b1"])
            history.append((products[cycle - 2] if cycle >= 2 else 0) + addend)
            for dut in (twin, primitives):
                for name, value in values.items():
                    ctx.set(getattr(dut, name), value)
                if width_c:
                    ctx.set(dut.c, addend)
            if cycle >= ProductSum.LATENCY:
                # Cut to the width of the sum.
                half = 1 << width_o - 1
                expected = (history[cycle - 1] + half) % (2 * half) - half
                assert (ctx.get(twin.o), ctx.get(primitives.o)) == (expected, expected)
            await ctx.tick()

    simulate(m, testbench)


def test_sum_takes_one_slice():
    text = rtlil.convert(ProductSum(width_a=10, width_b=8, width_c=18, width_o=19, vendor=True))
    assert text.count("cell \\MULT18X18D ") == 2 and text.count("cell \\ALU54B ") == 1
    assert "cell $add" not in text


@pytest.mark.filterwarnings("ignore::amaranth.UnusedElaboratable")
@pytest.mark.parametrize("name, width", [("width_a", 19), ("width_b", 1)])
def test_multiplier_refuses_width(name, width):
    with pytest.raises(ValueError, match=f"^{name} must be 2 to 18, not {width}$"):
        Multiplier(**{name: width})


@pytest.mark.filterwarnings("ignore::amaranth.UnusedElaboratable")
def test_sum_refuses_width():
    with pytest.raises(ValueError, match="^width_b must be 2 to 18, not 19$"):
        ProductSum(width_a=10, width_b=19, width_c=0, width_o=20)
