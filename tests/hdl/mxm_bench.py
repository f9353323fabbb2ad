"""Bench of the MXM slice, and its meaning written down once more in numpy, cycle by cycle."""
import collections

import numpy as np
from amaranth.hdl import Value
from amaranth.sim import Simulator

from arch import numerics
from arch.faults import Fault
from arch.isa import UNITS, Order
from arch.queues import Stream
from arch.timing import timing
from hdl.mxm import Mxm
from hdl.signatures import streams_of, stream_width
from tests.hdl.slice_bench import SliceBench

QUEUES = ("mxm", "drain", "kv")
OPS = {op.name: op.code for name in QUEUES for op in UNITS[name].ops}


def stored_byte(value):
    """The nine stored bits of an int8 value."""
    byte = int(value) & 0xFF
    return byte | (byte.bit_count() & 1) << 8


def expand(cycle, n1=1, n2=1, d1=1, d2=1, address=0, s1=0, s2=0, **fields):
    """The issues of one instruction by the issue rule of `arch.isa`, first on ``cycle``."""
    issues = []
    for i in range(n2):
        for j in range(n1):
            issues.append((cycle, {"i": i, "j": j, "i_first": i == 0, "i_last": i == n2 - 1,
                                   "j_first": j == 0, "j_last": j == n1 - 1,
                                   "address": address + i * s2 + j * s1, **fields}))
            cycle += d1 if j < n1 - 1 else d2
    return issues


def takes(config, fields):
    """Whether a MATMUL issue takes a new vector."""
    k = fields["j"] if fields["order"] == Order.K_INNER else fields["i"]
    wraps = (fields.get("half0", 0) + k) % config.groups == 0
    if fields["order"] == Order.K_INNER:
        return wraps or fields["j"] == 0
    return fields["order"] == Order.HOLD or fields["j"] == 0 and (wraps or fields["i"] == 0)


class MxmBench(SliceBench):
    """Schedules the three queues of an `Mxm`; ``weights`` are loaded by the back door."""

    def __init__(self, config, weights, vendor=False):
        # A slice of its own, for its memories start with these weights.
        self.dut, self.config, self._schedule = Mxm(config=config, vendor=vendor), config, {}
        self.weights = np.array(weights, np.int64)
        self.issues = {name: {} for name in QUEUES}
        self.streams = collections.defaultdict(dict)
        self.position = self.token = 0
        assert self.weights.shape == (config.weight_depth, config.rows, config.columns)
        for column in range(0 if vendor else config.columns):
            for pair in range(config.pairs):
                self.dut.bank(column, pair).memory.init = [
                    stored_byte(low) | stored_byte(high) << 9
                    for low, high in self.weights[:, 2 * pair:2 * pair + 2, column]]

    def issue(self, cycle, queue, op, **fields):
        """One operation of a queue, on the port a cycle before; see `expand` for the fields."""
        fields = {"i": 0, "j": 0, "i_first": 1, "i_last": 1, "j_first": 1, "j_last": 1} | fields
        fields["op"] = OPS.get(op, op)
        assert cycle not in self.issues[queue]
        self.issues[queue][cycle] = fields
        side = getattr(self.dut, f"issue_{queue}")
        self._add(cycle - 1, side.valid, 1, 0)
        for name, value in fields.items():
            if name != "address" or queue != "drain":
                signal = getattr(side, name)
                self._add(cycle - 1, signal, int(value) & (1 << len(signal)) - 1, 0)

    def instruction(self, cycle, queue, op, **fields):
        """All issues of an instruction; returns the cycle of the last."""
        issues = expand(cycle, **fields)
        for at, values in issues:
            self.issue(at, queue, op, **values)
        return issues[-1][0]

    def stream(self, cycle, stream, values):
        super().stream(cycle, stream, values)
        self.streams[cycle][Stream(stream)] = np.array(values, np.int64)

    def set(self, cycle, name, value):
        raise NotImplementedError("set position and token as attributes; they hold for a run")

    def host(self, cycle, address, data=None):
        """A read, or a write of ``data``."""
        side = self.dut.host
        self._add(cycle, side.address, address, 0)
        self._add(cycle, side.r_en if data is None else side.w_en, 1, 0)
        if data is not None:
            self._add(cycle, side.w_data, data, 0)

    def run(self, cycles):
        """Simulate. Returns stream ACC by cycle, the set of (cycle of the event, queue, fault), and
        per cycle the host's ``r_data``."""
        acc, faults, host = {}, set(), []
        lanes, dut = self.config.lanes, self.dut

        async def testbench(ctx):
            for source in streams_of(self.config):
                data = Value.cast(getattr(dut.streams, source.name.lower()).data)
                ctx.set(data, self._junk(stream_width(source)))
            ctx.set(dut.position, self.position)
            ctx.set(dut.token, self.token)
            idle = {}
            for cycle in range(-1, cycles):
                for signal, value in idle.values():
                    ctx.set(signal, value)
                idle = {}
                for key, (signal, value, rest) in self._schedule.get(cycle, {}).items():
                    ctx.set(signal, value)
                    idle[key] = (signal, rest)
                if cycle < 0:
                    await ctx.tick()
                    continue
                if ctx.get(dut.o_acc.valid):
                    raw = ctx.get(Value.cast(dut.o_acc.data)).to_bytes(4 * lanes, "little")
                    acc[cycle] = np.frombuffer(raw, "<i4").astype(np.int64)
                for queue in QUEUES:
                    causes = ctx.get(getattr(dut, f"fault_{queue}").causes)
                    faults.update((cycle - 1, queue, fault) for fault in Fault
                                  if fault and causes >> fault - 1 & 1)
                host.append(ctx.get(dut.host.r_data))
                await ctx.tick()

        simulator = Simulator(dut)
        simulator.add_clock(1e-6)
        simulator.add_testbench(testbench)
        simulator.run()
        return acc, faults, host


class Reference:
    """What `MxmBench` must show: every read, addition and write on its own cycle.

    Parameters
    ----------
    bench : MxmBench
        Its schedule, weights, position and token.
    """

    def __init__(self, bench):
        self.config, self.bench = bench.config, bench
        self.time = timing(bench.config)
        self.hops = self.config.half_columns // self.config.tile_columns - 1
        self.weights = bench.weights.copy()
        self.entries = np.zeros((self.config.accumulators, self.config.columns), np.int64)
        self.held = np.zeros((2, self.config.lanes), np.int64)
        self.vector = np.zeros(self.config.lanes, np.int64)
        self.flying, self.writes, self.reads = [], [], []
        self.acc, self.faults = {}, set()
        # Tile of every column, counted in its half.
        self.tile = np.arange(self.config.columns) % self.config.half_columns
        self.tile //= self.config.tile_columns

    def run(self, cycles):
        """ACC by cycle, and the faults, as `MxmBench.run` gives them."""
        for cycle in range(cycles):
            for queue, act in (("mxm", self._mxm), ("drain", self._drain), ("kv", self._kv)):
                if cycle in self.bench.issues[queue]:
                    act(cycle, self.bench.issues[queue][cycle])
            self._read(cycle)
            self._read_out(cycle)
            self._add(cycle)
            self._land(cycle)
        shown = {cycle: lanes for cycle, lanes in self.acc.items() if cycle < cycles}
        return shown, {event for event in self.faults if event[0] < cycles - 1}

    def _fault(self, cycle, queue, fault):
        self.faults.add((cycle, queue, fault))

    def _take(self, cycle, queue, source):
        lanes = self.bench.streams[cycle].get(Stream(source))
        if lanes is None:
            self._fault(cycle, queue, Fault.OPERAND)
            return np.zeros(self.config.lanes, np.int64)
        return numerics.as_lane(lanes)

    def _mxm(self, cycle, fields):
        config = self.config
        if takes(config, fields):
            self.held = np.stack([self._take(cycle, "mxm", fields[name]) for name in ("x0", "x1")])
        k = fields["j"] if fields["order"] == Order.K_INNER else fields["i"]
        tile = fields["i"] if fields["order"] == Order.K_INNER else fields["j"]
        part = (fields.get("half0", 0) + k) % config.groups
        x = self.held[:, part * config.rows:(part + 1) * config.rows]
        x = numerics.activation(x, fields.get("shift", 0), config.activation_bits)
        if not 0 <= fields["address"] < config.weight_depth:
            return self._fault(cycle, "mxm", Fault.ADDRESS)
        self.flying.append({
            "cycle": cycle, "x": np.repeat(x, config.half_columns, 0).T,
            "w": np.zeros((config.rows, config.columns), np.int64), "address": fields["address"],
            "entry": (fields.get("accumulator", 0) + tile) % config.accumulators,
            "overwrite": fields.get("start", 0) and k == 0})

    def _read(self, cycle):
        """Row pair p of tile c reads on cycle t + weight_read + p + c."""
        when = self.time.weight_read + np.arange(self.config.rows)[:, None] // 2 + self.tile
        for step in self.flying:
            now = step["cycle"] + when == cycle
            step["w"] = np.where(now, self.weights[step["address"]], step["w"])
            for land, address, place, _ in self.writes:
                pairs = place.reshape(self.config.pairs, 2, -1).any(1).repeat(2, 0)
                if land == cycle and address == step["address"] and (pairs & now).any():
                    self._fault(cycle, "kv", Fault.CONFLICT)

    def _add(self, cycle):
        """The sums of tile c enter the accumulators at the end of this many cycles later."""
        for step in self.flying:
            now = step["cycle"] + self.time.matmul_to_drain - 1 - self.hops + self.tile == cycle
            entry = self.entries[step["entry"]]
            total = (step["x"] * step["w"]).sum(0) + (0 if step["overwrite"] else entry)
            entry[now] = total[now]
        self.flying = [step for step in self.flying
                       if cycle < step["cycle"] + self.time.matmul_to_drain]

    def _read_out(self, cycle):
        """Read-outs come to the banks when the writes issued with them do."""
        config = self.config
        for issued, fields in [read for read in self.reads
                               if read[0] + self.time.weight_write == cycle]:
            group = fields["j"] % config.groups
            if group == 0:
                self.vector = np.zeros(config.lanes, np.int64)
            by = self.bench.position if fields.get("half0", 0) % 2 else self.bench.token
            self.vector[group * config.rows:(group + 1) * config.rows] = self.weights[
                fields["address"], :, by % config.columns]
            if group == config.groups - 1 or fields["j_last"]:
                self._show(issued + self.time.read_out, self.vector)

    def _land(self, cycle):
        for land, address, place, values in self.writes:
            if land == cycle:
                self.weights[address] = np.where(place, values, self.weights[address])
        self.writes = [write for write in self.writes if write[0] > cycle]

    def _show(self, cycle, lanes):
        if cycle in self.acc:
            self._fault(cycle, "drain", Fault.COLLISION)
        self.acc[cycle] = lanes.copy()

    def _drain(self, cycle, fields):
        entry = (fields.get("accumulator", 0) + fields["j"]) % self.config.accumulators
        self._show(cycle + self.time.drain, self.entries[entry])

    def _kv(self, cycle, fields):
        config, address, j = self.config, fields["address"], fields["j"]
        inside = 0 <= address < config.weight_depth
        if not inside:
            self._fault(cycle, "kv", Fault.ADDRESS)
        if fields["op"] == OPS["READ_OUT"]:
            if inside:
                self.reads.append((cycle, fields))
            return
        x = numerics.saturate_symmetric(self._take(cycle, "kv", fields["x"]), 8)
        place = np.zeros((config.rows, config.columns), bool)
        if fields["op"] == OPS["WRITE_K"]:
            part = (fields.get("half0", 0) + j) % config.groups
            place[:, self.bench.position % config.columns] = True
            values = x[part * config.rows:(part + 1) * config.rows, None]
        else:
            place[self.bench.position % config.rows] = True
            values = x[None]
        if inside:
            self.writes.append((cycle + self.time.weight_write, address, place,
                                values + np.zeros_like(place, np.int64)))


def check(bench, cycles):
    """Run bench and reference; both must show the same."""
    acc, faults, _ = bench.run(cycles)
    wanted, wanted_faults = Reference(bench).run(cycles)
    assert faults == wanted_faults
    assert sorted(acc) == sorted(wanted)
    for cycle, lanes in wanted.items():
        np.testing.assert_array_equal(acc[cycle], lanes, f"cycle {cycle}")
    return acc
