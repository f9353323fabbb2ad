"""The built-in model exported to every format and imported again: weights, logits, tokens.

Formats of float32 give the weights bit for bit. The short ones give exactly the nearest weights that
they can hold, worked out here by search or by hand; from then on a model is what its weights are.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import metronome
from arch.config import profile
from compiler.checkpoint import ModelConfig, random_checkpoint
from compiler.hf_export import save_folder, to_bfloat16
from compiler.huggingface import load_folder
from compiler.llama2c import save_checkpoint
from compiler.quantise import quantise
from compiler.tokenizer import Tokenizer
from scripts.cli import main
from sim.float_model import FloatModel
from sim.reference import Reference

ROOT = Path(__file__).parent.parent
GOLDEN = np.load(ROOT / "tests" / "data" / "golden_logits.npz")
LOSSLESS = ["v0", "v1", "float32", "sharded"]
LOSSY = ["v2", "float16", "bfloat16"]


@pytest.fixture(scope="module")
def built_in():
    return metronome.load_model()


@pytest.fixture(scope="module")
def imported(built_in, tmp_path_factory):
    """A function from the name of a format to the built-in model imported from it."""
    def load(name: str) -> metronome.Model:
        path = tmp_path_factory.mktemp(name) / "model"
        if name.startswith("v"):
            save_checkpoint(path, built_in.checkpoint, int(name[1:]))
            return metronome.load_model(str(path), str(metronome.MODELS
                                                       / metronome.BUILT_IN_TOKENIZER))
        shards, dtype = (4, "float32") if name == "sharded" else (1, name)
        save_folder(path, built_in.checkpoint, built_in.tokenizer, dtype, shards)
        return metronome.load_model(str(path))
    return {name: load(name) for name in LOSSLESS + LOSSY}


def greedy(checkpoint, prompt: list, count: int) -> list:
    """Tokens that the quantised reference gives after a prompt."""
    text = np.random.default_rng(1).integers(3, 68, (1, 24))
    reference = Reference(quantise(checkpoint, profile("ecp5_85k"), text, 32),
                          profile("ecp5_85k"))
    tokens = list(prompt)
    for position in range(len(prompt) + count - 1):
        logits = reference.step(tokens[position], position)
        if position + 1 >= len(prompt):
            tokens.append(int(np.argmax(logits)))
    return tokens[len(prompt):]


def nearest_bfloat16(values: np.ndarray) -> np.ndarray:
    """The nearer one of the two bfloat16 around each value, the even one in the middle."""
    low = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    high = ((values.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32)
    to_low = np.abs(values.astype(np.float64) - low)
    to_high = np.abs(high - values.astype(np.float64))
    even = low.view(np.uint32) >> 16 & 1 == 0
    return np.where((to_low < to_high) | (to_low == to_high) & even, low, high)


def nearest_groups(values: np.ndarray) -> np.ndarray:
    """Each group of 64 values in steps of its largest over 127."""
    result = []
    for group in values.reshape(-1, 64):
        step = np.float32(np.abs(group).max()) / np.float32(127)
        result += [np.float32(round(float(value / step))) * step for value in group]
    return np.array(result, np.float32).reshape(values.shape)


@pytest.mark.parametrize("name", LOSSLESS)
def test_float32_comes_back_bit_for_bit(built_in, imported, name):
    original, again = built_in.checkpoint, imported[name].checkpoint
    assert again.config == original.config
    for key, array in original.arrays.items():
        np.testing.assert_array_equal(getattr(again, key), array, key)


@pytest.mark.parametrize("name", LOSSLESS)
def test_logits_equal_those_of_torch(imported, name):
    """The golden logits were made by torch when the model was trained."""
    model = FloatModel(imported[name].checkpoint)
    for window, expected in zip(GOLDEN["tokens"], GOLDEN["logits"]):
        np.testing.assert_allclose(model.logits(window), expected, rtol=0, atol=1e-4)


#: What each short format makes of weights.
ROUNDED = {"v2": nearest_groups, "float16": lambda values: values.astype(np.float16),
           "bfloat16": nearest_bfloat16}


@pytest.mark.parametrize("name, rounded", ROUNDED.items())
def test_short_formats_hold_the_nearest_weights(built_in, imported, name, rounded):
    original, again = built_in.checkpoint, imported[name].checkpoint
    assert again.config == original.config
    for key, array in original.arrays.items():
        kept = name == "v2" and key.startswith("norm")
        expected = array if kept else np.asarray(rounded(array), np.float32)
        np.testing.assert_array_equal(getattr(again, key), expected, key)
        assert kept or (expected != array).any()


def test_same_tokens(built_in, imported):
    prompt = built_in.tokenizer.encode("ROMEO:")
    text = greedy(built_in.checkpoint, prompt, 24)
    assert len(set(text)) > 5
    for name in LOSSLESS:
        assert greedy(imported[name].checkpoint, prompt, 24) == text, name
    # A rounded model goes its own way; what its file gives is what its rounded weights give.
    original = built_in.checkpoint
    for name, rounded in ROUNDED.items():
        arrays = {key: array if name == "v2" and key.startswith("norm")
                  else np.asarray(rounded(array), np.float32)
                  for key, array in original.arrays.items()}
        direct = replace(original, **arrays, classifier=arrays["embedding"])
        assert greedy(imported[name].checkpoint, prompt, 24) == greedy(direct, prompt, 24), name


@pytest.mark.parametrize("name", LOSSLESS + LOSSY)
def test_same_tokenizer(built_in, imported, name):
    ours, theirs = built_in.tokenizer, imported[name].tokenizer
    assert (theirs.bos_id, theirs.stop_id) == (ours.bos_id, ours.stop_id)
    for text in ("", "ROMEO:", "  Hark!\n\nWho's there?  ", "<s>"[1]):
        tokens = ours.encode(text)
        assert theirs.encode(text) == tokens
        assert theirs.decode(tokens) == text
        ours_stream, theirs_stream = ours.stream(tokens[:1]), theirs.stream(tokens[:1])
        for token in tokens[1:]:
            assert ours_stream(token) == theirs_stream(token)


def test_bfloat16_by_hand():
    # 1 + 2**-8 lies between 1 and 1 + 2**-7: even wins; a bit more goes up; 1 + 3 * 2**-8 too.
    values = np.array([1 + 2**-8, 1 + 2**-8 + 2**-20, 1 + 3 * 2**-8, -3.0], np.float32)
    assert to_bfloat16(values).tolist() == [0x3F80, 0x3F81, 0x3F82, 0xC040]


@pytest.mark.parametrize("family, tied", [("gpt2", True), ("gpt2", False), ("llama", False)])
@pytest.mark.parametrize("shards", [1, 3])
def test_folders_of_random_models(tmp_path, built_in, family, tied, shards):
    config = replace(built_in.checkpoint.config, dim=12, hidden_dim=10, n_layers=2, n_heads=3,
                     n_kv_heads=3 if family == "gpt2" else 1, tied=tied, family=family,
                     rope_theta=10000.0 if family == "gpt2" else 777.0, norm_eps=1e-3)
    original = random_checkpoint(config, 3)
    save_folder(tmp_path, original, built_in.tokenizer, shards=shards)
    again = load_folder(tmp_path)
    assert again.config == config
    for name, array in original.arrays.items():
        np.testing.assert_array_equal(getattr(again, name), array, name)


def test_weights_too_large_for_float16(tmp_path, built_in):
    large = replace(built_in.checkpoint, norm_final=built_in.checkpoint.norm_final * 1e6)
    with pytest.raises(metronome.MetronomeError, match="too large for float16; use bfloat16"):
        save_folder(tmp_path / "model", large, built_in.tokenizer, "float16")
    assert not (tmp_path / "model").exists()
    save_folder(tmp_path / "model", large, built_in.tokenizer, "bfloat16")


def run(capsys, *words) -> dict:
    status = main([*map(str, words), "--json"])
    output = capsys.readouterr()
    assert status == 0, output.err
    return json.loads(output.out)


def test_commands_take_a_file(imported, tmp_path, capsys):
    (tmp_path / "text").write_text("ROMEO:\nI say, what light?\n")
    source = ["--model", imported["v2"].name,
              "--tokenizer", metronome.MODELS / metronome.BUILT_IN_TOKENIZER]
    result = run(capsys, "eval", "--engine", "float", "--text", tmp_path / "text", *source)
    assert result["tokens"] == 26 and 1 < result["nats_per_token"] < 5
    result = run(capsys, "generate", "--engine", "reference", "--prompt", "I", "--tokens", 3,
                 *source)
    assert len(result["text"]) == 3 and result["cycles"] == result["predicted"]


def test_commands_take_a_folder(imported, tmp_path, capsys):
    """The tokenizer travels in the image, with the tokens that begin and end a text."""
    image = tmp_path / "model.img"
    result = run(capsys, "compile", "-o", image, "--model", imported["bfloat16"].name)
    assert result["macs_per_cycle"] == 128
    result = run(capsys, "generate", "--engine", "machine", "--prompt", "I", "--tokens", 2,
                 "--image", image)
    assert len(result["text"]) == 2 and result["cycles"] == result["predicted"]
    assert result["prompt_tokens"] == imported["bfloat16"].tokenizer.encode("I")
    program = metronome.load_program(str(image))
    assert (program.tokenizer.bos_id, program.tokenizer.stop_id) == (1, 1)


def test_flagship_shape_in_time(tmp_path):
    """Import and compile of the stories260K shape take less than 20 seconds of the processor."""
    config = ModelConfig(dim=64, hidden_dim=172, n_layers=5, n_heads=8, n_kv_heads=4,
                         vocab_size=512, seq_len=512, tied=True)
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % value for value in range(256)),
              *(b"p%d" % number for number in range(253))]
    tokenizer = Tokenizer(pieces, [-float(number) for number in range(512)])
    save_folder(tmp_path, random_checkpoint(config, 1), tokenizer, "bfloat16")
    began = time.process_time()
    program = metronome.compile(metronome.load_model(str(tmp_path)))
    assert time.process_time() - began < 20
    assert len(program.cycles()) == 256
