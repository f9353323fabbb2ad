"""Registers of the bus before an end: what passes, when, and what is held."""
from amaranth.sim import Simulator

from arch.hostmap import Space
from hdl.bus import BusTap


def simulate(spaces, words, testbench):
    dut = BusTap(spaces=spaces, words=words)

    async def run(ctx):
        await testbench(ctx, dut)

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(run)
    simulator.run()


def ask(ctx, dut, space, address, word, w_en=0, r_en=0):
    for name, value in (("space", int(space)), ("address", address), ("w_data", word),
                        ("w_en", w_en), ("r_en", r_en)):
        ctx.set(getattr(dut.bus, name), value)


def seen(ctx, dut):
    return tuple(ctx.get(getattr(dut.end, name))
                 for name in ("space", "address", "w_data", "w_en", "r_en"))


def test_requests_pass_two_cycles_later_and_are_held():
    async def testbench(ctx, dut):
        # The host port holds what it asks for until the answer.
        ask(ctx, dut, Space.MEM, 0x123, 0xBEEF, w_en=1)
        before = seen(ctx, dut)
        await ctx.tick()
        assert seen(ctx, dut) == before
        ask(ctx, dut, Space.MEM, 0x123, 0xBEEF)
        await ctx.tick()
        assert seen(ctx, dut) == (Space.MEM, 0x123, 0xBEEF, 1, 0)
        # Without a request nothing changes, whatever the wires carry.
        ask(ctx, dut, Space.PATTERNS, 0x3FF, 0xFFFF)
        for _ in range(3):
            await ctx.tick()
            assert seen(ctx, dut) == (Space.MEM, 0x123, 0xBEEF, 0, 0)
        ask(ctx, dut, Space.PATTERNS, 0x3FF, 0, r_en=1)
        await ctx.tick()
        assert seen(ctx, dut) == (Space.MEM, 0x123, 0xBEEF, 0, 0)
        ask(ctx, dut, Space.PATTERNS, 0x3FF, 0)
        await ctx.tick()
        assert seen(ctx, dut) == (Space.PATTERNS, 0x3FF, 0, 0, 1)
        await ctx.tick()
        assert seen(ctx, dut) == (Space.PATTERNS, 0x3FF, 0, 0, 0)
    simulate((Space.PATTERNS, Space.MEM), 1024, testbench)


def test_requests_for_others_change_nothing():
    async def testbench(ctx, dut):
        ask(ctx, dut, Space.TOKENS, 37, 5, w_en=1)
        await ctx.tick()
        ask(ctx, dut, Space.TOKENS, 37, 5)
        await ctx.tick()
        assert seen(ctx, dut) == (Space.TOKENS, 37, 5, 1, 0)
        for space in set(Space) - {Space.TOKENS}:
            for enables in ({"w_en": 1}, {"r_en": 1}):
                for request in (enables, {}, {}):
                    ask(ctx, dut, space, 12, 9, **request)
                    await ctx.tick()
                    assert seen(ctx, dut) == (Space.TOKENS, 37, 5, 0, 0)
    simulate((Space.TOKENS,), 64, testbench)


def test_answers_pass_in_the_same_cycle():
    async def testbench(ctx, dut):
        for word, ack in ((0x1234, 1), (0, 0)):
            ctx.set(dut.end.r_data, word)
            ctx.set(dut.end.ack, ack)
            assert (ctx.get(dut.bus.r_data), ctx.get(dut.bus.ack)) == (word, ack)
    simulate((Space.TOKENS,), 64, testbench)
