"""Checkpoints: files made by hand, values read back, and everything that must be refused."""

from __future__ import annotations

import math
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler.checkpoint import Checkpoint, ModelConfig, random_checkpoint
from compiler.errors import MetronomeError, ModelError
from compiler.llama2c import load_checkpoint, save_checkpoint

BUILT_IN = Path(__file__).parent.parent / "models" / "shakespeare.bin"

SMALL = ModelConfig(dim=8, hidden_dim=6, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=5,
                    seq_len=3, tied=True)
# Shapes of SMALL in file order, by hand: head size 4, keys and values of width 4.
SMALL_SHAPES = {
    "embedding": (5, 8), "norm_att": (2, 8), "wq": (2, 8, 8), "wk": (2, 4, 8), "wv": (2, 4, 8),
    "wo": (2, 8, 8), "norm_ffn": (2, 8), "w1": (2, 6, 8), "w2": (2, 8, 6), "w3": (2, 6, 8),
    "norm_final": (8,),
}
# 40 + 16 + 128 + 64 + 64 + 128 + 16 + 96 + 96 + 96 + 8 = 752 weights, 2 * 3 * 2 rotary values.
SMALL_WEIGHTS, SMALL_ROPE = 752, 12


def hand_made(tied: bool = True, rope: float = 0.0) -> bytes:
    """Return a file of SMALL whose weights count 0, 1, 2 ... in file order."""
    header = struct.pack("<7i", 8, 6, 2, 2, 1, 5 if tied else -5, 3)
    body = struct.pack(f"<{SMALL_WEIGHTS}f", *range(SMALL_WEIGHTS))
    body += struct.pack(f"<{SMALL_ROPE}f", *[rope] * SMALL_ROPE)
    if not tied:
        body += struct.pack("<40f", *(-float(i) for i in range(40)))
    return header + body


def with_word(data: bytes, index: int, word: bytes) -> bytes:
    """Return data with its 32-bit word at index replaced."""
    return data[:4 * index] + word + data[4 * index + 4:]


def put(folder: Path, data: bytes) -> Path:
    path = folder / "model.bin"
    path.write_bytes(data)
    return path


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    assert a.config == b.config
    for name in [*SMALL_SHAPES, "classifier"]:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_every_array_comes_from_its_place_in_the_file(tmp_path):
    checkpoint = load_checkpoint(put(tmp_path, hand_made()))
    assert checkpoint.config == SMALL
    first = 0
    for name, shape in SMALL_SHAPES.items():
        array = getattr(checkpoint, name)
        count = math.prod(shape)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, np.arange(first, first + count).reshape(shape), name)
        first += count
    assert first == SMALL_WEIGHTS
    np.testing.assert_array_equal(checkpoint.classifier, checkpoint.embedding)


def test_negative_vocabulary_means_a_classifier_of_its_own(tmp_path):
    checkpoint = load_checkpoint(put(tmp_path, hand_made(tied=False)))
    assert checkpoint.config == replace(SMALL, tied=False)
    np.testing.assert_array_equal(checkpoint.classifier, -np.arange(40).reshape(5, 8))
    np.testing.assert_array_equal(checkpoint.embedding, np.arange(40).reshape(5, 8))


def test_rotary_tables_are_skipped(tmp_path):
    assert_same(load_checkpoint(put(tmp_path, hand_made(rope=math.nan))),
                load_checkpoint(put(tmp_path, hand_made(rope=1.0))))


def test_derived_sizes():
    config = ModelConfig(dim=64, hidden_dim=172, n_layers=5, n_heads=8, n_kv_heads=4,
                         vocab_size=512, seq_len=512, tied=True)
    assert (config.head_size, config.kv_dim) == (8, 32)
    assert (config.rope_theta, config.norm_eps) == (10000.0, 1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load(tmp_path, tied):
    original = random_checkpoint(replace(SMALL, tied=tied), seed=4)
    path = tmp_path / "model.bin"
    save_checkpoint(path, original)
    assert_same(load_checkpoint(path), original)
    assert os.listdir(tmp_path) == ["model.bin"]


def test_saved_file_is_what_llama2c_reads(tmp_path):
    path = put(tmp_path, hand_made(tied=False))
    save_checkpoint(path, load_checkpoint(path))
    saved = path.read_bytes()
    assert saved[:28 + 4 * SMALL_WEIGHTS] == hand_made(tied=False)[:28 + 4 * SMALL_WEIGHTS]
    assert saved[-160:] == hand_made(tied=False)[-160:]
    # Head size 4: angles pos * 1 and pos * 0.01.
    angles = [pos * rate for pos in range(3) for rate in (1.0, 0.01)]
    expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    rope = np.frombuffer(saved[28 + 4 * SMALL_WEIGHTS:-160], "<f4")
    np.testing.assert_allclose(rope, expected, rtol=1e-6, atol=1e-7)


def test_save_replaces_and_leaves_nothing_behind_when_it_fails(tmp_path):
    checkpoint = random_checkpoint(SMALL, seed=1)
    path = put(tmp_path, b"old")
    save_checkpoint(path, checkpoint)
    assert_same(load_checkpoint(path), checkpoint)
    (tmp_path / "folder.bin").mkdir()
    with pytest.raises(ModelError, match="folder.bin: cannot be written: "):
        save_checkpoint(tmp_path / "folder.bin", checkpoint)
    with pytest.raises(ModelError, match="cannot be written: No such file or directory"):
        save_checkpoint(tmp_path / "missing" / "model.bin", checkpoint)
    assert sorted(os.listdir(tmp_path)) == ["folder.bin", "model.bin"]


@pytest.mark.parametrize("change", [{"rope_theta": 500000.0}, {"norm_eps": 1e-6}])
def test_save_refuses_what_the_format_cannot_hold(tmp_path, change):
    checkpoint = random_checkpoint(replace(SMALL, **change), seed=1)
    (name,) = change
    with pytest.raises(ModelError, match=f"{name} must be .* in a llama2.c file"):
        save_checkpoint(tmp_path / "model.bin", checkpoint)
    assert os.listdir(tmp_path) == []


def test_arrays_of_a_loaded_checkpoint_are_read_only(tmp_path):
    checkpoint = load_checkpoint(put(tmp_path, hand_made()))
    with pytest.raises(ValueError, match="read-only"):
        checkpoint.wq[0, 0, 0] = 1


def test_random_checkpoint_is_seeded_and_of_sane_size():
    config = replace(SMALL, dim=64, hidden_dim=256, vocab_size=300)
    a, b = random_checkpoint(config, seed=7), random_checkpoint(config, seed=7)
    assert_same(a, b)
    assert not np.array_equal(a.wq, random_checkpoint(config, seed=8).wq)
    assert a.wq.std() == pytest.approx(64 ** -0.5, rel=0.1)
    assert a.w2.std() == pytest.approx(256 ** -0.5, rel=0.1)
    assert a.norm_att.mean() == pytest.approx(1.0, abs=0.05)


@pytest.mark.slow
def test_truncation_at_every_offset(tmp_path):
    data = hand_made()
    for size in range(len(data)):
        with pytest.raises(ModelError, match=f"has {size}|is truncated"):
            load_checkpoint(put(tmp_path, data[:size]))


@pytest.mark.parametrize("extra", [1, 4, 160])
def test_trailing_bytes(tmp_path, extra):
    with pytest.raises(ModelError, match=f"has {extra} bytes after its end"):
        load_checkpoint(put(tmp_path, hand_made() + bytes(extra)))


@pytest.mark.parametrize("index, value, message", [
    (0, 0, "dim must be an integer from 1 to 65536, not 0"),
    (0, -8, "dim must be an integer from 1 to 65536, not -8"),
    (1, -1, "hidden_dim must be an integer from 1 to 262144, not -1"),
    (2, 2**31 - 1, "n_layers must be an integer from 1 to 1024, not 2147483647"),
    (3, 3, r"dim must be a multiple of n_heads \(3\), not 8"),
    (3, 8, r"head size \(dim / n_heads\) must be even, not 1"),
    (4, 0, "n_kv_heads must be an integer from 1 to 4096, not 0"),
    (4, 4, r"n_heads must be a multiple of n_kv_heads \(4\), not 2"),
    (5, 0, "vocab_size must be an integer from 1 to 131072, not 0"),
    (6, 131073, "seq_len must be an integer from 1 to 131072, not 131073"),
    (5, -(2**31), "vocab_size must be an integer from 1 to 131072, not 2147483648"),
    (6, -3, "seq_len must be an integer from 1 to 131072, not -3"),
    (6, 4, "is truncated"),
    (5, -5, "is truncated"),
    (5, 4, "bytes after its end"),
    (0, 64, "is truncated"),
    (0, 65536, "the model has [0-9]+ weights, at most 33554432 can be read"),
])
def test_bad_header(tmp_path, index, value, message):
    data = with_word(hand_made(), index, struct.pack("<i", value))
    with pytest.raises(ModelError, match=f"model.bin: .*{message}"):
        load_checkpoint(put(tmp_path, data))


def test_absurd_sizes_do_not_allocate(tmp_path):
    header = struct.pack("<7i", 65536, 262144, 1024, 4096, 4096, 1 << 17, 1 << 17)
    with pytest.raises(ModelError, match="the model has [0-9]+ weights, at most 33554432"):
        load_checkpoint(put(tmp_path, header + bytes(1000)))


@pytest.mark.parametrize("start, message", [
    (struct.pack("<Ii", 0x616B3432, 3), "llama2.c file of version 3"),
    (b"PK\x03\x04", "is a PyTorch or zip archive"),
    (b"GGUF", "is a GGUF file"),
    (struct.pack("<Q", 1234) + b'{"__metadata__"', "is a safetensors file"),
    (b"First Citizen:\nBefore we proceed", "is no llama2.c version 0 model"),
])
def test_other_formats_are_named(tmp_path, start, message):
    with pytest.raises(ModelError, match=message):
        load_checkpoint(put(tmp_path, start + bytes(300)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index, place", [
    (0, "'embedding'"),
    (40 + 8, "layer 1 'norm_att'"),
    (56, "layer 0 'wq'"),
    (56 + 64, "layer 1 'wq'"),
    (SMALL_WEIGHTS - 1, "'norm_final'"),
])
def test_values_that_are_not_finite(tmp_path, bad, index, place):
    data = with_word(hand_made(), 7 + index, struct.pack("<f", bad))
    with pytest.raises(ModelError, match=f"model.bin: {place}: 1 of its values are NaN or inf"):
        load_checkpoint(put(tmp_path, data))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ModelError, match="none.bin: cannot be read: No such file"):
        load_checkpoint(tmp_path / "none.bin")
    with pytest.raises(ModelError, match="cannot be read: Is a directory"):
        load_checkpoint(tmp_path)
    with pytest.raises(ModelError, match="/dev/null: is not a regular file"):
        load_checkpoint("/dev/null")
    assert issubclass(ModelError, MetronomeError)


def test_checkpoint_refuses_wrong_arrays():
    good = random_checkpoint(SMALL, seed=1)
    with pytest.raises(ModelError, match=r"'wk' must be float32 of shape \[2, 4, 8\], not "
                                         r"float32 of shape \[2, 8, 4\]"):
        replace(good, wk=good.wk.transpose(0, 2, 1))
    with pytest.raises(ModelError, match="'wk' must be float32 .* not float64"):
        replace(good, wk=good.wk.astype(np.float64))
    with pytest.raises(ModelError, match="'classifier' must equal 'embedding'"):
        replace(good, classifier=good.classifier + 1)


@pytest.mark.parametrize("change, message", [
    ({"dim": 8.0}, "dim must be an integer from 1 to 65536, not 8.0"),
    ({"vocab_size": "5"}, "vocab_size must be an integer from 1 to 131072, not '5'"),
    ({"n_layers": True}, "n_layers must be an integer from 1 to 1024, not True"),
    ({"rope_theta": 0.0}, "rope_theta must be a positive finite number, not 0.0"),
    ({"norm_eps": math.nan}, "norm_eps must be a positive finite number, not nan"),
])
def test_config_refuses(change, message):
    with pytest.raises(ModelError, match=message):
        replace(SMALL, **change)


def test_built_in_model():
    config = load_checkpoint(BUILT_IN).config
    assert config == ModelConfig(dim=64, hidden_dim=172, n_layers=5, n_heads=8, n_kv_heads=4,
                                 vocab_size=68, seq_len=256, tied=True)


GPT2 = ModelConfig(dim=6, hidden_dim=7, n_layers=2, n_heads=2, n_kv_heads=2, vocab_size=5,
                   seq_len=3, tied=True, family="gpt2")


def test_traits_of_the_families():
    assert (SMALL.norm, SMALL.activation, SMALL.positions, SMALL.biases) == (
        "rms", "silu_gated", "rope", False)
    assert (GPT2.norm, GPT2.activation, GPT2.positions, GPT2.biases) == (
        "layer", "gelu", "learned", True)
    # Heads of odd size cannot be turned in pairs, but have learned positions.
    assert GPT2.head_size == 3
    with pytest.raises(ModelError, match="family must be one of llama, gpt2, not 'mamba'"):
        replace(SMALL, family="mamba")


def test_arrays_of_the_families():
    llama, gpt2 = random_checkpoint(SMALL, seed=1), random_checkpoint(GPT2, seed=1)
    assert {name: array.shape for name, array in llama.arrays.items()} == SMALL_SHAPES
    assert llama.bq is llama.positions is llama.norm_att_bias is None
    assert gpt2.w3 is None
    assert gpt2.positions.shape == (3, 6) and gpt2.b1.shape == (2, 7) and gpt2.bo.shape == (2, 6)
    assert gpt2.norm_final_bias.shape == (6,) and gpt2.norm_ffn_bias.shape == (2, 6)
    assert "classifier" not in gpt2.arrays
    assert "classifier" in random_checkpoint(replace(GPT2, tied=False), seed=1).arrays
    with pytest.raises(ModelError, match="'b1' is missing; a model of family 'gpt2' needs it"):
        replace(gpt2, b1=None)
    with pytest.raises(ModelError, match="'b1' has no place in a model of family 'llama'"):
        replace(llama, b1=gpt2.b1)
    with pytest.raises(ModelError, match="layer 1 'b2': 6 of its values are NaN or infinite"):
        replace(gpt2, b2=gpt2.b2 * np.array([[1], [math.nan]], np.float32))
