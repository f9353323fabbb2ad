"""The values of one step of the machine model, issue by issue in order of cycles.

A result is on its stream for exactly one cycle, memories change at the end of the cycle of a write.
"""
import dataclasses

import numpy as np

from arch import numerics
from arch.faults import Fault, ScheduleError
from arch.isa import UNITS
from arch.queues import QUEUES, Stream, mem_stream
from sim.legality import FUNCTION_OPS, StepPlan, accumulator, emits, reduction_step, takes
from sim.queue_model import index_values

#: Streams of 32-bit lanes, and the operands that take all bits of some.
_WIDE = (Stream.ACC, Stream.VXM)
_TAKES_WIDE = {(name, field.name): field.wide
               for name, queue in QUEUES.items() for field in UNITS[queue.unit].fields}


@dataclasses.dataclass
class StepRecord:
    """What one step did.

    Members
    -------
    position, token_in, prompt : of the step.
    cycles : int
        Its length from barrier to barrier.
    token : int or None
        Sampled token; None if nothing was sampled.
    writes : list of (cycle, bank, address, halves, lanes)
        Vectors written to MEM, in order of issue; ``lanes`` is int16, 0 in a half not written.
    logits : int16 array, [vectors * lanes], or None
        What the sampler took.
    streams : list of (cycle, Stream, lanes)
        Values of the streams that `Machine.run_step` was asked to watch.
    """
    position: int
    token_in: int
    prompt: bool
    cycles: int
    token: int | None = None
    writes: list = dataclasses.field(default_factory=list)
    logits: np.ndarray | None = None
    streams: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Sampling:
    """Registers of the sampler (`arch.hostmap.Register`)."""
    seed: int = 0
    inverse_temperature: int = 0
    vocabulary: int = 0


class Execution:
    """One step in the making. Every method ``_<unit>`` executes one issue on its cycle.

    Parameters
    ----------
    machine : sim.machine.Machine
        Its memories are read and changed.
    plan : StepPlan
    record : StepRecord
        Filled while the step runs.
    sampling : Sampling
    watch : tuple of Stream
    """

    def __init__(self, machine, plan: StepPlan, record: StepRecord, sampling: Sampling,
                 watch: tuple):
        self.machine, self.plan, self.record, self.sampling = machine, plan, record, sampling
        self.config, self.timing, self.watch = machine.config, machine.timing, watch
        self.values = index_values(self.config, record.position, record.token_in)
        self.streams = {stream: {} for stream in Stream}
        # MATMUL steps whose sums have not all reached the accumulators:
        # (cycle, entry, overwrite, sums, address, activations).
        self.flying = []
        self.activations = None
        self.vector = np.zeros(self.config.lanes, np.int64)
        self.total = 0
        self.logits = []
        rows, columns = np.mgrid[:self.config.rows, :self.config.half_columns]
        self.read_offset = self.timing.weight_read + rows // 2 + columns // self.config.tile_columns
        # A write of a weight happens in the order of execution when the first MATMUL that may see
        # it all is issued, read-outs move with it.
        self.kv_skew = self.timing.weight_write - self.timing.weight_read
        self.write_skew = self.timing.mem_write_to_read - 1

    def run(self) -> None:
        for cycle, _, unit, segment, index, *issue in self._schedule():
            getattr(self, unit)(segment, index, cycle, *issue)
        self._settle(self.plan.length)

    def _schedule(self) -> list:
        """Issues in order of execution: by cycle, reads before writes. Kept with the plan."""
        if not hasattr(self.plan, "schedule"):
            issues = []
            for segment in self.plan.segments:
                unit = QUEUES[segment.queue].unit
                write = unit == "mem_write" or segment.op in ("WRITE_K", "WRITE_V")
                skew = {"sample": self.timing.sample_skew, "kv": self.kv_skew,
                        "mem_write": self.write_skew}.get(unit, 0)
                columns = [segment.cycle + skew, np.full(len(segment.cycle), write)]
                details = [np.arange(len(segment.cycle))]
                if unit == "mxm":
                    details = [takes(segment, self.config.groups), reduction_step(segment),
                               accumulator(segment, self.config), segment.address]
                columns, details = ([array.tolist() for array in part]
                                    for part in (columns, details))
                issues += [(cycle, late, f"_{unit}", segment, *detail) for cycle, late, *detail
                           in zip(*columns, *details)]
            issues.sort(key=lambda issue: issue[:2])
            self.plan.schedule = issues
        return self.plan.schedule

    def _put(self, stream: Stream, cycle: int, lanes) -> None:
        self.streams[stream][cycle] = lanes
        if stream in self.watch:
            self.record.streams.append((cycle, stream, lanes.astype(np.int32)))

    def _take(self, segment, field: str, cycle: int):
        """Operand of this cycle: int64 lanes, the low 16 bits of them unless it takes all 32."""
        source = segment[field]
        lanes = self.streams[source].get(cycle)
        if lanes is None:
            raise ScheduleError(Fault.OPERAND, cycle, segment.queue, f"{field}: no value")
        cut = source in _WIDE and source not in _TAKES_WIDE[segment.queue, field]
        return numerics.as_lane(lanes) if cut else lanes

    def _address(self, segment, index: int) -> int:
        address = int(segment.address[index])
        if segment["index"]:
            address += self.values[segment["index"]] >> segment["index_shift"]
        return address

    # Memories.

    def _mem_read(self, segment, index, cycle):
        bank = QUEUES[segment.queue].bank
        self._put(mem_stream(bank), cycle + self.timing.mem_read,
                  self.machine.mem[bank, segment.address[index]].copy())

    def _mem_write(self, segment, index, cycle):
        cycle -= self.write_skew
        bank, halves = QUEUES[segment.queue].bank, segment["halves"]
        lanes, half = self._take(segment, "x", cycle), self.config.half_columns
        address, kept = int(segment.address[index]), np.zeros(self.config.lanes, np.int16)
        for number in range(2):
            if halves >> number & 1:
                part = slice(number * half, (number + 1) * half)
                self.machine.mem[bank, address, part] = kept[part] = lanes[part]
        self.record.writes.append((cycle, bank, address, halves, kept))

    def _const(self, segment, index, cycle):
        self._put(Stream.CONST, cycle + self.timing.const_read,
                  self.machine.constants[self._address(segment, index)])

    # Matmul, accumulators and the second port of the weight banks.

    def _mxm(self, segment, take, cycle, k, entry, address):
        config, groups = self.config, self.config.groups
        if take:
            taken = np.stack([self._take(segment, "x0", cycle), self._take(segment, "x1", cycle)])
            taken = numerics.activation(taken, segment["shift"], config.activation_bits)
            self.activations = taken.astype(np.int32).reshape(2, groups, 1, config.rows)
        x = self.activations[:, (segment["half0"] + k) % groups]
        sums = (x @ self.machine.weights[address])[:, 0]
        overwrite = bool(segment["start"]) and k == 0
        self.flying.append((cycle, entry, overwrite, sums, address, x))

    def _settle(self, cycle: int) -> None:
        """Add to the accumulators what has reached all of their columns before ``cycle``."""
        done, entries = 0, self.machine.accumulators
        for issued, entry, overwrite, sums, _, _ in self.flying:
            if issued + self.timing.matmul_to_drain > cycle:
                break
            entries[entry] = sums if overwrite else entries[entry] + sums
            done += 1
        del self.flying[:done]

    def _drain(self, segment, index, cycle):
        self._settle(cycle)
        entry = int(accumulator(segment, self.config)[index])
        lanes = self.machine.accumulators[entry].copy()
        tiles = lanes.reshape(2, self.plan.hops + 1, self.config.tile_columns)
        for issued, written, overwrite, sums, _, _ in self.flying:
            # Tile c of both halves gets its sum hops - c cycles before the last tile.
            late = issued + self.timing.matmul_to_drain - cycle
            if written == entry and late <= self.plan.hops:
                part = slice(0, self.plan.hops - late + 1)
                new = sums.reshape(tiles.shape)[:, part]
                tiles[:, part] = new if overwrite else tiles[:, part] + new
        self._put(Stream.ACC, cycle + self.timing.drain, lanes.reshape(-1).astype(np.int64))

    def _kv(self, segment, index, cycle):
        cycle -= self.kv_skew
        config, address, j = self.config, self._address(segment, index), int(segment.j[index])
        word = self.machine.weights[address]
        half, at = config.half_columns, self.record.position
        if segment.op == "READ_OUT":
            number = at if segment["half0"] % 2 else self.record.token_in
            group, column = j % config.groups, number % config.columns
            part = slice(group * config.rows, (group + 1) * config.rows)
            self.vector[part] = word[column // half, :, column % half]
            self.vector[part.stop:] = 0
            if emits(segment, config.groups)[index]:
                self._put(Stream.ACC, cycle + self.timing.read_out, self.vector.copy())
            return
        lanes = numerics.saturate_symmetric(self._take(segment, "x", cycle), config.weight_bits)
        change = word.copy()
        if segment.op == "WRITE_K":
            group, column = (segment["half0"] + j) % config.groups, at % config.columns
            part = slice(group * config.rows, (group + 1) * config.rows)
            change[column // half, :, column % half] = lanes[part]
        else:
            change[:, at % config.rows] = lanes.reshape(2, half)
        change -= word
        # Wavefronts that arrive later than the write see it.
        lands = cycle + self.timing.weight_write
        for issued, _, _, sums, read, x in self.flying:
            if read == address:
                sees = issued + self.read_offset > lands
                sums += (x @ (change * sees))[:, 0]
        word += change

    # Lane arithmetic, lane moves, reduction, sampling.

    def _vxm(self, segment, index, cycle):
        zero = np.zeros(self.config.lanes, np.int64)
        a, b, c = (self._take(segment, name, cycle)
                   if segment[name] else zero + (name == "b") for name in "abc")
        if segment.op in ("MAC", "MAX"):
            function = numerics.mac if segment.op == "MAC" else numerics.lane_max
            lanes = function(a, b, c, segment["pre"], segment["post"], segment["b_float"],
                             segment["wide"])
        elif segment.op == "EXP2":
            lanes = numerics.exp2(a, c, segment["post"])
        else:
            lanes = numerics.silu(a) if segment.op == "SILU" else numerics.gelu(a)
        if segment["mask"] and segment.j[index] == segment.n1 - 1:
            beyond = np.arange(len(lanes)) > self.record.position % len(lanes)
            lanes = np.where(beyond, 0 if segment.op == "EXP2" else numerics.MASKED, lanes)
        self._put(Stream.VXM, cycle + self.timing.vxm, lanes)

    def _perm(self, segment, index, cycle):
        lanes = self._take(segment, "x", cycle)
        pattern = self.machine.patterns[segment["pattern"]]
        value = self.values[segment["index"]] << segment["index_shift"]
        moved = lanes[(pattern & len(lanes) - 1) ^ value % len(lanes)]
        self._put(Stream.PERM, cycle + self.timing.perm, np.where(pattern < 0, 0, moved))

    def _red(self, segment, index, cycle):
        lanes, j = self._take(segment, "x", cycle), int(segment.j[index])
        if segment.op == "MAX":
            value = int(numerics.as_lane(lanes).max())
            self.total = value if j == 0 else max(self.total, value)
        else:
            self.total = int(lanes.sum()) + (self.total if j else 0)
        if j != segment.n1 - 1:
            return
        if segment.op in FUNCTION_OPS:
            function = numerics.recip if segment.op == "RECIP" else numerics.rsqrt
            value, delay = function(self.total, segment["post"]), self.timing.reduce_function
        else:
            # No sum has more than 48 bits: what shifts out at 62 shifts out at 63.
            post = min(segment["post"], 62) if segment.op == "SUM" else 0
            value = numerics.rshift(self.total, post)
            value, delay = numerics.saturate(value, numerics.LANE_BITS), self.timing.reduce
        self._put(Stream.RED, cycle + delay, np.full(self.config.lanes, value, np.int64))

    def _sample(self, segment, index, cycle):
        if segment.j[index] == 0:
            self.logits = []
        self.logits.append(self._take(segment, "x", cycle))
        if segment.j[index] == segment.n1 - 1:
            self.record.logits = np.concatenate(self.logits).astype(np.int16)
            keys = numerics.sampling_keys(
                self.record.logits[:self.sampling.vocabulary], self.sampling.inverse_temperature,
                self.sampling.seed, self.record.position)
            self.record.token = int(np.argmax(keys))
