"""Random programs are legal on the machine model, and between them use everything there is."""
import collections

import numpy as np
import pytest

from arch.config import profile
from arch.isa import DEFAULTS, Control, decode, operands, sources_of, unit_of
from arch.queues import QUEUES
from sim.checker import check_schedule
from sim.machine import Machine
from sim.random_program import random_program

TINY = profile("tiny")
STAGES = TINY.replace(mem_stages=1, const_stages=2, mxm_stages=1, drain_stages=3, vxm_stages=2,
                      perm_stages=1, reduce_stages=3)


def run(program):
    """Records of a run on a fresh machine."""
    machine = Machine(program.image.config)
    machine.load(program.image)
    return machine.run(program.tokens, program.steps, first=program.first, seed=program.seed,
                       inverse_temperature=program.inverse_temperature,
                       vocabulary=program.vocabulary)


def check(config, seed):
    program = random_program(config, seed)
    records = run(program)
    assert len(records) == program.steps
    for record in records:
        row = program.image.rows[record.position // config.columns]
        assert record.cycles == row[5 if record.prompt else 4]
        assert (record.token is None) == record.prompt
        assert record.prompt or 0 <= record.token < program.vocabulary
        assert record.writes and record.writes == sorted(record.writes, key=lambda write: write[0])
    return program


@pytest.mark.parametrize("config", [TINY, STAGES], ids=["tiny", "stages"])
@pytest.mark.parametrize("seed", range(10))
def test_seeds_run(config, seed):
    check(config, seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(10, 200, 10))
def test_more_seeds_run(first):
    for seed in range(first, first + 10):
        check(TINY, seed)


@pytest.mark.parametrize("name", ["small", "ecp5_85k"])
def test_other_profiles(name):
    for seed in range(2):
        check(profile(name), seed)


@pytest.mark.parametrize("seed", range(4))
def test_the_checker_agrees_for_every_row(seed):
    check_schedule(random_program(TINY, seed).image)


def test_the_same_seed_gives_the_same_program():
    first, second = random_program(TINY, 3), random_program(TINY, 3)
    assert first.image.to_bytes() == second.image.to_bytes()
    assert first.tokens == second.tokens and first.seed == second.seed
    assert first.image.to_bytes() != random_program(TINY, 4).image.to_bytes()
    kept, again = run(first), run(second)
    for one, other in zip(kept, again):
        assert [write[:4] for write in one.writes] == [write[:4] for write in other.writes]
        assert all((a[4] == b[4]).all() for a, b in zip(one.writes, other.writes))


def test_every_operation_and_every_field_is_used():
    values = collections.defaultdict(set)
    differing = False
    for seed in range(16):
        image = random_program(TINY, seed).image
        for queue, words in image.program.items():
            unit = QUEUES[queue].unit
            for word in words:
                instruction = decode(queue, word, TINY)
                values[unit, "op"].add(instruction.op)
                for name, value in instruction.fields.items():
                    if instruction.op not in Control.__members__:
                        values[unit, name].add(value)
        differing |= any((np.ptp(table, axis=0) > 0).any() for table in image.params.values())
    assert differing
    for unit in {unit_of(queue).name: unit_of(queue) for queue in TINY.queues}.values():
        assert {op.name for op in unit.ops} <= values[unit.name, "op"]
        assert set(Control.__members__) - {"LOOP"} <= values[unit.name, "op"]
        assert "LOOP" in values[unit.name, "op"] or unit.name == "sample"
        for field in unit.fields:
            key = unit.name, field.name
            if field.name != "op" and not field.reserved:
                assert values[key] - {DEFAULTS.get(field.name, 0)}, key
        for field in operands(unit):
            if unit.name not in ("red", "sample"):  # one source: nothing to vary
                assert values[unit.name, field.name] >= set(sources_of(field, TINY)), field.name
    assert {0, 1, 2} <= values["mxm", "order"]
