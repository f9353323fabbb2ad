"""Bench of the vector unit: `arch.numerics` on every lane, `timing.vxm` cycles after the issue."""
import cocotb
import numpy as np

from arch import numerics
from arch.faults import Fault
from arch.isa import UNITS
from arch.queues import Stream
from hdl.signatures import streams_of, stream_width
from tb.bench import Bench, bench_test
from tb.checker import ANYTHING
from tb.top import CONFIG
from tb.wires import reserved, wired

OPS = tuple(op.name for op in UNITS["vxm"].ops)
STREAMS = streams_of(CONFIG)
LANES = CONFIG.lanes
EDGES = np.array([0, 1, -1, 127, -128, 255, 256, 2048, 16383, 16384, 32767, -32767, -32768, 32768,
                  -32769, 131071, 131072, -131072, -131073, 2**31 - 1, -2**31, 2**31 - 8])


def result(op, a, b, c, position, pre=0, post=0, b_float=0, wide=0, mask=0, j_last=1):
    """What the contract says of operands as they are taken."""
    y = {"MAC": lambda: numerics.mac(a, b, c, pre, post, b_float, wide),
         "MAX": lambda: numerics.lane_max(a, b, c, pre, post, b_float, wide),
         "EXP2": lambda: numerics.exp2(a, c, post),
         "SILU": lambda: numerics.silu(a), "GELU": lambda: numerics.gelu(a)}[op]()
    if mask and j_last:
        beyond = np.arange(LANES) > position % LANES
        y = np.where(beyond, 0 if op == "EXP2" else numerics.MASKED, y)
    return y


class VxmBench(Bench):
    """Issues operations with their operands, and expects results and faults."""

    def __init__(self, dut):
        super().__init__(dut, "vxm")
        self.issue, self.streams = self.add_issue("issue", "vxm"), self.add_streams()
        self.results = self.add_result("o_vxm", Stream.VXM)
        self.faults = self.add_faults("fault")
        self.position = 0

    async def start(self, position=0):
        await super().start()
        self.position = position
        self.driver.set(0, self.port("position"), position)

    def send(self, cycle, op, sources, vectors, **fields):
        """Issue with the streams of ``sources`` (a, b, c); ``vectors`` by stream are on them."""
        operands = []
        for source, none in zip(sources, (0, 1, 0)):
            lanes = np.full(LANES, none) if source == Stream.NONE else np.array(vectors[source],
                                                                                np.int64)
            operands.append(lanes if source == Stream.ACC else numerics.as_lane(lanes))
        for stream, lanes in vectors.items():
            self.streams.put(cycle, stream, lanes)
        self.issue.send(cycle, op, **dict(zip("abc", sources)), **fields)
        self.results.expect(cycle + self.time.vxm,
                            result(op, *operands, self.position, **fields))

    def fail(self, cycle, op, faults, **fields):
        """Issue something at fault."""
        self.issue.send(cycle, op, **fields)
        self.faults.expect(cycle, set(faults))
        self.results.expect(cycle + self.time.vxm, ANYTHING)


def lanes_for(rng, stream):
    """A vector of edges, small and any values that the stream can carry."""
    bits = stream_width(stream)
    anything = rng.integers(-(1 << bits - 1), 1 << bits - 1, LANES)
    lanes = np.where(rng.random(LANES) < 0.5, anything >> rng.integers(0, bits, LANES), anything)
    lanes = np.where(rng.random(LANES) < 0.33, rng.choice(EDGES, LANES), lanes)
    return lanes if bits == 32 else numerics.as_lane(lanes)


@bench_test
async def quiet_after_reset(dut):
    bench = VxmBench(dut)
    await bench.start()
    await bench.finish(40)


@bench_test
@cocotb.parametrize(op=OPS)
async def latency(dut, op):
    """One operation alone, and two with a cycle between: each on its own cycle."""
    bench = VxmBench(dut)
    await bench.start()
    for cycle in (3, 20, 22):
        bench.send(cycle, op, (Stream.ACC, Stream.M1, Stream.CONST),
                   {Stream.ACC: np.arange(LANES) * 100 + cycle, Stream.M1: np.full(LANES, 3),
                    Stream.CONST: np.full(LANES, 500)}, post=20 if op == "EXP2" else 1)
    await bench.finish(40)
    assert bench.results.seen == 3


#: Operation, a, b, c, further fields and the result, by hand.
BY_HAND = (
    ("MAC", 1000, 3, 7, {"post": 2}, 757),              # (3000 + 2 >> 2) + 7
    ("MAC", -5, 3, 0, {"pre": 1}, -6),                  # -2.5 rounds to -2
    ("MAC", 2**31 - 1, 32767, 0, {"pre": 15}, 32767),
    ("MAC", 2**31 - 1, 32767, 0, {"pre": 15, "wide": 1}, 65536 * 32767),
    ("MAC", -2**31, -32768, 0, {"wide": 1}, 2**31 - 1),  # -131072 * -32768 is 2**32
    ("MAC", 100, 3 << 4 | 1, 0, {"post": 2, "b_float": 1}, 38),   # 300 / 8 is 37.5
    ("MAX", 5, 1, 9, {}, 9), ("MAX", 10, 1, 9, {}, 10),
    ("MAX", -65537, 1, -32768, {"post": 1}, -32768),    # -32768.5 rounds to -32768
    ("EXP2", 0, 1, 0, {"post": 22}, 127), ("EXP2", -256, 1, 0, {"post": 22}, 64),
    ("EXP2", 500, 1, 20, {"post": 22}, 127), ("EXP2", -32768, 1, 32767, {"post": 0}, 0),
    ("SILU", 2048, 1, 0, {}, 1497),                     # silu(1) = 0.731059
    ("SILU", -2**31, 1, 0, {}, 0), ("SILU", 99999, 1, 0, {"wide": 1}, 32767),
    ("GELU", 2048, 1, 0, {"pre": 3}, 1723), ("GELU", -2048, 1, 0, {}, -325),
)


@bench_test
async def by_hand(dut):
    """Results worked out by hand, on consecutive cycles."""
    bench = VxmBench(dut)
    await bench.start()
    for cycle, (op, a, b, c, fields, y) in enumerate(BY_HAND, 2):
        for stream, value in ((Stream.ACC, a), (Stream.M3, b), (Stream.CONST, c)):
            bench.streams.put(cycle, stream, [value] * LANES)
        bench.issue.send(cycle, op, a=Stream.ACC, b=Stream.M3, c=Stream.CONST, **fields)
        bench.results.expect(cycle + bench.time.vxm, np.full(LANES, y))
    await bench.finish(40)


@bench_test
async def every_source(dut):
    """Each stream as each operand, all of them busy with different vectors; NONE is 0, 1, 0."""
    bench, rng = VxmBench(dut), np.random.default_rng(3)
    await bench.start()
    cycle = 2
    for position in range(3):
        for number, source in enumerate((Stream.NONE, *wired("vxm", "abc"[position]))):
            vectors = {stream: lanes_for(rng, stream) for stream in STREAMS}
            known = [wired("vxm", name) for name in "abc"]
            sources = [of[(number + place) % len(of)] for place, of in enumerate(known)]
            sources[position] = source
            bench.send(cycle, "MAC", sources, vectors, pre=9, post=9)
            cycle += 1
    bench.send(cycle, "MAC", (Stream.NONE,) * 3, {})
    await bench.until(cycle)
    await bench.finish()


@bench_test
@cocotb.parametrize(position=(0, CONFIG.lanes - 1, CONFIG.lanes + 3, CONFIG.context - 2))
async def mask(dut, position):
    """Lanes beyond the position, in the last issue of an instruction only."""
    bench, rng = VxmBench(dut), np.random.default_rng(position)
    await bench.start(position)
    for cycle, op in enumerate(OPS * 2, 2):
        bench.send(cycle, op, (Stream.M0, Stream.M1, Stream.M2),
                   {stream: lanes_for(rng, stream) for stream in STREAMS[:3]},
                   mask=1, j_last=int(cycle < 2 + len(OPS)), post=12)
    await bench.finish(40)


@bench_test
async def operand_faults(dut):
    """A source with a value a cycle early and a cycle late, for each operand."""
    bench = VxmBench(dut)
    await bench.start()
    for cycle, name in ((4, "a"), (8, "b"), (12, "c")):
        for beside in (-1, 1):
            bench.streams.put(cycle + beside, Stream.M3, range(LANES))
        bench.fail(cycle, "MAC", {Fault.OPERAND}, **{name: Stream.M3})
    # Needed or not, a named source must carry a value.
    bench.fail(16, "SILU", {Fault.OPERAND}, b=Stream.CONST)
    bench.send(18, "MAC", (Stream.M3,) * 3, {Stream.M3: np.arange(LANES)})
    await bench.finish(50)
    assert bench.faults.seen == 4


@bench_test
async def encoding_faults(dut):
    """Every reserved opcode and source number, back to back with what is legal."""
    bench = VxmBench(dut)
    await bench.start()
    legal = {op.code for op in UNITS["vxm"].ops}
    bad = [({"op": op}, {Fault.ENCODING}) for op in range(16) if op not in legal]
    bad += [({"op": "MAC", name: source}, {Fault.ENCODING})
            for name in "abc" for source in reserved("vxm", name)]
    bad.append(({"op": "MAX", "a": 15, "b": Stream.M0}, {Fault.ENCODING, Fault.OPERAND}))
    for number, (fields, faults) in enumerate(bad):
        bench.fail(2 + 2 * number, fields.pop("op"), faults, **fields)
        bench.send(3 + 2 * number, "MAC", (Stream.NONE,) * 3, {})
    await bench.until(3 + 2 * len(bad))
    await bench.finish()
    assert bench.faults.seen == len(bad)


@bench_test
@cocotb.parametrize(seed=(1, 2))
async def random(dut, seed):
    """Any operation on any sources, mostly back to back."""
    bench, rng = VxmBench(dut), np.random.default_rng(seed)
    await bench.start(int(rng.integers(CONFIG.context)))
    cycle = 2
    for _ in range(500):
        op = str(rng.choice(OPS))
        sources = [Stream.NONE if rng.random() < 0.15 else rng.choice(wired("vxm", name))
                   for name in "abc"]
        sources = [Stream(source) for source in sources]
        vectors = {stream: lanes_for(rng, stream) for stream in sources if stream}
        if op == "EXP2" and sources[0] and sources[2] and sources[0] != sources[2]:
            # Near enough for a result other than 0.
            near = numerics.as_lane(vectors[sources[2]]) - rng.integers(-50, 2000, LANES)
            vectors[sources[0]] = numerics.saturate(near, 16)
        fields = {"pre": int(rng.integers(16)), "post": int(rng.integers(32)),
                  "b_float": int(rng.integers(2)), "wide": int(rng.integers(2)),
                  "mask": int(rng.random() < 0.3), "j_last": int(rng.random() < 0.7)}
        bench.send(cycle, op, sources, vectors, **fields)
        cycle += 1 if rng.random() < 0.8 else int(rng.integers(2, 12))
    await bench.until(cycle)
    await bench.finish()
    assert bench.results.seen == 500
