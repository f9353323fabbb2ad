"""Models of sizes that people have: compiled, predicted, and a step of each on the machine model.

One model for every corner of: widths 48 to 512, up to 64 heads of 8 to 64, 1 to 8 KV groups, 1 to
12 layers, vocabularies of 65 to 4,096, tied and untied, both families. The weights are random with
fixed seeds.
"""
import numpy as np
import pytest

from arch.config import profile
from compiler.checkpoint import FAMILIES, ModelConfig, random_checkpoint
from compiler.pipeline import compile_model
from sim import engine as engines
from sim.checker import check_schedule
from sim.reference_engine import first_difference
from tests.lockstep import lockstep

#: Profile, then dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, tied, family.
SHAPES = [
    ("ecp5_85k", 48, 100, 12, 6, 1, 65, False, "llama"),
    ("ecp5_85k", 64, 172, 5, 8, 4, 512, True, "llama"),
    ("ecp5_85k", 96, 128, 2, 12, 12, 97, True, "gpt2"),
    ("sim_large", 256, 200, 3, 32, 8, 1000, True, "llama"),
    ("sim_large", 128, 96, 8, 8, 2, 3001, False, "llama"),
    ("sim_large", 192, 260, 2, 12, 12, 700, False, "gpt2"),
    pytest.param("sim_large", 512, 384, 2, 64, 8, 65, True, "llama", marks=pytest.mark.slow),
    pytest.param("sim_large", 512, 300, 1, 8, 1, 4096, False, "llama", marks=pytest.mark.slow),
    pytest.param("sim_large", 320, 512, 6, 40, 5, 2000, False, "llama", marks=pytest.mark.slow),
    pytest.param("sim_large", 512, 640, 1, 8, 8, 4096, True, "gpt2", marks=pytest.mark.slow),
    pytest.param("sim_large", 256, 512, 4, 8, 8, 65, True, "gpt2", marks=pytest.mark.slow),
    pytest.param("sim_large", 384, 1536, 2, 6, 6, 3000, False, "gpt2", marks=pytest.mark.slow),
]
#: Models for the RTL of profile tiny, which other tests have built already.
SMALL = [(48, 20, 1, 6, 3, 65, True, "llama"), (24, 20, 2, 3, 1, 65, False, "llama"),
         (40, 24, 1, 5, 5, 70, True, "gpt2")]


def model_of(dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, tied, family):
    return ModelConfig(dim=dim, hidden_dim=hidden_dim, n_layers=n_layers, n_heads=n_heads,
                       n_kv_heads=n_kv_heads, vocab_size=vocab_size, seq_len=32, tied=tied,
                       family=family)


def compiled_of(name: str, shape: tuple, tries: int = 0):
    model = model_of(*shape)
    text = np.random.default_rng(3).integers(0, model.vocab_size, (1, 8))
    return compile_model(random_checkpoint(model, 3), profile(name), text, tries=tries)


@pytest.mark.parametrize("name, dim, hidden, layers, heads, kv_heads, vocabulary, tied, family",
                         SHAPES)
def test_shape(name, dim, hidden, layers, heads, kv_heads, vocabulary, tied, family):
    shape = dim, hidden, layers, heads, kv_heads, vocabulary, tied, family
    compiled = compiled_of(name, shape)
    check_schedule(compiled.image)
    # Multiplications by hand: projections, feed-forward, one position of context, classifier.
    matrices = 3 if family == "llama" else 2
    macs = layers * (2 * dim * dim + 2 * dim * dim * kv_heads // heads + matrices * dim * hidden
                     + 2 * dim) + dim * vocabulary
    assert compiled.useful_macs(0) == macs
    cycles = [compiled.predicted(position) for position in range(32)]
    # Padding, norms and attention cost something, but never twice the work of a wide model.
    assert macs / 128 < cycles[0] < 2.5 * macs / 128 + 400 * layers
    assert cycles == sorted(cycles) and compiled.predicted(0, prompt=True) < cycles[0]
    assert lockstep(compiled, [1], 1) > 2 * layers


def test_the_shapes_reach_every_corner():
    shapes = [model_of(*getattr(shape, "values", shape)[1:]) for shape in SHAPES]

    def ends(values):
        return min(values), max(values)
    assert ends([model.dim for model in shapes]) == (48, 512)
    assert ends([model.n_heads for model in shapes]) == (6, 64)
    assert ends([model.head_size for model in shapes]) == (8, 64)
    assert ends([model.n_kv_heads for model in shapes if model.family == "llama"]) == (1, 8)
    assert ends([model.n_layers for model in shapes]) == (1, 12)
    assert ends([model.vocab_size for model in shapes]) == (65, 4096)
    assert {(model.tied, model.family) for model in shapes} == {
        (tied, family) for tied in (True, False) for family in FAMILIES}
    # Widths and vocabularies that fill no vector of 16, heads that fill none and several.
    assert any(model.hidden_dim % 16 for model in shapes)
    assert any(model.vocab_size % 16 for model in shapes)
    assert any(model.head_size < 16 for model in shapes)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SMALL)
def test_small_shapes_on_the_rtl(shape):
    reason = engines.engine_class("verilator").unavailable()
    if reason:
        pytest.skip(reason)
    compiled = compiled_of("tiny", shape, tries=20)
    settings = {"seed": 4, "inverse_temperature": 0, "vocabulary": shape[5]}
    with engines.create("verilator", compiled.config) as engine:
        engine.load(compiled.image)
        result = engine.run([1, 2], 20, trace=True, **settings)
    assert len(result.cycles) == 20 and result.fault is None
    assert result.cycles == [compiled.predicted(at, at == 0) for at in range(20)]
    assert first_difference(compiled, [1, 2], result, **settings) is None
