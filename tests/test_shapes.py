"""Random models on random machines: the machine model against the reference, bit for bit.

Compared are every vector written to MEM (bank, word, lanes, cycle), all logits, the sampled token
and the length of every step, from position 0 to the last one of the context.
"""
import dataclasses
import random

import numpy as np
import pytest

from arch.config import Config, profile
from arch.faults import ScheduleError
from arch.numerics import inverse_temperature
from arch.selection import STEPS, Selection
from compiler.checkpoint import FAMILIES, ModelConfig, random_checkpoint
from compiler.errors import CapacityError
from compiler.pipeline import compile_model
from sim.checker import check_schedule
from tests.lockstep import lockstep

SEEDS = range(24)
STAGES = ("mem", "const", "mxm", "drain", "vxm", "perm", "reduce")


def random_machine(rng: random.Random) -> Config:
    """Any array, any tiling, any latencies; memories that hold what `random_model` asks for."""
    rows = rng.choice([2, 4, 8])
    columns = max(4, rows * rng.choice([1, 2, 4]))
    tiles = [size for size in (1, 2, 4, 8, 16) if columns // 2 % size == 0]
    return Config(name="odd", rows=rows, columns=columns, tile_columns=rng.choice(tiles),
                  weight_depth=1 << 15, activation_bits=rng.choice([8, 9, 10]),
                  accumulators=rng.choice([32, 64]) if columns > 4 else 64, mem_depth=256,
                  const_depth=1 << 12, context=columns * rng.choice([1, 2, 3, 5]), vocab_max=256,
                  program_depth=(("*", 512),), param_columns=128,
                  **{f"{name}_stages": rng.choice([0, 0, 1, 2, 3]) for name in STAGES})


def random_model(rng: random.Random, config: Config) -> ModelConfig:
    """A decoder whose heads suit ``config`` and whose other sizes suit nobody."""
    size = max(config.rows, config.half_columns) * rng.choice([1, 1, 2, 3])
    n_kv_heads = rng.choice([1, 2, 3, 4])
    groups = [group for group in (1, 2, 3) if n_kv_heads * group * size <= 64]
    n_heads = n_kv_heads * rng.choice(groups or [1])
    family = rng.choice(FAMILIES)
    if family == "gpt2" and rng.random() < 0.5:
        n_kv_heads = n_heads
    return ModelConfig(family=family, dim=n_heads * size, hidden_dim=rng.randrange(1, 60),
                       n_layers=rng.choice([1, 1, 2, 3]), n_heads=n_heads, n_kv_heads=n_kv_heads,
                       vocab_size=rng.randrange(2, 80), seq_len=rng.randrange(2, 22),
                       tied=rng.random() < 0.5)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_model(seed):
    rng = random.Random(seed)
    config = random_machine(rng)
    model = random_model(rng, config)
    text = np.random.default_rng(seed).integers(0, model.vocab_size, (2, min(12, model.seq_len)))
    try:
        compiled = compile_model(random_checkpoint(model, seed), config, text)
    except CapacityError:
        pytest.fail(f"{config} must hold {model}")
    context = compiled.model.context
    assert context == min(config.context, model.seq_len)
    check_schedule(compiled.image)
    temperature = inverse_temperature(rng.choice([0, 0.7, 1.0]))
    vectors = lockstep(compiled, [0, 1, 1][:rng.randrange(1, 4)], context, temperature)
    # Two residuals per layer and the embedding are the least that any step stores.
    assert vectors >= context * (2 * model.n_layers + 1)


def test_the_seeds_are_various():
    """The seeds above reach the corners that they are meant for."""
    machines, models = [], []
    for seed in SEEDS:
        rng = random.Random(seed)
        machines.append(random_machine(rng))
        models.append(random_model(rng, machines[-1]))
    pairs = list(zip(machines, models))
    assert {machine.rows for machine in machines} == {2, 4, 8}
    assert {machine.groups for machine in machines} == {1, 2, 4}
    assert {(model.tied, model.family) for model in models} == {
        (tied, family) for tied in (False, True) for family in FAMILIES}
    assert {model.n_layers for model in models} == {1, 2, 3}
    assert {model.n_heads // model.n_kv_heads for model in models} == {1, 2, 3}
    # Heads below, of, and above a vector; those that tile no vector; an odd count of KV heads.
    assert any(model.head_size < machine.lanes for machine, model in pairs)
    assert any(model.head_size > machine.lanes for machine, model in pairs)
    assert any(machine.lanes % model.head_size and model.head_size % machine.lanes
               for machine, model in pairs)
    assert any(model.n_kv_heads % 2 and model.n_kv_heads > 1 for model in models)
    # Widths that fill no vector, and a context that ends within a row.
    assert any(model.dim % machine.lanes for machine, model in pairs)
    assert any(model.hidden_dim % machine.rows for machine, model in pairs)
    assert any(min(model.seq_len, machine.context) % machine.columns for machine, model in pairs)


@pytest.mark.parametrize("name, size", [("tiny", 8), ("small", 8), ("ecp5_85k", 8),
                                        ("ecp5_85k", 24), ("sim_large", 16)])
def test_profiles(name, size):
    """Every named machine, with the sampler on, over two rows."""
    config = profile(name)
    model = ModelConfig(dim=4 * size if size < 24 else 48, hidden_dim=3 * size + 1, n_layers=2,
                        n_heads=4 if size < 24 else 2, n_kv_heads=2, vocab_size=50,
                        seq_len=config.columns + 2, tied=size != 16)
    compiled = compile_model(random_checkpoint(model, 3), config)
    assert lockstep(compiled, [1, 2], compiled.model.context, inverse_temperature(0.9)) > 0


@pytest.mark.parametrize("accumulators, depth", [(16, 26), (8, 64), (8, 38), (8, 26)])
@pytest.mark.parametrize("family", FAMILIES)
def test_small_memories(accumulators, depth, family):
    """Scores that go round all accumulators, and lie in MEM where q and k were made.

    Three tiles of residual, eight of KV cache: 13 accumulators keep them apart. Six heads, of which
    two or one to a bank have room at a time: then values free it while other scores wait.
    """
    model = ModelConfig(dim=24, hidden_dim=30, n_layers=2, n_heads=6, n_kv_heads=2, vocab_size=43,
                        seq_len=64, tied=True, family=family)
    config = profile("tiny").replace(accumulators=accumulators, mem_depth=depth, const_depth=256,
                                     context=64)
    compiled = compile_model(random_checkpoint(model, 7), config, tries=20)
    check_schedule(compiled.image)
    assert lockstep(compiled, list(range(1, 40)), 64) > 0


def test_narrow_model():
    """The logits of so short a matmul come faster than a long lag has accumulators for."""
    model = ModelConfig(dim=16, hidden_dim=20, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=30,
                        seq_len=8, tied=True)
    compiled = compile_model(random_checkpoint(model, 1), profile("tiny"))
    assert lockstep(compiled, [1], 8) > 0


def test_check_of_a_context_that_ends_within_a_row(untied):
    """The factors of positions behind the context are not loaded, and not asked for."""
    assert untied.model.context % untied.config.columns
    check_schedule(untied.image)
    longer = dataclasses.replace(untied.image, meta={})
    with pytest.raises(ScheduleError, match="is not loaded .*position 2[1-3]"):
        check_schedule(longer)


@pytest.mark.parametrize("stage, settings", [("top-k", Selection(0.8, top_k=5)),
                                             ("top-p", Selection(1.7, top_p=0.6))])
def test_selection(tiny_checkpoint, stage, settings):
    """Top-k or top-p on the machine: every vector of every round, and every cycle."""
    compiled = compile_model(tiny_checkpoint, profile("tiny"), tries=0, sampling=(stage,))
    check_schedule(compiled.image)
    # Excess, low and state of every round are stored, and as many writes come on top.
    assert lockstep(compiled, [1, 2], 10, settings=settings) > 9 * 3 * len(STEPS[stage])


def test_selection_of_both(choosy):
    """Both stages; other settings, and none, need no other program."""
    check_schedule(choosy.image)
    assert lockstep(choosy, [1, 2], 10, settings=Selection(1.0, top_k=20, top_p=0.9)) > 9 * 81
    assert lockstep(choosy, [1, 2], 3, settings=Selection(0)) > 0
    assert choosy.sampling == ("top-k", "top-p")


def test_selection_behind_layer_norm():
    """The end of a GPT-2 model is another one, top-k and top-p behind it are the same."""
    model = ModelConfig(dim=32, hidden_dim=20, n_layers=1, n_heads=4, n_kv_heads=4, vocab_size=43,
                        seq_len=8, tied=True, family="gpt2")
    compiled = compile_model(random_checkpoint(model, 6), profile("ecp5_85k"), tries=0,
                             sampling=("top-k", "top-p"))
    assert lockstep(compiled, [1], 6, settings=Selection(0.9, top_k=11, top_p=0.7)) > 0


def test_selection_with_whole_vectors():
    """A vocabulary without lanes to mask, on other latencies, over two rows."""
    config = profile("small").replace(vxm_stages=2, mem_stages=1, reduce_stages=3, const_stages=1)
    model = ModelConfig(dim=32, hidden_dim=20, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=64,
                        seq_len=10, tied=True)
    compiled = compile_model(random_checkpoint(model, 4), config, sampling=("top-k", "top-p"))
    check_schedule(compiled.image)
    assert lockstep(compiled, [1], 10, settings=Selection(1.2, top_k=9, top_p=0.5)) > 0
