"""The comparison with the reference: it finds every kind of difference, and names it."""
import numpy as np
import pytest

from arch.numerics import inverse_temperature
from sim.compare import Mismatch, compare_logits, compare_writes, expected_writes
from sim.machine import Machine
from sim.reference import Reference
from tests.lockstep import lockstep, write_log


@pytest.fixture(scope="module")
def step(tiny):
    """Position 0 on machine and reference: write log and kept vectors."""
    machine, reference = Machine(tiny.config), Reference(tiny.model, tiny.config)
    machine.load(tiny.image)
    reference.step(3, 0, keep=True)
    record = machine.run_step(0, 3, vocabulary=tiny.model.config.vocab_size)
    return write_log(record, tiny.config.lanes), reference.kept


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_whole_context(tiny, temperature):
    """Every position of the context, prompt and generate steps."""
    steps = tiny.model.context
    prompt_writes = sum(len(tiny.stored(position, True)) for position in range(2))
    writes = sum(len(tiny.stored(position)) for position in range(2, steps))
    assert lockstep(tiny, [1, 5, 7], steps, inverse_temperature(temperature)) == (
        prompt_writes + writes)


def test_whole_context_untied(untied):
    assert lockstep(untied, [1], untied.model.context, inverse_temperature(1.0)) > 0


def test_order_of_the_log_does_not_matter(tiny, step):
    log, kept = step
    compare_writes(tiny, 0, False, kept, log)
    compare_writes(tiny, 0, False, kept, log[::-1])
    compare_writes(tiny, 0, False, kept, np.random.default_rng(1).permutation(log))


def test_expected_writes_zero_the_other_half(tiny, step):
    """A scalar that goes to one half of a word leaves the other half 0 in the log."""
    _, kept = step
    expected = expected_writes(tiny, 0, False, kept)
    stored = tiny.stored(0)
    halves = [(item, entry) for item, entry in zip(stored, expected) if item.halves != 3]
    assert {item.label.split(".")[0] for item, _ in halves} == {"inverse"}
    half = tiny.config.half_columns
    for item, entry in halves:
        value = kept[item.label, item.layer][0, 0]
        assert value != 0
        lanes = [value if item.halves >> (lane // half) & 1 else 0
                 for lane in range(tiny.config.lanes)]
        assert entry["lanes"].tolist() == lanes


@pytest.mark.parametrize("field", ["cycle", "bank", "address", "halves"])
def test_field_differs(tiny, step, field):
    log, kept = step
    changed = np.sort(log, order=["cycle", "bank"])
    # The last write, so that a later cycle or bank does not move it.
    changed[-1][field] = changed[-1][field] + 1
    item = tiny.stored(0)[-1]
    with pytest.raises(Mismatch) as caught:
        compare_writes(tiny, 0, False, kept, changed)
    value = getattr(item, field)
    assert str(caught.value) == (
        f"position 0: layer {item.layer} '{item.label}' vector {item.index}: {field} is "
        f"{value + 1}, expected {value} (cycle {item.cycle}, MEM bank {item.bank})")


@pytest.mark.parametrize("bit", range(16))
def test_lane_differs(tiny, step, bit):
    log, kept = step
    changed = np.sort(log, order=["cycle", "bank"])
    place = 7 * bit % len(changed)
    before = int(changed[place]["lanes"][5])
    changed[place]["lanes"][5] = np.int16(np.uint16(before & 0xFFFF) ^ np.uint16(1 << bit))
    item = tiny.stored(0)[place]
    with pytest.raises(Mismatch) as caught:
        compare_writes(tiny, 0, False, kept, changed)
    assert str(caught.value) == (
        f"position 0: layer {item.layer} '{item.label}' vector {item.index}, written to MEM bank "
        f"{item.bank} word {item.address} on cycle {item.cycle}: lane 5 is "
        f"{changed[place]['lanes'][5]}, expected {before}")


def test_the_first_difference_is_named(tiny, step):
    log, kept = step
    changed = np.sort(log, order=["cycle", "bank"])
    changed["lanes"][[9, 4, 30], 2] += 1
    item = tiny.stored(0)[4]
    with pytest.raises(Mismatch, match=f"'{item.label}' vector {item.index}, .*cycle {item.cycle}"):
        compare_writes(tiny, 0, False, kept, changed)


def test_writes_are_missing_or_too_many(tiny, step):
    log, kept = step
    log = np.sort(log, order=["cycle", "bank"])
    with pytest.raises(Mismatch) as caught:
        compare_writes(tiny, 0, False, kept, log[:-1])
    assert str(caught.value) == (f"position 0: {len(log) - 1} vectors written to MEM, expected "
                                 f"{len(log)}")
    late = log[-1:].copy()
    late["cycle"] += 1
    with pytest.raises(Mismatch, match=f"{len(log) + 1} vectors"):
        compare_writes(tiny, 0, False, kept, np.concatenate([log, late]))
    with pytest.raises(Mismatch):
        compare_writes(tiny, 0, False, kept, log[1:])


def test_a_prompt_step_stops_before_the_logits(tiny, step):
    log, kept = step
    with pytest.raises(Mismatch):
        compare_writes(tiny, 0, True, kept, log)
    labels = {item.label for item in tiny.stored(0, True)}
    assert {item.label for item in tiny.stored(0)} - labels == {"final.r", "final", "logits.m"}


def test_logits_differ():
    expected = np.array([5, -3, 2, 2])
    compare_logits(4, expected, expected.astype(np.int16))
    with pytest.raises(Mismatch) as caught:
        compare_logits(4, expected, np.array([5, -3, 1, 0]))
    assert str(caught.value) == "position 4: logit of token 2 is 1, expected 2"


@pytest.mark.parametrize("seen, count", [(np.array([5, -3]), 2), (None, 0)])
def test_logits_are_missing(seen, count):
    with pytest.raises(Mismatch) as caught:
        compare_logits(4, np.array([5, -3, 2, 2]), seen)
    assert str(caught.value) == f"position 4: {count} logits, expected 4"
