"""Schedules to instruction words, delay parameters and rows."""
import dataclasses

import numpy as np

from arch import isa
from arch.config import Config
from arch.isa import END_ALWAYS, END_IF_PROMPT, WAIT_BITS, Instruction
from arch.queues import QUEUES
from arch.timing import FIRST_ISSUE, LOOP_WAIT_MIN, step_minimum
from compiler.errors import CapacityError
from compiler.schedule import LOOP
from compiler.tasks import Affine, Program, Section, Use

#: Cycles of a step behind the last END, for the queue to have seen it.
END_MARGIN = 4
#: Longest wait of one instruction; longer ones pass in a NOP.
WAIT_MAX = (1 << WAIT_BITS) - 1


class NoTime(Exception):
    """Some rows leave a queue no cycles for the NOPs that other rows need.

    Members
    -------
    room : dict of (str, str) to int
        By task (`LOOP` for the way back of a loop) and queue: the least cycles, in every row, from
        the last issue before the first of that task. `compiler.schedule` keeps them free.
    """

    def __init__(self, room: dict):
        super().__init__(room)
        self.room = room


@dataclasses.dataclass
class _Entry:
    """An instruction and its wait in every row."""
    instruction: Instruction
    waits: list


def _count_field(name: str, count: Affine, registers: list) -> dict:
    """Field values of a count: immediate, or a count register that holds it."""
    if not count.per_n:
        return {name: count.base}
    if count not in registers:
        registers.append(count)
    return {f"{name}_param": 1, name: registers.index(count)}


def _instruction(use: Use, registers: list) -> Instruction:
    unit = isa.unit_of(use.queue)
    fields = dict(use.instruction.fields)
    for name in ("n1", "n2"):
        if unit.field(name):
            fields |= _count_field(name, getattr(use, name), registers)
        else:
            assert getattr(use, name) == Affine(1), f"{use.queue} has no {name}"
    for name in ("d1", "d2"):
        value = getattr(use, name)
        if unit.field(name):
            fields[name] = value
    return Instruction(use.instruction.op, fields)


def _uses_in_order(tasks, order, queue):
    for index in order:
        own = sorted((use for use in tasks[index].uses if use.queue == queue),
                     key=lambda use: use.offset(1))
        yield from ((index, use) for use in own)


class _QueueEmitter:
    """Builds the entries of one queue over all rows.

    ``room`` collects what the rows lack, as in `NoTime`, by the name of the task.
    """

    def __init__(self, rows: int):
        self.entries, self.last, self.room = [], [0] * rows, {}

    def issue(self, instruction, first, span, task: str = ""):
        """Add an instruction that first issues on ``first[row]``, last ``span[row]`` later."""
        waits = [now - before for now, before in zip(first, self.last)]
        self.settle(waits, task)
        self.entries.append(_Entry(instruction, waits))
        self.last = [now + more for now, more in zip(first, span)]

    def settle(self, waits, task: str = "", least: int = 1):
        """Move what a wait cannot hold into NOPs; ``least`` cycles of each wait stay."""
        nops = max(0, -(-max(waits) // WAIT_MAX) - 1)
        first = 1 if self.entries else FIRST_ISSUE
        needed = first + nops - 1 + least if nops else max(first, least)
        if min(waits) < needed:
            self.room[task] = max(needed, self.room.get(task, 0))
            waits[:] = [max(wait, needed) for wait in waits]
        for _ in range(nops):
            # As much as leaves a wait for the instruction behind, in every row.
            part = [max(first, min(WAIT_MAX, wait - WAIT_MAX)) for wait in waits]
            self.entries.append(_Entry(Instruction("NOP", {}), part))
            for row, spent in enumerate(part):
                waits[row] -= spent
                self.last[row] += spent
            first = 1

    def end(self, condition):
        """Add an END; where it does not apply, it passes time like a NOP."""
        wait = 1 if self.entries else FIRST_ISSUE
        if self.entries and self.entries[-1].instruction.op == "LOOP":
            wait = LOOP_WAIT_MIN
        self.entries.append(_Entry(Instruction("END", {"n1": condition}), [wait] * len(self.last)))
        self.last = [last + wait for last in self.last]

    def loop(self, count, begin, stride, waits):
        """Close a loop over the entries from ``begin`` on."""
        self.settle(waits, LOOP, LOOP_WAIT_MIN)
        fields = {"n1": count, "d1": len(self.entries) - begin}
        if stride is not None:
            fields["s1"] = stride
        self.entries.append(_Entry(Instruction("LOOP", fields), waits))


def emit(program: Program, order: tuple, rows: list, config: Config) -> tuple:
    """Instruction words by queue, parameters by queue, and the row table.

    Returns
    -------
    words : dict of str to list of int
    params : dict of str to int array, [rows, columns]
    table : int array, [rows, 6]

    Raises
    ------
    CapacityError
        If a queue's program or parameters exceed their memory.
    NoTime
        If the rows are to be solved again with more room.
    """
    registers, words, params, room = [], {}, {}, {}
    lengths = np.array([[row.generate, row.prompt] for row in rows], np.int64)
    if len(rows) > 2:
        # While the steps of a row run, the delay parameters of the next one are loaded.
        lengths = np.maximum(lengths, step_minimum(config))
    table_rows = range(len(rows))
    for queue in config.queues:
        emitter = _QueueEmitter(len(rows))
        _section(emitter, program.prologue, order[0], queue, registers,
                 [row.prologue for row in rows])
        _looped(emitter, Section(program.body, program.layers, program.strides), order[1], queue,
                registers, [(row.body, row.period) for row in rows])
        emitter.end(END_IF_PROMPT)
        lengths[:, 1] = np.maximum(lengths[:, 1], np.add(emitter.last, END_MARGIN))
        _section(emitter, program.epilogue, order[2], queue, registers,
                 [row.epilogue for row in rows])
        for number, section in enumerate(program.tail):
            _looped(emitter, section, order[3 + number], queue, registers,
                    [row.tail[number] for row in rows])
        emitter.end(END_ALWAYS)
        lengths[:, 0] = np.maximum(lengths[:, 0], np.add(emitter.last, END_MARGIN))
        room |= {(task, queue): least for task, least in emitter.room.items()}
        if not room:
            words[queue], params[queue] = _encode(queue, emitter.entries, config, len(rows))
    if room:
        raise NoTime(room)
    if len(registers) > isa.COUNT_REGISTERS:
        raise CapacityError(f"the program needs {len(registers)} count registers, "
                         f"the machine has {isa.COUNT_REGISTERS}")
    table = np.zeros((len(rows), 6), np.int64)
    for r in table_rows:
        for number, count in enumerate(registers):
            table[r, number] = count(r + 1)
    table[:, 4:] = lengths
    return words, params, table


def _section(emitter, tasks, order, queue, registers, starts):
    for index, use in _uses_in_order(tasks, order, queue):
        rows = range(len(starts))
        emitter.issue(_instruction(use, registers),
                      [starts[r][index] + use.offset(r + 1) for r in rows],
                      [use.span(r + 1) for r in rows], tasks[index].name)


def _looped(emitter, section, order, queue, registers, times):
    """A section in a loop; ``times`` has its starts and its period in every row."""
    uses = list(_uses_in_order(section.tasks, order, queue))
    if not uses:
        return
    starts = [row_starts for row_starts, _ in times]
    if section.rounds == 1:
        _section(emitter, section.tasks, order, queue, registers, starts)
        return
    (index, first_use), (last_index, last_use) = uses[0], uses[-1]
    rows = range(1, len(times) + 1)
    firsts = [row[index] + first_use.offset(r) for row, r in zip(starts, rows)]
    lasts = [row[last_index] + last_use.offset(r) + last_use.span(r)
             for row, r in zip(starts, rows)]
    back = [first + period - last for first, (_, period), last in zip(firsts, times, lasts)]
    # The NOPs of the way into the loop stay outside, but for what the way back needs: NOPs at the
    # end of the body would delay what follows the last round.
    way_in = [first - last for first, last in zip(firsts, emitter.last)]
    shared = _shared_way(way_in, back, 1 if emitter.entries else FIRST_ISSUE)
    alone = [way - part for way, part in zip(way_in, shared)]
    emitter.settle(alone, section.tasks[index].name)
    begin = len(emitter.entries)
    if any(shared):
        emitter.entries.append(_Entry(Instruction("NOP", {}), alone))
        emitter.last = [last + wait for last, wait in zip(emitter.last, alone)]
    _section(emitter, section.tasks, order, queue, registers, starts)
    emitter.loop(section.rounds, begin, section.strides.get(queue),
                 [way - part for way, part in zip(back, shared)])
    emitter.last = [last + period * (section.rounds - 1)
                    for last, (_, period) in zip(emitter.last, times)]


def _shared_way(way_in: list, back: list, least: int) -> list:
    """Cycles in every row that the way into a loop and the way back pass in the same NOPs.

    They stand behind a NOP at the beginning of the body whose wait, at least ``least`` on the way
    in, is that of the LOOP on the way back. All 0 where a LOOP can wait for the whole way back.
    """
    wanted = max(back) - WAIT_MAX
    if wanted <= 0:
        return [0] * len(back)
    shared = [min(wanted, into - least, way - LOOP_WAIT_MIN) for into, way in zip(way_in, back)]
    return shared if min(shared) >= 1 else [0] * len(back)


def _encode(queue, entries, config, rows):
    """Words and the table of delay parameters; equal columns are shared."""
    words, columns = [], []
    for entry in entries:
        fields = dict(entry.instruction.fields)
        waits = tuple(entry.waits)
        if len(set(waits)) == 1:
            fields["wait"] = waits[0]
        else:
            if waits not in columns:
                columns.append(waits)
            fields |= {"wait_param": 1, "wait": columns.index(waits)}
        words.append(isa.encode(queue, Instruction(entry.instruction.op, fields), config))
    if len(words) > config.depth_of(queue):
        raise CapacityError(f"queue {queue!r} of profile {config.name!r} holds "
                         f"{config.depth_of(queue)} instructions, the program has {len(words)}")
    if len(columns) > config.param_columns:
        raise CapacityError(f"queue {queue!r} of profile {config.name!r} holds "
                         f"{config.param_columns} delay parameters, the program has "
                         f"{len(columns)}")
    assert queue in QUEUES
    return words, np.array(columns, np.int64).reshape(-1, rows).T
