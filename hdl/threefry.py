"""Threefry-2x32 as a pipeline: a counter-based generator, one round per stage.

Ref: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 4.2.
"""
from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from arch.numerics import THREEFRY_PARITY, THREEFRY_ROTATIONS
from arch.timing import GENERATOR_ROUNDS

WORD_BITS = 32
#: Rounds between two injections of the key.
_INJECT_EVERY = 4


class Threefry(wiring.Component):
    """`arch.numerics.threefry` of a key and a counter.

    The words of the counter that is on ``counter0`` on cycle t are on ``o_x0`` and ``o_x1`` on
    cycle t + `LATENCY`; a new counter may come every cycle. The key and ``counter1`` have to be
    stable from two cycles before the first counter on.

    Members
    -------
    key0, key1 : key.
    counter0, counter1 : counter; the second word is quasi-static.
    o_x0, o_x1 : random words.
    """
    LATENCY = 1 + GENERATOR_ROUNDS

    key0: In(WORD_BITS)
    key1: In(WORD_BITS)
    counter0: In(WORD_BITS)
    counter1: In(WORD_BITS)
    o_x0: Out(WORD_BITS)
    o_x1: Out(WORD_BITS)

    def elaborate(self, platform):
        m = Module()
        # Once per step: the third key word, and the sums that are the same for all counters.
        keys = [self.key0, self.key1, Signal(WORD_BITS, name="key2", reset_less=True)]
        start1 = Signal(WORD_BITS, reset_less=True)
        m.d.sync += [keys[2].eq(self.key0 ^ self.key1 ^ THREEFRY_PARITY),
                     start1.eq(self.counter1 + self.key1)]

        # Cycle 0: the first injection. Cycles 1 to 13: rounds.
        x0, x1 = self._word("x0_0"), self._word("x1_0")
        m.d.sync += [x0.eq(self.counter0 + self.key0), x1.eq(start1)]
        for number in range(GENERATOR_ROUNDS):
            mixed0 = (x0 + x1)[:WORD_BITS]
            mixed1 = x1.rotate_left(THREEFRY_ROTATIONS[number % len(THREEFRY_ROTATIONS)]) ^ mixed0
            if number % _INJECT_EVERY == _INJECT_EVERY - 1:
                inject = number // _INJECT_EVERY + 1
                counted = self._word(f"key_{inject}")
                m.d.sync += counted.eq(keys[(inject + 1) % 3] + inject)
                mixed0, mixed1 = mixed0 + keys[inject % 3], mixed1 + counted
            x0, x1 = self._word(f"x0_{number + 1}"), self._word(f"x1_{number + 1}")
            m.d.sync += [x0.eq(mixed0), x1.eq(mixed1)]
        m.d.comb += [self.o_x0.eq(x0), self.o_x1.eq(x1)]
        return m

    @staticmethod
    def _word(name):
        return Signal(WORD_BITS, name=name, reset_less=True)
