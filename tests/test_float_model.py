"""The float model against torch's logits and against a decoder written out in plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from compiler.checkpoint import Checkpoint, ModelConfig, random_checkpoint
from compiler.llama2c import load_checkpoint
from sim.float_model import FloatModel, nats_per_token

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "data" / "golden_logits.npz"
BUILT_IN = ROOT / "models" / "shakespeare.bin"

TINY = ModelConfig(dim=12, hidden_dim=10, n_layers=2, n_heads=3, n_kv_heads=1, vocab_size=11,
                   seq_len=9, tied=False)
GROUPED = ModelConfig(dim=16, hidden_dim=6, n_layers=3, n_heads=4, n_kv_heads=2, vocab_size=7,
                      seq_len=8, tied=True, rope_theta=50.0, norm_eps=0.1)


def product(matrix, vector: list[float]) -> list[float]:
    return [sum(float(w) * v for w, v in zip(row, vector, strict=True)) for row in matrix]


def norm(x: list[float], gain, eps: float) -> list[float]:
    scale = 1 / math.sqrt(sum(v * v for v in x) / len(x) + eps)
    return [v * scale * float(g) for v, g in zip(x, gain, strict=True)]


def turn(x: list[float], pos: int, config: ModelConfig) -> list[float]:
    """Rotate the pairs (0, 1), (2, 3) ... of every head, as run.c does."""
    turned = list(x)
    for i in range(0, len(x), 2):
        angle = pos / config.rope_theta ** ((i % config.head_size) / config.head_size)
        turned[i] = x[i] * math.cos(angle) - x[i + 1] * math.sin(angle)
        turned[i + 1] = x[i] * math.sin(angle) + x[i + 1] * math.cos(angle)
    return turned


def loop_logits(ckpt: Checkpoint, tokens: list[int]) -> list[list[float]]:
    """Return logits [T][vocab] computed one number at a time in Python floats."""
    c, size, result = ckpt.config, ckpt.config.head_size, []
    keys: list[list[list[float]]] = [[] for _ in range(c.n_layers)]
    values: list[list[list[float]]] = [[] for _ in range(c.n_layers)]
    for pos, token in enumerate(tokens):
        x = [float(v) for v in ckpt.embedding[token]]
        for n in range(c.n_layers):
            h = norm(x, ckpt.norm_att[n], c.norm_eps)
            q = turn(product(ckpt.wq[n], h), pos, c)
            keys[n].append(turn(product(ckpt.wk[n], h), pos, c))
            values[n].append(product(ckpt.wv[n], h))
            mixed = []
            for head in range(c.n_heads):
                start = head // (c.n_heads // c.n_kv_heads) * size
                scores = [sum(q[head * size + i] * key[start + i] for i in range(size))
                          / math.sqrt(size) for key in keys[n]]
                weights = [math.exp(s) for s in scores]
                mixed += [sum(w * value[start + i] for w, value in zip(weights, values[n]))
                          / sum(weights) for i in range(size)]
            x = [a + b for a, b in zip(x, product(ckpt.wo[n], mixed))]
            h = norm(x, ckpt.norm_ffn[n], c.norm_eps)
            gate = [g / (1 + math.exp(-g)) for g in product(ckpt.w1[n], h)]
            gated = [g * u for g, u in zip(gate, product(ckpt.w3[n], h))]
            x = [a + b for a, b in zip(x, product(ckpt.w2[n], gated))]
        result.append(product(ckpt.classifier, norm(x, ckpt.norm_final, c.norm_eps)))
    return result


@pytest.mark.parametrize("config", [TINY, GROUPED])
def test_equals_plain_loops(config):
    checkpoint = random_checkpoint(config, seed=3)
    tokens = np.random.default_rng(5).integers(config.vocab_size, size=config.seq_len)
    expected = loop_logits(checkpoint, tokens.tolist())
    double = FloatModel(checkpoint, dtype=np.float64).logits(tokens)
    assert double.dtype == np.float64
    np.testing.assert_allclose(double, expected, rtol=1e-11, atol=1e-11)
    single = FloatModel(checkpoint).logits(tokens)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_step_by_step_equals_whole_sequence(dtype, tolerance):
    model = FloatModel(random_checkpoint(GROUPED, seed=2), dtype=dtype)
    tokens = [1, 4, 0, 6, 2, 2, 5, 3]
    stepped = [model.step(token, pos) for pos, token in enumerate(tokens)]
    np.testing.assert_allclose(stepped, model.logits(tokens), rtol=tolerance, atol=tolerance)
    assert stepped[0].dtype == dtype


def test_step_can_go_back():
    model = FloatModel(random_checkpoint(TINY, seed=2), dtype=np.float64)
    for pos, token in enumerate([1, 2, 3, 4]):
        model.step(token, pos)
    again = model.step(9, 2)
    np.testing.assert_allclose(again, model.logits([1, 2, 9])[-1], rtol=1e-12)
    with pytest.raises(ValueError, match="pos must be from 0 to 3, not 4"):
        model.step(1, 4)


def test_sequence_does_not_disturb_steps():
    model = FloatModel(random_checkpoint(TINY, seed=2), dtype=np.float64)
    model.step(1, 0)
    model.logits([5, 6, 7])
    np.testing.assert_allclose(model.step(2, 1), model.logits([1, 2])[-1], rtol=1e-12)


def test_later_tokens_do_not_reach_back():
    model = FloatModel(random_checkpoint(TINY, seed=2))
    np.testing.assert_allclose(model.logits([1, 2, 3, 4])[:2], model.logits([1, 2, 9, 9])[:2],
                               rtol=1e-6)


def test_golden_logits_of_torch():
    with np.load(GOLDEN) as golden:
        windows, expected = golden["tokens"], golden["logits"]
    assert windows.shape == (2, 256) and expected.shape == (2, 256, 68)
    checkpoint = load_checkpoint(BUILT_IN)
    for dtype in (np.float32, np.float64):
        model = FloatModel(checkpoint, dtype=dtype)
        for tokens, logits in zip(windows, expected, strict=True):
            assert np.abs(model.logits(tokens) - logits).max() < 1e-4
    stepped = [model.step(int(token), pos) for pos, token in enumerate(windows[0])]
    assert np.abs(stepped - expected[0]).max() < 1e-4


def test_built_in_model_predicts_its_text():
    """The validation windows of the golden file are predicted far better than by letter counts."""
    with np.load(GOLDEN) as golden:
        windows = golden["tokens"]
    assert nats_per_token(FloatModel(load_checkpoint(BUILT_IN)).logits, windows) < 1.8


def test_extreme_activations_do_not_overflow():
    checkpoint = random_checkpoint(TINY, seed=1)
    checkpoint.w1[:] *= 1e4
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(FloatModel(checkpoint).logits([1, 2, 3])).all()


@pytest.mark.parametrize("tokens, message", [
    ([], "tokens must be a sequence of 1 to 9, not of shape"),
    ([1] * 10, r"tokens must be a sequence of 1 to 9, not of shape \[10\]"),
    ([[1, 2]], r"not of shape \[1, 2\]"),
    ([1, 11], "tokens must be from 0 to 10, not 11"),
    ([-1], "tokens must be from 0 to 10, not -1"),
    ([1.0], "tokens must be integers, not float64"),
])
def test_logits_refuses(tokens, message):
    with pytest.raises(ValueError, match=message):
        FloatModel(random_checkpoint(TINY, seed=1)).logits(tokens)


def test_step_refuses():
    model = FloatModel(random_checkpoint(TINY, seed=1))
    with pytest.raises(ValueError, match="pos must be from 0 to 0, not 1"):
        model.step(1, 1)
    with pytest.raises(ValueError, match="tokens must be from 0 to 10, not 11"):
        model.step(11, 0)
    for pos in range(9):
        model.step(1, pos)
    with pytest.raises(ValueError, match="pos must be from 0 to 8, not 9"):
        model.step(1, 9)
    with pytest.raises(TypeError, match="dtype must be float32 or float64, not int32"):
        FloatModel(random_checkpoint(TINY, seed=1), dtype=np.int32)


def test_nats_of_known_distributions():
    # Probabilities 1/2, 1/4, 1/4 at every position; token 0 costs ln 2, the others ln 4.
    table = np.log([0.5, 0.25, 0.25]) + 123.0

    def logits(tokens):
        return np.tile(table, (len(tokens), 1))

    assert nats_per_token(logits, [[2, 0]]) == pytest.approx(math.log(2))
    assert nats_per_token(logits, [[0, 1]]) == pytest.approx(math.log(4))
    # Windows of different lengths: the mean is over tokens (three ln 2, one ln 4), not windows.
    expected = (3 * math.log(2) + math.log(4)) / 4
    assert nats_per_token(logits, [[1, 0, 0, 0], [1, 2]]) == pytest.approx(expected)


def test_nats_score_the_next_token():
    def logits(tokens):
        return np.where(np.arange(5) == (np.asarray(tokens)[:, None] + 1) % 5, 50.0, 0.0)

    assert nats_per_token(logits, [[3, 4, 0, 1]]) == pytest.approx(0, abs=1e-9)
    assert nats_per_token(logits, [[3, 3]]) == pytest.approx(50)


@pytest.mark.parametrize("windows, message", [
    ([], "token windows must be at least one, not none"),
    ([[1]], r"token windows must be sequences of at least 2 tokens, not of shape \[1\]"),
])
def test_nats_refuses(windows, message):
    with pytest.raises(ValueError, match=message):
        nats_per_token(lambda tokens: np.zeros((len(tokens), 3)), windows)
