"""Bench of the second port of the weights: run-time writes, read-out, the host, and all faults of
the three queues of the MXM, each on its cycle."""
import cocotb
import numpy as np

from arch.faults import Fault
from arch.hostmap import weight_address
from arch.isa import UNITS, Order
from arch.queues import Stream
from hdl.kv_port import HOST_READ_LATENCY
from tb.bench import bench_test
from tb.checker import ANYTHING
from tb.mxm import COLUMNS, LANES, ROWS, WORDS, MxmBench
from tb.top import CONFIG, DAMAGED_WEIGHTS
from tb.wires import reserved

DEPTH, GROUPS = CONFIG.weight_depth, CONFIG.groups
OUTSIDE = (DEPTH, 2 * DEPTH - 1, 4 * DEPTH - 1)
CODES = {unit: {op.name: op.code for op in UNITS[unit].ops} for unit in ("mxm", "drain", "kv")}


@bench_test
@cocotb.parametrize(op=("WRITE_K", "WRITE_V"), position=(0, CONFIG.context - 1))
async def write_before_matmul(dut, op, position):
    """A step sees a write of ``kv_write_to_matmul`` cycles before; one cycle closer, CONFLICT."""
    bench = MxmBench(dut)
    at = await bench.start(position=position)
    for word, apart in ((4, bench.time.kv_write_to_matmul), (5, bench.time.kv_write_to_matmul + 1)):
        bench.write(at, op, np.linspace(-300, 300, LANES).astype(int), address=word)
        bench.matmul(at + apart, range(1, 1 + LANES), address=word, accumulator=word)
        bench.drain(at + apart + bench.time.matmul_to_drain, accumulator=word)
        at += 20
    await bench.settle()
    at = bench.cycle + 2
    bench.issues["kv"].send(at, op, address=6, x=Stream.VXM)
    bench.streams.put(at, Stream.VXM, range(LANES))
    bench.issues["mxm"].send(at + bench.time.kv_write_to_matmul - 1, "MATMUL", address=6,
                             order=Order.HOLD, x0=Stream.CONST, x1=Stream.CONST)
    bench.streams.put(at + bench.time.kv_write_to_matmul - 1, Stream.CONST, range(LANES))
    tile = position % CONFIG.half_columns // CONFIG.tile_columns if op == "WRITE_K" else 0
    pair = position % ROWS // 2 if op == "WRITE_V" else 0
    # The first pair of the first tile reads on the cycle at whose end the write lands.
    if tile == pair == 0:
        bench.faults["kv"].expect(at + bench.time.weight_write, {Fault.CONFLICT})
    await bench.finish(40)


@bench_test
@cocotb.parametrize(op=("WRITE_K", "WRITE_V"))
async def write_behind_matmul(dut, op):
    """A write ``matmul_to_kv_write`` cycles behind a step leaves it alone; one closer, CONFLICT."""
    bench = MxmBench(dut)
    at = await bench.start(position=CONFIG.context - 1)
    bench.matmul(at, range(1, 1 + LANES), address=4)
    bench.write(at + bench.time.matmul_to_kv_write, op, np.full(LANES, -7), address=4)
    bench.drain(at + bench.time.matmul_to_drain)
    await bench.settle()
    at = bench.cycle + 3
    bench.matmul(at, range(LANES), address=5)
    closer = at + bench.time.matmul_to_kv_write - 1
    bench.issues["kv"].send(closer, op, address=5, x=Stream.VXM)
    bench.streams.put(closer, Stream.VXM, range(LANES))
    bench.faults["kv"].expect(closer + bench.time.weight_write, {Fault.CONFLICT})
    await bench.finish(40)
    assert bench.faults["kv"].seen == 1


@bench_test
async def writes_by_hand(dut):
    """K goes to a column, V to a row, saturated to -127 .. 127, other places stay."""
    bench = MxmBench(dut)
    position, token = 3, 3
    weights = np.full((WORDS, ROWS, COLUMNS), 2)
    at = await bench.start(weights=weights, position=position, token=token)
    assert (ROWS, COLUMNS, GROUPS) == (4, 8, 2)
    bench.write(at, "WRITE_K", [1, 2, 3, 4, 127, 128, -128, -32768], n1=2, address=0, s1=1)
    bench.write(at + 4, "WRITE_V", [9, -9, 1000, -1000, -127, 127, 0, 5], address=2)
    reads = (at + 2, at + 8)
    for cycle, address in zip(reads, (0, 2)):
        for j in range(2):
            bench.issues["kv"].send(cycle + j, "READ_OUT", address=address + j, j=j, j_first=j == 0,
                                    j_last=j == 1)
    bench.acc.expect(reads[0] + 1 + bench.time.read_out, [1, 2, 3, 4, 127, 127, -127, -127])
    # Row 3 of word 2 has the vector; column 3 of it is -127. Word 3 is as loaded.
    bench.acc.expect(reads[1] + 1 + bench.time.read_out, [2, 2, 2, -127, 2, 2, 2, 2])
    await bench.finish(40)


@bench_test
async def latency_of_read_out(dut):
    """Issued right behind a write, whole and short groups, two vectors of one instruction."""
    bench = MxmBench(dut)
    at = await bench.start(position=5, token=COLUMNS + 5)
    at = bench.read_out(at, address=3, s1=1) + 1
    at = bench.write(at, "WRITE_K", range(-60, 60, 15), n1=GROUPS, address=3, s1=1)
    at = bench.read_out(at + bench.time.kv_write_to_read_out, address=4, s1=-1) + 3
    at = bench.read_out(at, n1=1, address=7) + 2
    at = bench.read_out(at, n1=2 * GROUPS, d1=3, address=2, s1=1)
    at = bench.read_out(at + 1, n1=2 * GROUPS + 1, address=0, s1=2)
    await bench.settle()
    assert bench.acc.seen == 1 + 1 + 1 + 2 + 3


@bench_test
async def host(dut):
    """Words are read back, one read per cycle; nothing is written beyond the banks."""
    bench = MxmBench(dut)
    at = await bench.start(seed=12)
    bench.driver.set(at, bench.port("host__w_en"), 0)
    wanted = []
    for word in range(0, WORDS, 5):
        for column in range(COLUMNS):
            for pair in range(CONFIG.pairs):
                low, high = bench.model.weights[word, 2 * pair:2 * pair + 2, column]
                wanted.append((weight_address(CONFIG, word, column, pair),
                               int(low) & 0xFF | (int(high) & 0xFF) << 8))
    for cycle in range(len(wanted) + HOST_READ_LATENCY):
        if cycle < len(wanted):
            bench.driver.set(at + cycle, bench.port("host__address"), wanted[cycle][0])
            bench.driver.set(at + cycle, bench.port("host__r_en"), 1)
        await bench.until(at + cycle)
        if cycle >= HOST_READ_LATENCY:
            assert bench.port("host__r_data").value == wanted[cycle - HOST_READ_LATENCY][1]
    bench.driver.set(bench.cycle + 1, bench.port("host__r_en"), 0)
    await bench.finish()


@bench_test
async def operand_faults(dut):
    """A source without a vector on a cycle that takes one; not on the others."""
    bench = MxmBench(dut)
    at = await bench.start(weights=np.zeros((1, ROWS, COLUMNS)))
    for missing in range(4):
        for j in range(4):
            bench.issues["mxm"].send(at + j, "MATMUL", order=Order.K_INNER, x0=Stream.CONST,
                                     x1=Stream.M3, j=j, j_first=j == 0, j_last=j == 3)
            for stream in (Stream.CONST, Stream.M3):
                if stream == Stream.CONST or j != missing:
                    bench.streams.put(at + j, stream, np.ones(LANES))
        if missing % GROUPS == 0:
            bench.faults["mxm"].expect(at + missing, {Fault.OPERAND})
        at += 6
    for op in CODES["kv"]:
        bench.streams.put(at - 1, Stream.VXM, range(LANES))
        bench.issues["kv"].send(at, op, address=2 if op == "READ_OUT" else 1, x=Stream.VXM)
        bench.streams.put(at + 1, Stream.VXM, range(LANES))
        if op != "READ_OUT":
            # Word 1 may hold anything from now on.
            bench.faults["kv"].expect(at, {Fault.OPERAND})
        else:
            bench.acc.expect(at + bench.time.read_out, ANYTHING)
        at += 4
    await bench.until(at)
    await bench.finish()
    assert (bench.faults["mxm"].seen, bench.faults["kv"].seen) == (4 // GROUPS, 2)


@bench_test
async def encoding_faults(dut):
    """Reserved opcodes, sources and the reserved order, in each queue."""
    bench = MxmBench(dut)
    at = await bench.start()
    good = {"order": Order.HOLD, "x0": Stream.CONST, "x1": Stream.CONST}
    bad = [("mxm", code, good) for code in range(16) if code not in CODES["mxm"].values()]
    bad += [("mxm", "MATMUL", good | {"order": 3})]
    bad += [("mxm", "MATMUL", good | {name: source}) for name in ("x0", "x1")
            for source in reserved("mxm", name)]
    bad += [("drain", code, {}) for code in range(16) if code not in CODES["drain"].values()]
    bad += [("kv", code, {"x": Stream.VXM}) for code in range(16)
            if code not in CODES["kv"].values()]
    bad += [("kv", op, {"x": source}) for op in ("WRITE_K", "WRITE_V")
            for source in reserved("kv", "x")]
    for unit, op, fields in bad:
        for stream in (Stream.CONST, Stream.VXM):
            bench.streams.put(at, stream, np.ones(LANES))
        bench.issues[unit].send(at, op, **fields)
        bench.faults[unit].expect(at, {Fault.ENCODING})
        at += 1
    # A read-out has no source: its field may hold anything. Word 0 may by now.
    bench.issues["kv"].send(at, "READ_OUT", x=12, address=2)
    bench.acc.expect(at + bench.time.read_out, ANYTHING)
    await bench.until(at)
    await bench.finish(40)
    assert sum(checker.seen for checker in bench.faults.values()) == len(bad)


@bench_test
async def address_faults(dut):
    """Refused and without effect on the words that the low bits name."""
    bench = MxmBench(dut)
    at = await bench.start()
    bench.matmul(at, range(LANES), address=3)
    at += 2
    for address in OUTSIDE:
        for op in CODES["kv"]:
            bench.vector(at, Stream.CONST, np.ones(LANES))
            bench.vector(at, Stream.VXM, np.ones(LANES))
            bench.issues["kv"].send(at, op, address=address, x=Stream.VXM)
            bench.faults["kv"].expect(at, {Fault.ADDRESS})
            at += 1
        bench.issues["mxm"].send(at - 1, "MATMUL", order=Order.HOLD, address=address, start=1,
                                 x0=Stream.CONST, x1=Stream.CONST)
        bench.faults["mxm"].expect(at - 1, {Fault.ADDRESS})
    bench.drain(at + 20)
    bench.read_out(at + 10, address=0, s1=1)
    await bench.settle()
    assert bench.acc.seen == 2


@bench_test
@cocotb.parametrize(apart=(-1, 0, 1))
async def collision(dut, apart):
    """A drained and a read-out vector for the same cycle of ACC."""
    bench = MxmBench(dut)
    at = await bench.start()
    bench.matmul(at, range(LANES), address=2)
    shown = bench.read_out(at + 20, address=0, s1=1) + bench.time.read_out
    if apart:
        bench.drain(shown - bench.time.drain + apart)
        await bench.settle()
    else:
        bench.issues["drain"].send(shown - bench.time.drain, "DRAIN")
        bench.faults["drain"].expect(shown, {Fault.COLLISION})
        bench.acc.expect(shown, ANYTHING)
        bench.model.reads.clear()
        await bench.finish(60)
    assert bench.faults["drain"].seen == int(apart == 0)


@bench_test
@cocotb.parametrize(place=tuple(DAMAGED_WEIGHTS))
async def parity(dut, place):
    """A flipped bit is found where a step or a read-out uses it, and not elsewhere."""
    bench = MxmBench(dut)
    (column, pair), (word, _) = place, DAMAGED_WEIGHTS[place]
    at = await bench.start(weights=np.zeros((0, ROWS, COLUMNS)), token=column)
    for number, address in enumerate((word, word ^ 4)):
        cycle = at + 2 * number
        bench.streams.put(cycle, Stream.CONST, np.ones(LANES))
        bench.issues["mxm"].send(cycle, "MATMUL", order=Order.HOLD, address=address, x0=Stream.CONST,
                                 x1=Stream.CONST)
        bench.issues["kv"].send(cycle, "READ_OUT", address=address)
        bench.acc.expect(cycle + bench.time.read_out, ANYTHING)
    # Three cycles from the issue to the multiplier, and one more to collect (see `hdl.mxm`).
    used = at + pair + column % CONFIG.half_columns // CONFIG.tile_columns + 3
    bench.faults["mxm"].expect(used + 2, {Fault.PARITY})
    bench.faults["kv"].expect(at + bench.time.read_out, {Fault.PARITY})
    await bench.finish(40)
    assert bench.faults["mxm"].seen == bench.faults["kv"].seen == 1
