"""Bench of the MXM: sums on the cycles that `arch.timing` names, and not one cycle earlier."""
import cocotb
import numpy as np

from arch.isa import Order
from arch.queues import Stream
from hdl.signatures import streams_of, stream_width
from tb.bench import bench_test
from tb.model_mxm import expand
from tb.mxm import COLUMNS, LANES, ROWS, WORDS, MxmBench
from tb.top import CONFIG
from tb.wires import wired

STREAMS = streams_of(CONFIG)
#: Columns in the last, and in the first tile of a half.
PLACE = np.arange(COLUMNS) % CONFIG.half_columns // CONFIG.tile_columns
LAST, FIRST = PLACE == PLACE.max(), PLACE == 0


def one_word(value):
    weights = np.zeros((WORDS, ROWS, COLUMNS), np.int64)
    weights[9] = value
    return weights


@bench_test
async def quiet_after_reset(dut):
    bench = MxmBench(dut)
    await bench.start(weights=np.zeros((0, ROWS, COLUMNS)))
    await bench.settle()


@bench_test
async def latency_of_matmul_and_drain(dut):
    """A DRAIN at the bound has every column, one cycle earlier all but the last tile's."""
    bench = MxmBench(dut)
    at = await bench.start(weights=one_word(3))
    bench.matmul(at, np.zeros(LANES), address=9)
    at += 20
    bench.matmul(at, np.ones(LANES), address=9)
    drain = at + bench.time.matmul_to_drain
    bench.drain(drain)
    bench.issues["drain"].send(drain - 1, "DRAIN")
    bench.acc.expect(drain - 1 + bench.time.drain, np.where(LAST, 0, 3 * ROWS))
    await bench.settle()
    assert bench.acc.seen == 2


@bench_test
async def overwrite_behind_a_drain(dut):
    """Accumulators can be overwritten ``drain_to_matmul`` from their DRAIN, and not earlier."""
    bench = MxmBench(dut)
    at = await bench.start(weights=one_word(3))
    bench.matmul(at, np.ones(LANES), address=9)
    drain = at + 30
    bench.drain(drain)
    bench.matmul(drain + bench.time.drain_to_matmul, np.full(LANES, 5), address=9)
    at = drain + 40
    bench.matmul(at, np.ones(LANES), address=9)
    bench.issues["drain"].send(at + 30, "DRAIN")
    bench.matmul(at + 30 + bench.time.drain_to_matmul - 1, np.full(LANES, 5), address=9)
    bench.acc.expect(at + 30 + bench.time.drain, np.where(FIRST, 15, 3) * ROWS)
    await bench.settle()
    assert bench.acc.seen == 2


@bench_test
async def by_hand(dut):
    """Weights 10 * column + row, activations 1, 2, 3, 4 and 5, 6, 7, 8 in the two parts."""
    bench = MxmBench(dut)
    weights = np.zeros((WORDS, ROWS, COLUMNS))
    weights[1:3] = 10 * np.arange(COLUMNS) + np.arange(ROWS)[:, None]
    at = await bench.start(weights=weights)
    assert (ROWS, COLUMNS) == (4, 8)
    bench.streams.put(at, Stream.M0, range(1, 9))
    for j in range(2):
        bench.issues["mxm"].send(at + j, "MATMUL", order=Order.K_INNER, start=1, x0=Stream.M0,
                                 x1=Stream.M0, j=j, j_first=j == 0, j_last=j == 1, address=1 + j,
                                 accumulator=15)
    # Row sums: 0*1 + 1*2 + 2*3 + 3*4 = 20 and 0*5 + 1*6 + 2*7 + 3*8 = 44; lanes add to 36.
    bench.issues["drain"].send(at + 20, "DRAIN", accumulator=14, j=1)
    bench.acc.expect(at + 20 + bench.time.drain, [64 + 360 * column for column in range(8)])
    await bench.finish(40)


@bench_test
@cocotb.parametrize(order=tuple(Order), half0=range(CONFIG.groups))
async def orders(dut, order, half0):
    """Repeats in both directions, gaps, both start values, accumulators that wrap around."""
    bench, rng = MxmBench(dut), np.random.default_rng(half0)
    at = await bench.start(seed=half0)
    common = {"rng": rng, "order": order, "half0": half0, "x0": Stream.M2, "x1": Stream.CONST}
    strides = {"s1": 0, "s2": 2} if order == Order.HOLD else {"s1": 1, "s2": 3}
    at = bench.matmul(at, n1=4, n2=4, d1=1, d2=1, accumulator=0, **strides, **common) + 3
    at = bench.matmul(at, n1=4, n2=3, d1=2, d2=5, start=0, address=1, accumulator=0, **strides,
                      **common) + 1
    at = bench.matmul(at, n1=3, n2=3, d1=3, d2=1, address=15, accumulator=14, s1=-1, s2=-2,
                      **common)
    at += bench.time.matmul_to_drain
    bench.drain(bench.drain(at, n1=16) + 3, accumulator=14, n1=4, d1=2)
    await bench.settle()
    assert bench.acc.seen == 20


@bench_test
async def shifts(dut):
    """Every shift, with activations at the edges of rounding and saturation."""
    bench = MxmBench(dut)
    at = await bench.start(weights=one_word(1))
    for shift in range(16):
        edge = 127 << shift
        edges = [edge, edge + (1 << shift >> 1), edge - (1 << shift >> 1), -edge,
                 -edge - (1 << shift >> 1), -edge - (1 << shift), 32767, -32768,
                 1 << shift >> 1, -(1 << shift >> 1), -(1 << shift >> 1) - 1, 0]
        for value in np.clip(edges, -32768, 32767):
            lanes = np.zeros(LANES, np.int64)
            lanes[:ROWS] = value, 0, 0, 0
            bench.matmul(at, lanes, address=9, shift=shift)
            bench.drain(at + bench.time.matmul_to_drain)
            at += 3
    await bench.settle()
    assert bench.acc.seen == 16 * 12


@bench_test
async def every_source(dut):
    """Each stream as each of the two sources while all carry values, cut to 16 bits."""
    bench, rng = MxmBench(dut), np.random.default_rng(11)
    at = await bench.start()
    for x0 in wired("mxm", "x0"):
        for x1 in wired("mxm", "x1"):
            for stream in STREAMS:
                bits = stream_width(stream)
                bench.vector(at, stream, rng.integers(-(1 << bits - 1), 1 << bits - 1, LANES))
            bench.matmul(at, x0=x0, x1=x1, address=3, shift=8, accumulator=at % 16)
            bench.drain(at + bench.time.matmul_to_drain, accumulator=at % 16)
            at += 1
    await bench.settle()
    assert bench.acc.seen == len(wired("mxm", "x0")) ** 2


def random_instruction(rng, unit):
    """Operation and fields; repeats for `expand` are among them."""
    fields = {"n1": int(rng.integers(1, 5)), "d1": int(rng.choice([1, 1, 2, 3])),
              "accumulator": int(rng.integers(16))}
    if unit == "drain":
        return "DRAIN", fields
    fields |= {"address": int(rng.integers(5, 11)), "s1": int(rng.integers(-1, 2))}
    if unit == "mxm":
        return "MATMUL", fields | {
            "n2": int(rng.integers(1, 4)), "d2": int(rng.choice([1, 1, 4])),
            "s2": int(rng.integers(-1, 2)), "order": Order(int(rng.integers(3))),
            "half0": int(rng.integers(CONFIG.groups)), "shift": int(rng.integers(4)),
            "start": int(rng.random() < 0.5), "x0": STREAMS[rng.integers(4)],
            "x1": STREAMS[rng.integers(4)]}
    del fields["accumulator"]
    op = str(rng.choice(["WRITE_K", "WRITE_V", "READ_OUT", "READ_OUT"]))
    if op != "READ_OUT":
        fields |= {"half0": int(rng.integers(CONFIG.groups)), "x": Stream.VXM}
    return op, fields


def try_instruction(bench, rng, unit, cycle):
    """Issue a random instruction if it keeps its distances; returns the cycle of its last issue."""
    op, fields = random_instruction(rng, unit)
    repeats = {name: value for name, value in fields.items()
               if name in ("n1", "n2", "d1", "d2", "address", "s1", "s2")}
    issues = list(expand(cycle, **repeats))
    at = [issue for issue, _ in issues]
    words = [members["address"] for _, members in issues]
    inner = [members["j"] for _, members in issues]
    if op == "MATMUL":
        tile = [members["i" if fields["order"] == Order.K_INNER else "j"] for _, members in issues]
        entries = [(fields["accumulator"] + number) % 16 for number in tile]
        legal = bench.model.allows(steps=list(zip(at, words, entries)))
    elif op == "DRAIN":
        legal = bench.model.allows(
            drains=[(issue, (fields["accumulator"] + j) % 16) for issue, j in zip(at, inner)],
            shown=[issue + bench.time.drain for issue in at])
    elif op == "READ_OUT":
        ends = [issue for issue, j in zip(at, inner)
                if j % CONFIG.groups == CONFIG.groups - 1 or j == fields["n1"] - 1]
        legal = bench.model.allows(shown=[end + bench.time.read_out for end in ends])
    else:
        legal = bench.model.allows(writes=list(zip(at, words)))
    if not legal:
        return None
    call = {"MATMUL": bench.matmul, "DRAIN": bench.drain, "READ_OUT": bench.read_out}.get(op)
    if op in ("MATMUL", "WRITE_K", "WRITE_V"):
        fields["rng"] = rng
    return call(cycle, **fields) if call else bench.write(cycle, op, **fields)


@bench_test
@cocotb.parametrize(seed=(1, 2, 3))
async def random(dut, seed):
    """Legal traffic of the three queues, dense in time."""
    bench, rng = MxmBench(dut), np.random.default_rng(seed)
    at = await bench.start(seed=seed, position=int(rng.integers(CONFIG.context)),
                           token=int(rng.integers(CONFIG.vocab_max)))
    # All accumulators have values before the first DRAIN.
    free = {"mxm": bench.matmul(at, rng=rng, n1=16, address=3) + 1, "drain": at + 24, "kv": at}
    while min(free.values()) < at + 500:
        unit = min(free, key=free.get)
        last = try_instruction(bench, rng, unit, free[unit])
        free[unit] = free[unit] + 1 if last is None else last + int(rng.choice([1, 1, 2, 9]))
    await bench.settle()
    for kind in ("steps", "writes", "drains", "reads"):
        assert len(getattr(bench.model, kind)) > 40, kind
