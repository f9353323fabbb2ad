"""Where the cycles of a step go: the figures against the instruction words and the step's length."""
import dataclasses

import numpy as np
import pytest

from compiler.account import END
from sim.queue_model import expand_queue


@pytest.mark.parametrize("position", [0, 9, 31])
@pytest.mark.parametrize("prompt", [False, True])
def test_every_cycle_is_counted_once(tiny, position, prompt):
    entries = tiny.account(position, prompt)
    trace = expand_queue(tiny.image, "mxm", tiny.row(position), prompt)
    issues = np.concatenate([segment.cycle for segment in trace.segments])
    assert sum(entry.busy for entry in entries) == len(issues)
    assert sum(entry.busy + entry.waiting for entry in entries) == tiny.predicted(position, prompt)
    # What is behind the last matmul is nobody's wait.
    assert entries[-1].name == END
    assert entries[-1].waiting == tiny.predicted(position, prompt) - 1 - issues.max()
    assert entries[0].waiting >= issues.min()


def test_useful_multiplications_are_those_of_the_model(tiny, untied):
    for compiled, position in ((tiny, 17), (untied, 20)):
        entries = compiled.account(position)
        macs = compiled.config.macs_per_cycle
        assert sum(entry.useful for entry in entries) * macs == pytest.approx(
            compiled.useful_macs(position), abs=1e-6)
        assert all(0 < entry.useful <= entry.busy for entry in entries[:-1])


def test_kinds_in_order(tiny):
    """Keys before queries, logits last; prompt steps have none."""
    names = [entry.name for entry in tiny.account(5)]
    assert names == ["k", "q", "v", "scores", "values", "attention output", "gate, up", "down",
                     "logits", END]
    assert [entry.name for entry in tiny.account(5, True)] == names[:-2] + [END]


def test_busy_cycles_by_hand(tiny):
    """2 layers, 32 inputs in 8 words: q fills 4 tiles of 8 columns, k and v 2 each."""
    busy = {entry.name: entry.busy for entry in tiny.account(0)}
    assert (busy["q"], busy["k"], busy["v"]) == (2 * 4 * 8, 2 * 2 * 8, 2 * 2 * 8)
    assert busy["logits"] == 6 * 8     # 43 tokens are 6 tiles
    assert dataclasses.asdict(tiny.account(0)[-1])["busy"] == 0
