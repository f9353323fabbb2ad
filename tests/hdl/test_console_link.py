"""The console's host side: frames of single words, byte by byte, for whoever takes them when."""
import numpy as np
import pytest
from amaranth.sim import Simulator

from arch.hostmap import Space
from hdl.console_link import WordWriter
from tests.hdl.host_wire import stuffed, write_frame

#: Addresses and words; of some a byte must be escaped, as of many a CRC.
WRITES = [(0, 0), (0xF5F6, 0xF6F5), (0x1234, 0xABCD), (0x00F5, 0x00F6), (0xFFFF, 0xFFFF),
          *((17 * number, 257 * number) for number in range(20))]


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_frames_that_write_a_word(share):
    """Taken on every cycle, on some, on few: each byte is on offer until it is taken, and once."""
    dut, rng, got = WordWriter(), np.random.default_rng(2), bytearray()

    async def testbench(ctx):
        for address, word in WRITES:
            ctx.set(dut.space, int(Space.TOKENS))
            ctx.set(dut.address, address)
            ctx.set(dut.word, word)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            waiting = None
            for _ in range(2000):
                ctx.set(dut.o.ready, int(rng.random() < share))
                valid, byte = ctx.get(dut.o.valid), ctx.get(dut.o.payload)
                assert waiting is None or (valid and byte == waiting)
                taken = valid and ctx.get(dut.o.ready)
                waiting = byte if valid and not taken else None
                got.extend([byte] * taken)
                done = ctx.get(dut.done)
                await ctx.tick()
                if done:
                    break
            else:
                raise AssertionError("a frame does not end")
            assert not ctx.get(dut.o.valid)

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(testbench)
    simulator.run()
    expected = [stuffed(write_frame(tag, Space.TOKENS, address, [word]))
                for tag, (address, word) in enumerate(WRITES, 1)]
    assert bytes(got) == b"".join(expected)
    assert sum(map(len, expected)) > 20 * len(WRITES) + 5
