"""The scheduler: hand-made programs, and every pair of accesses of compiled ones."""
import itertools

import pytest

from arch.config import profile
from arch.queues import Stream
from arch.timing import FIRST_ISSUE, LOOP_WAIT_MIN, timing
from compiler.schedule import orders, schedule, solve_row
from compiler.tasks import ADD, READ, WRITE, N, Program, Task, Touch, affine, make_use

TINY = profile("tiny")


def task(name, uses, *touches):
    """Uses ``(queue, op, offset[, n1])``, touches ``(word, mode, begin[, count])`` of one space."""
    built = [make_use(queue, op, offset, *count) for queue, op, offset, *count in uses]
    return Task(name, tuple(built), tuple(
        Touch("m0", word, affine(count[0] if count else 1), mode, affine(begin), affine(begin))
        for word, mode, begin, *count in touches))


def program(body, prologue=None, epilogue=None, layers=1):
    idle = task("idle", [("perm", "PERM", 0)])
    return Program(tuple(prologue or [idle]), tuple(body), tuple(epilogue or [idle]), layers, {})


def body_starts(body, n=1, order=None):
    built = program(body)
    order = ([0], order or list(range(len(body))), [0])
    return solve_row(built, order, n, TINY)


# Hand-made bodies. FIRST_ISSUE is the start of a task that waits for nothing.

def test_a_read_waits_for_the_write():
    solved = body_starts([task("write", [("w0", "WRITE", 0)], (5, WRITE, 3)),
                          task("read", [("r0", "READ", 1)], (5, READ, 1))])
    # Seen from cycle 3 of the first task on; the second reads on its cycle 1.
    assert [start - solved.body[0] for start in solved.body] == [0, 2]


def test_a_write_waits_for_the_read_and_the_write_before():
    reader = task("read", [("r0", "READ", 0)], (5, READ, 7))
    solved = body_starts([task("write", [("w0", "WRITE", 0)], (5, WRITE, 3)), reader,
                          task("again", [("w1", "WRITE", 0)], (5, WRITE, 2))])
    # The read starts at once and is on its word on cycle 7, so the write lands on cycle 8.
    assert [start - solved.body[0] for start in solved.body] == [0, 0, 6]
    solved = body_starts([task("write", [("w0", "WRITE", 0)], (5, WRITE, 9)),
                          task("again", [("w1", "WRITE", 0)], (5, WRITE, 2))])
    assert [start - solved.body[0] for start in solved.body] == [0, 8]


def test_a_write_waits_for_the_end_of_a_long_write():
    long = Touch("m0", 5, affine(1), WRITE, affine(3), affine(20))
    first = Task("long", (make_use("w0", "WRITE", 0),), (long,))
    starts = body_starts([first, task("again", [("w1", "WRITE", 0)], (5, WRITE, 2))]).body
    assert starts[1] - starts[0] == 20 + 1 - 2


def test_additions_do_not_wait_for_each_other():
    tasks = [task("first", [("w0", "WRITE", 0)], (5, WRITE, 4)),
             task("more", [("w1", "WRITE", 0)], (5, ADD, 4)),
             task("most", [("w2", "WRITE", 0)], (5, ADD, 20)),
             task("less", [("w3", "WRITE", 0)], (5, ADD, 4)),
             task("read", [("r0", "READ", 0)], (5, READ, 0))]
    starts = body_starts(tasks).body
    # Additions begin behind the write's begin; the reader sees all of them.
    assert [start - starts[0] for start in starts] == [0, 1, 0, 1, 20]


def test_queues_issue_once_a_cycle_and_in_order():
    tasks = [task("long", [("vxm", "MAC", 2, 10)]), task("short", [("vxm", "MAC", 0)])]
    starts = body_starts(tasks).body
    # The first issues on its cycles 2 to 11.
    assert starts[1] - starts[0] == 12
    # In the other order the long one's first issue follows one cycle later; both start at once.
    starts = body_starts(tasks, order=[1, 0]).body
    assert starts[0] == starts[1]


def test_the_reducer_has_one_output():
    times = timing(TINY)
    tasks = [task("slow", [("red", "RECIP", 0)]), task("fast", [("red", "SUM", 0)])]
    starts = body_starts(tasks).body
    # Queues alone would allow one cycle; the results must come in order, one cycle apart.
    assert starts[1] - starts[0] == times.reduce_function - times.reduce + 1


def test_period_of_a_loop():
    # One queue, issues on cycles 0 and 7: the next round follows after LOOP_WAIT_MIN.
    tasks = [task("a", [("vxm", "MAC", 0)]), task("b", [("vxm", "MAC", 7)])]
    assert body_starts(tasks).period == 7 + LOOP_WAIT_MIN
    # A word carried from round to round: written late, read early.
    tasks = [task("read", [("r0", "READ", 0)], (1, READ, 0)),
             task("write", [("w0", "WRITE", 0)], (1, WRITE, 30))]
    assert body_starts(tasks).period == 30
    # And one that is read late, written early by the next round.
    tasks = [task("write", [("w0", "WRITE", 0)], (1, WRITE, 3)),
             task("read", [("r0", "READ", 0)], (1, READ, 41))]
    assert body_starts(tasks).period == 41 + 1 - 3
    # The reducer's results of two rounds stay in order: the slow one, issued a cycle behind the
    # fast one, arrives on cycle 1 + 11; that of the next round must be later, with a delay of 6.
    times = timing(TINY)
    assert (times.reduce, times.reduce_function) == (6, 11)
    tasks = [task("fast", [("red", "SUM", 0)]), task("slow", [("red", "RECIP", 0)])]
    assert body_starts(tasks).period == 1 + 11 + 1 - 6


def test_sections_follow_each_other():
    prologue = [task("load", [("w0", "WRITE", 0)], (0, WRITE, 10))]
    body = [task("step", [("r0", "READ", 0), ("w0", "WRITE", 2)], (0, READ, 0), (0, WRITE, 12))]
    epilogue = [task("out", [("r0", "READ", 0)], (0, READ, 0))]
    built = program(body, prologue, epilogue, layers=3)
    solved = solve_row(built, ([0], [0], [0]), 1, TINY)
    assert solved.prologue == [FIRST_ISSUE]
    assert solved.body == [FIRST_ISSUE + 10]
    assert solved.period == 12
    assert solved.epilogue == [FIRST_ISSUE + 10 + 3 * 12]
    # A step lasts until what was begun last is over: the last write of the last layer in a prompt
    # step, one more for the cycle itself.
    assert solved.prompt == FIRST_ISSUE + 10 + 2 * 12 + 12 + 1
    assert solved.generate == solved.epilogue[0] + 1


def test_epilogue_leaves_room_for_loop_and_end():
    """A queue passes the END of prompt steps before its epilogue, one that looped refills too."""
    assert LOOP_WAIT_MIN == 4
    body = [task("step", [("vxm", "MAC", 0)])]
    epilogue = [task("same", [("vxm", "MAC", 0)]), task("other", [("red", "SUM", 0)])]
    for layers, same in ((1, FIRST_ISSUE + 2), (2, FIRST_ISSUE + 4 + 4 + 1)):
        built = program(body, epilogue=epilogue, layers=layers)
        solved = solve_row(built, ([0], [0], [0, 1]), 1, TINY)
        assert solved.epilogue == [same, FIRST_ISSUE + 1]


def test_a_generate_step_lasts_until_the_token():
    epilogue = [task("pick", [("sample", "ARGMAX", 0)])]
    solved = solve_row(program([task("step", [("vxm", "MAC", 0)])], epilogue=epilogue),
                       ([0], [0], [0]), 1, TINY)
    assert solved.generate == solved.epilogue[0] + timing(TINY).sample + 1
    assert solved.prompt == FIRST_ISSUE + 1


def test_an_order_holds_for_longer_rows():
    """A word that only long rows touch orders the tasks of short rows as well."""
    body = [task("fill", [("w0", "WRITE", 0)], (1, WRITE, 1)),
            task("slow", [("perm", "PERM", 0)], (9, WRITE, 50)),
            task("use", [("r0", "READ", 0)], (1, READ, 0), (9, READ, 0)),
            task("grow", [("w0", "WRITE", 0, N)], (0, WRITE, 1, N))]
    order = orders(program(body), TINY, rows=4)[1]
    # In row 1 "grow" needs word 0 only and could go first; from row 2 on it would spoil word 1.
    assert order.index(2) < order.index(3)
    for tries in (0, 50):
        _, rows = schedule(program(body), TINY, 4, tries)
        for n, row in enumerate(rows, 1):
            check_accesses(program(body), row, n)


def test_orders_prefer_the_shorter_schedule():
    """Of two independent chains the longer one goes first, where the length counts."""
    chain = [task("short", [("vxm", "MAC", 0, 8)], (0, WRITE, 8)),
             task("long", [("vxm", "MAC", 0, 8)], (1, WRITE, 8)),
             task("end", [("perm", "PERM", 0, 40)], (1, READ, 0))]
    body = task("body", [("w0", "WRITE", 0)], (9, WRITE, 1))
    order = orders(program([body], chain), TINY, rows=1)[0]
    assert order.index(1) < order.index(0)


# Compiled models: all pairs, unrolled.

def unrolled(built, row):
    """``(task, start, section)`` of a whole generate step, in the order of the program."""
    found = [(task, start, "prologue") for task, start in zip(built.prologue, row.prologue)]
    for layer in range(built.layers):
        found += [(task, start + layer * row.period, f"layer {layer}")
                  for task, start in zip(built.body, row.body)]
    found += [(task, start, "epilogue") for task, start in zip(built.epilogue, row.epilogue)]
    for number, (section, (starts, period)) in enumerate(zip(built.tail, row.tail)):
        for round_ in range(section.rounds):
            found += [(task, start + round_ * period, f"tail {number}, round {round_}")
                      for task, start in zip(section.tasks, starts)]
    return found


def check_accesses(built, row, n):
    """Compare each access of each word with the earlier ones of the program, pair by pair."""
    history, pairs = {}, 0
    for task, start, section in unrolled(built, row):
        fresh = []
        for touch in task.touches:
            for word, begin, end in touch.each(n):
                begin, end = start + begin, start + end
                for other, mode, first, last in history.get(word, ()):
                    where = f"row {n}, {section}: {other}, then {task.name}, {word}"
                    if touch.mode == READ and mode != READ:
                        assert begin >= last, where
                    elif touch.mode != READ and mode == READ:
                        assert begin > last, where
                    elif touch.mode == WRITE:
                        assert mode == READ or begin > last, where
                    elif touch.mode == ADD and mode == WRITE:
                        assert begin > first, where
                    pairs += 1
                fresh.append((word, (task.name, touch.mode, begin, end)))
        for word, access in fresh:
            history.setdefault(word, []).append(access)
    return pairs


def issues(built, row, n):
    """Queue to sorted cycles of issue, from the definition of repeats."""
    cycles = {}
    for task, start, _ in unrolled(built, row):
        for use in task.uses:
            cycle = start + use.offset(n)
            for _, j in itertools.product(range(use.n2(n)), range(use.n1(n))):
                cycles.setdefault(use.queue, []).append(cycle)
                cycle += use.d1 if j < use.n1(n) - 1 else use.d2
    return {queue: sorted(found) for queue, found in cycles.items()}


@pytest.fixture(params=["tiny", "choosy", "untied", "many_heads"])
def compiled(request):
    return request.getfixturevalue(request.param)


def test_every_pair_of_accesses(compiled):
    for n, row in enumerate(compiled.schedules, 1):
        assert check_accesses(compiled.lowered.program, row, n) > 1000


def test_one_issue_per_queue_and_cycle(compiled):
    for n, row in enumerate(compiled.schedules, 1):
        for queue, cycles in issues(compiled.lowered.program, row, n).items():
            assert cycles[0] >= FIRST_ISSUE
            gap = timing(compiled.config).perm_gap if queue == "perm" else 1
            assert all(b - a >= gap for a, b in zip(cycles, cycles[1:])), (n, queue)


def stored(task, start, n):
    """Cycle to the streams that a task writes to MEM on shared wires, from the definition of repeats."""
    found = {}
    for use in task.uses:
        own = use.queue in ("w1", "w3") and use.instruction["x"] == Stream.RED
        if use.queue.startswith("w") and not own:
            for j in range(use.n1(n)):
                at = start + use.offset(n) + j * use.d1
                found.setdefault(at, set()).add(use.instruction["x"])
    return found


def test_one_stream_is_stored_at_a_time(compiled):
    """Banks that write on the same cycle write the same stream, or odd ones RED."""
    for n, row in enumerate(compiled.schedules, 1):
        found = {}
        for task, start, _ in unrolled(compiled.lowered.program, row):
            for cycle, streams in stored(task, start, n).items():
                found.setdefault(cycle, set()).update(streams)
        assert all(len(streams) == 1 for streams in found.values()), n
        assert len({*map(tuple, found.values())}) > 1


def test_one_order_for_all_rows(compiled):
    """Every queue issues the same instructions in the same order whatever the row."""
    built, seen = compiled.lowered.program, set()
    for n, row in enumerate(compiled.schedules, 1):
        firsts = [(use.queue, start + use.offset(n), section, task.name, number)
                  for task, start, section in unrolled(built, row)
                  for number, use in enumerate(task.uses)]
        seen.add(tuple((queue, *rest) for queue, _, *rest in sorted(firsts)))
    assert len(seen) == 1


def test_nothing_could_start_earlier(compiled):
    """With its order given, no task of a body could start a cycle earlier."""
    built, order = compiled.lowered.program, compiled.order[1]
    for n, row in ((1, compiled.schedules[0]), (len(compiled.schedules), compiled.schedules[-1])):
        least = min(row.body)
        for place, index in enumerate(order):
            start = row.body[index] - 1
            if row.body[index] == least:
                continue
            earlier = [(built.body[other], row.body[other]) for other in order[:place]]
            assert not legal_behind(built.body[index], start, earlier, n), built.body[index].name


def legal_behind(task, start, earlier, n):
    """Whether ``task`` may start at ``start`` behind tasks whose starts are fixed."""
    times = timing(TINY)
    rows = Program((), (*(other for other, _ in earlier), task), (), 1, {})
    cycles = type("Row", (), dict(prologue=[], epilogue=[], period=0, tail=(),
                                  body=[at for _, at in earlier] + [start]))
    try:
        check_accesses(rows, cycles, n)
    except AssertionError:
        return False
    carried = {}
    for other, at in earlier:
        carried |= stored(other, at, n)
    if any(carried.get(cycle, streams) != streams
           for cycle, streams in stored(task, start, n).items()):
        return False
    last, result = {}, -1
    for other, at in earlier:
        for use in other.uses:
            last[use.queue] = max(last.get(use.queue, -1), at + use.offset(n) + use.span(n))
            if use.queue == "red":
                result = max(result, reduced(use, at, n, times))
    gap = {"perm": times.perm_gap}
    return not any(start + use.offset(n) < last.get(use.queue, -99) + gap.get(use.queue, 1)
                   or use.queue == "red" and reduced(use, start, n, times) <= result
                   for use in task.uses)


def reduced(use, start, n, times):
    slow = use.instruction.op in ("RECIP", "RSQRT")
    return start + use.offset(n) + use.span(n) + (times.reduce_function if slow else times.reduce)
