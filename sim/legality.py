"""Whether the issues of one step are legal: everything that can be told without data.

`StepPlan` holds what depends on the row and the kind of step; `StepPlan.check` adds the position,
the input token and what has been written before. Both the machine model and the schedule checker
use it, so that they refuse the same programs. The first fault is the one that is reported: the
lowest cycle, then the lowest cause.
"""
import dataclasses

import numpy as np

from arch.config import Config
from arch.faults import Fault, ScheduleError
from arch.image import Image
from arch.isa import UNITS, Index, Order, operands, sources_of
from arch.queues import QUEUES, Stream, mem_stream, shares_wires
from arch.timing import timing
from sim import weight_rules
from sim.queue_model import Segment, expand_step, index_values, step_length
from sim.written import (NEVER, Written, unwritten_accumulators, unwritten_constants,
                         unwritten_mem)

FUNCTION_OPS = ("RECIP", "RSQRT")


def takes(segment: Segment, groups: int) -> np.ndarray:
    """On which issues of a MATMUL the activations are taken from their streams."""
    half0, order = segment["half0"], segment["order"]
    if order == Order.K_INNER:
        return (segment.j == 0) | ((half0 + segment.j) % groups == 0)
    if order == Order.K_OUTER:
        wraps = (segment.i == 0) | ((half0 + segment.i) % groups == 0)
        return (segment.j == 0) & wraps
    return np.ones(len(segment.cycle), bool)


def reduction_step(segment: Segment) -> np.ndarray:
    """k of every issue of a MATMUL."""
    return segment.j if segment["order"] == Order.K_INNER else segment.i


def accumulator(segment: Segment, config: Config) -> np.ndarray:
    """Accumulator entry of every issue of a MATMUL or DRAIN; the entries are a ring."""
    inner = segment.op == "DRAIN" or segment["order"] != Order.K_INNER
    return (segment["accumulator"] + (segment.j if inner else segment.i)) % config.accumulators


def emits(segment: Segment, groups: int) -> np.ndarray:
    """On which issues of a READ_OUT the vector is complete: the last of a group or of all."""
    return (segment.j % groups == groups - 1) | (segment.j == segment.n1 - 1)


class StepPlan:
    """All issues of one step, with the faults that no position or token can change.

    Parameters
    ----------
    image : Image
    row : int
    prompt : bool
    decoded : dict, optional
        Queue name to `sim.queue_model.decode_program`.
    """

    def __init__(self, image: Image, row: int, prompt: bool, decoded: dict = None):
        self.image, self.config, self.timing = image, image.config, timing(image.config)
        self.row, self.prompt = row, prompt
        self.length = step_length(image, row, prompt)
        traces = expand_step(image, row, prompt, decoded)
        self.ends = {queue: trace.end for queue, trace in traces.items()}
        self.segments = [segment for trace in traces.values() for segment in trace.segments]
        self.by_unit = {}
        for segment in self.segments:
            self.by_unit.setdefault(QUEUES[segment.queue].unit, []).append(segment)
        self.hops = self.config.half_columns // self.config.tile_columns - 1
        self.faults = [trace.fault for trace in traces.values() if trace.fault]
        self._encodings()
        valid = self._results()
        self._operands(valid)
        self._endings()
        self._addresses(self.segments, None, self.faults)
        self._gaps()
        self._store_bus()
        self._collect()

    def unit(self, name: str) -> list:
        """Segments of all queues of a unit."""
        return self.by_unit.get(name, [])

    def fault(self, fault: Fault, cycle, segment, detail: str, faults: list = None) -> None:
        queue = segment if isinstance(segment, str) else segment.queue
        where = "" if isinstance(segment, str) else f"instruction {segment.pc}, {segment.op}: "
        faults = self.faults if faults is None else faults
        faults.append(ScheduleError(fault, int(cycle), queue, where + detail))

    # Faults that depend on the program alone.

    def _encodings(self) -> None:
        seen = set()
        for segment in self.segments:
            if (segment.queue, segment.pc) in seen:
                continue
            seen.add((segment.queue, segment.pc))
            unit, cycle = QUEUES[segment.queue].unit, segment.cycle[0]
            for field in () if segment.op == "READ_OUT" else operands(UNITS[unit]):
                source, known = segment[field.name], sources_of(field, self.config)
                if source not in known:
                    names = ", ".join(stream.name for stream in known)
                    self.fault(Fault.ENCODING, cycle, segment,
                               f"{field.name} has wires from {names}, not from stream {source}")
            if segment["index"] > Index.TOKEN:
                self.fault(Fault.ENCODING, cycle, segment, "index 3 is reserved")
            if unit == "mxm" and segment["order"] > Order.HOLD:
                self.fault(Fault.ENCODING, cycle, segment, "order 3 is reserved")
            if unit == "perm":
                pattern = segment["pattern"]
                if pattern >= self.config.patterns:
                    self.fault(Fault.ADDRESS, cycle, segment, f"there is no pattern {pattern}")
                elif pattern >= len(self.image.patterns):
                    self.fault(Fault.UNWRITTEN, cycle, segment, f"pattern {pattern} is not loaded")

    def result(self, segment: Segment):
        """Stream and cycles of the results of a segment; ``(None, None)`` if it has none."""
        unit, t, cycle = QUEUES[segment.queue].unit, self.timing, segment.cycle
        if unit == "mem_read":
            return mem_stream(QUEUES[segment.queue].bank), cycle + t.mem_read
        if unit == "const":
            return Stream.CONST, cycle + t.const_read
        if unit == "vxm":
            return Stream.VXM, cycle + t.vxm
        if unit == "perm":
            return Stream.PERM, cycle + t.perm
        if unit == "drain":
            return Stream.ACC, cycle + t.drain
        if unit == "red":
            delay = t.reduce_function if segment.op in FUNCTION_OPS else t.reduce
            return Stream.RED, cycle[segment.j == segment.n1 - 1] + delay
        if segment.op == "READ_OUT":
            return Stream.ACC, cycle[emits(segment, self.config.groups)] + t.read_out
        return None, None

    def _results(self) -> dict:
        """Stream to bool array over cycles: where it carries a value. Finds collisions."""
        longest = self.length + max(dataclasses.astuple(self.timing)) + 1
        valid = {stream: np.zeros(longest, bool) for stream in Stream}
        for segment in self.segments:
            stream, cycles = self.result(segment)
            if stream is None:
                continue
            twice = cycles[valid[stream][cycles]]
            if len(twice):
                # On ACC the drain is blamed, whichever queue came late.
                queue = "drain" if stream == Stream.ACC else segment.queue
                self.fault(Fault.COLLISION, twice[0], queue, f"{segment.queue}, instruction "
                           f"{segment.pc}: another result reaches stream {stream.name} on this "
                           "cycle")
            valid[stream][cycles] = True
            if len(cycles) and cycles[-1] >= self.length:
                self.fault(Fault.LENGTH, self.length - 1, segment,
                           f"its result is on stream {stream.name} on cycle {cycles[-1]}, the "
                           f"step has {self.length} cycles")
        return valid

    def _operands(self, valid: dict) -> None:
        for segment in self.segments:
            unit = QUEUES[segment.queue].unit
            if segment.op == "READ_OUT":
                continue
            cycles = segment.cycle
            if unit == "mxm":
                cycles = cycles[takes(segment, self.config.groups)]
            elif unit == "sample":
                cycles = cycles + self.timing.sample_skew
            for field in operands(UNITS[unit]):
                source = segment[field.name]
                if source == Stream.NONE or source not in sources_of(field, self.config):
                    continue
                missing = cycles[~valid[source][cycles]]
                if len(missing):
                    self.fault(Fault.OPERAND, missing[0], segment, f"{field.name}: stream "
                               f"{Stream(source).name} carries no value on this cycle")

    def _endings(self) -> None:
        """Effects that are still under way when the step is over."""
        write = self.timing.weight_write, "writes the weights"
        after = {"MATMUL": (self.timing.matmul_to_drain, "writes its accumulators"),
                 "WRITE_K": write, "WRITE_V": write,
                 "ARGMAX": (self.timing.sample, "picks the token")}
        for segment in self.segments:
            delay, what = after.get(segment.op, (0, ""))
            if segment.cycle[-1] + delay >= self.length:
                self.fault(Fault.LENGTH, self.length - 1, segment,
                           f"{what} until cycle {segment.cycle[-1] + delay}, the step has "
                           f"{self.length} cycles")

    def depth(self, segment: Segment) -> int:
        """Words of the memory that the addresses of a segment go to."""
        unit = QUEUES[segment.queue].unit
        return {"mxm": self.config.weight_depth, "kv": self.config.weight_depth,
                "const": self.config.const_depth}.get(unit, self.config.mem_depth)

    def _addresses(self, segments, values, faults) -> None:
        """ADDRESS of segments; without ``values`` of those only that have no run-time index."""
        for segment in segments:
            if segment.address is None or values is None and segment["index"]:
                continue
            addresses = segment.indexed(values) if values else segment.address
            depth = self.depth(segment)
            if addresses.min() < 0 or addresses.max() >= depth:
                bad = np.flatnonzero((addresses < 0) | (addresses >= depth))[0]
                self.fault(Fault.ADDRESS, segment.cycle[bad], segment,
                           f"address {addresses[bad]} of a memory of {depth} words", faults)

    def _gaps(self) -> None:
        """Units that work on a vector for several cycles."""
        for queue, gap in (("perm", self.timing.perm_gap), ("sample", self.timing.sample_gap)):
            cycles = np.concatenate([segment.cycle for segment in self.unit(queue)] or [[]])
            close = np.flatnonzero(np.diff(cycles) < gap)
            if len(close):
                self.fault(Fault.CONFLICT, cycles[close[0] + 1], queue, "the vector before was "
                           f"less than {gap} cycles ago")

    def _store_bus(self) -> None:
        """The MEM banks share wires; the lowest of those that write has them."""
        carried = np.full(self.length + 1, -1)
        for segment in sorted(self.unit("mem_write"), key=lambda s: QUEUES[s.queue].bank):
            cycles, source = segment.cycle, segment["x"]
            if not shares_wires(source, QUEUES[segment.queue].bank):
                continue
            other = cycles[(carried[cycles] >= 0) & (carried[cycles] != source)]
            if len(other):
                self.fault(Fault.CONFLICT, other[0], segment, "another bank writes stream "
                           f"{Stream(carried[other[0]]).name} on this cycle")
            carried[cycles[carried[cycles] < 0]] = source

    # Arrays for the checks that need the position or what was written.

    def _collect(self) -> None:
        config = self.config
        self.indexed = [segment for segment in self.segments
                        if segment.address is not None and segment["index"]]
        self.matmul_at = np.full(self.length + 1, -1, np.int64)
        for segment in self.unit("mxm"):
            self.matmul_at[segment.cycle] = segment.address
        self.used_accumulators = []
        for segment in sorted(self.unit("mxm") + self.unit("drain"), key=lambda s: s.cycle[0]):
            entries, cycles = accumulator(segment, config), segment.cycle
            start = np.zeros(len(cycles), bool)
            if segment.op == "MATMUL" and segment["start"]:
                start = reduction_step(segment) == 0
            self.used_accumulators.append((segment, entries, start))
        self.first_write = np.full((config.mem_banks, config.mem_depth, 2), NEVER)
        for segment in self.unit("mem_write"):
            inside = (segment.address >= 0) & (segment.address < config.mem_depth)
            first = self.first_write[QUEUES[segment.queue].bank]
            for half in range(2):
                if segment["halves"] >> half & 1:
                    np.minimum.at(first[:, half], segment.address[inside], segment.cycle[inside])
        self.first_start = np.full(config.accumulators, NEVER)
        for segment, entries, start in self.used_accumulators:
            np.minimum.at(self.first_start, entries[start], segment.cycle[start])
        self.writes_mem, self.starts = self.first_write != NEVER, self.first_start != NEVER

    def check(self, position: int, token: int, written: Written, more: list = ()) -> None:
        """Raise the first fault of the step.

        Parameters
        ----------
        position, token : int
            Of this step.
        written : Written
            State before the step; not changed.
        more : list of ScheduleError
            Faults of the step that are known already.

        Raises
        ------
        ScheduleError
        """
        faults = [*self.faults, *more]
        values = index_values(self.config, position, token)
        self._addresses(self.indexed, values, faults)
        unwritten_mem(self, written, faults)
        unwritten_constants(self, values, faults)
        unwritten_accumulators(self, written, faults)
        writes = weight_rules.kv_writes(self, position, token)
        weight_rules.conflicts(self, writes, faults)
        weight_rules.unwritten_weights(self, position, token, writes, written, faults)
        weight_rules.unwritten_read_out(self, position, token, writes, written, faults)
        if faults:
            raise min(faults, key=lambda error: (error.cycle, error.fault,
                                                 QUEUES[error.queue].id))

    def check_conflicts(self, position: int, token: int, written: Written = None) -> None:
        """Only the part of `check` that may differ between any two positions of a row."""
        faults = []
        weight_rules.conflicts(self, weight_rules.kv_writes(self, position, token), faults)
        if faults:
            raise min(faults, key=lambda error: error.cycle)

    def advance(self, position: int, token: int, written: Written) -> None:
        """Mark in ``written`` what the step writes."""
        written.mem |= self.writes_mem
        written.accumulators |= self.starts
        written.write_weights(weight_rules.weight_writes(self, position, token))
