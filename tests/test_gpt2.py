"""The GPT-2 family: rewriting, float model, integers, machine; the shipped model against torch."""
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

import metronome
from arch import numerics
from arch.config import profile
from arch.selection import Selection
from compiler import calibrate
from compiler.checkpoint import ModelConfig, random_checkpoint
from compiler.equivalent import simplified
from compiler.pipeline import compile_model
from compiler.quantise import quantise
from compiler.quantised import eps_vector
from scripts import sketches
from sim.checker import check_schedule
from sim.float_model import FloatModel, nats_per_token
from sim.machine import Machine
from sim.reference import Reference
from tests.lockstep import lockstep

SHIPPED = Path(metronome.__file__).with_name("models") / "shakespeare_gpt2"
GOLDEN = Path(__file__).parent / "data" / "golden_gpt2.npz"
#: Heads of half a vector, a hidden state and a vocabulary that fill none.
TINY = ModelConfig(dim=32, hidden_dim=44, n_layers=2, n_heads=8, n_kv_heads=8, vocab_size=43,
                   seq_len=24, tied=True, family="gpt2")


@pytest.fixture(scope="module")
def shipped():
    return metronome.load_model(str(SHIPPED))


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return arrays["tokens"], arrays["logits"]


def loud(config, seed=3):
    """A checkpoint whose every bias, gain and mean counts."""
    plain = random_checkpoint(config, seed)
    rng, grown = np.random.default_rng(seed), {}
    for name, array in plain.arrays.items():
        if name.startswith("b") or name.endswith("_bias"):
            grown[name] = (array * 8).astype(np.float32)
        elif name.startswith("norm"):
            grown[name] = rng.uniform(0.3, 3, array.shape).astype(np.float32)
        elif name == "positions":
            grown[name] = (2 * array + 0.5).astype(np.float32)
        elif name == "wo":
            grown[name] = (array + 0.1).astype(np.float32)
        elif name == "embedding":
            grown[name] = (array + rng.normal(size=(len(array), 1))).astype(np.float32)
    if config.tied:
        grown["classifier"] = grown["embedding"]
    return dataclasses.replace(plain, **grown)


# Float.

def test_float_model_is_torchs(shipped, golden):
    model = FloatModel(shipped.checkpoint)
    for tokens, logits in zip(*golden, strict=True):
        assert np.abs(model.logits(tokens) - logits).max() < 1e-4
    stepped = [model.step(int(token), position) for position, token in enumerate(golden[0][0, :40])]
    assert np.abs(stepped - golden[1][0, :40]).max() < 1e-4


def test_rewriting_changes_no_probability():
    for family in ("gpt2", "llama"):
        for tied in (True, False):
            config = dataclasses.replace(TINY, family=family, tied=tied)
            before = loud(config)
            after = simplified(before)
            tokens = np.random.default_rng(1).integers(0, 43, 24)
            found, expected = (FloatModel(one, dtype=np.float64).logits(tokens)
                               for one in (after, before))
            lower = lambda logits: logits - logits.mean(-1, keepdims=True)  # noqa: E731
            assert np.abs(lower(found) - lower(expected)).max() < 1e-4 * np.abs(expected).max()
            for name in ("norm_att", "norm_ffn"):
                assert (getattr(after, name) == 1).all()
            if family == "gpt2":
                for name in ("norm_att_bias", "norm_ffn_bias", "bk", "bv"):
                    assert not getattr(after, name).any()
                for name, axis in (("wo", 1), ("w2", 1), ("positions", 1), ("bo", 1), ("wq", 2)):
                    assert np.abs(getattr(after, name).mean(axis)).max() < 1e-6


def test_calibration_is_the_float_model():
    checkpoint, text = loud(TINY), np.random.default_rng(7).integers(0, 43, (3, 20))
    acts = calibrate.run(checkpoint, text)
    expected = [FloatModel(checkpoint).logits(tokens) for tokens in text]
    assert np.allclose(acts.logits.reshape(3, 20, 43), expected, atol=1e-3)
    # Residuals are kept without their mean.
    assert all(np.abs(layer[name].mean(-1)).max() < 1e-5
               for layer in acts.layers for name in ("x_att", "x_ffn", "x_out"))
    tokens = calibrate.self_sampled(checkpoint, 7, seed=3, sequences=2, length=6)
    rng, model, again = np.random.default_rng(3), FloatModel(checkpoint), np.full((2, 1), 7)
    for position in range(5):
        logits = np.array([model.logits(row)[position] for row in again], np.float64)
        again = np.c_[again, np.argmax(logits + rng.gumbel(size=(2, 43)), -1)]
    assert np.array_equal(tokens, again)


# Integers.

class Plain:
    """A quantised GPT-2 of one layer in plain arithmetic, one head after the other."""

    def __init__(self, model):
        self.model, self.keys, self.values = model, [], []

    def norm(self, x, bias):
        eps = eps_vector(self.model.eps_total, 16)
        return numerics.rsqrt((x * x).sum() + (eps * eps).sum(), bias)

    def linear(self, weights, x, one, r=None, c=0):
        m = one.m if r is None else numerics.mac(one.m, r, 0, 0, 12, b_float=True)
        return numerics.mac(weights.astype(np.int64) @ x, m, c, one.pre, one.post)

    def step(self, token, position):
        model, (layer,), bits = self.model, self.model.layers, 10
        place, table = model.positions, model.embedding
        x = numerics.mac(place.rows[position].astype(int), place.m[position],
                         model.offsets[token], 0, place.post)
        x = numerics.mac(table.rows[token].astype(int), table.m[token], x, 0, table.post)
        r = self.norm(x, layer.att_norm_bias)
        n = numerics.activation(x, layer.att_norm_shift, bits)
        k = numerics.rshift(self.linear(layer.wk, n, layer.k, r), layer.k_shift)
        self.keys.append(numerics.saturate_symmetric(k, 8))
        self.values.append(numerics.saturate_symmetric(self.linear(layer.wv, n, layer.v, r), 8))
        q = numerics.activation(self.linear(layer.wq, n, layer.q, r, layer.q.bias), layer.q_shift,
                                bits)
        att, size = [], model.config.head_size
        for head in range(model.config.n_heads):
            part = slice(head * size, (head + 1) * size)
            keys, values = np.array(self.keys)[:, part], np.array(self.values)[:, part]
            scores = numerics.mac(keys @ q[part], layer.scores.m[head], 0, layer.scores.pre,
                                  layer.scores.post)
            p = numerics.exp2(scores, scores.max(), model.exp_post)
            inverse = numerics.recip(p.sum(), model.recip_bias)
            att.append(numerics.mac(numerics.activation(p, 0, bits) @ values, inverse, 0,
                                    model.att_pre, model.att_post, b_float=True))
        att = numerics.activation(np.concatenate(att), 0, bits)
        x = self.linear(layer.wo, att, layer.o, c=numerics.saturate(x + layer.o.bias, 16))
        r = self.norm(x, layer.ffn_norm_bias)
        n = numerics.activation(x, layer.ffn_norm_shift, bits)
        hidden = numerics.gelu(self.linear(layer.w1, n, layer.gate, r, layer.gate.bias))
        x = self.linear(layer.w2, numerics.activation(hidden, layer.hidden_shift, bits), layer.down,
                        c=numerics.saturate(x + layer.down.bias, 16))
        one = model.final_gain
        m = numerics.mac(one.m, self.norm(x, model.final_bias), 0, 0, 12, b_float=True)
        n = numerics.mac(x, m, one.bias, one.pre, one.post)
        return x, self.linear(model.classifier, numerics.activation(n, model.final_shift, bits),
                              model.logits)


def test_block_equals_plain_arithmetic_at_every_position():
    """Residual and logits of the machine model, for the block that docs/isa.md lists."""
    compiled, rng = sketches.gpt2(), np.random.default_rng(7)
    check_schedule(compiled.image)
    machine, plain = Machine(compiled.config), Plain(compiled.model)
    reference = Reference(compiled.model, compiled.config)
    machine.load(compiled.image)
    spread = []
    for position in range(compiled.model.context):
        token = int(rng.integers(64))
        record = machine.run_step(position, token, vocabulary=64)
        residual, logits = plain.step(token, position)
        seen = np.concatenate([machine.read_mem(0, word) for word in range(128 // 16)])
        assert np.array_equal(seen, residual), position
        assert np.array_equal(record.logits[:64], logits), position
        assert np.array_equal(reference.step(token, position), logits), position
        spread.append(residual.std())
        # Rounding alone gives the residual a mean.
        assert abs(residual.mean()) < 1 + 0.01 * residual.std()
    assert 500 < min(spread) and max(spread) < 12000


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits, bound", [(8, 0.11), (10, 0.045)])
def test_against_the_float_model(tied, bits, bound):
    """All folding, rounding and tables together, where every bias counts."""
    checkpoint = loud(dataclasses.replace(TINY, tied=tied))
    config, rng = profile("tiny").replace(activation_bits=bits), np.random.default_rng(9)
    model = quantise(checkpoint, config, rng.integers(0, 43, (6, 24)), 24)
    tokens = rng.integers(0, 43, 24)
    lower = lambda logits: logits - logits.mean(-1, keepdims=True)  # noqa: E731
    seen = lower(Reference(model, config).logits(tokens) / 2**numerics.LOGIT_FRACTION)
    expected = lower(np.asarray(FloatModel(checkpoint).logits(tokens), np.float64))
    error = np.sqrt(np.mean((seen - expected)**2) / np.mean(expected**2))
    assert error < bound


def test_a_sequence_is_its_steps():
    for family in ("gpt2", "llama"):
        checkpoint = random_checkpoint(dataclasses.replace(TINY, family=family), 2)
        tokens = np.random.default_rng(4).integers(0, 43, (2, 20))
        model = quantise(checkpoint, profile("tiny"), tokens, 24)
        reference = Reference(model, profile("tiny"))
        stepped = [reference.step(int(token), at) for at, token in enumerate(tokens[0])]
        assert np.array_equal(reference.logits(tokens[0]), stepped)
        # And goes on from there.
        assert np.array_equal(reference.step(3, 20), Reference(
            model, profile("tiny")).logits([*tokens[0], 3])[-1])


# Machine.

@pytest.fixture(scope="module")
def tiny_gpt2():
    return compile_model(loud(TINY), profile("tiny").replace(mem_depth=128, const_depth=256),
                         tries=20)


def test_machine_is_the_reference(tiny_gpt2):
    check_schedule(tiny_gpt2.image)
    assert lockstep(tiny_gpt2, [0, 3], 24, numerics.inverse_temperature(0.8)) > 24 * 100


def test_selection_on_the_chip():
    choosy = compile_model(loud(TINY), profile("tiny").replace(mem_depth=128, const_depth=256),
                           tries=0, sampling=("top-k", "top-p"))
    assert lockstep(choosy, [1, 2], 8, settings=Selection(1.2, top_k=9, top_p=0.7)) > 8 * 81


def test_positions_lie_in_the_weight_banks(tiny_gpt2):
    """READ_OUT by position collects its row: tile of 8 positions, then the column."""
    config, model, words = tiny_gpt2.config, tiny_gpt2.model, tiny_gpt2.lowered.weights
    (task,) = (task for task in tiny_gpt2.lowered.program.prologue if task.name == "place")
    (use,) = (use for use in task.uses if use.queue == "kv")
    fields = use.instruction.fields
    assert (fields["index"], fields["half0"] % 2, fields["index_shift"]) == (1, 1, 3)
    for position in range(24):
        row = [words[fields["address"] + j * fields["s1"] + position // 8, r, position % 8]
               for j in range(use.n1(1)) for r in range(config.rows)]
        assert np.array_equal(row, model.positions.rows[position])


# The shipped model.

@pytest.mark.slow
def test_shipped_model_loses_little(shipped, golden):
    """Nats per character of the integers against float, on the validation windows of torch's."""
    program = metronome.compile(shipped, "ecp5_85k")
    integer, real = metronome.reference_logits(program), FloatModel(shipped.checkpoint).logits
    windows = golden[0]
    scaled = lambda ids: integer(ids) / 2**numerics.LOGIT_FRACTION  # noqa: E731
    before, after = (nats_per_token(one, windows) for one in (real, scaled))
    assert before < 1.8 and after - before < 0.03
    with metronome.Session(program, engine="machine") as session:
        result = session.generate("ROMEO:", tokens=4, check=True)
    assert result.difference is None and result.cycles == result.predicted
    assert len(result.tokens) == 4


def test_shipped_folder_is_what_the_page_says(shipped):
    config = shipped.checkpoint.config
    assert (config.family, config.dim, config.hidden_dim, config.n_layers, config.n_heads) == (
        "gpt2", 64, 256, 4, 4)
    page = (SHIPPED.parent / "README.md").read_text(encoding="utf-8")
    size = (SHIPPED / "model.safetensors").stat().st_size
    assert f"{size:,} bytes" in page
    weights = sum(array.size for array in shipped.checkpoint.arrays.values())
    assert re.search(rf"\b{weights:,} parameters", page)
