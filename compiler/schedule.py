"""Static schedule: when every task starts, for every row, with one order per queue.

Tasks of a section depend on each other through the words they touch. List scheduling on a few
reference rows proposes orders; for a given order each row is solved exactly, every task as early as
its words and its queues allow. The order with the fewest cycles over all rows wins, so queues issue
the same instructions in the same order at any position and only waits differ.

Ref: Kolisch, "Serial and parallel resource-constrained project scheduling methods revisited",
EJOR 1996 (serial generation scheme); the layer loop is a modulo schedule with one iteration.
"""
import dataclasses
import random

from arch.config import Config
from arch.timing import FIRST_ISSUE, LOOP_WAIT_MIN, timing
from compiler.tasks import ADD, READ, Program, Task

#: Bound of the local search: evaluations times the square of the words that one looks at.
SEARCH = 2_600_000_000
#: Stands for the way back of the layer loop where a room is named by its task.
LOOP = "the layer loop"


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Start cycles of one row.

    Parameters
    ----------
    prologue, body, epilogue : list of int
        Start per task, in program order of the section; body: of the first layer.
    period : int
        Cycles from one layer to the next.
    generate, prompt : int
        Least cycles of a step: until everything begun is over.
    tail : tuple of (list of int, int)
        Per section of the program's tail: start per task in the first round, and the period.
    """
    prologue: list
    body: list
    epilogue: list
    period: int
    generate: int
    prompt: int
    tail: tuple = ()


class _Memory:
    """When words were last written and read: yields the least start of a further task."""

    def __init__(self):
        self.writes, self.reads, self.restart = {}, {}, {}

    def least_start(self, task: Task, n: int) -> int:
        """Earliest start that honours every touched word."""
        least = 0
        for touch in task.touches:
            for word, begin, _ in touch.each(n):
                if touch.mode == READ:
                    least = max(least, self.writes.get(word, begin) - begin)
                else:
                    least = max(least, self.reads.get(word, begin - 1) + 1 - begin)
                    source = self.restart if touch.mode == ADD else self.writes
                    least = max(least, source.get(word, begin - 1) + 1 - begin)
        return least

    def commit(self, task: Task, n: int, start: int) -> None:
        for touch in task.touches:
            for word, begin, end in touch.each(n):
                if touch.mode == READ:
                    self.reads[word] = max(self.reads.get(word, 0), start + end)
                elif touch.mode == ADD:
                    self.writes[word] = max(self.writes.get(word, 0), start + end)
                else:
                    self.writes[word], self.restart[word] = start + end, start + begin


class _Queues:
    """Last issue of each queue, and of the shared output of the reducer; what MEM banks write.

    The banks share wires that carry one stream on a cycle. That is no bound from below: `free`
    looks for the next start that keeps it.

    ``room`` gives the least cycles before a task on a queue, where they are more than 1: see
    `compiler.emit.NoTime`.
    """

    def __init__(self, config: Config, room: dict | None = None):
        self.last, self.result, self.timing, self.room = {}, -1, timing(config), room or {}
        self.gap = {"perm": self.timing.perm_gap}
        self.carried = {}

    def _result(self, use, n):
        slow = use.instruction.op in ("RECIP", "RSQRT")
        lag = self.timing.reduce_function if slow else self.timing.reduce
        return use.offset(n) + use.span(n) + lag

    def least_start(self, task: Task, n: int) -> int:
        least = 0
        for use in task.uses:
            gap = self.room.get((task.name, use.queue), 1)
            if use.queue in self.last or gap > 1:
                before = self.last.get(use.queue, FIRST_ISSUE)
                gap = max(gap, self.gap.get(use.queue, 1) if use.queue in self.last else 1)
                least = max(least, before + gap - use.offset(n))
            if use.queue == "red":
                least = max(least, self.result + 1 - self._result(use, n))
        return least

    def commit(self, task: Task, n: int, start: int) -> None:
        for use in task.uses:
            self.last[use.queue] = start + use.offset(n) + use.span(n)
            if use.queue == "red":
                self.result = start + self._result(use, n)
        self.carry(task, n, start)

    def carry(self, task: Task, n: int, start: int) -> None:
        """Take the store bus for what a task writes."""
        for offset, source in task.stores(n):
            self.carried[start + offset] = source

    def fits(self, task: Task, n: int, start: int) -> bool:
        """Whether the store bus is free for what a task writes."""
        get = self.carried.get
        return all(get(start + offset, source) == source for offset, source in task.stores(n))

    def free(self, task: Task, n: int, start: int) -> int:
        """The first start from ``start`` on at which the store bus is free for a task."""
        while not self.fits(task, n, start):
            start += 1
        return start


def _first_issue(tasks, starts, n):
    first = {}
    for task, start in zip(tasks, starts):
        for use in task.uses:
            cycle = start + use.offset(n)
            first[use.queue] = min(first.get(use.queue, cycle), cycle)
    return first


def _solve(tasks, order, n, config, memory, queues, floor):
    """Starts of ``tasks`` in ``order``, each as early as possible."""
    starts = [0] * len(tasks)
    for index in order:
        task = tasks[index]
        start = queues.free(task, n, max(floor, memory.least_start(task, n),
                                         queues.least_start(task, n)))
        memory.commit(task, n, start)
        queues.commit(task, n, start)
        starts[index] = start
    return starts


def _dependencies(tasks, n):
    """``edges[b] = {a: lag}``: start of b is at least start of a plus lag, from word order."""
    edges = [{} for _ in tasks]
    writers, readers = {}, {}
    for index, task in enumerate(tasks):
        def need(other, lag):
            if other != index:
                edges[index][other] = max(edges[index].get(other, lag), lag)
        for touch in task.touches:
            for word, begin, _ in touch.each(n):
                if touch.mode == READ:
                    for other, kind, _, end in writers.get(word, ()):
                        need(other, end - begin)
                else:
                    for other, end in readers.get(word, ()):
                        need(other, end + 1 - begin)
                    for other, kind, first, end in writers.get(word, ()):
                        if touch.mode == ADD and kind == ADD:
                            continue
                        need(other, (first if touch.mode == ADD else end) + 1 - begin)
        for touch in task.touches:
            for word, begin, end in touch.each(n):
                if touch.mode == READ:
                    readers.setdefault(word, []).append((index, end))
                elif touch.mode == ADD:
                    writers.setdefault(word, []).append((index, ADD, begin, end))
                else:
                    writers[word] = [(index, touch.mode, begin, end)]
                    readers[word] = []
    return edges


def _list_order(tasks, n, config, weight, before):
    """List scheduling: always the ready task with the best start, critical ones first.

    ``weight`` trades an early start (0) for a long path behind the task (large). ``before`` gives
    the dependencies that the order must keep: those of the longest row, which touches every word
    that a shorter one touches.
    """
    edges = _dependencies(tasks, n)
    ends = [max(use.offset(n) + use.span(n) for use in task.uses) + 1 for task in tasks]
    behind = ends[:]
    followers = [[] for _ in tasks]
    for index, sources in enumerate(edges):
        for source, lag in sources.items():
            followers[source].append((index, lag))
    for index in reversed(range(len(tasks))):
        for follower, lag in followers[index]:
            behind[index] = max(behind[index], lag + behind[follower])
    queues, starts, order = _Queues(config), {}, []
    waiting, behind_of = [len(sources) for sources in before], [[] for _ in tasks]
    for index, sources in enumerate(before):
        for source in sources:
            behind_of[source].append(index)
    ready = [index for index, count in enumerate(waiting) if not count]
    while ready:
        def score(index):
            start = queues.free(tasks[index], n, max(
                [queues.least_start(tasks[index], n)]
                + [starts[source] + lag for source, lag in edges[index].items()]))
            return start - weight * behind[index], index, start
        _, index, start = min(score(index) for index in ready)
        ready.remove(index)
        starts[index] = start
        queues.commit(tasks[index], n, start)
        order.append(index)
        for follower in behind_of[index]:
            waiting[follower] -= 1
            if not waiting[follower]:
                ready.append(follower)
    return order


def _section_length(tasks, order, n, config, room=None):
    memory, queues = _Memory(), _Queues(config, room)
    starts = _solve(tasks, order, n, config, memory, queues, 0)
    return starts, _period(tasks, starts, order, n, config, room)


def _period(tasks, starts, order, n, config, room):
    """Least distance of two runs of a body whose starts are fixed."""
    memory, queues = _Memory(), _Queues(config, room)
    for index in order:
        memory.commit(tasks[index], n, starts[index])
        queues.commit(tasks[index], n, starts[index])
    period = 1
    for index in order:
        period = max(period, memory.least_start(tasks[index], n) - starts[index],
                     queues.least_start(tasks[index], n) - starts[index])
    for queue, cycle in _first_issue(tasks, starts, n).items():
        gap = max(LOOP_WAIT_MIN, queues.room.get((LOOP, queue), 0))
        period = max(period, queues.last[queue] + gap - cycle)
    span = max(queues.carried, default=0) - min(queues.carried, default=0)
    while not all(queues.fits(tasks[index], n, starts[index] + distance)
                  for distance in range(period, span + 1, period) for index in order):
        period += 1
    return period


def _improve(tasks, order, cost, tries, before, seed=1):
    """Local search: move single tasks to another place legal under ``before`` while the cost
    falls."""
    rng = random.Random(seed)
    best, best_cost = order, cost(order)
    for _ in range(tries):
        candidate = best[:]
        index = candidate.pop(source := rng.randrange(len(candidate)))
        target = max(0, min(len(candidate), source + rng.choice((-6, -4, -3, -2, -1, 1, 2, 3, 4,
                                                                 6))))
        candidate.insert(target, index)
        place = {task: spot for spot, task in enumerate(candidate)}
        if any(place[a] > place[b] for b in range(len(tasks)) for a in before[b]):
            continue
        if (new := cost(candidate)) <= best_cost:
            best, best_cost = candidate, new
    return best


def orders(program: Program, config: Config, rows: int, tries: int = 0) -> tuple:
    """One order of tasks per section, good over all rows.

    ``tries`` bounds the steps of local search; large programs get fewer, see `SEARCH`.
    """
    samples = sorted({1, (rows + 1) // 2, rows})
    found = []
    sections = [(program.prologue, False), (program.body, True), (program.epilogue, False),
                *((section.tasks, section.rounds > 1) for section in program.tail)]
    for section, loops in sections:
        def cost(order, section=section, loops=loops):
            total = 0
            for n in samples:
                starts, period = _section_length(section, order, n, config)
                ends = max(start + use.offset(n) + use.span(n)
                           for task, start in zip(section, starts) for use in task.uses)
                total += period if loops else ends
            return total
        before = _dependencies(section, rows)
        candidates = [_list_order(section, n, config, weight, before)
                      for n in samples for weight in (0, 0.25, 1, 4, 100)]
        order = min(candidates, key=cost)
        if section is program.body:
            # The other sections run once, or are chains.
            words = sum(touch.count(n) for n in samples for task in section
                        for touch in task.touches)
            order = _improve(section, order, cost, min(tries, SEARCH // words**2), before)
        found.append(order)
    return tuple(found)


def solve_row(program: Program, order: tuple, n: int, config: Config,
              room: dict | None = None) -> Schedule:
    """The schedule of row ``n - 1`` under given orders; ``room`` as in `compiler.emit.NoTime`."""
    memory, queues = _Memory(), _Queues(config, room)
    prologue = _solve(program.prologue, order[0], n, config, memory, queues, FIRST_ISSUE)
    body, period = _looped(program.body, order[1], n, config, memory, queues, program.layers)
    return finish_row(program, order, Schedule(prologue, body, [], period, 0, 0), n, config, room)


def _looped(tasks, order, n, config, memory, queues, rounds) -> tuple:
    """Starts of a section's first round, as early as what is committed allows, and its period.

    The store bus is taken for all rounds.
    """
    relative, period = _section_length(tasks, order, n, config, queues.room)
    shift = FIRST_ISSUE
    for index in order:
        shift = max(shift, memory.least_start(tasks[index], n) - relative[index],
                    queues.least_start(tasks[index], n) - relative[index])
    while not all(queues.fits(tasks[index], n, relative[index] + shift + number * period)
                  for number in range(rounds) for index in order):
        shift += 1
    starts = [start + shift for start in relative]
    _carry_rounds(tasks, starts, n, queues, rounds, period)
    return starts, period


def _carry_rounds(tasks, starts, n, queues, rounds, period):
    """Take the store bus for every round of a section."""
    for number in range(rounds):
        for task, start in zip(tasks, starts):
            queues.carry(task, n, start + number * period)


def _tail(program, order, n, config, memory, queues) -> tuple:
    """Starts and periods of the sections behind the epilogue; all is committed."""
    found = []
    for section, places in zip(program.tail, order[3:]):
        if section.rounds == 1:
            starts = _solve(section.tasks, places, n, config, memory, queues, FIRST_ISSUE)
            found.append((starts, 0))
            continue
        starts, period = _looped(section.tasks, places, n, config, memory, queues,
                                 section.rounds)
        for index in places:
            last = starts[index] + (section.rounds - 1) * period
            memory.commit(section.tasks[index], n, last)
            queues.commit(section.tasks[index], n, last)
        for queue in _first_issue(section.tasks, starts, n):
            # The queue refills behind its loop.
            queues.last[queue] += LOOP_WAIT_MIN
        found.append((starts, period))
    return tuple(found)


def finish_row(program: Program, order: tuple, row: Schedule, n: int, config: Config,
               room: dict | None = None) -> Schedule:
    """Solve what comes behind a row's prologue and body."""
    times, memory, queues = timing(config), _Memory(), _Queues(config, room)
    last = [start + (program.layers - 1) * row.period for start in row.body]
    for tasks, places, starts in ((program.prologue, order[0], row.prologue),
                                  (program.body, order[1], last)):
        for index in places:
            memory.commit(tasks[index], n, starts[index])
            queues.commit(tasks[index], n, starts[index])
    _carry_rounds(program.body, row.body, n, queues, program.layers, row.period)
    prompt = max(_completion(program.prologue, row.prologue, n, times),
                 _completion(program.body, last, n, times))
    # There is an END to pass before the epilogue, as late as any issue behind a LOOP.
    for queue in queues.last:
        queues.last[queue] += LOOP_WAIT_MIN if program.layers > 1 else 1
    epilogue = _solve(program.epilogue, order[2], n, config, memory, queues, FIRST_ISSUE + 1)
    tail = _tail(program, order, n, config, memory, queues)
    generate = max(_completion(program.epilogue, epilogue, n, times), prompt)
    for section, (starts, period) in zip(program.tail, tail):
        last = [start + (section.rounds - 1) * period for start in starts]
        generate = max(generate, _completion(section.tasks, last, n, times))
    return dataclasses.replace(row, epilogue=epilogue, generate=generate, prompt=prompt, tail=tail)


def _completion(tasks, starts, n, times) -> int:
    """Cycles until everything that the tasks have begun is over."""
    end = 0
    for task, start in zip(tasks, starts):
        for touch in task.touches:
            end = max([end] + [start + stop + 1 for _, _, stop in touch.each(n)])
        for use in task.uses:
            over = start + use.offset(n) + use.span(n)
            end = max(end, over + (times.sample + 1 if use.queue == "sample" else 1))
    return end


def schedule(program: Program, config: Config, rows: int, tries: int = 0) -> tuple:
    """Orders and the schedule of every row ``n = 1 .. rows``."""
    order = orders(program, config, rows, tries)
    return order, [solve_row(program, order, n, config) for n in range(1, rows + 1)]
