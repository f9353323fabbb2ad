"""The sampler, its generator and its noise against the numeric contract."""
import numpy as np
import pytest
from amaranth.sim import Simulator

import hdl.gumbel
from arch import numerics
from arch.config import profile
from arch.faults import Fault
from arch.queues import Stream
from arch.timing import timing
from hdl.gumbel import GumbelTable
from hdl.sampler import Sampler
from hdl.threefry import Threefry
from tests.hdl.slice_bench import SliceBench

TINY = profile("tiny")
ARGMAX = 4


def bench(config=TINY, *, vocabulary=None, temperature=0, seed=0, position=0):
    run = SliceBench(Sampler, config, watch=("o_token", "o_token_valid"))
    settings(run, 0, vocabulary=vocabulary or config.vocab_max, temperature=temperature,
             seed=seed, position=position)
    return run


def settings(run, cycle, **values):
    for name, value in values.items():
        run.set(cycle, name, value)


def instruction(run, config, cycle, logits, gap=None, source=Stream.VXM):
    """Schedule one instruction over all logits, padded with the largest; returns when it is done.

    The first issue is on ``cycle``.
    """
    times, lanes = timing(config), config.lanes
    padded = np.concatenate([logits, np.full(-len(logits) % lanes, 32767)]).reshape(-1, lanes)
    for j, vector in enumerate(padded):
        run.issue(cycle, op=ARGMAX, x=source, j=j, j_first=j == 0, j_last=j == len(padded) - 1)
        run.stream(cycle + times.sample_skew, source, vector)
        cycle += gap or times.sample_gap
    return cycle - (gap or times.sample_gap) + times.sample


def tokens_of(watched):
    """Cycle to token, where one is announced."""
    return {cycle: seen["o_token"] for cycle, seen in enumerate(watched) if seen["o_token_valid"]}


def argmax(logits, temperature, seed, position):
    return int(np.argmax(numerics.sampling_keys(logits, temperature, seed, position)))


@pytest.mark.parametrize("gap", [None, 9])
def test_greedy(gap):
    """Random logits, with ties, in all vectors; the result comes on its cycle and stays."""
    rng, run, want, cycle = np.random.default_rng(1), bench(), {}, 3
    for width in (3, 40, 32768):
        logits = rng.integers(-width, width, TINY.vocab_max)
        done = instruction(run, TINY, cycle, logits, gap)
        want[done] = int(np.argmax(logits))
        cycle = done + 2
    _, faults, watched = run.run(cycle + 10)
    assert not faults and tokens_of(watched) == want
    for done, token in want.items():
        assert all(watched[at]["o_token"] == token for at in range(done, done + 6))


@pytest.mark.parametrize("winner", [0, 1, 2, 3, 7, 8, 9, 14, 15, 16, 23])
def test_first_among_equals(winner):
    """All logits from the winner on are the same, those before are one less."""
    logits = np.where(np.arange(24) < winner, 6, 7)
    run = bench(vocabulary=24)
    done = instruction(run, TINY, 2, logits)
    _, faults, watched = run.run(done + 2)
    assert not faults and tokens_of(watched) == {done: winner}


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 7, 8, 9, 15, 17, 24])
@pytest.mark.parametrize("temperature", [0, 4096])
def test_vocabulary(vocabulary, temperature):
    """Larger logits beyond the vocabulary are ignored, in its last vector and in further ones."""
    rng = np.random.default_rng(vocabulary)
    logits = np.concatenate([rng.integers(-900, -800, vocabulary), np.full(40, 32767)])[:32]
    run = bench(vocabulary=vocabulary, temperature=temperature, seed=99, position=3)
    done = instruction(run, TINY, 2, logits)
    _, faults, watched = run.run(done + 2)
    assert not faults
    assert tokens_of(watched) == {done: argmax(logits[:vocabulary], temperature, 99, 3)}


def test_smallest_logits():
    """The least keys there are: the first of the equal ones wins, not a stale one."""
    run = bench(vocabulary=16)
    first = instruction(run, TINY, 2, np.full(16, 500))
    second = instruction(run, TINY, first + 1, np.full(16, -32768))
    _, faults, watched = run.run(second + 2)
    assert not faults and tokens_of(watched) == {first: 0, second: 0}


@pytest.mark.parametrize("profile_name, vocabulary", [("tiny", 40), ("ecp5_85k", 100)])
def test_draws(profile_name, vocabulary):
    """Temperatures, seeds and positions; the settings change between steps."""
    config = profile(profile_name)
    rng, run, want, cycle = np.random.default_rng(7), bench(config), {}, 6
    for number in range(60):
        temperature = int(rng.choice([1, 41, 1000, 4096, 8192, 65535]))
        seed = int(rng.integers(2**63)) * 2 + number % 2
        position = int(rng.integers(config.context))
        logits = rng.integers(-600, 600, vocabulary) if number % 5 else rng.integers(
            -32768, 32768, vocabulary)
        settings(run, cycle - 2, vocabulary=vocabulary, temperature=temperature, seed=seed,
                 position=position)
        done = instruction(run, config, cycle, logits)
        want[done] = argmax(logits, temperature, seed, position)
        cycle = done + 4
    _, faults, watched = run.run(cycle)
    assert not faults and tokens_of(watched) == want
    assert len(set(want.values())) > 15


def test_close_calls():
    """Two keys far above the others, as close to each other as the logits allow: every bit counts."""
    rng, run, want, cycle, ties = np.random.default_rng(8), bench(), {}, 6, 0
    for number in range(60):
        temperature, position = int(rng.integers(300, 1000)), int(rng.integers(TINY.context))
        seed = int(rng.integers(2**63))
        pair = rng.choice(16, 2, replace=False)
        logits = np.full(16, -20000)
        logits[pair] = rng.integers(0, 1000)
        choices = np.arange(-20000, 20000)
        noise = numerics.sampling_keys(np.zeros(16, int), temperature, seed, position)
        target = numerics.sampling_keys(logits, temperature, seed, position)[pair[0]] + number % 3 - 1
        near = np.abs(numerics.rshift(choices * temperature, 10) + noise[pair[1]] - target)
        logits[pair[1]] = rng.choice(choices[near == near.min()])
        keys = numerics.sampling_keys(logits, temperature, seed, position)
        ties += keys[pair[0]] == keys[pair[1]]
        settings(run, cycle - 2, vocabulary=16, temperature=temperature, seed=seed,
                 position=position)
        done = instruction(run, TINY, cycle, logits)
        want[done] = int(np.argmax(keys))
        cycle = done + 4
    _, faults, watched = run.run(cycle)
    assert not faults and tokens_of(watched) == want
    assert ties > 10


@pytest.mark.parametrize("level", [32767, -32768])
def test_largest_keys(level):
    """Noise on top of the largest products neither wraps nor disappears."""
    logits = np.where(np.arange(16) % 3, level, -1)
    logits[0] = level
    run = bench(vocabulary=16, temperature=65535, seed=4, position=9)
    done = instruction(run, TINY, 2, logits)
    _, faults, watched = run.run(done + 2)
    assert not faults and tokens_of(watched) == {done: argmax(logits, 65535, 4, 9)}


def test_by_hand():
    """At the largest inverse temperature a lead of 4 beats any noise (at most 23 + 4)."""
    logits = np.array([0, 0, 1024, 0, 0, 0, 0, 0])
    for seed in range(3):
        run = bench(vocabulary=8, temperature=65535, seed=seed)
        done = instruction(run, TINY, 2, logits)
        _, faults, watched = run.run(done + 2)
        assert done == 2 + 19 + 4 + 6
        assert not faults and tokens_of(watched) == {done: 2}


def test_faults():
    run, lanes, skew = bench(), TINY.lanes, timing(TINY).sample_skew
    # A value a cycle early and late.
    run.stream(skew - 1, Stream.VXM, [0] * lanes)
    run.stream(skew + 1, Stream.VXM, [0] * lanes)
    run.issue(0, op=ARGMAX, x=Stream.VXM)
    want, cycle = {skew + 1: {Fault.OPERAND}}, 50
    bad = [{"x": source} for source in range(16) if source != Stream.VXM]
    bad += [{"op": op} for op in range(16) if op != ARGMAX]
    for fields in bad:
        run.issue(cycle, **{"op": ARGMAX, "x": Stream.VXM} | fields)
        run.stream(cycle + skew, Stream.VXM, [0] * lanes)
        want[cycle + 1] = {Fault.ENCODING}
        cycle += 25
    # Too close by one, twice; then just far enough.
    for distance in (0, 3, 4, 1):
        cycle += distance
        run.issue(cycle, op=ARGMAX, x=Stream.VXM)
        run.stream(cycle + skew, Stream.VXM, [0] * lanes)
        if distance in (1, 3):
            want[cycle + 1] = {Fault.CONFLICT}
    _, faults, _ = run.run(cycle + 40)
    assert faults == want


def test_nothing_is_valid_after_reset():
    _, faults, watched = bench().run(60)
    assert not faults and not tokens_of(watched)


def pipeline(dut, latency, inputs, outputs, sequence):
    """Feed tuples to ``inputs``, one per cycle; the outputs ``latency`` cycles later."""
    seen = []

    async def testbench(ctx):
        for cycle in range(len(sequence) + latency):
            if cycle < len(sequence):
                for name, value in zip(inputs, sequence[cycle]):
                    ctx.set(getattr(dut, name), value)
            if cycle >= latency:
                seen.append(tuple(ctx.get(getattr(dut, name)) for name in outputs))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    return np.array(seen)


@pytest.mark.parametrize("key, counter1", [((0, 0), 0), ((0x13198A2E, 0x03707344), 0x85A308D3),
                                           ((2**32 - 1, 2**32 - 1), 2**32 - 1)])
def test_threefry(key, counter1):
    counters = [0, 1, 2, 0x243F6A88, 2**32 - 1, *range(1000, 1100)]
    quiet = [(0, counter1, *key)] * 3
    got = pipeline(Threefry(), 14, ("counter0", "counter1", "key0", "key1"), ("o_x0", "o_x1"),
                   quiet + [(counter, counter1, *key) for counter in counters])[3:]
    assert np.array_equal(got, np.array(numerics.threefry(*key, counters, counter1)).T)


def test_published_threefry_vectors():
    """Random123's known answers for 13 and 20 rounds of threefry2x32 bind the contract."""
    zero = [int(x) for x in numerics.threefry(0, 0, 0, 0, rounds=13)]
    assert [f"{x:08x}" for x in zero] == ["9d1c5ec6", "8bd50731"]
    digits = numerics.threefry(0x13198A2E, 0x03707344, 0x243F6A88, 0x85A308D3, rounds=20)
    assert [f"{int(x):08x}" for x in digits] == ["c4923a9c", "483df7a0"]


def test_noise():
    """Every octave and side, their ends, and random words."""
    rng = np.random.default_rng(3)
    words = [0, 1, 2, 3, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32 - 2]
    for top in range(31):
        for _ in range(12):
            words.append(1 << top | int(rng.integers(1 << top)))
        words += [1 << top, (2 << top) - 1]
    words += [2**32 - 1 - word for word in words]
    odd = pipeline(GumbelTable(), 7, ("word",), ("o_odd",), [(word,) for word in words])
    assert not odd.any()
    got = pipeline(GumbelTable(), 5, ("word",), ("o_base", "o_slope", "o_rest"),
                   [(word,) for word in words])
    noise = got[:, 0] + numerics.rshift(got[:, 1] * got[:, 2], numerics.GUMBEL_FRAC_BITS)
    assert np.array_equal(noise, numerics.gumbel(words))


def test_parity_of_the_noise(monkeypatch):
    """With a table whose parity bits are all 0, words with an odd number of ones are told."""
    monkeypatch.setattr(hdl.gumbel, "_parity", lambda base, slope: 0)
    words = np.random.default_rng(4).integers(0, 2**32, 300).tolist()
    words = [(word,) for word in words]
    got = pipeline(GumbelTable(), 5, ("word",), ("o_base", "o_slope"), words)
    odd = pipeline(GumbelTable(), 7, ("word",), ("o_odd",), words)[:, 0]
    ones = [(base & 0xFFFF).bit_count() + (slope & 0x1FF).bit_count()
            for base, slope in got.tolist()]
    assert odd.tolist() == [count % 2 for count in ones]
    assert 50 < odd.sum() < 250


def test_damaged_noise_is_a_fault(monkeypatch):
    """All words of the table are damaged: one fault a pair of lanes, and none without noise."""
    parity = hdl.gumbel._parity
    monkeypatch.setattr(hdl.gumbel, "_parity", lambda base, slope: 1 - parity(base, slope))

    class Damaged(Sampler):
        pass
    skew = timing(TINY).sample_skew
    for temperature in (4096, 0):
        run = SliceBench(Damaged, TINY)
        settings(run, 0, vocabulary=8, temperature=temperature, seed=3, position=1)
        instruction(run, TINY, 30, [0] * 8)
        _, faults, _ = run.run(70)
        assert faults == ({30 + skew + 4 + pair: {Fault.PARITY} for pair in range(4)}
                          if temperature else {})
