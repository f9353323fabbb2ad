"""SAMPLER: picks the next token from logits, greedily or by Gumbel-max, two lanes per cycle."""
from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from arch import numerics
from arch.config import Config
from arch.faults import Fault
from arch.isa import UNITS, sources_of
from arch.timing import timing
from hdl.choose import operand
from hdl.dsp import Multiplier
from hdl.gumbel import REST_BITS, SLOPE_BITS, GumbelTable
from hdl.pipeline import clearable, delay
from hdl.signatures import (FaultSignature, IssueSignature, StreamsSignature, fault_bit,
                            issued)
from hdl.threefry import Threefry

_OP = {op.name: op.code for op in UNITS["sample"].ops}
#: Fraction bits that a logit times an inverse temperature has more than the noise.
_SCALE_SHIFT = (numerics.LOGIT_FRACTION + numerics.INVERSE_TEMPERATURE_FRACTION
                - numerics.GUMBEL_FRACTION)
#: A logit times the largest inverse temperature, plus noise.
_KEY_BITS = 24


class Sampler(wiring.Component):
    """Argmax of ``logit * inverse temperature + Gumbel noise`` over all lanes of all issues.

    A vector issued on cycle t is taken from ``streams`` on cycle t + ``timing(config).sample_skew``
    and worked off two lanes per cycle; the generator starts at the issue, so that its noise meets
    the logits. The token is on ``o_token`` from cycle t + ``timing(config).sample`` on, t being the
    last issue of the instruction, until the first vector of the next one has been taken.
    Issues closer than ``timing(config).sample_gap`` fault (CONFLICT).

    Parameters
    ----------
    config : Config
    vendor : bool
        Use the multiplier primitive of the FPGA.

    Members
    -------
    issue : operations of queue ``sample``.
    streams : operands; the low 16 bits count.
    position, seed : counter and key of the noise. Like the registers below, they are stable from
        two cycles before the first issue of a step to its end.
    vocabulary : tokens from this one on are ignored.
    temperature : inverse temperature; 0 is greedy.
    o_token : the token with the largest key, the first among equals.
    o_token_valid : high for the first cycle of a token.
    fault : OPERAND, ENCODING and CONFLICT; PARITY of the noise, 4 cycles behind the logits of a
        pair.
    """

    def __init__(self, *, config: Config, vendor: bool = False):
        self._config, self._vendor, self._pairs = config, vendor, config.lanes // 2
        self._pair_bits = config.count_bits + config.lane_bits - 1
        super().__init__({
            "issue": In(IssueSignature("sample", config)),
            "streams": In(StreamsSignature(config)),
            "position": In(config.position_bits), "seed": In(64),
            "vocabulary": In(16), "temperature": In(16),
            "o_token": Out(config.token_bits), "o_token_valid": Out(1),
            "fault": Out(FaultSignature()),
        })

    def elaborate(self, platform):
        m = Module()
        self._now = issued(m, self.issue)
        words = self._generate(m)
        logits, first, last = self._take(m)
        pair, logits, first, last, active = self._pair(m, logits, first, last)
        greedy = Signal()
        m.d.sync += greedy.eq(self.temperature == 0)
        self._odd = Const(0, 1)
        keys = [self._key(m, side, logit, word, greedy)
                for side, logit, word in zip(("even", "odd"), logits, words)]
        checked = delay(m, active & ~greedy, 2, "checked", reset=True)
        m.d.sync += self.fault.causes[fault_bit(Fault.PARITY)].eq(checked & self._odd)
        # Keys of a pair are ready 3 cycles after it.
        known = Cat(Cat(side, pair) < self.vocabulary for side in (0, 1))
        pair, known, first, last = (delay(m, value, 3, name) for value, name in (
            (pair, "pair"), (known, "known"), (first, "first"), (last, "last")))
        active = delay(m, active, 3, "active", reset=True)
        self._choose(m, keys, pair, known, first, last, active)
        return m

    def _generate(self, m):
        """Cycles 0 to 15 of a pair: two random words. A vector's pairs follow each other."""
        issue, pair_bits = self._now, (self._pairs - 1).bit_length()
        m.submodules.threefry = threefry = Threefry()
        vector = Signal(self._config.count_bits, reset_less=True)
        pair = Signal(pair_bits, reset_less=True)
        m.d.sync += pair.eq(pair + 1)
        with m.If(issue.valid):
            m.d.sync += [vector.eq(issue.j), pair.eq(0)]
        m.d.comb += [threefry.key0.eq(self.seed[:32]), threefry.key1.eq(self.seed[32:]),
                     threefry.counter0.eq(Cat(pair, vector)), threefry.counter1.eq(self.position)]
        return threefry.o_x0, threefry.o_x1

    def _take(self, m):
        """Cycle ``sample_skew``: the logits, and all faults."""
        issue, times = self._now, timing(self._config)
        skew, gap = times.sample_skew, times.sample_gap
        wait = Signal(range(max(gap, 2)))
        with m.If(issue.valid):
            m.d.sync += wait.eq(gap - 1)
        with m.Elif(wait != 0):
            m.d.sync += wait.eq(wait - 1)

        self._valid = delay(m, issue.valid, skew, "issue_valid", reset=True)
        source = delay(m, self.issue.x, skew, "source")
        logits, valid, known = operand(m, self.streams, source, "sample", "x", self._config)
        # Names no stream: told on the cycle of the issue.
        unknown = Signal()
        with m.Switch(issue.x):
            with m.Case(*map(int, sources_of(UNITS["sample"].field("x"), self._config))):
                m.d.comb += unknown.eq(0)
            with m.Default():
                m.d.comb += unknown.eq(1)
        faults = {Fault.OPERAND: self._valid & known & ~valid,
                  Fault.ENCODING: issue.valid & (unknown | (issue.op != _OP["ARGMAX"])),
                  Fault.CONFLICT: issue.valid & (wait != 0)}
        for fault, event in faults.items():
            register = Signal(name=f"fault_{fault.name.lower()}")
            m.d.sync += register.eq(event)
            m.d.comb += self.fault.causes[fault_bit(fault)].eq(register)
        return (logits, delay(m, issue.j_first, skew, "j_first"),
                delay(m, issue.j_last, skew, "j_last"))

    def _pair(self, m, logits, first, last):
        """From cycle ``sample_skew + 1`` on: one pair of lanes per cycle, and its number."""
        left = Signal(range(self._pairs + 1))
        pair = Signal(self._pair_bits, reset_less=True)
        vector = [Signal(signed(16), name=f"logit_{lane}", reset_less=True)
                  for lane in range(self._config.lanes)]
        starts, ends = Signal(reset_less=True), Signal(reset_less=True)
        # Behind the last pair it does not matter what comes: the registers need no enable.
        m.d.sync += [to.eq(logit) for to, logit in zip(vector, vector[2:])]
        with m.If(self._valid):
            m.d.sync += [left.eq(self._pairs), starts.eq(first), ends.eq(last),
                         pair.eq(Mux(first, 0, pair + 1))]
            m.d.sync += [to.eq(logit) for to, logit in zip(vector, logits)]
        with m.Elif(left != 0):
            m.d.sync += [left.eq(left - 1), starts.eq(0)]
            with m.If(left != 1):
                m.d.sync += pair.eq(pair + 1)
        return pair, vector[:2], starts, ends & (left == 1), left != 0

    def _key(self, m, side, logit, word, greedy):
        """The key of one token, 3 cycles after its logit; the word comes 5 cycles before that."""
        m.submodules[f"gumbel_{side}"] = gumbel = GumbelTable()
        m.submodules[f"scale_{side}"] = scale = Multiplier(
            width_a=16, width_b=17, vendor=self._vendor)
        m.submodules[f"noise_{side}"] = noise = Multiplier(
            width_a=SLOPE_BITS, width_b=REST_BITS + 1, vendor=self._vendor)
        self._odd = self._odd | gumbel.o_odd
        # Greedy: a factor of one, and no noise.
        factor = Signal(17, name=f"factor_{side}", reset_less=True)
        m.d.sync += factor.eq(Mux(greedy, 1 << _SCALE_SHIFT, self.temperature))
        m.d.comb += [gumbel.word.eq(word), scale.a.eq(logit), scale.b.eq(factor),
                     noise.a.eq(gumbel.o_slope),
                     noise.b.eq(Mux(greedy, 0, gumbel.o_rest))]
        base = delay(m, clearable(m, gumbel.o_base, greedy, f"base_{side}"),
                     Multiplier.LATENCY - 1, f"base_{side}")
        key = Signal(signed(_KEY_BITS), name=f"key_{side}", reset_less=True)
        scaled = (scale.p >> _SCALE_SHIFT) + base + scale.p[_SCALE_SHIFT - 1]
        m.d.sync += key.eq(scaled + (noise.p >> REST_BITS) + noise.p[REST_BITS - 1])
        return key

    def _choose(self, m, keys, pair, known, first, last, active):
        """Four cycles after the pair: the larger of the two. Five: whether it is the best so far. Six:
        its token."""
        even, odd = keys
        # A known token has all those before it known: an odd one the even one, which wins among
        # equals, any the first.
        take_odd = known[1] & (odd > even)
        key = Signal(signed(_KEY_BITS), reset_less=True)
        best = Signal(signed(_KEY_BITS), reset_less=True)
        token = Signal(self._pair_bits + 1)
        m.d.sync += key.eq(Mux(take_odd, odd, even))
        number = delay(m, Cat(take_odd, pair), 2, "number")
        first, last = delay(m, first, 1, "is_first"), delay(m, last, 1, "is_last")
        counts = delay(m, active & known[0], 1, "counts", reset=True)
        active = delay(m, active, 1, "is_active", reset=True)
        better, wins = Signal(), Signal()
        m.d.comb += better.eq(counts & (first | (key > best)))
        m.d.sync += wins.eq(better)
        with m.If(better):
            m.d.sync += best.eq(key)
        with m.If(wins):
            m.d.sync += token.eq(number)
        m.d.sync += self.o_token_valid.eq(delay(m, active & last, 1, "done", reset=True))
        m.d.comb += self.o_token.eq(token)
