"""Checks between lowering and scheduling: the rules that every task list keeps."""
import itertools

from arch import isa
from arch.config import Config
from compiler.tasks import READ, Program


class ProgramError(AssertionError):
    """A task breaks a rule of the intermediate form: a bug of the compiler."""


def verify_program(program: Program, config: Config) -> None:
    """Check a program of tasks.

    Every field fits its instruction; within a task no queue issues twice in a cycle, and all MEM
    banks that share wires write the same stream on a cycle; every word read was written by an
    earlier task (or is loaded with the image).

    Raises
    ------
    ProgramError
    """
    written = set()
    loaded = {"keys", "values"}
    for n in (1, config.param_rows):
        for section in (program.prologue, program.body, program.epilogue,
                        *(section.tasks for section in program.tail)):
            for task in section:
                _verify_task(task, n, config)
                for touch in task.touches:
                    words = [word for word, _, _ in touch.each(n)]
                    if touch.mode != READ:
                        written.update(words)
                    elif touch.space not in loaded:
                        missing = [word for word in words if word not in written]
                        if missing:
                            raise ProgramError(f"{task.name}: reads {missing[0]} before any task "
                                               "writes it")


def _verify_task(task, n, config):
    issues = {}
    for use in task.uses:
        isa.encode(use.queue, use.instruction, config)
        if use.offset(n) < 0:
            raise ProgramError(f"{task.name}: {use.queue} issues {-use.offset(n)} cycles before "
                               "the task")
        issues.setdefault(use.queue, []).append((use.offset(n), use.offset(n) + use.span(n)))
    for (cycle, stream), (other, more) in itertools.pairwise(task.stores(n)):
        if cycle == other:
            raise ProgramError(f"{task.name}: writes streams {stream} and {more} in cycle {cycle}")
    for queue, spans in issues.items():
        spans.sort()
        for (_, end), (begin, _) in zip(spans, spans[1:]):
            if begin <= end:
                raise ProgramError(f"{task.name}: {queue} issues twice in cycle {begin}")
