"""Where the cycles of a step go: what the multipliers do on each of them, or what they wait for.

Every cycle of a step is counted once. A cycle on which the MXM issues belongs to that matmul; an idle
one to the matmul that issues next, since it is what the array waits for; those behind the last matmul
to the end of the step (requantising and sampling the last logits). So the figures of a step add up
to its length.
"""
import dataclasses
import re

import numpy as np

#: Name of the cycles behind the last matmul.
END = "end of the step"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One kind of matmul in a step.

    Members
    -------
    name : what is multiplied: the name of its tasks without their numbers.
    busy : cycles on which it issues.
    waiting : idle cycles before its issues.
    useful : busy cycles' worth of multiplications that a model without padding needs.
    """
    name: str
    busy: int
    waiting: int
    useful: float


def account(compiled, position: int, prompt: bool = False) -> list:
    """Cycles of a step by what the array does.

    Parameters
    ----------
    compiled : `compiler.pipeline.Compiled`
    position : int
    prompt : bool
        Whether it is a prompt step, which computes no logits.

    Returns
    -------
    list of Entry
        In order of the first issue; the last is `END`. ``busy`` and ``waiting`` of all add up to
        ``compiled.predicted(position, prompt)``.
    """
    names, owner = {}, np.full(compiled.predicted(position, prompt), -1)
    for name, cycles in _matmuls(compiled, compiled.row(position), prompt):
        owner[cycles] = names.setdefault(name, len(names))
    busy, waiting = np.zeros(len(names) + 1, int), np.zeros(len(names) + 1, int)
    before = 0
    for cycle in np.flatnonzero(owner >= 0):
        waiting[owner[cycle]] += cycle - before
        busy[owner[cycle]] += 1
        before = cycle + 1
    waiting[-1] = len(owner) - before
    useful = _useful(compiled, position)
    order = sorted(names, key=lambda name: int(np.argmax(owner == names[name])))
    return [Entry(name, int(busy[names[name]]), int(waiting[names[name]]),
                  useful.get(name, 0) / compiled.config.macs_per_cycle)
            for name in order] + [Entry(END, 0, int(waiting[-1]), 0)]


def _matmuls(compiled, row: int, prompt: bool):
    """Kind and issue cycles of every matmul of a step."""
    program, times, n = compiled.lowered.program, compiled.schedules[row], row + 1
    rounds = [(program.prologue, times.prologue, 1, 0),
              (program.body, times.body, program.layers, times.period)]
    if not prompt:
        rounds.append((program.epilogue, times.epilogue, 1, 0))
        rounds += [(section.tasks, starts, section.rounds, period)
                   for section, (starts, period) in zip(program.tail, times.tail)]
    for tasks, starts, count, period in rounds:
        for task, start in zip(tasks, starts):
            kind = re.sub(r" \d+$", "", task.name)
            for use in task.uses:
                if use.queue == "mxm":
                    i, j = np.mgrid[:use.n2(n), :use.n1(n)]
                    inner = (use.n1(n) - 1) * use.d1
                    d2 = use.d2 if use.n2(n) > 1 else 0
                    cycles = start + use.offset(n) + i * (inner + d2) + j * use.d1
                    for number in range(count):
                        yield kind, cycles.ravel() + number * period


def _useful(compiled, position: int) -> dict:
    """Multiplications without padding, by kind of matmul."""
    c = compiled.model.config
    heads, kv = c.n_heads * c.head_size, c.n_kv_heads * c.head_size
    attention = heads * (position + 1)
    layer = {"q": c.dim * heads, "k": c.dim * kv, "v": c.dim * kv, "scores": attention,
             "values": attention, "attention output": heads * c.dim,
             "gate, up": 2 * c.dim * c.hidden_dim, "first": c.dim * c.hidden_dim,
             "down": c.hidden_dim * c.dim}
    return {kind: c.n_layers * macs for kind, macs in layer.items()} | {
        "logits": c.dim * c.vocab_size}
