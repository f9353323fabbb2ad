"""Bench of the sampler: the token that `arch.numerics.sampling_keys` names, on its cycle."""
import cocotb
import numpy as np

from arch import numerics
from arch.faults import Fault
from arch.queues import Stream
from hdl.signatures import stream_width, streams_of
from tb.bench import Bench, bench_test
from tb.checker import ANYTHING
from tb.top import CONFIG
from tb.wires import reserved, wired

STREAMS, LANES = streams_of(CONFIG), CONFIG.lanes


class SampleBench(Bench):
    """Schedules instructions over whole sets of logits."""

    def __init__(self, dut):
        super().__init__(dut, "sample")
        self.issue, self.streams = self.add_issue("issue", "sample"), self.add_streams()
        self.tokens = self.add_ports("o_token_valid", "o_token")
        self.faults = self.add_faults("fault")

    async def start(self, vocabulary=CONFIG.vocab_max, temperature=0, seed=0, position=0):
        """Reset; the settings hold for the whole test."""
        await super().start()
        self.settings = {"vocabulary": vocabulary, "temperature": temperature, "seed": seed,
                         "position": position}
        for name, value in self.settings.items():
            self.driver.set(0, self.port(name), value)

    def expected(self, logits) -> int:
        keys = numerics.sampling_keys(logits[:self.settings["vocabulary"]],
                                      self.settings["temperature"], self.settings["seed"],
                                      self.settings["position"])
        return int(np.argmax(keys))

    def send(self, cycle, logits, source=Stream.VXM, gaps=None):
        """One instruction over ``logits``, a multiple of lanes; returns the cycle of its token."""
        vectors = np.reshape(logits, (-1, LANES))
        for j, lanes in enumerate(vectors):
            if j:
                cycle += self.time.sample_gap + (gaps[j] if gaps is not None else 0)
            self.issue.send(cycle, "ARGMAX", x=source, j=j, j_first=j == 0,
                            j_last=j == len(vectors) - 1)
            self.streams.put(cycle + self.time.sample_skew, source, lanes)
        done = cycle + self.time.sample
        token = self.expected(numerics.as_lane(logits))
        self.tokens.expect(done, {"o_token_valid": 1, "o_token": token})
        return done

    def fail(self, cycle, op, faults, **fields):
        """Issue something at fault on ``cycle``; ``faults`` by cycle."""
        self.issue.send(cycle, op, **fields)
        for at, fault in faults.items():
            self.faults.expect(at, {fault})


@bench_test
async def quiet_after_reset(dut):
    bench = SampleBench(dut)
    await bench.start()
    await bench.finish(40)


@bench_test
async def latency(dut):
    """One vector alone; the token stays until the next vector is taken."""
    bench = SampleBench(dut)
    await bench.start()
    done = bench.send(4, [3, 9, -1, 9, 0, 8, 9, 2])
    await bench.until(done + 20)
    assert bench.tokens.seen == 1 and bench.port("o_token").value == 1
    again = bench.cycle + 2
    done = bench.send(again, [-3, -9, -1, -9, -1, -8, -9, -2])
    await bench.until(again + bench.time.sample_skew)
    assert bench.port("o_token").value == 1
    await bench.until(done + 1)
    assert bench.tokens.seen == 2 and bench.port("o_token").value == 2
    await bench.finish()


@bench_test
@cocotb.parametrize(vocabulary=(1, 2, 13, 40, CONFIG.vocab_max))
async def greedy(dut, vocabulary):
    """Many equal logits: the first of the largest wins. Those beyond the vocabulary are largest."""
    bench, rng = SampleBench(dut), np.random.default_rng(vocabulary)
    await bench.start(vocabulary)
    at, size = 3, -(-vocabulary // LANES) * LANES
    for width in (1, 3, 32768):
        logits = rng.integers(-width, width, size)
        logits[vocabulary:] = 32767
        at = bench.send(at, logits, gaps=rng.integers(0, 3, size // LANES)) + 2
    await bench.until(at)
    await bench.finish()


@bench_test
@cocotb.parametrize(temperature=(0.0625, 1, 100), seed=(0, 2**64 - 1, 0x123456789ABCDEF))
async def noise(dut, temperature, seed):
    """Sampled tokens, for edges of the temperature and of the seed."""
    bench, rng = SampleBench(dut), np.random.default_rng(seed & 0xFF)
    await bench.start(200, numerics.inverse_temperature(temperature), seed,
                      int(rng.integers(CONFIG.context)))
    at, tokens = 3, []
    for width in (1, 2000, 32768):
        logits = rng.integers(-width, width, 200)
        tokens.append(bench.expected(logits))
        at = bench.send(at, logits) + 1
    assert tokens[0] != 0 or temperature == 0.0625
    await bench.until(at)
    await bench.finish()


@bench_test
async def every_source(dut):
    """Each stream while all carry values; of 32 bits the low half counts. Extreme keys too."""
    bench, rng = SampleBench(dut), np.random.default_rng(8)
    await bench.start(LANES, 65535, 77, 3)
    at = 3
    for source in wired("sample", "x"):
        vectors = {stream: rng.integers(-(1 << stream_width(stream) - 1),
                                        1 << stream_width(stream) - 1, LANES) for stream in STREAMS}
        for stream, lanes in vectors.items():
            bench.streams.put(at + bench.time.sample_skew, stream, lanes)
        at = bench.send(at, vectors[source], source) + 1
    await bench.until(at)
    await bench.finish()
    assert bench.tokens.seen == len(wired("sample", "x"))


@bench_test
async def faults(dut):
    """OPERAND on the cycle that takes, ENCODING and CONFLICT on the cycle of the issue."""
    bench = SampleBench(dut)
    await bench.start()
    skew, at = bench.time.sample_skew, 3
    bad = [("ARGMAX", source, Fault.ENCODING) for source in reserved("sample", "x")]
    bad += [(code, Stream.VXM, Fault.ENCODING) for code in range(16) if code != 4]
    for op, source, fault in bad:
        bench.streams.put(at + skew, Stream.VXM, np.arange(LANES))
        bench.fail(at, op, {at: fault}, x=source)
        bench.tokens.expect(at + bench.time.sample, ANYTHING)
        at += 6
    at += skew
    for beside in (-1, 1):
        bench.streams.put(at + skew + beside, Stream.VXM, np.arange(LANES))
    bench.fail(at, "ARGMAX", {at + skew: Fault.OPERAND}, x=Stream.VXM)
    bench.tokens.expect(at + bench.time.sample, ANYTHING)
    at += 10
    for gap in (1, bench.time.sample_gap - 1):
        for cycle in (at, at + gap):
            bench.streams.put(cycle + skew, Stream.VXM, np.arange(LANES))
            bench.fail(cycle, "ARGMAX", {} if cycle == at else {cycle: Fault.CONFLICT}, x=Stream.VXM,
                       j_last=0)
        at += 30
    # After all that a legal instruction gives its token.
    bench.send(at, [0] * 5 + [1] + [0] * (LANES - 6))
    await bench.until(at)
    await bench.finish(60)
    assert bench.faults.seen == len(bad) + 1 + 2 and bench.tokens.seen == len(bad) + 2
