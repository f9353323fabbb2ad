"""Weight bank, multiplexers, copies: latencies, and the twins against the ECP5 primitives."""
import random

import pytest
from amaranth import Module, Signal
from amaranth.back import rtlil
from amaranth.sim import Simulator

from hdl.cells import Copies, WeightBank, bank_parts, parity_byte, shared_copies
from hdl.choose import Chooser
from tests.hdl import ecp5_models


def simulate(module, testbench):
    simulator = Simulator(module)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()


def both(build, monkeypatch):
    """The twin and the primitive built by ``build(vendor)``, side by side."""
    ecp5_models.install(monkeypatch)
    m = Module()
    m.submodules.twin = twin = build(False)
    m.submodules.primitive = primitive = build(True)
    return m, twin, primitive


@pytest.mark.parametrize("count", range(3, 9))
def test_chooser_equals_primitives(count, monkeypatch):
    rng = random.Random(count)
    m, twin, primitive = both(lambda vendor: Chooser(shape=5, places=tuple(range(count)), vendor=vendor),
                              monkeypatch)

    async def testbench(ctx):
        for _ in range(50):
            values = [rng.getrandbits(5) for _ in range(count)]
            index = rng.randrange(count)
            for dut in (twin, primitive):
                ctx.set(dut.i, values)
                ctx.set(dut.index, index)
            await ctx.delay(1e-9)
            assert (ctx.get(twin.o), ctx.get(primitive.o)) == (values[index], values[index])

    simulator = Simulator(m)
    simulator.add_testbench(testbench)
    simulator.run()


def test_copies_equal_primitives(monkeypatch):
    """Every copy has the value of the cycle before."""
    rng = random.Random(5)
    m, twin, primitive = both(lambda vendor: Copies(width=3, count=2, vendor=vendor), monkeypatch)

    async def testbench(ctx):
        before = 0
        for _ in range(50):
            assert [ctx.get(dut.o[copy]) for dut in (twin, primitive)
                    for copy in range(2)] == [before] * 4
            before = rng.getrandbits(3)
            for dut in (twin, primitive):
                ctx.set(dut.i, before)
            await ctx.tick()

    simulate(m, testbench)


@pytest.mark.parametrize("depth", [16, 512, 1024, 2048, 2500, 3072, 5000])
def test_bank_equals_primitive(depth, monkeypatch):
    rng = random.Random(depth)
    m, twin, primitive = both(lambda vendor: WeightBank(depth=depth, vendor=vendor), monkeypatch)
    words = [0] * depth
    # Addresses that meet often, on both sides of the boundaries between blocks.
    hot = [place for place in (0, 1, 9, 1023, 1024, 2047, 2048, 2049, 4095, 4096, depth - 1)
           if place < depth]
    reads_a, reads_b = [], []

    async def testbench(ctx):
        for cycle in range(1500):
            a = rng.choice(hot) if rng.random() < 0.8 else rng.randrange(depth)
            b = rng.choice(hot) if rng.random() < 0.8 else rng.randrange(depth)
            enable, value = rng.choice([0, 0, 1, 2, 3]), rng.getrandbits(18)
            part = b // 2048 if bank_parts(depth) == 2 else 0
            used = rng.random() < 0.9
            for dut in (twin, primitive):
                ctx.set(dut.a_address, a)
                ctx.set(dut.b_address, b)
                ctx.set(dut.b_en, used << part)
                ctx.set(dut.b_w_en, enable)
                ctx.set(dut.b_w_data, value)
            # None: undefined by the contract.
            enable *= used
            reads_a.append(None if enable and a == b else words[a])
            reads_b.append(None if enable or not used else (part, words[b]))
            mask = (0x1FF if enable & 1 else 0) | (0x3FE00 if enable & 2 else 0)
            words[b] = words[b] & ~mask | value & mask
            if cycle >= WeightBank.LATENCY:
                for dut in (twin, primitive):
                    then = cycle - WeightBank.LATENCY
                    assert reads_a[then] in (None, ctx.get(dut.a_r_data))
                    if reads_b[then]:
                        part, word = reads_b[then]
                        assert ctx.get(dut.b_r_data[part]) == word
            await ctx.tick()

    simulate(m, testbench)


@pytest.mark.parametrize("depth, count", [(512, 1), (1024, 1), (1025, 2), (2048, 2), (3072, 3),
                                          (3073, 4)])
def test_bank_block_count(depth, count):
    text = rtlil.convert(WeightBank(depth=depth, vendor=True))
    assert text.count("cell \\DP16KD ") == count


def test_parity_byte_is_even():
    m, byte, stored = Module(), Signal(8), Signal(9)
    m.d.comb += stored.eq(parity_byte(byte))

    async def testbench(ctx):
        for value in range(256):
            ctx.set(byte, value)
            await ctx.delay(1e-9)
            result = ctx.get(stored)
            assert result & 255 == value and result.bit_count() % 2 == 0

    simulator = Simulator(m)
    simulator.add_testbench(testbench)
    simulator.run()


@pytest.mark.filterwarnings("ignore::amaranth.UnusedElaboratable")
def test_bank_refuses_depth():
    with pytest.raises(ValueError, match="^depth must be at least 2, not 1$"):
        WeightBank(depth=1)


def test_users_in_a_row_share_a_register():
    found = shared_copies(Module(), Signal(3), tuple("abcde"), 2, "shared", False)
    registers = {user: repr(register) for user, register in found.items()}
    assert registers["a"] == registers["b"] != registers["c"] == registers["d"] != registers["e"]
    assert list(found) == list("abcde") and len(set(registers.values())) == 3
