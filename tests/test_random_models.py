"""Random int8 models of odd shapes: reference, machine model and Verilated RTL, bit for bit.

All are for the one machine of profile `tiny`, so that its simulation is built once: shapes are
drawn until there are enough that fit.
"""
import random

import numpy as np
import pytest

from arch.numerics import inverse_temperature
from compiler.checkpoint import ModelConfig, random_checkpoint
from compiler.errors import CapacityError
from compiler.pipeline import compile_model
from sim.reference_engine import first_difference
from tests.rtl import TINY, agree, pair_of

pytestmark = pytest.mark.slow
COUNT = 24


def random_shape(rng: random.Random) -> ModelConfig:
    """A decoder that may fit; heads are the only size that suits the machine."""
    head = TINY.rows * rng.choice([1, 1, 2, 3])
    kv_heads = rng.choice([1, 1, 2, 3])
    heads = kv_heads * rng.choice([1, 2, 3])
    return ModelConfig(dim=heads * head, hidden_dim=rng.randrange(1, 40),
                       n_layers=rng.choice([1, 2, 3]), n_heads=heads, n_kv_heads=kv_heads,
                       vocab_size=rng.randrange(3, 60), seq_len=rng.randrange(3, 32),
                       tied=rng.random() < 0.5)


def models():
    """``(seed, compiled)`` of the first `COUNT` shapes that fit; text and weights from the seed."""
    found = 0
    for seed in range(1000):
        shape = random_shape(random.Random(seed))
        text = np.random.default_rng(seed).integers(0, shape.vocab_size, (2, min(9, shape.seq_len)))
        try:
            compiled = compile_model(random_checkpoint(shape, seed), TINY, text, tries=0)
        except CapacityError:
            continue
        yield seed, compiled
        found += 1
        if found == COUNT:
            return


@pytest.fixture(scope="module")
def pair():
    yield from pair_of(TINY)


def test_random_models(pair):
    shapes = []
    for seed, compiled in models():
        rng, model = random.Random(seed), compiled.model.config
        prompt = [rng.randrange(model.vocab_size) for _ in range(rng.randrange(1, 4))]
        options = {"steps": min(compiled.model.context, 12), "seed": seed,
                   "inverse_temperature": inverse_temperature(rng.choice([0, 0.7, 1.3])),
                   "vocabulary": model.vocab_size}
        prompt = prompt[:options["steps"]]
        expected, found = agree(pair, compiled.image, prompt, **options)
        assert expected.fault is None, seed
        del options["steps"]
        assert first_difference(compiled, prompt, found, **options) is None, seed
        shapes.append(model)
    assert len(shapes) == COUNT
    various(shapes)


def various(shapes) -> None:
    """The shapes reach the corners that they are meant for."""
    lanes = TINY.lanes
    assert {shape.tied for shape in shapes} == {False, True}
    assert {shape.n_layers for shape in shapes} == {1, 2, 3}
    assert len({shape.n_heads // shape.n_kv_heads for shape in shapes}) == 3
    assert any(shape.dim % lanes for shape in shapes)
    assert any(shape.hidden_dim % TINY.rows for shape in shapes)
    assert any(shape.vocab_size % lanes for shape in shapes)
    assert {shape.head_size < lanes for shape in shapes} == {False, True}
    assert any(shape.head_size % lanes and shape.head_size > lanes for shape in shapes)
    assert any(shape.n_kv_heads % 2 and shape.n_kv_heads > 1 for shape in shapes)
