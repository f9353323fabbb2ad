"""Quantisation and calibration: brute force, ranges, and what the formats cannot hold."""
import dataclasses
import itertools
import math

import numpy as np
import pytest

from arch import numerics
from arch.config import profile
from compiler import calibrate
from compiler.checkpoint import ModelConfig, random_checkpoint
from compiler.errors import ModelError
from compiler.quantise import quantise
from compiler.quantised import NORM_POST, ROPE_FRACTION, eps_vector
from compiler.scales import HEADROOM, Ratio, clip_scale, quantise_weights, requants
from compiler.scales import room as room_of
from sim.float_model import FloatModel

TINY = profile("tiny")


def rounded(x):
    """Nearest integer, ties to even: what a weight or sample becomes."""
    return round(float(x))


# Weights.

def brute_force_row(row):
    """Least squared error over the 13 clips from the peak to 0.7 of it, the wider among equals."""
    peak, best = max(max(abs(value) for value in row), 1e-12), None
    for step in range(13):
        scale = peak * (1 - 0.3 * step / 12) / 127
        integers = [max(-127, min(127, rounded(value / scale))) for value in row]
        error = sum((integer * scale - value)**2 for integer, value in zip(integers, row))
        if best is None or error < best[0]:
            best = error, integers, scale
    return best[1], best[2]


@pytest.mark.parametrize("kind", ["normal", "outlier", "laplace", "integers", "single"])
def test_quantise_weights(kind):
    rng = np.random.default_rng(1)
    w = {"normal": rng.normal(size=(9, 40)), "laplace": rng.laplace(size=(9, 40)),
         "outlier": np.concatenate([rng.normal(size=(9, 39)), np.full((9, 1), 6.0)], 1),
         "integers": rng.integers(-127, 128, (9, 40)) * 0.5,
         "single": rng.normal(size=(9, 1))}[kind]
    q, scale = quantise_weights(w)
    assert q.dtype == np.int8 and q.shape == w.shape and scale.shape == (9,)
    for row, integers, step in zip(w, q, scale):
        expected, expected_scale = brute_force_row(row.tolist())
        assert integers.tolist() == expected
        assert step == pytest.approx(expected_scale, rel=1e-12)
    assert np.abs(q.astype(int)).max() <= 127


def test_clipping_pays_for_outliers_only():
    # Each small weight is off by 0.0024 without clipping and by nothing at 0.7 of the peak; the
    # outlier then loses 0.3. So 0.09 against 5.6e-6 times their number.
    row = np.full((1, 40001), 0.7 / 127)
    row[0, 0] = 1.0
    assert quantise_weights(row)[1][0] < 0.8 / 127
    assert quantise_weights(row[:, :101])[1][0] > 0.95 / 127
    _, scale = quantise_weights(np.linspace(-1, 1, 255)[None])
    assert scale[0] == pytest.approx(1 / 127)


def test_a_row_of_zeros():
    q, scale = quantise_weights(np.zeros((2, 5)))
    assert not q.any()
    # All clips are as good: the widest.
    assert scale == pytest.approx([1e-12 / 127] * 2, rel=1e-9, abs=0)


# Scales of samples.

@pytest.mark.parametrize("bits", [8, 10])
def test_clip_scale(bits):
    rng, limit = np.random.default_rng(2), 2**(bits - 1) - 1
    for samples in (rng.normal(size=60), rng.standard_t(2, 60), rng.uniform(-3, 3, 60)):
        peak = max(abs(value) for value in samples)
        scales = [peak * (1 - 0.5 * step / 25) / limit for step in range(26)]
        errors = [sum((min(rounded(abs(value) / scale), limit) * scale - abs(value))**2
                      for value in samples) for scale in scales]
        assert clip_scale(samples, bits) == pytest.approx(scales[errors.index(min(errors))],
                                                          rel=1e-12)
    assert clip_scale(np.zeros(4), bits) > 0


def test_clip_scale_goes_down_to_half():
    # Errors of 400,000 samples of 0.5 / 127 against a loss of one outlier: least near 0.52.
    samples = np.full(400_001, 0.5 / 127)
    samples[0] = 1.0
    assert clip_scale(samples, 8) < 0.55 / 127


@pytest.mark.parametrize("samples, scale, room", [
    ([1.0], 1.0, 7), ([127.0], 1.0, 7), ([128.0], 1.0, 6), ([255.0], 1.0, 6), ([256.0], 1.0, 5),
    ([-16383.0], 1.0, 0), ([40000.0], 1.0, 0), ([0.0], 1.0, 7), ([127.0, 3.0], [1.0, 0.001], 2)])
def test_room(samples, scale, room):
    """Twice the largest integer still fits 15 bits after the shift."""
    assert room_of(np.array(samples), np.array(scale)) == room


@pytest.mark.parametrize("total", [0, 1, 2, 99, 1 << 20, 32767**2, 3 * 32767**2 + 5, 1 << 33])
def test_eps_vector(total):
    vector = eps_vector(total, 8)
    assert vector.min() >= 0 and vector.max() <= 32767
    rest = total - int((vector**2).sum())
    # Eight squares of 15 bits make up any number, but for what eight lanes cannot hold.
    assert rest == max(0, total - 8 * 32767**2)


# Requantisers.

@pytest.mark.parametrize("extra", [0, 4, -3])
@pytest.mark.parametrize("peak", [100.0, 70000.0, 5e6])
def test_requants(extra, peak):
    rng = np.random.default_rng(3)
    needs = [Ratio(rng.uniform(0.2, 1, 6) * 2.0**-7, peak, extra),
             Ratio(rng.uniform(0.01, 3, 6) * 2.0**-7, peak / 3, extra)]
    made = requants(needs, "made")
    assert len({(one.pre, one.post) for one in made}) == 1
    pre, post = made[0].pre, made[0].post
    assert 0 <= post <= 31
    # The accumulator, at twice its calibrated peak, fits the 18-bit multiplier: by no bit less.
    assert peak * HEADROOM / 2**pre <= 2**17
    assert pre == 0 or peak * HEADROOM / 2**(pre - 1) > 2**17
    top = max(one.m.max() for one in made)
    assert 16384 <= top <= 32767
    for need, one in zip(needs, made):
        seen = one.m * 2.0**(extra - pre - post)
        # Half a step of the multiplier.
        assert np.abs(seen - need.ratio).max() <= 2.0**(extra - pre - post) / 2


def test_requants_at_the_ends_of_the_shift():
    # A ratio so small that the shift ends at 31: the multiplier gives way.
    (one,) = requants([Ratio(np.array([2.0**-25]), 1.0)], "small")
    assert (one.post, one.m.tolist()) == (31, [64])
    # And so large that it ends at 0.
    (one,) = requants([Ratio(np.array([20000.0]), 1.0)], "large")
    assert (one.post, one.m.tolist()) == (0, [20000])
    with pytest.raises(ModelError) as caught:
        requants([Ratio(np.array([40000.0]), 1.0)], "'up'")
    assert str(caught.value) == "'up': a scale of 4e+04 is out of the range of the requantiser"
    # 32767.6 rounds beyond int16 at one exponent and not at the next.
    (one,) = requants([Ratio(np.array([32767.6 / 2**20]), 1.0)], "edge")
    assert (one.post, one.m.tolist()) == (19, [16384])
    (one,) = requants([Ratio(np.array([32767.4 / 2**20]), 1.0)], "edge")
    assert (one.post, one.m.tolist()) == (20, [32767])


@pytest.mark.parametrize("ratio", [[0.0, 0.0], [np.inf, 1.0], [np.nan, 1.0]])
def test_requants_without_a_scale(ratio):
    with pytest.raises(ModelError) as caught:
        requants([Ratio(np.array(ratio), 1.0)], "'q'")
    assert str(caught.value) == "'q': weights or activations are all zero or not finite"


# Whole models.

def sample_model(bits=8, tied=True, **change):
    config = ModelConfig(dim=32, hidden_dim=36, n_layers=3, n_heads=4, n_kv_heads=2, vocab_size=40,
                         seq_len=32, tied=tied)
    checkpoint = random_checkpoint(config, 5)
    if change:
        checkpoint = dataclasses.replace(checkpoint, **change)
    text = np.random.default_rng(7).integers(0, 40, (3, 24))
    return checkpoint, text, quantise(checkpoint, TINY.replace(activation_bits=bits), text, 24)


@pytest.mark.parametrize("bits, tied", itertools.product([8, 9, 10], [True, False]))
def test_every_number_fits_its_field(bits, tied):
    _, _, model = sample_model(bits, tied)
    assert model.activation_bits == bits and model.context == 24
    ones = [model.logits] + [one for layer in model.layers for one in (
        layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down, layer.scores)]
    if model.final_gain is not None:
        ones.append(model.final_gain)
    for one in ones:
        assert np.abs(one.m).max() <= 32767 and 0 <= one.pre <= 15 and 0 <= one.post <= 31
    assert (model.final_gain is not None) == tied
    assert (model.classifier is model.embedding.rows) == tied
    for layer in model.layers:
        for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3"):
            assert np.abs(getattr(layer, name).astype(int)).max() == 127
        for shift in (layer.att_norm_shift, layer.ffn_norm_shift, layer.q_shift, layer.k_shift,
                      layer.hidden_shift):
            assert 0 <= shift <= 15
        assert 0 <= layer.hidden_post <= 31
        for bias in (layer.att_norm_bias, layer.ffn_norm_bias):
            assert 0 <= bias <= 63
    assert 0 <= model.embedding.m.min() and model.embedding.m.max() <= 32767
    assert 0 <= model.embedding.post <= 31 and 0 <= model.recip_bias <= 63
    assert model.rope.shape == (24, 8)


def test_softmax_constants():
    """exp(0) becomes the largest activation but for its 127/128; the sum of a whole context, times
    the largest value, fits the 18-bit multiplier."""
    for bits in (8, 9, 10):
        _, _, model = sample_model(bits)
        largest = int(numerics.exp2(0, 0, model.exp_post))
        assert largest == round(127 / 128 * 2**(bits - 1)) <= 2**(bits - 1) - 1
        assert model.context * largest * 127 / 2**model.att_pre <= 2**17
        # A single position of weight one gives v with bits - 8 fraction bits.
        inverse = numerics.recip(largest, model.recip_bias)
        seen = numerics.mac(100 * largest, inverse, 0, model.att_pre, model.att_post, True)
        assert abs(int(seen) - 100 * 2**(bits - 8)) <= 1


def test_rope_table():
    _, _, model = sample_model()
    for position, pair in itertools.product((0, 1, 7, 23), range(4)):
        angle = position * 10000.0**(-2 * pair / 8)
        assert model.rope[position, pair] == rounded(math.cos(angle) * 2**ROPE_FRACTION)
        assert model.rope[position, 4 + pair] == rounded(math.sin(angle) * 2**ROPE_FRACTION)


def test_multipliers_mean_what_they_should():
    """One requantiser from its definition: the real value of an output over its scale."""
    checkpoint, text, model = sample_model(10)
    acts = calibrate.run(checkpoint, text)
    layer, scale = model.layers[1], model.residual_scale
    x = acts.layers[1]["x_ffn"][5].astype(np.float64)
    n = numerics.activation(np.rint(x / scale), layer.ffn_norm_shift, 10)
    total = int((np.rint(x / scale)**2).sum()) + model.eps_total
    r = numerics.rsqrt(total, layer.ffn_norm_bias)
    m = numerics.mac(layer.gate.m, r, 0, 0, NORM_POST, True)
    gate = numerics.mac(layer.w1.astype(np.int64) @ n, m, 0, layer.gate.pre, layer.gate.post)
    error = gate / 2**numerics.ACT_FRACTION - acts.layers[1]["gate"][5]
    assert np.abs(error).max() < 0.03 * np.abs(acts.layers[1]["gate"]).max()


def test_norms_keep_their_precision():
    """1/rms of the calibrated residuals fills at least 11 of the 12 mantissa bits and no shift is
    below 0, even at half of the smallest rms."""
    checkpoint, text, model = sample_model()
    acts = calibrate.run(checkpoint, text)
    for number, layer in enumerate(model.layers):
        for name, bias in (("x_att", layer.att_norm_bias), ("x_ffn", layer.ffn_norm_bias)):
            x = np.rint(acts.layers[number][name] / model.residual_scale)
            total = (x**2).sum(-1).astype(np.int64) + model.eps_total
            for part in (total, total // 4 + 1):
                exact = 2.0**bias / np.sqrt(part)
                mantissa, shift = numerics.float12_fields(numerics.rsqrt(part, bias))
                assert np.abs(mantissa / 2.0**shift / exact - 1).max() < 2.0**-10


def test_more_context_needs_more_shift():
    checkpoint, text, model = sample_model()
    shifts = [quantise(checkpoint, TINY, text, context).att_pre
              for context in (1, 16, 24, 256, 257)]
    # 7 + 7 bits of a product, the bits of the context, a sign, over 18.
    assert shifts == [0, 1, 2, 5, 6]
    assert model.att_pre == 2


# Models that no scale fits.

def scaled(factor, *names):
    """A tied model with some of its matrices scaled, and text for it."""
    config = ModelConfig(dim=32, hidden_dim=36, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=40,
                         seq_len=32, tied=True)
    plain = random_checkpoint(config, 5)
    arrays = {name: (getattr(plain, name) * factor).astype(np.float32) for name in names}
    if "embedding" in arrays:
        arrays["classifier"] = arrays["embedding"]
    return (dataclasses.replace(plain, **arrays),
            np.random.default_rng(7).integers(0, 40, (3, 24)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factor, names, message", [
    (1e-25, ("wq", "wk", "w1", "w2"), "'up': a scale of"),
    (1e-20, ("embedding",), "'q': a scale of"),
    (0, ("embedding", "wo", "w2"), "'q': a scale of"),
    (0, ("norm_final",), "final norm: weights or activations are all zero"),
    (1e20, ("embedding",), "layer 0: the values of 'x_att' grow beyond all bounds"),
    (1e25, ("wq", "wk", "w1", "w2"), "layer 0: the values of 'q' grow beyond all bounds")])
def test_models_out_of_range(factor, names, message):
    with pytest.raises(ModelError) as caught:
        quantise(scaled(factor, *names)[0], TINY, scaled(1)[1], 24)
    assert str(caught.value).startswith(message)


def test_matrices_of_zeros_are_allowed():
    checkpoint, text = scaled(0, "wq", "wo")
    model = quantise(checkpoint, TINY, text, 24)
    assert not model.layers[0].wq.any() and not model.layers[0].wo.any()


def test_an_up_projection_of_zeros_is_allowed():
    checkpoint, text = scaled(0, "w3")
    assert not quantise(checkpoint, TINY, text, 24).layers[0].w3.any()


# Calibration.

def test_calibration_is_the_float_model():
    config = ModelConfig(dim=32, hidden_dim=36, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=40,
                         seq_len=32, tied=False)
    checkpoint = random_checkpoint(config, 8)
    text = np.random.default_rng(7).integers(0, 40, (3, 20))
    acts = calibrate.run(checkpoint, text)
    expected = [FloatModel(checkpoint).logits(tokens) for tokens in text]
    assert np.allclose(acts.logits.reshape(3, 20, 40), expected, atol=1e-4)
    first = acts.layers[0]
    assert np.array_equal(first["x_att"], acts.embedding)
    assert np.array_equal(acts.layers[1]["x_out"], acts.final)
    # Rotation keeps lengths; the weighted values are means of values seen so far.
    pairs = lambda x: (x.reshape(60, -1, 4, 2)**2).sum(-1)  # noqa: E731
    assert np.allclose(pairs(first["q"]), pairs(first["q_raw"]), rtol=1e-4)
    assert np.allclose(pairs(first["k"]), pairs(first["k_raw"]), rtol=1e-4)
    assert np.allclose(first["att"].reshape(3, 20, 2, 2, 8)[:, 0, :, 0],
                       first["v"].reshape(3, 20, 2, 8)[:, 0], atol=1e-6)


def test_self_sampled():
    config = ModelConfig(dim=16, hidden_dim=20, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=30,
                         seq_len=12, tied=False)
    checkpoint = random_checkpoint(config, 8)
    tokens = calibrate.self_sampled(checkpoint, 7, seed=3, sequences=3)
    assert tokens.shape == (3, 12) and (tokens[:, 0] == 7).all()
    # The same draws, with the whole text run anew for each token.
    rng, model = np.random.default_rng(3), FloatModel(checkpoint)
    text = np.full((3, 1), 7)
    for position in range(11):
        logits = np.array([model.logits(row)[position] for row in text], np.float64)
        following = np.argmax(logits + rng.gumbel(size=(3, 30)), -1)
        text = np.concatenate([text, following[:, None]], 1)
    assert np.array_equal(tokens, text)
    assert np.array_equal(tokens, calibrate.self_sampled(checkpoint, 7, seed=3, sequences=3))
    assert not np.array_equal(tokens, calibrate.self_sampled(checkpoint, 7, seed=4, sequences=3))
    assert calibrate.self_sampled(checkpoint, 7, length=5).shape == (4, 5)
