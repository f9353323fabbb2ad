"""The reference: two steps worked out by hand, and the same formulas without any rounding."""
import dataclasses
import math

import numpy as np
import pytest

from arch.config import Config, profile
from arch.numerics import as_lane, sampling_keys
from compiler.checkpoint import ModelConfig, random_checkpoint
from compiler.pipeline import compile_quantised
from compiler.quantise import quantise
from compiler.quantised import QuantLayer, QuantModel, Requant, Rows
from sim.float_model import FloatModel
from sim.reference import Reference
from tests.lockstep import lockstep

HAND = Config(name="hand", rows=2, columns=4, tile_columns=1, weight_depth=256, accumulators=64,
              mem_depth=64, const_depth=64, context=4, vocab_max=4)


def requant(values, post, pre=0):
    return Requant(np.array(values), pre, post)


@pytest.fixture(scope="module")
def hand_model():
    """One layer, one head of two channels, one hidden channel, two tokens; RoPE turns by 90
    degrees at position 1."""
    weights = lambda rows: np.array(rows, np.int8)  # noqa: E731
    one = weights([[1, 0], [0, 1]])
    layer = QuantLayer(
        wq=2 * one, wk=one, wv=one, wo=one, w1=weights([[1, 0]]), w3=weights([[2, 0]]),
        w2=weights([[3], [-1]]), q=requant([4096, 4096], 10), k=requant([4096, 4096], 10),
        v=requant([4096, 4096], 12), o=requant([16384, 16384], 10), gate=requant([4096], 6),
        up=requant([4096], 8), down=requant([8192, 8192], 12), att_norm_shift=4, att_norm_bias=22,
        ffn_norm_shift=5, ffn_norm_bias=22, q_shift=3, k_shift=2, scores=requant([256], 10, pre=2),
        hidden_post=14, hidden_shift=0)
    return QuantModel(
        config=ModelConfig(dim=2, hidden_dim=1, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=2,
                           seq_len=4, tied=False),
        activation_bits=8, context=4,
        embedding=Rows(weights([[64, 0], [0, 32]]), np.array([1024, 2048]), 6), positions=None,
        offsets=None, classifier=weights([[1, 0], [0, -5]]), eps_total=0,
        rope=np.array([[16384, 0], [0, 16384], [-16384, 0], [0, -16384]]), layers=[layer],
        exp_post=22, recip_bias=18, att_pre=0, att_post=18, final_gain=None, final_shift=5,
        final_bias=22, logits=requant([4096, 2048], 9), residual_scale=1.0)


#: Worked out with pencil and the tables' formulas; lanes 0 and 1 of the first vector.
FIRST = {
    # 64 * 1024 >> 6.
    ("embedding", -1): [1024, 0],
    # The sum of squares is 2**20, its root 2**-10: mantissa 1.0 (4095 at most), shift 12+10-22.
    ("att.r", 0): [4095 << 4] * 2,
    # Activations 1024 >> 4 = 64; times 2; 128 * 4095 >> 10 = 511.9; keys half of it.
    ("qk_raw", 0): [256, 0],
    ("k", 0): [256, 0],
    ("q", 0): [512, 0],
    # (512 >> 3) * (256 >> 2) = 4096; >> 2, * 256 >> 10.
    ("scores.0", 0): [256, -32768],
    ("peak.0", 0): [256, 256],
    ("exp.0", 0): [127, 0],
    # 1/127: segment 63, 2**14 * 64 / 127 = 8256.5, mantissa 2064, shift 12 + 6 - 18.
    ("inverse.0", 0): [2064 << 4] * 2,
    # 127 * 64 * 2064 >> 18 = 63.997.
    ("att", 0): [64, 0],
    # 64 * 16384 >> 10, added to the residual.
    ("x_mid", 0): [2048, 0],
    # 2**22: shift 12 + 11 - 22.
    ("ffn.r", 0): [4095 << 4 | 1] * 2,
    # 4096 * 4095 >> 13 = 2047.5; 64 * 2048 >> 6; twice 64, >> 8.
    ("gate", 0): [2048, 0],
    ("up", 0): [1024, 0],
    # silu(1) = 1 - 0.2689: 2048 - 551.
    ("silu", 0): [1497, 0],
    # 1497 * 1024 >> 14 = 93.6.
    ("hidden", 0): [94, 0],
    # 3 * 94 * 2 and -94 * 2.
    ("x_out", 0): [2048 + 564, -188],
    # 6857888 = 1.635 * 4**11: segment 20, rest 82; 12853 - 122 * 82 / 256 = 12814, >> 2.
    ("final.r", 1): [3204 << 4 | 1] * 2,
    ("logits.m", 1): [1602, 801],
}
SECOND = {
    ("embedding", -1): [0, 1024],
    ("qk_raw", 0): [0, 256],
    # The other lane times the sine, negative in even lanes.
    ("qk_turn", 0): [-256, 0],
    ("k", 0): [-256, 0],
    ("q", 0): [-512, 0],
    # Against key 64 of position 0 and key -64 of this one.
    ("scores.0", 0): [-256, 256],
    ("peak.0", 0): [256, 256],
    # Two octaves below: 127 / 4 = 31.75.
    ("exp.0", 0): [32, 127],
    # 1/159 = 1/(1.242 * 128): segment 15, rest 128; 13273 - 83, >> 2, shift 12 + 7 - 18.
    ("inverse.0", 0): [3298 << 4 | 1] * 2,
    # 32 * 64 * 3298 >> 19 = 12.9, 127 * 64 * 3298 >> 19 = 51.1.
    ("att", 0): [13, 51],
    ("x_mid", 0): [13 * 16, 1024 + 51 * 16],
    # 3428864 = 3.27 * 4**10: segment 52, rest 82; 9088 - 28, >> 2, shift 12 + 10 - 22.
    ("ffn.r", 0): [2265 << 4] * 2,
    # 208 / 32 = 6.5 rounds to 7; 7 * 2265 >> 6 = 247.7; 14 * 2265 >> 8 = 123.9.
    ("gate", 0): [248, 0],
    ("up", 0): [124, 0],
    # Segment 0: 248 - 120 * 248 / 256.
    ("silu", 0): [132, 0],
    ("hidden", 0): [1, 0],
    ("x_out", 0): [208 + 6, 1840 - 2],
    ("final.r", 1): [2267 << 4] * 2,
    ("logits.m", 1): [2267, 1134],
}


def check_kept(kept, expected):
    for (label, layer), lanes in expected.items():
        wanted = [(value + 32768) % 65536 - 32768 if label.endswith(".r") or "inverse" in label
                  else value for value in lanes]
        assert kept[label, layer][0, :2].tolist() == wanted, label


def test_two_steps_by_hand(hand_model):
    reference = Reference(hand_model, HAND)
    # Activations 82 and -6 of 2612 and -188: 82 * 1602 >> 9, 30 * 801 >> 9.
    assert reference.step(0, 0, keep=True).tolist() == [257, 47]
    check_kept(reference.kept, FIRST)
    assert reference.keys[0, 0].tolist() == [[64, 0]]
    assert reference.values[0, 0].tolist() == [[64, 0]]
    # Activations 7 and 57: 7 * 2267 >> 9, -285 * 1134 >> 9.
    assert reference.step(1, 1, keep=True).tolist() == [31, -631]
    check_kept(reference.kept, SECOND)
    assert reference.keys[0, 1].tolist() == [[-64, 0]]
    assert reference.values[0, 1].tolist() == [[0, 64]]
    # Query vectors lie behind the key's.
    assert reference.kept["qk_raw", 0][1].tolist() == [0, 512, 0, 0]


def test_saturation_and_epsilon_by_hand(hand_model):
    """Queries, keys and values of eight bits; a sum of squares with 1800 * 1800 added to it."""
    (layer,) = hand_model.layers
    loud = dataclasses.replace(layer, q_shift=0, k_shift=0, v=requant([4096, 4096], 8))
    model = dataclasses.replace(hand_model, layers=[loud])
    reference = Reference(model, HAND)
    reference.step(0, 0, keep=True)
    # 512 and 256 become 127: 127 * 127 = 16129, >> 2 = 4032, * 256 >> 10.
    assert reference.kept["scores.0", 0][0, 0] == 1008
    assert reference.keys[0, 0].tolist() == [[127, 0]]
    assert reference.values[0, 0].tolist() == [[127, 0]]
    reference.step(1, 1)
    assert reference.keys[0, 1].tolist() == [[-127, 0]]
    assert lockstep(compile_quantised(model, HAND, tries=0), [0, 1], 4) > 0
    reference = Reference(dataclasses.replace(hand_model, eps_total=1800**2), HAND)
    reference.step(0, 0, keep=True)
    # 4288576 = 1.0225 * 4**11: segment 0, rest 184; 16384 - 250 * 184 / 256 = 16204, >> 2.
    assert reference.kept["att.r", 0][0, 0] == as_lane(4051 << 4 | 1)


def test_the_machine_agrees_with_the_hand(hand_model):
    assert lockstep(compile_quantised(hand_model, HAND, tries=0), [0, 1], 4) > 0


# The same formulas in real numbers.

def real_steps(model, eps_total, tokens):
    """Logits [positions, vocab] of a quantised model, nothing rounded, saturated or tabulated."""
    dims, keys, values, found = model.config, {}, {}, []
    size, group = dims.head_size, dims.n_heads // dims.n_kv_heads

    def scaled(acc, requant, r=None):
        joined = requant.m if r is None else requant.m * r / 2**12
        return acc * joined / 2.0**(requant.pre + requant.post)

    def inverse_rms(x, bias):
        return 2.0**bias / math.sqrt((x * x).sum() + eps_total)

    def turned(head, position):
        cos, sin = model.rope[position].reshape(2, -1) / 2**14
        pairs = [((a * c - b * s), (b * c + a * s))
                 for a, b, c, s in zip(head[::2], head[1::2], cos, sin)]
        return np.array(pairs).ravel()
    for position, token in enumerate(tokens):
        table = model.embedding
        x = table.rows[token] * (table.m[token] / 2.0**table.post)
        for number, layer in enumerate(model.layers):
            r, n = inverse_rms(x, layer.att_norm_bias), x / 2**layer.att_norm_shift
            q, k, v = (scaled(w @ n, one, r) for w, one in (
                (layer.wq, layer.q), (layer.wk, layer.k), (layer.wv, layer.v)))
            att = np.zeros(dims.dim)
            for kv in range(dims.n_kv_heads):
                part = slice(kv * size, (kv + 1) * size)
                key = turned(k[part], position) / 2**layer.k_shift
                keys.setdefault((number, kv), []).append(key)
                values.setdefault((number, kv), []).append(v[part])
                for head in range(kv * group, (kv + 1) * group):
                    own = slice(head * size, (head + 1) * size)
                    query = turned(q[own], position) / 2**layer.q_shift
                    unit = layer.scores.m[head] / 2.0**(layer.scores.pre + layer.scores.post + 8)
                    scores = np.array(keys[number, kv]) @ query * unit
                    p = 2.0**(scores - scores.max())
                    att[own] = p @ np.array(values[number, kv]) / p.sum() * 2.0**(
                        model.recip_bias - model.att_pre - model.att_post)
            x = x + scaled(layer.wo @ att, layer.o)
            r, n = inverse_rms(x, layer.ffn_norm_bias), x / 2**layer.ffn_norm_shift
            gate = scaled(layer.w1 @ n, layer.gate, r) / 2**11
            up = scaled(layer.w3 @ n, layer.up, r)
            hidden = gate / (1 + np.exp(-gate)) * 2**11 * up / 2.0**layer.hidden_post
            x = x + scaled(layer.w2 @ (hidden / 2**layer.hidden_shift), layer.down)
        r, gained = inverse_rms(x, model.final_bias), x
        if model.final_gain is not None:
            gained = scaled(x, model.final_gain)
        found.append(scaled(model.classifier @ (gained / 2**model.final_shift), model.logits, r)
                     / 2**8)
    return np.array(found)


def relative_error(seen, expected):
    return math.sqrt(np.mean((seen - expected)**2) / np.mean(expected**2))


@pytest.fixture(scope="module")
def calm():
    """A checkpoint whose residual grows little over the layers, as trained ones' does, and text."""
    config = ModelConfig(dim=32, hidden_dim=44, n_layers=2, n_heads=8, n_kv_heads=4, vocab_size=43,
                         seq_len=32, tied=True)
    plain = random_checkpoint(config, 1)
    embedding = plain.embedding * np.float32(5)
    half = np.float32(0.5)
    return dataclasses.replace(plain, embedding=embedding, classifier=embedding,
                               wo=plain.wo * half, w2=plain.w2 * half)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits, bound", [(8, 0.036), (9, 0.018), (10, 0.009)])
def test_against_real_numbers(calm, tied, bits, bound):
    """All roundings and all tables together. These are the only places with a tolerance; it halves
    with every bit of the activations, so that nothing but rounding can hide behind it."""
    checkpoint = calm if tied else dataclasses.replace(
        calm, config=dataclasses.replace(calm.config, tied=False), classifier=-calm.embedding)
    config = profile("tiny").replace(activation_bits=bits)
    rng = np.random.default_rng(9)
    model = quantise(checkpoint, config, rng.integers(0, 43, (4, 32)), 32)
    tokens = rng.integers(0, 43, 24)
    reference = Reference(model, config)
    seen = np.array([reference.step(int(token), position)
                     for position, token in enumerate(tokens)]) / 2**8
    assert relative_error(seen, real_steps(model, reference.eps_total, tokens)) < bound
    # The float model of the checkpoint itself: eight bits of weights come in.
    expected = np.asarray(FloatModel(checkpoint).logits(tokens), np.float64)
    assert relative_error(seen, expected) < bound + 0.006


# State and generation.

def test_a_position_may_be_taken_again(tiny):
    first, second = (Reference(tiny.model, tiny.config) for _ in range(2))
    for position, token in enumerate([3, 9, 4]):
        first.step(token, position)
        second.step(token + 1, position)
    logits = first.step(7, 3)
    assert not np.array_equal(second.step(7, 3), logits)
    for position, token in enumerate([3, 9, 4]):
        second.step(token, position)
    assert np.array_equal(second.step(7, 3), logits)


def test_kept_only_when_asked(tiny):
    reference = Reference(tiny.model, tiny.config)
    plain = reference.step(3, 0)
    assert reference.kept is None
    assert np.array_equal(reference.step(3, 0, keep=True), plain)
    stored = {(item.label, item.layer) for item in tiny.stored(0)}
    assert stored == set(reference.kept)
    assert all(vectors.shape[1] == tiny.config.lanes for vectors in reference.kept.values())
    reference.step(3, 1)
    assert reference.kept is None


def by_hand(compiled, prompt, steps, temperature, seed):
    """Sampled tokens, and the token that each step begins with."""
    reference, tokens = Reference(compiled.model, compiled.config), list(prompt)
    for position in range(steps):
        logits = reference.step(tokens[position], position)
        if position + 1 >= len(prompt):
            keys = sampling_keys(logits, temperature, seed, position)
            tokens.append(max(range(len(keys)), key=lambda token: (keys[token], -token)))
    return tokens[len(prompt):]


@pytest.mark.parametrize("temperature", [0, 4096, 1000])
def test_generate(tiny, temperature):
    expected = by_hand(tiny, [1, 5, 7], 14, temperature, 11)
    reference = Reference(tiny.model, tiny.config)
    assert reference.generate([1, 5, 7], 14, temperature, 11) == expected
    assert len(expected) == 14 - 2
    stop = expected[5]
    until = expected[:expected.index(stop) + 1]
    assert reference.generate([1, 5, 7], 14, temperature, 11, stop) == until


def test_seeds_differ(tiny):
    reference = Reference(tiny.model, tiny.config)
    runs = {tuple(reference.generate([1], 12, 2000, seed)) for seed in (1, 2, 1 << 40, 1)}
    assert len(runs) == 3
