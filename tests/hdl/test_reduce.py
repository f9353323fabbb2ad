"""Lane reduction against the numeric contract, bit by bit and cycle by cycle."""
import numpy as np
import pytest

from arch import numerics
from arch.config import profile
from arch.faults import Fault
from arch.isa import UNITS
from arch.queues import Stream
from arch.timing import timing
from hdl.reduce import Red
from tests.hdl.slice_bench import SliceBench

TINY = profile("tiny")
OPS = {op.name: op.code for op in UNITS["red"].ops}


def bench(config=TINY):
    return SliceBench(Red, config, "o_red")


def delay_of(op, config):
    times = timing(config)
    return times.reduce if op in ("SUM", "MAX") else times.reduce_function


def expected(op, vectors, post):
    total = int(np.sum(vectors))
    return int({"SUM": lambda: numerics.saturate(numerics.rshift(total, post), 16),
                "MAX": lambda: np.max(numerics.as_lane(vectors)),
                "RECIP": lambda: numerics.recip(total, post),
                "RSQRT": lambda: numerics.rsqrt(total, post)}[op]())


def instruction(run, cycle, op, vectors, post, gap=1):
    """Schedule one instruction; returns the cycle of its last issue."""
    for j, x in enumerate(vectors):
        run.stream(cycle, Stream.VXM, x)
        run.issue(cycle, op=OPS[op], x=Stream.VXM, post=post, j=j, j_first=j == 0,
                  j_last=j == len(vectors) - 1)
        cycle += gap
    return cycle - gap


def check(got, faults, want):
    assert not faults
    assert sorted(got) == sorted(want)
    for at, value in want.items():
        assert set(got[at].tolist()) == {value}, at


def vector(rng, lanes, wide):
    bits = 32 if wide else 16
    x = rng.integers(-(1 << bits - 1), 1 << bits - 1, lanes) >> rng.integers(0, bits)
    if rng.random() < 0.2:
        x = rng.choice([0, 1, -1, (1 << bits - 1) - 1, -(1 << bits - 1)], lanes)
    return np.maximum(x, ~x) if rng.random() < 0.4 else x


@pytest.mark.parametrize("profile_name, stages", [
    ("tiny", 0), ("tiny", 1), ("tiny", 2), ("tiny", 3), ("ecp5_85k", 0)])
def test_random(profile_name, stages):
    """Random instructions, as close to each other as their results allow."""
    config = profile(profile_name).replace(reduce_stages=stages)
    rng, run, want, cycle = np.random.default_rng(stages), bench(config), {}, 0
    for _ in range(250):
        op, post = str(rng.choice(list(OPS))), int(rng.integers(64))
        if op == "SUM" and rng.random() < 0.7:
            post = int(rng.integers(24))
        count, gap = int(rng.choice([1, 1, 2, 3, 6])), int(rng.choice([1, 1, 2, 5]))
        vectors = [vector(rng, config.lanes, rng.random() < 0.6) for _ in range(count)]
        while cycle + (count - 1) * gap + delay_of(op, config) in want:
            cycle += 1
        last = instruction(run, cycle, op, vectors, post, gap)
        want[last + delay_of(op, config)] = expected(op, vectors, post)
        cycle = last + (1 if rng.random() < 0.8 else int(rng.integers(2, 9)))
    got, faults, _ = run.run(cycle + 20)
    check(got, faults, want)


def test_by_hand():
    """One result per operation, computed on paper."""
    run, lanes = bench(), TINY.lanes
    # (1 + ... + 8) twice is 72; (72 + 8) >> 4 is 5.
    instruction(run, 0, "SUM", [range(1, 9), range(1, 9)], 4)
    instruction(run, 2, "MAX", [[-7] * lanes, [-9, -5, *[-8] * 6]], 0)
    # 1/2 with bias 8: mantissa 2**14, rounded to 4096, is clamped to 4095; shift 12 + 1 - 8 = 5.
    instruction(run, 4, "RECIP", [[2] + [0] * 7], 8)
    # 1/sqrt(16) = 2**14 / 2**14 * 2**-2: shift 12 + 2.
    instruction(run, 5, "RSQRT", [[2] * 8], 0)
    # 1/3: m = 1.5, mantissa 10923 / 4 rounds to 2731; shift 12 + 1 - 13 = 0.
    instruction(run, 6, "RECIP", [[3] + [0] * 7], 13)
    got, faults, _ = run.run(26)
    check(got, faults, {7: 5, 9: -5, 15: (4095 << 4 | 5) - 65536, 16: (4095 << 4 | 14) - 65536,
                        17: (2731 << 4 | 0) - 65536})


@pytest.mark.parametrize("op", ["RECIP", "RSQRT"])
def test_functions_over_the_whole_range(op):
    """Totals around every power of two up to 2**46, every bias, and every segment."""
    run, want = bench(), {}
    rng = np.random.default_rng(11)
    totals = [0, -1, -(1 << 40)]
    for e in range(34):
        totals += [1 << e, (1 << e) - 1, (1 << e) + 1, int(rng.integers(1 << e, 2 << e))]
    totals += [(64 + segment) << 9 | int(rng.integers(512)) for segment in range(64)]
    totals += [(64 + segment) << 10 | int(rng.integers(1024)) for segment in range(64)]
    totals += [int(rng.integers(1, 1 << 34)) >> int(rng.integers(34)) for _ in range(500)]
    for cycle, total in enumerate(totals):
        # Eight lanes that sum to the total.
        x = [total >> 3] * 8
        x[0] += total & 7
        bias = int(rng.integers(64)) if cycle % 4 == 0 else int(rng.integers(12, 36))
        instruction(run, cycle, op, [x], bias)
        total = int(np.sum(x))
        want[cycle + 11] = int(getattr(numerics, op.lower())(total, bias))
    got, faults, _ = run.run(len(totals) + 11)
    check(got, faults, want)


def test_totals_of_46_bits():
    """256 and 511 vectors of the largest and smallest lanes fit the accumulator."""
    run, want, cycle = bench(), {}, 0
    for op, lane, count, post in (("SUM", 2**31 - 1, 256, 28), ("SUM", -2**31, 511, 28),
                                  ("SUM", -2**31, 511, 33), ("RECIP", 2**31 - 1, 511, 40),
                                  ("RSQRT", 2**31 - 1, 511, 20), ("SUM", -2**31, 1, 63)):
        vectors = [[lane] * TINY.lanes] * count
        last = instruction(run, cycle, op, vectors, post)
        want[last + delay_of(op, TINY)] = expected(op, np.array(vectors), post)
        cycle = last + 6
    got, faults, _ = run.run(cycle + 8)
    check(got, faults, want)


def test_every_post_shift():
    rng, run, want = np.random.default_rng(4), bench(), {}
    for cycle in range(64 * 6):
        x = rng.integers(-2**31, 2**31, TINY.lanes) >> max(0, 22 - cycle // 6)
        instruction(run, cycle, "SUM", [x], cycle // 6)
        want[cycle + 6] = expected("SUM", x, cycle // 6)
    got, faults, _ = run.run(64 * 6 + 6)
    check(got, faults, want)


def test_collision():
    """A sum whose result meets that of a function of five cycles before."""
    run, x = bench(), [[1] * TINY.lanes]
    instruction(run, 2, "RECIP", x, 10)
    instruction(run, 6, "SUM", x, 0)
    instruction(run, 7, "SUM", x, 0)
    instruction(run, 8, "MAX", x, 0)
    instruction(run, 20, "RSQRT", x, 10)
    instruction(run, 25, "MAX", x, 0)
    _, faults, _ = run.run(40)
    assert faults == {14: {Fault.COLLISION}, 32: {Fault.COLLISION}}


def test_operand_and_encoding_faults():
    bad = [({"x": Stream.VXM}, Fault.OPERAND),
           *[({"x": source}, Fault.ENCODING) for source in range(16) if source != Stream.VXM],
           *[({"x": Stream.VXM, "op": op}, Fault.ENCODING) for op in range(16)
             if op not in OPS.values()]]
    run, lanes = bench(), TINY.lanes
    for number, (fields, fault) in enumerate(bad):
        run.stream(7 * number + (fault == Fault.OPERAND), Stream.VXM, [0] * lanes)
        run.issue(7 * number, **{"op": OPS["SUM"]} | fields)
    end = 7 * len(bad) + 10
    instruction(run, end, "SUM", [[3] * lanes], 0)
    got, faults, _ = run.run(end + 9)
    assert faults == {7 * number + 1: {fault} for number, (_, fault) in enumerate(bad)}
    assert got[end + 6].tolist() == [3 * lanes] * lanes


def test_nothing_is_valid_after_reset():
    got, faults, _ = bench().run(20)
    assert not got and not faults
