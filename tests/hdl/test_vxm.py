"""The vector unit against the numeric contract, bit by bit and cycle by cycle."""
import numpy as np
import pytest

from arch import numerics
from arch.config import profile
from arch.faults import Fault
from arch.isa import UNITS, sources_of
from arch.queues import Stream
from arch.timing import timing
from hdl.vxm import Vxm
from tests.hdl.slice_bench import WIDE, SliceBench

TINY = profile("tiny")
OPS = {op.name: op.code for op in UNITS["vxm"].ops}
EDGES = np.array([0, 1, -1, 2, 3, 127, -128, 255, 256, 2047, 2048, 16383, 16384, 16385, 32767,
                  -32767, -32768])
WIDE_EDGES = np.concatenate([EDGES, [131071, 131072, -131072, -131073, 1 << 21, -(1 << 21),
                                     2**31 - 1, -2**31, 2**31 - 8, 32768, -32769, 0x7FFF8000]])


def bench(config=TINY):
    return SliceBench(Vxm, config, "o_vxm")


def values(rng, wide, lanes):
    """A third edges, a third small, a third anything."""
    bits = 32 if wide else 16
    out = rng.integers(-(1 << bits - 1), 1 << bits - 1, lanes)
    out = np.where(rng.random(lanes) < 0.5, out >> rng.integers(0, bits, lanes), out)
    edges = rng.choice(WIDE_EDGES if wide else EDGES, lanes)
    return np.where(rng.random(lanes) < 0.33, edges, out)


def expected(config, op, operands, position, *, pre=0, post=0, b_float=0, wide=0, mask=0,
             j_last=1, **sources):
    """`arch.numerics` applied to what the streams carry."""
    a = operands["a"] if sources["a"] == Stream.ACC else numerics.as_lane(operands["a"])
    b, c = (numerics.as_lane(operands[name]) for name in "bc")
    if op == "MAC":
        y = numerics.mac(a, b, c, pre, post, b_float, wide)
    elif op == "MAX":
        y = numerics.lane_max(a, b, c, pre, post, b_float, wide)
    elif op == "EXP2":
        y = numerics.exp2(a, c, post)
    else:
        y = {"SILU": numerics.silu, "GELU": numerics.gelu}[op](a)
    if mask and j_last:
        beyond = np.arange(config.lanes) > position % config.lanes
        y = np.where(beyond, 0 if op == "EXP2" else numerics.MASKED, y)
    return y


def random_issue(rng, position, run, cycle, config):
    """Schedule one random operation; returns what it gives."""
    op = str(rng.choice(list(OPS)))
    fields = {"pre": rng.integers(16), "post": rng.integers(32), "b_float": rng.integers(2),
              "wide": rng.integers(2), "mask": rng.random() < 0.3, "j_last": rng.random() < 0.7}
    if op == "EXP2" and rng.random() < 0.7:
        fields["post"] = rng.integers(10, 24)
    operands, carried = {}, {}
    for name, none in (("a", 0), ("b", 1), ("c", 0)):
        sources = sources_of(UNITS["vxm"].field(name), config)
        source = Stream.NONE if rng.random() < 0.15 else sources[rng.integers(len(sources))]
        if source is not Stream.NONE and source not in carried:
            carried[source] = values(rng, source in WIDE, config.lanes)
            run.stream(cycle, source, carried[source])
        fields[name] = source
        operands[name] = carried.get(source, np.full(config.lanes, none))
    if op == "EXP2" and fields["c"] not in (Stream.NONE, *WIDE) and rng.random() < 0.8:
        if fields["a"] is not Stream.NONE and fields["a"] != fields["c"]:
            near = operands["c"] - rng.integers(-50, 3000, config.lanes)
            operands["a"] = np.clip(near, -32768, 32767)
            carried[fields["a"]] = operands["a"]
            run.stream(cycle, fields["a"], operands["a"])
            operands |= {n: operands["a"] for n in "bc" if fields[n] == fields["a"]}
    run.issue(cycle, op=OPS[op], **fields)
    return expected(config, op, operands, position, **fields)


@pytest.mark.parametrize("stages, position", [(0, 13), (0, 31), (1, 8), (2, 30), (3, 5)])
def test_random(stages, position):
    """Every operation, shift and source, back to back and with gaps."""
    config = TINY.replace(vxm_stages=stages)
    rng, run, results, cycle = np.random.default_rng(stages * 100 + position), bench(config), {}, 6
    run.set(0, "position", position)
    for _ in range(600):
        y = random_issue(rng, position, run, cycle, config)
        results[cycle + timing(config).vxm] = y
        cycle += 1 if rng.random() < 0.8 else int(rng.integers(2, 12))
    got, faults, _ = run.run(cycle + 20)
    assert not faults
    assert sorted(got) == sorted(results)
    for at, y in results.items():
        assert np.array_equal(got[at], y), at


@pytest.mark.parametrize("op, a, b, c, fields, y", [
    # By hand: (1000 * 3 + 2) >> 2 = 750, plus 7.
    ("MAC", 1000, 3, 7, {"post": 2}, 757),
    # -5 / 2 rounds to -2 (halves up), times 3 is -6.
    ("MAC", -5, 3, 0, {"pre": 1}, -6),
    # 2**31 - 1 shifted by 15 rounds to 65536; times 32767 saturates.
    ("MAC", 2**31 - 1, 32767, 0, {"pre": 15}, 32767),
    ("MAC", 2**31 - 1, 32767, 0, {"pre": 15, "wide": 1}, 65536 * 32767),
    ("MAC", -2**31, -32768, 0, {"pre": 14, "wide": 1}, 2**31 - 1),
    ("MAC", 131071, 32767, -32768, {"wide": 1}, 2**31 - 1),
    # float12 with mantissa 3 and shift 1: 100 * 3 / 4 / 2 with post 2.
    ("MAC", 100, 3 << 4 | 1, 0, {"post": 2, "b_float": 1}, 38),
    ("MAC", 100, -1, 0, {"b_float": 1, "post": 0}, (100 * 4095 + (1 << 14)) >> 15),
    ("MAX", 5, 1, 9, {}, 9),
    ("MAX", 10, 1, 9, {}, 10),
    # The product, -32768.5, rounds to -32768.
    ("MAX", -65537, 1, -32768, {"post": 1}, -32768),
    ("MAX", -65537, 1, -32767, {"post": 1}, -32767),
    ("MAX", 65535, 1, 32767, {"post": 1}, 32767),
    ("MAX", -100000, 1, -32768, {"wide": 1}, -32768),
    # exp(0) at 7 bits is 127; 256 / 256 below halves it, 2**15 below leaves nothing.
    ("EXP2", 0, 1, 0, {"post": 22}, 127),
    ("EXP2", -256, 1, 0, {"post": 22}, 64),
    ("EXP2", -32768, 1, 32767, {"post": 0}, 0),
    ("EXP2", 500, 1, 20, {"post": 22}, 127),
    ("SILU", 0, 1, 0, {}, 0),
    ("SILU", 32767, 1, 0, {}, 32767),
    ("SILU", -32768, 1, 0, {}, 0),
    # silu(1) = 0.731059: 1497 with 11 bits.
    ("SILU", 2048, 1, 0, {}, 1497),
    # gelu(1) = 0.841345: 1723.
    ("GELU", 2048, 1, 0, {"wide": 1}, 1723),
    ("GELU", -2048, 1, 0, {}, -325),
    ("GELU", 99999, 1, 0, {}, 32767),
])
def test_by_hand(op, a, b, c, fields, y):
    run, lanes = bench(), TINY.lanes
    run.stream(3, Stream.ACC, [a] * lanes)
    run.stream(3, Stream.M1, [b] * lanes)
    run.stream(3, Stream.CONST, [c] * lanes)
    run.issue(3, op=OPS[op], a=Stream.ACC, b=Stream.M1, c=Stream.CONST, **fields)
    got, faults, _ = run.run(16)
    assert not faults and list(got) == [11]
    assert got[11].tolist() == [y] * lanes


@pytest.mark.parametrize("op", ["SILU", "GELU", "EXP2"])
def test_whole_range(op):
    """Every 16-bit argument; EXP2 over every difference with a maximum of 32767."""
    run, lanes = bench(), TINY.lanes
    arguments = np.arange(-32768, 32768).reshape(-1, lanes)
    for cycle, a in enumerate(arguments):
        run.stream(cycle, Stream.M2, a)
        run.stream(cycle, Stream.CONST, [32767] * lanes)
        run.issue(cycle, op=OPS[op], a=Stream.M2, c=Stream.CONST, post=14)
    got, faults, _ = run.run(len(arguments) + 8)
    assert not faults
    want = {"SILU": numerics.silu, "GELU": numerics.gelu,
            "EXP2": lambda a: numerics.exp2(a, 32767, 14)}[op](arguments)
    assert np.array_equal(np.array([got[cycle + 8] for cycle in range(len(arguments))]), want)


def test_every_shift():
    """All combinations of the two shifts and the float exponent, on random operands."""
    rng, run, want = np.random.default_rng(5), bench(), {}
    cases = [(pre, post, None) for pre in range(16) for post in range(32)]
    cases += [(0, post, exponent) for post in range(32) for exponent in range(16)]
    for cycle, (pre, post, exponent) in enumerate(cases):
        a = values(rng, True, TINY.lanes)
        b = values(rng, False, TINY.lanes)
        if exponent is not None:
            b = b & ~15 | exponent
        c = values(rng, False, TINY.lanes) >> 4
        run.stream(cycle, Stream.ACC, a)
        run.stream(cycle, Stream.M0, b)
        run.stream(cycle, Stream.CONST, c)
        fields = {"pre": pre, "post": post, "b_float": exponent is not None, "wide": cycle % 3 > 0}
        run.issue(cycle, op=OPS["MAC"], a=Stream.ACC, b=Stream.M0, c=Stream.CONST, **fields)
        want[cycle + 8] = numerics.mac(a, b, c, **fields)
    got, faults, _ = run.run(len(cases) + 8)
    assert not faults
    for at, y in want.items():
        assert np.array_equal(got[at], y), cases[at - 8]


def test_sums_have_32_bits_and_results_are_cut():
    run, lanes = bench(), TINY.lanes
    run.stream(0, Stream.VXM, [0x18003] * lanes)
    run.issue(0, op=OPS["MAC"], a=Stream.VXM)
    run.stream(1, Stream.ACC, [0x28002] * lanes)
    run.issue(1, op=OPS["MAC"], a=Stream.ACC, b=Stream.NONE, c=Stream.NONE, wide=1)
    run.issue(2, op=OPS["MAC"])
    got, faults, _ = run.run(12)
    assert not faults
    assert [got[at][0] for at in (8, 9, 10)] == [0x8003 - 0x10000, 131071, 0]


def test_operand_fault():
    """A source without a value, the cycle before and after included; NONE is no source."""
    run, lanes = bench(), TINY.lanes
    for name, cycle in (("a", 4), ("b", 8), ("c", 12)):
        run.stream(cycle - 1, Stream.M3, range(lanes))
        run.stream(cycle + 1, Stream.M3, range(lanes))
        run.issue(cycle, op=OPS["MAC"], **{name: Stream.M3})
    run.stream(16, Stream.M3, range(lanes))
    run.issue(16, op=OPS["MAC"], a=Stream.M3, b=Stream.M3, c=Stream.M3)
    got, faults, _ = run.run(30)
    assert faults == {cycle: {Fault.OPERAND} for cycle in (5, 9, 13)}
    assert got[24].tolist() == [lane * lane + lane for lane in range(lanes)]


def test_encoding_fault():
    """Reserved opcodes and source numbers, in each of the three source fields."""
    bad = [{"op": op} for op in range(16) if op not in OPS.values()]
    bad += [{"op": OPS["MAC"], name: source} for name in "abc" for source in range(10, 16)]
    bad += [{"op": OPS["MAC"], name: source} for name in "bc" for source in range(6, 10)]
    run = bench()
    for number, fields in enumerate(bad):
        run.issue(2 * number, **fields)
    run.issue(2 * len(bad), op=OPS["GELU"])
    _, faults, _ = run.run(2 * len(bad) + 12)
    assert faults == {2 * number + 1: {Fault.ENCODING} for number in range(len(bad))}


def test_missing_bank_is_reserved():
    config = TINY.replace(mem_banks=2)
    run = bench(config)
    run.issue(1, op=OPS["MAC"], a=Stream.M2)
    run.stream(3, Stream.M1, [4] * config.lanes)
    run.issue(3, op=OPS["MAC"], a=Stream.M1)
    got, faults, _ = run.run(14)
    assert faults == {2: {Fault.ENCODING}} and got[11].tolist() == [4] * config.lanes


def test_nothing_is_valid_after_reset():
    got, faults, _ = bench().run(20)
    assert not got and not faults
