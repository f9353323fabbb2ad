"""Emission: decoded and expanded again, the words issue what the schedule says."""
import dataclasses
import itertools
import types

import numpy as np
import pytest

from arch import isa
from arch.config import profile
from arch.image import Image
from arch.isa import END_IF_PROMPT, Instruction
from arch.timing import FIRST_ISSUE, LOOP_WAIT_MIN
from compiler.emit import END_MARGIN, WAIT_MAX, NoTime, _encode, _Entry, _QueueEmitter, emit
from compiler.errors import CapacityError
from compiler.pipeline import _solve
from compiler.schedule import LOOP, Schedule, solve_row
from compiler.tasks import READ, WRITE, N, Program, Task, Touch, affine, make_use
from sim.queue_model import expand_step

TINY = profile("tiny")
#: What an issue is known by, apart from its cycle and address.
PLAIN = ("x", "x0", "x1", "a", "b", "c", "pre", "post", "shift", "half0", "order", "start",
         "accumulator", "b_float", "wide", "mask", "halves", "pattern", "index", "index_shift")


def scheduled(compiled, row, prompt):
    """``(queue, cycle, op, address, j, fields)`` of every issue, from tasks and starts."""
    built, solved, n = compiled.lowered.program, compiled.schedules[row], row + 1
    sections = [(built.prologue, solved.prologue, 0)]
    for layer in range(built.layers):
        sections.append((built.body, [start + layer * solved.period for start in solved.body],
                         layer))
    if not prompt:
        sections.append((built.epilogue, solved.epilogue, 0))
    sections = [(*section, built.strides) for section in sections]
    if not prompt:
        for section, (starts, period) in zip(built.tail, solved.tail):
            sections += [(section.tasks, [start + number * period for start in starts], number,
                          section.strides) for number in range(section.rounds)]
    found = []
    for tasks, starts, layer, strides in sections:
        for task, start in zip(tasks, starts):
            for use in task.uses:
                fields, cycle = use.instruction.fields, start + use.offset(n)
                base = fields.get("address", 0) + layer * strides.get(use.queue, 0)
                plain = tuple(fields.get(name, 0) for name in PLAIN)
                for i in range(use.n2(n)):
                    for j in range(use.n1(n)):
                        address = base + i * fields.get("s2", 0) + j * fields.get("s1", 0)
                        found.append((use.queue, cycle, use.instruction.op, address, j, plain))
                        cycle += use.d1 if j + 1 < use.n1(n) else use.d2
    return sorted(found)


def emitted(compiled, row, prompt):
    """The same from the image, through decoder and issue rule."""
    found = []
    for queue, trace in expand_step(compiled.image, row, prompt).items():
        assert trace.fault is None, trace.fault
        for segment in trace.segments:
            plain = tuple(segment[name] for name in PLAIN)
            addresses = [0] * len(segment.cycle) if segment.address is None else segment.address
            found += [(queue, int(cycle), segment.op, int(address), int(j), plain)
                      for cycle, address, j in zip(segment.cycle, addresses, segment.j)]
    return sorted(found)


@pytest.mark.parametrize("name", ["tiny", "choosy", "untied", "many_heads"])
@pytest.mark.parametrize("prompt", [False, True])
def test_issues_are_those_of_the_schedule(name, prompt, request):
    compiled = request.getfixturevalue(name)
    for row in range(len(compiled.schedules)):
        assert emitted(compiled, row, prompt) == scheduled(compiled, row, prompt)


def test_step_lengths(untied):
    """A step ends `END_MARGIN` behind the last END, or when everything is over."""
    for row, solved in enumerate(untied.schedules):
        for prompt, least in ((False, solved.generate), (True, solved.prompt)):
            ends = [trace.end for trace in expand_step(untied.image, row, prompt).values()]
            length = untied.image.rows[row, 5 if prompt else 4]
            assert length == max(least, max(ends) + END_MARGIN)


def test_rows_hold_the_counts(untied):
    """Each count register grows with the row as some count of a task does."""
    counts = {count for section in ("prologue", "body", "epilogue")
              for task in getattr(untied.lowered.program, section) for use in task.uses
              for count in (use.n1, use.n2) if count.per_n}
    table = untied.image.rows[:, :4].T.tolist()
    expected = [[count(n) for n in range(1, len(untied.schedules) + 1)] for count in counts]
    assert sorted(column for column in table if any(column)) == sorted(expected)


def test_every_word_decodes_to_itself(tiny):
    for queue, words in tiny.image.program.items():
        for word in words:
            assert isa.encode(queue, isa.decode(queue, word, TINY), TINY) == word


def test_params_only_where_rows_differ(tiny):
    for queue, words in tiny.image.program.items():
        used = set()
        for word in words:
            instruction = isa.decode(queue, word, TINY)
            if instruction["wait_param"]:
                used.add(instruction["wait"])
        table = tiny.image.params[queue]
        assert table.shape == (len(tiny.schedules), len(used))
        columns = {tuple(column) for column in table.T}
        assert len(columns) == len(used)
        assert all(len(set(column)) > 1 for column in columns)


# Waits that no field holds.

def waits(entries, row):
    return [(entry.instruction.op, entry.waits[row]) for entry in entries]


def test_long_waits_pass_in_nops():
    emitter = _QueueEmitter(2)
    emitter.issue(Instruction("READ", {}), [3000, 2500], [5, 0])
    assert waits(emitter.entries, 0) == [("NOP", 1023), ("NOP", 954), ("READ", 1023)]
    assert waits(emitter.entries, 1) == [("NOP", 1023), ("NOP", 454), ("READ", 1023)]
    emitter.issue(Instruction("READ", {}), [3006, 2501], [0, 0])
    assert waits(emitter.entries[3:], 0) + waits(emitter.entries[3:], 1) == [("READ", 1)] * 2


def test_a_short_row_passes_little_of_a_nop():
    """The first word of a queue waits for its fetch, others at least one cycle."""
    emitter = _QueueEmitter(2)
    emitter.issue(Instruction("READ", {}), [WAIT_MAX + 1, 7], [0, 0])
    assert waits(emitter.entries, 0) == [("NOP", FIRST_ISSUE), ("READ", WAIT_MAX + 1 - FIRST_ISSUE)]
    assert waits(emitter.entries, 1) == [("NOP", FIRST_ISSUE), ("READ", 3)]
    emitter.issue(Instruction("READ", {}), [2 * WAIT_MAX + 2, 9], [0, 0])
    assert waits(emitter.entries[2:], 0) == [("NOP", 1), ("READ", WAIT_MAX)]
    assert waits(emitter.entries[2:], 1) == [("NOP", 1), ("READ", 1)]
    assert not emitter.room


def test_rows_without_time_for_a_nop_are_told():
    emitter = _QueueEmitter(2)
    emitter.issue(Instruction("READ", {}), [WAIT_MAX + 1, FIRST_ISSUE], [0, 0], "first")
    emitter.issue(Instruction("READ", {}), [2 * WAIT_MAX + 2, FIRST_ISSUE + 1], [0, 0], "second")
    emitter.issue(Instruction("READ", {}), [5 * WAIT_MAX, FIRST_ISSUE + 4], [0, 0], "third")
    # A NOP and the READ; two NOPs and the READ have just enough.
    assert emitter.room == {"first": FIRST_ISSUE + 1, "second": 2}


def test_a_loop_keeps_its_least_wait():
    for wait, room in ((LOOP_WAIT_MIN, {LOOP: LOOP_WAIT_MIN + 1}), (LOOP_WAIT_MIN + 1, {})):
        emitter = _QueueEmitter(2)
        emitter.issue(Instruction("READ", {}), [10, 10], [0, 0])
        emitter.loop(3, 0, None, [WAIT_MAX + 9, wait])
        assert emitter.room == room
    assert waits(emitter.entries[1:], 0) == [("NOP", 9), ("LOOP", WAIT_MAX)]
    assert waits(emitter.entries[1:], 1) == [("NOP", 1), ("LOOP", LOOP_WAIT_MIN)]


def long_row(config):
    """Tasks on one queue that wait 1,100 cycles a tile for others, in row 0 hardly any."""
    def task(name, at, *words):
        touches = tuple(Touch("m0", word, affine(1), mode, begin, begin)
                        for word, mode, begin in words)
        return Task(name, (make_use("const", "READ", at),), touches)
    wait = N * 1100 - 1100
    sections = [(task(f"{part} a", 0, (0, WRITE, wait)), task(f"{part} b", 0, (0, READ, affine(0))))
                for part in ("prologue", "body", "epilogue")]
    return Program(*sections, 3, {})


def test_rows_are_solved_again_until_there_is_time():
    """Every issue on its cycle in both rows, and the least cycles more in the short one."""
    built = long_row(TINY)
    order = ([0, 1],) * 3
    with pytest.raises(NoTime) as caught:
        emit(built, order, [solve_row(built, order, n, TINY) for n in (1, 2)], TINY)
    assert caught.value.room == {(f"{part} b", "const"): 2 for part in ("prologue", "body",
                                                                        "epilogue")}
    lanes = np.zeros((0, TINY.lanes), np.int16)
    lowered = types.SimpleNamespace(program=built, epilogues=(built.epilogue,))
    _, rows, words, params, table = _solve(lowered, order, 2, TINY)
    image = Image(TINY, words, params, table, lanes, lanes,
                  np.zeros((0, TINY.rows, TINY.columns), np.int8))
    made = types.SimpleNamespace(lowered=lowered, schedules=rows, image=image)
    for row, prompt in itertools.product((0, 1), (False, True)):
        assert emitted(made, row, prompt) == scheduled(made, row, prompt)
    assert rows[0].prologue == [FIRST_ISSUE, FIRST_ISSUE + 2]
    assert rows[1].prologue == [FIRST_ISSUE, FIRST_ISSUE + 1100]


def test_waits_within_a_task_cannot_be_moved():
    read = make_use("const", "READ", 0)
    uses = (read, dataclasses.replace(read, offset=N * 1100 - 1099))
    built = Program((Task("stretched", uses, ()),), (), (), 1, {})
    lowered = types.SimpleNamespace(program=built, epilogues=((),))
    with pytest.raises(CapacityError, match="queue 'const' has waits within 'stretched' that no"):
        _solve(lowered, ([0], [], []), 2, TINY)


def test_a_loop_takes_its_nops_along():
    emitter = _QueueEmitter(1)
    emitter.issue(Instruction("READ", {}), [10], [0])
    emitter.loop(3, 0, 7, [2000])
    assert waits(emitter.entries, 0) == [("READ", 10), ("NOP", 977), ("LOOP", 1023)]
    assert emitter.entries[-1].instruction.fields == {"n1": 3, "d1": 2, "s1": 7}


def test_an_unused_queue_ends_at_the_first_issue():
    emitter = _QueueEmitter(3)
    emitter.end(END_IF_PROMPT)
    assert waits(emitter.entries, 2) == [("END", FIRST_ISSUE)]
    assert emitter.last == [FIRST_ISSUE] * 3
    emitter.end(END_IF_PROMPT)
    assert waits(emitter.entries, 0)[1] == ("END", 1)


def test_long_waits_in_every_section():
    """NOPs before, in and behind the layer loop: every issue on its cycle, in every row."""
    read = [make_use("const", "READ", offset, 3, d1=2, address=5, s1=1) for offset in (0, 2500)]
    built = Program((Task("before", (read[0],), ()),), (Task("layer", tuple(read), ()),),
                    (Task("behind", (read[0],), ()),), 3, {"const": 9})
    rows = [Schedule([4], [2000 + more], [21000 + more], 6000 + more, 22100, 20600)
            for more in (0, 35)]
    words, params, table = emit(built, ([0], [0], [0]), rows, TINY)
    lanes = np.zeros((0, TINY.lanes), np.int16)
    image = Image(TINY, words, params, table, lanes, lanes,
                  np.zeros((0, TINY.rows, TINY.columns), np.int8))
    made = types.SimpleNamespace(lowered=types.SimpleNamespace(program=built), schedules=rows,
                                 image=image)
    for row, prompt in itertools.product((0, 1), (False, True)):
        assert emitted(made, row, prompt) == scheduled(made, row, prompt)
    kinds = [isa.decode("const", word, TINY).op for word in words["const"]]
    # The way into the loop has 1992 cycles, the way back 3496: 1991 pass at the beginning of the
    # body in both, behind a NOP that has the wait of the LOOP; 1505 are left for its end. Behind the
    # last round END passes on cycle 2000 + 2 * 6000 + 2504 + 482 + 4, 4010 before the last READ.
    assert kinds == ["READ", "NOP", "NOP", "READ", "NOP", "NOP", "READ", "NOP", "LOOP",
                     "END", "NOP", "NOP", "NOP", "READ", "END"]


def test_the_way_back_delays_nothing_behind_the_loop():
    """A loop whose way back is longer than a wait, and a use right behind its last round."""
    read = make_use("const", "READ", 0)
    built = Program((), (Task("layer", (read,), ()),), (Task("behind", (read,), ()),), 3, {})
    rows = [Schedule([], [3000 + more], [3000 + more + 2 * 2500 + 9], 2500, 9000, 8500)
            for more in (0, 35)]
    words, params, table = emit(built, ([], [0], [0]), rows, TINY)
    lanes = np.zeros((0, TINY.lanes), np.int16)
    image = Image(TINY, words, params, table, lanes, lanes,
                  np.zeros((0, TINY.rows, TINY.columns), np.int8))
    made = types.SimpleNamespace(lowered=types.SimpleNamespace(program=built), schedules=rows,
                                 image=image)
    for row, prompt in itertools.product((0, 1), (False, True)):
        assert emitted(made, row, prompt) == scheduled(made, row, prompt)
    assert len(emitted(made, 1, False)) == 4
    kinds = [isa.decode("const", word, TINY).op for word in words["const"]]
    # All but a wait of 1023 of the 2500 cycles is spent before the READ, in the last round too.
    assert kinds[-7:] == ["NOP", "NOP", "READ", "LOOP", "END", "READ", "END"]


def test_one_round_needs_no_loop():
    read = make_use("const", "READ", 0)
    built = Program((), (Task("layer", (read,), ()),), (), 1, {})
    words, _, _ = emit(built, ([], [0], []), [Schedule([], [5], [], 2500, 9000, 8500)], TINY)
    kinds = [isa.decode("const", word, TINY).op for word in words["const"]]
    assert kinds == ["READ", "END", "END"]


def test_equal_waits_share_a_parameter():
    read = Instruction("READ", {"address": 1})
    entries = [_Entry(read, [4, 4]), _Entry(read, [5, 6]), _Entry(read, [7, 6]),
               _Entry(read, [5, 6])]
    words, table = _encode("const", entries, TINY, 2)
    decoded = [isa.decode("const", word, TINY) for word in words]
    assert [(one["wait_param"], one["wait"]) for one in decoded] == [(0, 4), (1, 0), (1, 1), (1, 0)]
    assert table.tolist() == [[5, 7], [6, 6]]


# What does not fit.

def test_too_many_instructions():
    entries = [_Entry(Instruction("END", {"n1": 1}), [4])] * 65
    with pytest.raises(CapacityError) as caught:
        _encode("const", entries, TINY, 1)
    assert str(caught.value) == ("queue 'const' of profile 'tiny' holds 64 instructions, the "
                                 "program has 65")


def test_too_many_parameters():
    config = TINY.replace(param_columns=2)
    entries = [_Entry(Instruction("END", {"n1": 1}), [4, other]) for other in (5, 6, 7)]
    with pytest.raises(CapacityError) as caught:
        _encode("const", entries, config, 2)
    assert str(caught.value) == ("queue 'const' of profile 'tiny' holds 2 delay parameters, the "
                                 "program has 3")


def test_too_many_count_registers():
    use = make_use("const", "READ", 0)
    uses = tuple(dataclasses.replace(use, n1=N * factor, offset=N * 0 + 20 * factor)
                 for factor in range(1, 6))
    built = Program((Task("many counts", uses, ()),), (), (), 1, {})
    row = Schedule([FIRST_ISSUE], [], [], 1, 200, 200)
    with pytest.raises(CapacityError) as caught:
        emit(built, ([0], [], []), [row], TINY)
    assert str(caught.value) == "the program needs 5 count registers, the machine has 4"
    words, _, table = emit(dataclasses.replace(built, prologue=(
        Task("four counts", uses[:4], ()),)), ([0], [], []), [row], TINY)
    assert table[0].tolist()[:4] == [1, 2, 3, 4]
    read = isa.decode("const", words["const"][3], TINY)
    assert (read["n1_param"], read["n1"]) == (1, 3)


def test_lengths_are_at_least_the_schedule_s():
    built = Program((Task("one", (make_use("const", "READ", 0),), ()),), (), (), 1, {})
    row = Schedule([FIRST_ISSUE], [], [], 1, 90, 80)
    _, _, table = emit(built, ([0], [], []), [row], TINY)
    assert np.array_equal(table, [[0, 0, 0, 0, 90, 80]])
    _, _, table = emit(built, ([0], [], []), [dataclasses.replace(row, generate=1, prompt=1)],
                       TINY)
    # READ on 4, END of prompt steps on 5, END of others on 6.
    assert table.tolist() == [[0, 0, 0, 0, 6 + END_MARGIN, 5 + END_MARGIN]]
