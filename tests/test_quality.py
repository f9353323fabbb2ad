"""The report of what quantisation costs, and the handling of outliers."""
import dataclasses
import json
import math

import numpy as np
import pytest

from arch.config import profile
from compiler import calibrate
from compiler.checkpoint import ModelConfig, random_checkpoint
from compiler.equalise import equalised, factors
from compiler.equivalent import simplified
from compiler.pipeline import compile_quantised
from compiler.quantise import Method, quantise
from scripts.cli import main
from scripts.outliers import louder
from sim.float_model import FloatModel
from sim.quality import compare, table
from sim.reference import Reference
from tests.lockstep import lockstep

LLAMA = ModelConfig(dim=32, hidden_dim=44, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=43,
                    seq_len=24, tied=True)
CONFIG = profile("tiny").replace(activation_bits=10)
TEXT = np.random.default_rng(3).integers(0, 43, (4, 24))


def outliers(checkpoint):
    """Loud keys, values and hidden channels."""
    for what in ("key", "value", "hidden"):
        checkpoint = louder(checkpoint, what, 30)
    return checkpoint


def distance(checkpoint, method=None):
    """Relative error of the logits of the integers."""
    model = quantise(checkpoint, CONFIG, TEXT, 24, *([] if method is None else [method]))
    lower = lambda logits: logits - logits.mean(-1, keepdims=True)  # noqa: E731
    seen = lower(Reference(model, CONFIG).logits(TEXT[0]) / 256)
    expected = lower(FloatModel(checkpoint).logits(TEXT[0]))
    return math.sqrt(np.mean((seen - expected)**2) / np.mean(expected**2))


def test_equalisation_takes_outliers_away():
    plain = random_checkpoint(LLAMA, 1)
    loud = outliers(plain)
    assert np.abs(FloatModel(loud).logits(TEXT[0]) - FloatModel(plain).logits(TEXT[0])).max() < 1e-4
    assert distance(loud, Method(equalise=False)) > 2 * distance(plain)
    assert distance(loud) < 1.2 * distance(plain)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_equalisation_changes_no_logit(family):
    config = dataclasses.replace(LLAMA, family=family)
    checkpoint = simplified(random_checkpoint(config, 1))
    if family == "llama":
        checkpoint = outliers(checkpoint)
    moved = equalised(checkpoint, calibrate.run(checkpoint, TEXT), 10)
    changed = [name for name in checkpoint.arrays
               if not np.array_equal(getattr(moved, name), getattr(checkpoint, name))]
    assert family == "gpt2" or set(changed) == {"wq", "wk", "wv", "wo", "w2", "w3"}
    before, after = (FloatModel(one, dtype=np.float64).logits(TEXT[0])
                     for one in (checkpoint, moved))
    assert np.abs(after - before).max() < 1e-5


def grown(family):
    """A residual that begins small and grows a hundredfold."""
    plain = random_checkpoint(dataclasses.replace(LLAMA, family=family, tied=False), 1)
    arrays = {name: array.copy() for name, array in plain.arrays.items()}
    for name in ("embedding", "positions"):
        if name in arrays:
            arrays[name] *= np.float32(0.02 if family == "gpt2" else 0.1)
    for name in ("wo", "w2"):
        arrays[name][1] *= 8
    return dataclasses.replace(plain, **arrays)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_residuals_of_different_size_are_scaled_for_each_norm(family):
    checkpoint = grown(family)
    seen = [distance(checkpoint, Method(scaled=scaled)) for scaled in (False, True, None)]
    assert seen[0] > 2 * seen[1] and seen[2] == seen[1]
    model = quantise(checkpoint, CONFIG, TEXT, 24)
    assert model.final_in is not None and model.layers[1].ffn_in is not None
    assert quantise(random_checkpoint(LLAMA, 1), CONFIG, TEXT, 24).final_in is None
    machine = CONFIG.replace(const_depth=256, accumulators=32)
    assert lockstep(compile_quantised(model, machine, 0), [0, 1], 12) > 0


def test_factors():
    assert factors([1.0, 4.0]).tolist() == [0.5, 2.0]
    # Channels of nothing count as a thousandth of the largest; a vector of nothing stays.
    assert factors([8.0, 0.0]) == pytest.approx([1000**0.5, 1000**-0.5])
    assert factors([0.0, 0.0]).tolist() == [1.0, 1.0]


def test_the_same_input_gives_the_same_integers():
    checkpoint = outliers(random_checkpoint(LLAMA, 1))
    first, second = (quantise(checkpoint, CONFIG, TEXT, 24) for _ in range(2))
    for one, other in zip(first.layers, second.layers):
        for field in ("wq", "wk", "wv", "wo", "w1", "w2", "w3"):
            assert np.array_equal(getattr(one, field), getattr(other, field))
        assert np.array_equal(one.up.m, other.up.m)


# The report.

def test_report_by_hand():
    """Ratios and counts from the stored vectors of single steps."""
    checkpoint, last = random_checkpoint(LLAMA, 1), 1
    model = quantise(checkpoint, CONFIG, TEXT, 24)
    report = compare(checkpoint, model, CONFIG, [TEXT[0][:11], TEXT[1][:7]])
    signal = error = 0
    for row, count in ((TEXT[0], 10), (TEXT[1], 6)):
        reference = Reference(model, CONFIG)
        real = calibrate.run(checkpoint, row[None, :count]).layers[last]["x_out"]
        for position in range(count):
            reference.step(int(row[position]), position, keep=True)
            seen = reference.kept["x_out", last].ravel()[:32] * model.residual_scale
            signal += (real[position].astype(float)**2).sum()
            error += ((seen - real[position])**2).sum()
    (found,) = [row for row in report["layers"]
                if row["layer"] == last and row["vector"] == "residual behind the layer"]
    assert found["snr_db"] == pytest.approx(10 * math.log10(signal / error), abs=0.02)
    assert found["values"] == 16 * 32 and found["saturated"] == 0
    assert report["tokens"] == 16 and report["loss"] == report["nats"] - report["float_nats"]
    assert all(row["snr_db"] > 15 for row in [*report["layers"], report["logits"]])
    assert table(report).count("\n") == 1 + 2 * 8 + 1


def test_report_counts_what_saturates():
    model = quantise(random_checkpoint(LLAMA, 1), CONFIG, TEXT, 24)
    layer = dataclasses.replace(model.layers[0], v=dataclasses.replace(
        model.layers[0].v, m=np.full(16, 32767), post=0))
    loud = dataclasses.replace(model, layers=[layer, model.layers[1]])
    report = compare(random_checkpoint(LLAMA, 1), loud, CONFIG, [TEXT[0][:9]])
    (found,) = [row for row in report["layers"]
                if row["layer"] == 0 and row["vector"] == "values"]
    assert found["saturated"] > 0.9 * found["values"] == 0.9 * 8 * 16


@pytest.mark.slow
def test_report_of_the_command_line(tmp_path, capsys):
    text = tmp_path / "text"
    text.write_text("ROMEO:\nWhat light through yonder window breaks?\n")
    assert main(["eval", "--text", str(text), "--report", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tokens"] == 48 and len(result["layers"]) == 5 * 8
    assert result["loss"] == pytest.approx(result["nats_per_token"]
                                           - result["float_nats_per_token"])
    assert abs(result["loss"]) < 0.05 and result["logits"]["snr_db"] > 20
    assert main(["eval", "--text", str(text), "--report", "--engine", "float"]) == 2
    assert "--report compares" in capsys.readouterr().err
