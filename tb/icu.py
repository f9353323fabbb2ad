"""What the benches of the instruction queues share: loading, steps, random programs."""
import collections
import dataclasses

import numpy as np

from arch.faults import Fault
from arch.hostmap import Space, program_address
from arch.image import Image
from arch.isa import COUNT_REGISTERS, Instruction, encode, layout, op_code, reserved_fields, unit_of, word_bits
from arch.queues import QUEUES
from hdl.signatures import IssueSignature
from sim.queue_model import expand_queue, index_values
from tb.bench import Bench
from tb.checker import Mismatch
from tb.hostbus import HostBus
from tb.monitors import number
from tb.top import CONFIG

#: Rows of delay parameters: a queue holds two.
ROWS, COLUMNS = 2, CONFIG.param_columns
#: What the memories of the queues hold, by queue: they outlive a reset.
_PROGRAM = collections.defaultdict(dict)
_PARAMS = collections.defaultdict(lambda: np.zeros((ROWS, COLUMNS), np.int64))


@dataclasses.dataclass(frozen=True)
class Step:
    """What the sequencer says of a step. ``length`` None: one to five cycles more than needed."""
    row: int = 0
    prompt: bool = False
    counts: tuple = (1, 1, 1, 1)
    position: int = 0
    token: int = 0
    length: int | None = None


class LevelMonitor:
    """Compares a port with its level on every cycle: high on the cycles in ``high``, else low."""

    def __init__(self, handle):
        self._handle, self.high = handle, set()

    def sample(self, cycle: int) -> None:
        if number(self._handle, cycle) != (cycle in self.high):
            raise Mismatch(f"{self._handle._name}: cycle {cycle}: not {int(cycle in self.high)}")


class IcuBench(Bench):
    """One queue; programs are loaded by its bus. Its cycles are those of the bench: it restarts one
    cycle before the sequencer has a barrier, so that the settings of a step come on its cycle 1."""

    def __init__(self, dut, queue):
        super().__init__(dut, f"icu_{queue}")
        self.queue, self.unit = queue, unit_of(queue)
        self.host = HostBus(self)
        members = IssueSignature(self.unit.name, self.config).members
        self._widths = {name: member.shape for name, member in members.items()}
        self.issues = self.add_ports(*(f"issue__{name}" for name in members))
        self.faults = self.add_faults("fault")
        self.ended = LevelMonitor(self.port("ended"))
        self.monitors.append(self.ended)
        for name in ("restart", "stop", "half", "counts", "prompt", "position", "token",
                     "load__queue", "load__half", "load__column", "load__value"):
            self.driver.set(0, self.port(name), 0)
        self.driver.set(0, self.port("host__w_en"), 0)
        self.driver.set(0, self.port("host__r_en"), 0)

    async def load(self, program, params=None):
        """Write what differs from what is there.

        Parameters
        ----------
        program : list of Instruction or int
            From word 0 on; the words behind keep what they had.
        params : int array, [rows, columns], or None
        """
        held, chunks = _PROGRAM[self.queue], -(-word_bits(self.unit, CONFIG) // 16)
        queue_id = QUEUES[self.queue].id
        for pc, entry in enumerate(program):
            word = entry if isinstance(entry, int) else encode(self.queue, entry, CONFIG)
            if held.get(pc, 0) == word:
                continue
            for chunk in range(chunks):
                await self.host.write(Space.PROGRAM, program_address(queue_id, pc, chunk),
                                      word >> 16 * chunk)
            held[pc] = word
        if params is not None:
            at = self.cycle + 3
            for row, column in np.argwhere(_PARAMS[self.queue] != params).tolist():
                for name, value in (("queue", 1 << queue_id), ("half", row), ("column", column),
                                    ("value", int(params[row, column]))):
                    self.driver.set(at, self.port(f"load__{name}"), value)
                at += 1
            self.driver.set(at, self.port("load__queue"), 0)
            await self.until(at + 1)
            _PARAMS[self.queue] = params.copy()

    def image(self, step, length) -> Image:
        """The queue's memories, for the model."""
        words = [_PROGRAM[self.queue].get(pc, 0) for pc in range(CONFIG.depth_of(self.queue))]
        rows = np.array([[*step.counts, length, length]] * ROWS)
        none = np.zeros((0, CONFIG.lanes), np.int64)
        return Image(CONFIG, {self.queue: words}, {self.queue: _PARAMS[self.queue]}, rows, none,
                     none, np.zeros((0, CONFIG.rows, CONFIG.columns), np.int64))

    def _schedule(self, step, barrier):
        """One step behind a restart on the cycle ``barrier``; returns the cycle of the next one."""
        length = step.length
        if length is None:
            length = 1 + expand_queue(self.image(step, 60_000), self.queue, step.row,
                                      step.prompt).end + barrier % 5
        trace = expand_queue(self.image(step, length), self.queue, step.row, step.prompt)
        counts = sum(count << 9 * place for place, count in enumerate(step.counts))
        self.driver.pulse(barrier, self.port("restart"), 1, 0)
        for name, value in (("half", step.row), ("counts", counts), ("prompt", int(step.prompt)),
                            ("position", step.position), ("token", step.token)):
            self.driver.set(barrier + 2, self.port(name), value)
        for segment in trace.segments:
            address = (segment.indexed(index_values(CONFIG, step.position, step.token))
                       if segment.address is not None else segment.cycle)
            for cycle, i, j, word in zip(segment.cycle, segment.i, segment.j, address):
                self.issues.expect(barrier + 1 + cycle, self.members(
                    segment.instruction, int(i), int(j), segment.n2, segment.n1, int(word)))
        if trace.end is not None:
            self.ended.high.update(range(barrier + 1 + trace.end, barrier + length + 1))
        elif trace.fault.fault != Fault.LENGTH and trace.fault.cycle < length:
            # A step that is too short is seen by the sequencer, not by the queue.
            self.faults.expect(barrier + 1 + trace.fault.cycle, {trace.fault.fault})
        return barrier + length

    def members(self, instruction, i=0, j=0, n2=1, n1=1, address=0) -> dict:
        """All members of the issue port for one issue of an instruction."""
        flags = {"i_first": i == 0, "i_last": i == n2 - 1, "j_first": j == 0, "j_last": j == n1 - 1}
        values = instruction.fields | flags | {"valid": 1, "i": i, "j": j, "address": address,
                                               "op": op_code(self.unit, instruction.op)}
        return {f"issue__{name}": int(values.get(name, 0)) & (1 << width) - 1
                for name, width in self._widths.items()}

    async def steps(self, steps, stop_with_restart=True):
        """Run steps one behind the other, then stop: on the last cycle of the last one, or as the
        sequencer does it, two cycles behind a restart."""
        at = self.cycle + 3
        for step in steps:
            at = self._schedule(step, at)
        if stop_with_restart:
            self.driver.pulse(at, self.port("restart"), 1, 0)
        self.driver.pulse(at + 2 * stop_with_restart, self.port("stop"), 1, 0)
        await self.until(at + 12)


def random_program(queue, rng) -> list:
    """A legal program of up to 20 words, dense in time, with every feature of the format."""
    fields_of, reserved = layout(unit_of(queue), CONFIG), reserved_fields(unit_of(queue))

    def chance(probability):
        return rng.random() < probability

    def waiting(least):
        if chance(0.3):
            return {"wait_param": 1, "wait": int(rng.integers(8)) + 8 * (least > 1)}
        return {"wait": least + int(rng.choice([0, 0, 0, 1, 6]))}

    def operation(least):
        if chance(0.12):
            return Instruction("NOP", waiting(least))
        fields = {}
        for name, (_, width, signed) in fields_of.items():
            if name.startswith(("op", "wait", "n1", "n2", "d1", "d2")) or name in reserved:
                continue
            low = -(1 << width - 1) if signed else 0
            fields[name] = int(rng.integers(low, low + (3 if name == "index" else 1 << width)))
        for count, gap in (("n1", "d1"), ("n2", "d2")):
            if gap in fields_of and chance(0.6):
                fields |= {count: int(rng.integers(1, 5)), gap: int(rng.choice([1, 1, 2, 9]))}
                if chance(0.4):
                    fields |= {count: int(rng.integers(COUNT_REGISTERS)), f"{count}_param": 1}
        return Instruction(str(rng.choice([op.name for op in unit_of(queue).ops])),
                           fields | waiting(least))
    program = [operation(4)]
    while len(program) < 14:
        least = 4 if program[-1].op == "LOOP" else 1
        if chance(0.1):
            program.append(Instruction("END", {"n1": 2} | waiting(least)))
        elif chance(0.35):
            body = [operation(least), *(operation(1) for _ in range(rng.integers(0, 3)))]
            fields = {"n1": int(rng.integers(1, 5)), "d1": len(body)} | waiting(4)
            if chance(0.4):
                fields |= {"n1": int(rng.integers(COUNT_REGISTERS)), "n1_param": 1}
            if "s1" in fields_of:
                fields["s1"] = int(rng.integers(-5, 6))
            program += [*body, Instruction("LOOP", fields)]
        else:
            program.append(operation(least))
    return program + [Instruction("END", {"n1": 1} | waiting(4))]


def random_params(rng):
    """Parameters for `random_program`, [rows, columns]: columns 8 to 15 are long enough for the first issue."""
    params = np.zeros((ROWS, COLUMNS), np.int64)
    params[:, :8], params[:, 8:16] = rng.integers(1, 8, (ROWS, 8)), rng.integers(4, 10, (ROWS, 8))
    return params


def random_step(rng, length=None, least=1) -> Step:
    """A step; its count registers are ``least`` to 3."""
    return Step(int(rng.integers(ROWS)), bool(rng.random() < 0.4),
                tuple(rng.integers(least, 4, COUNT_REGISTERS).tolist()),
                int(rng.integers(CONFIG.context)), int(rng.integers(CONFIG.vocab_max)), length)
