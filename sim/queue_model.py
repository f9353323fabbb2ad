"""What every instruction queue issues in one step: the issue rule of `arch.isa`, expanded.

An instruction that executes becomes one `Segment`: arrays of issue cycles, repeat indices and
addresses. Loops give one segment per round. Nothing here looks at data: the result depends on the
program, the row and the kind of step only.
"""
import dataclasses

import numpy as np

from arch.config import Config
from arch.faults import Fault, ScheduleError
from arch.image import Image
from arch.isa import (COUNT_REGISTERS, END_ALWAYS, END_IF_PROMPT, OP_BITS, Control, Instruction,
                      IsaError, decode, reserved_fields, unit_of)
from arch.timing import FIRST_ISSUE, LOOP_WAIT_MIN

#: Stands for the operation of a word whose opcode is reserved.
RESERVED = "reserved"
_ENDS = (END_ALWAYS, END_IF_PROMPT)


@dataclasses.dataclass(frozen=True)
class Segment:
    """One execution of one instruction.

    Members
    -------
    queue, pc, op : where the instruction stands, and its operation.
    instruction : its fields.
    n1, n2 : counts with registers substituted.
    cycle : int array, [issues]
        Cycles of issue within the step, ascending.
    i, j : int arrays, [issues]
        Outer and inner repeat index.
    address : int array, [issues], or None
        With strides and base, without the run-time index; None if the format has no address.
    """
    queue: str
    pc: int
    op: str
    instruction: Instruction
    n1: int
    n2: int
    cycle: np.ndarray
    i: np.ndarray
    j: np.ndarray
    address: np.ndarray | None

    def __getitem__(self, field):
        return self.instruction[field]

    def indexed(self, values: tuple) -> np.ndarray:
        """Addresses with the run-time index added; ``values`` are those of `arch.isa.Index`."""
        index = self["index"]
        return self.address + (values[index] >> self["index_shift"] if index else 0)


@dataclasses.dataclass(frozen=True)
class QueueTrace:
    """What a queue does in one step.

    Members
    -------
    segments : list of Segment, in order of issue.
    end : int or None
        Cycle on which END takes effect; None if the queue stopped by a fault.
    fault : ScheduleError or None
        What stopped it.
    """
    segments: list
    end: int | None
    fault: ScheduleError | None


class _Stop(Exception):
    """Ends the expansion of a queue; carries the fault."""


class _Queue:
    """State of one queue while it is expanded: program counter, cursor, loop, base."""

    def __init__(self, name: str, image: Image, row: int, prompt: bool, length: int, decoded: list):
        self.name, self.length, self.prompt, self.decoded = name, length, prompt, decoded
        params = image.params.get(name)
        known = params is not None and row < len(params)
        self.params = params[row] if known else ()
        self.param_columns = image.config.param_columns
        self.counts = (image.rows[row] if row < len(image.rows) else [0] * 6)[:COUNT_REGISTERS]
        self.cursor, self.pc, self.base = 0, 0, 0
        self.loop_pc, self.rounds_left = None, 0
        # No instruction yet in this step; the one before was a LOOP; the wait that it leaves.
        self.fresh, self.behind_loop, self.jump_wait = True, False, None
        self.segments = []

    def stop(self, fault: Fault, cycle: int, detail: str):
        raise _Stop(ScheduleError(fault, cycle, self.name, f"instruction {self.pc}: {detail}"))

    def least(self, instruction: Instruction) -> tuple:
        """The shortest legal wait here, and what it comes after."""
        if self.behind_loop or instruction.op == "LOOP":
            return LOOP_WAIT_MIN, "a loop"
        if self.fresh:
            return FIRST_ISSUE, "the barrier"
        return 1, "the previous issue"

    def wait_of(self, instruction: Instruction) -> int:
        """The wait with its delay parameter substituted; 0 where there is none such."""
        wait = instruction["wait"]
        if not instruction["wait_param"]:
            return wait
        return int(self.params[wait]) if wait < len(self.params) else 0

    def schedule(self, instruction: Instruction) -> tuple:
        """Cycle of the first issue, and what is wrong with the wait as `stop` takes it, or None.

        A wait that is too short counts as the shortest legal one.
        """
        (least, after), wait, wrong = self.least(instruction), self.jump_wait, None
        if wait is None:
            wait = self.wait_of(instruction)
            if instruction["wait_param"] and instruction["wait"] >= self.param_columns:
                wrong = Fault.ENCODING, f"there is no delay parameter {instruction['wait']}"
        if wait < least and wrong is None:
            wrong = Fault.UNDERRUN, f"waits {wait} cycles after {after}, {least} needed"
        return self.cursor + max(wait, least), wrong

    def count_of(self, instruction: Instruction, name: str) -> tuple:
        """A count with its register substituted, and what is wrong with it."""
        count = instruction[name]
        if instruction[f"{name}_param"]:
            if count >= COUNT_REGISTERS:
                return 1, (Fault.ENCODING, f"there is no count register {count}")
            count = int(self.counts[count])
        return count, None if count else (Fault.UNDERRUN, f"{name} is 0")

    def check(self, instruction: Instruction, cycle: int, wrong: list) -> tuple:
        """The counts of an operation; of what is wrong with it encodings count first."""
        (n1, inner), (n2, outer) = (self.count_of(instruction, name) for name in ("n1", "n2"))
        wrong = [*wrong, inner, outer]
        if n1 > 1 and instruction["d1"] == 0 or n2 > 1 and instruction["d2"] == 0:
            wrong.append((Fault.UNDERRUN, "a gap of 0 cycles between repeats"))
        self.refuse(cycle, wrong)
        return n1, n2

    def refuse(self, cycle: int, wrong: list) -> None:
        """Stop if there is something wrong; encodings count first."""
        for cause in (Fault.ENCODING, Fault.UNDERRUN):
            for fault, detail in filter(None, wrong):
                if fault == cause:
                    self.stop(fault, cycle, detail)

    def issue(self, instruction: Instruction, cycle: int, counts: tuple) -> None:
        """Expand the repeats into a segment, cut off at the end of the step."""
        (n1, n2), (d1, d2) = counts, (instruction["d1"], instruction["d2"])
        period = (n1 - 1) * d1 + d2
        last = cycle + (n2 - 1) * period + (n1 - 1) * d1
        inner = min(n1, self.length // max(d1, 1) + 1)
        outer = min(n2, self.length // max(period, 1) + 1)
        i, j = (grid.ravel() for grid in np.mgrid[:outer, :inner])
        cycles = cycle + i * period + j * d1
        if last >= self.length:
            inside = cycles < self.length
            i, j, cycles = i[inside], j[inside], cycles[inside]
        address = None
        if "address" in instruction.fields:
            address = (instruction["address"] + self.base + i * instruction["s2"]
                       + j * instruction["s1"])
        if len(cycles):
            self.segments.append(Segment(self.name, self.pc, instruction.op, instruction, n1, n2,
                                         cycles, i, j, address))
        self.cursor = last
        if last >= self.length:
            self.stop(Fault.LENGTH, self.length - 1,
                      f"issues on cycle {last} of a step of {self.length} cycles")

    def loop(self, instruction: Instruction) -> None:
        """Go back or go on. The LOOP itself takes no time."""
        cycle, wrong = self.schedule(instruction)
        (rounds, count), body = self.count_of(instruction, "n1"), instruction["d1"]
        empty = None if body else (Fault.UNDERRUN, "a loop over 0 instructions")
        # A wait that is too short does no harm before there is a jump.
        self.refuse(cycle, [count, empty,
                            wrong if wrong and wrong[0] == Fault.ENCODING else None])
        if self.loop_pc != self.pc:
            if any(inner.op == "LOOP" for inner in self.decoded[max(0, self.pc - body):self.pc]):
                self.stop(Fault.ENCODING, cycle, "loops do not nest")
            self.loop_pc, self.rounds_left = self.pc, rounds - 1
        self.behind_loop, self.jump_wait = True, None
        if self.rounds_left:
            if body > self.pc:
                self.stop(Fault.ENCODING, cycle, f"loops over {body} instructions, there are only "
                          f"{self.pc} before it")
            self.rounds_left -= 1
            self.base += instruction["s1"]
            # The first instruction of the body has the wait of the LOOP.
            self.jump_wait = self.wait_of(instruction)
            self.pc -= body
        else:
            self.loop_pc, self.base = None, 0
            self.pc += 1

    def run(self) -> int:
        """Execute to END; returns its cycle."""
        while True:
            instruction = (self.decoded[self.pc] if self.pc < len(self.decoded)
                           else Instruction(RESERVED, {}))
            if instruction.op == "LOOP":
                self.loop(instruction)
                continue
            cycle, wrong = self.schedule(instruction)
            if instruction.op == RESERVED:
                # Reserved opcodes include 0, hence a word that was never written.
                self.stop(Fault.ENCODING, cycle,
                          "no such operation" if self.pc < len(self.decoded)
                          else "the program has no END here")
            if instruction.op == "END":
                if instruction["n1"] not in _ENDS or instruction["n1_param"]:
                    self.stop(Fault.ENCODING, cycle, f"END must have n1 1 or 2, not "
                              f"{instruction['n1']}")
                self.refuse(cycle, [wrong])
                if cycle >= self.length:
                    self.stop(Fault.LENGTH, self.length - 1,
                              f"ends on cycle {cycle} of a step of {self.length} cycles")
                if instruction["n1"] == END_ALWAYS or self.prompt:
                    return cycle
                self.cursor = cycle
            elif instruction.op == "NOP":
                self.refuse(cycle, [wrong])
                self.cursor = cycle
                if cycle >= self.length:
                    self.stop(Fault.LENGTH, self.length - 1,
                              f"waits until cycle {cycle} of a step of {self.length} cycles")
            else:
                self.issue(instruction, cycle, self.check(instruction, cycle, [wrong]))
            self.fresh = self.behind_loop = False
            self.jump_wait = None
            self.pc += 1


def decode_program(image: Image, queue: str) -> list:
    """Instructions of a queue; the operation is `RESERVED` where there is none of the opcode, or
    where a reserved field is not 0."""
    decoded, reserved = [], reserved_fields(unit_of(queue))
    for word in image.program.get(queue, ()):
        try:
            instruction = decode(queue, int(word), image.config)
            if instruction.op not in Control.__members__ and any(map(instruction.__getitem__,
                                                                      reserved)):
                instruction = Instruction(RESERVED, instruction.fields)
            decoded.append(instruction)
        except IsaError:
            # The control fields mean the same under any opcode.
            known = decode(queue, int(word) >> OP_BITS << OP_BITS | Control.NOP, image.config)
            decoded.append(Instruction(RESERVED, known.fields))
    return decoded


def expand_queue(image: Image, queue: str, row: int, prompt: bool, decoded: list = None):
    """What ``queue`` does in a step of ``row``.

    Parameters
    ----------
    prompt : bool
        Whether it is a prompt step.
    decoded : list of Instruction
        Result of `decode_program`, to save time over many steps.

    Returns
    -------
    QueueTrace
    """
    unit_of(queue)
    length = step_length(image, row, prompt)
    decoded = decode_program(image, queue) if decoded is None else decoded
    state = _Queue(queue, image, row, prompt, length, decoded)
    try:
        end = state.run()
    except _Stop as stop:
        return QueueTrace(state.segments, None, stop.args[0])
    return QueueTrace(state.segments, end, None)


def step_length(image: Image, row: int, prompt: bool) -> int:
    """Cycles of a step of ``row``; 0 if the image has no such row."""
    return int(image.rows[row][5 if prompt else 4]) if row < len(image.rows) else 0


def expand_step(image: Image, row: int, prompt: bool, decoded: dict = None) -> dict:
    """Queue name to `QueueTrace` for all queues of the machine."""
    decoded = decoded or {}
    return {queue: expand_queue(image, queue, row, prompt, decoded.get(queue))
            for queue in image.config.queues}


def index_values(config: Config, position: int, token: int) -> tuple:
    """Value of each `arch.isa.Index`; the reserved one counts as none."""
    return (0, position, token, 0)
