"""llama2.c files of versions 1 and 2: made by hand, read back, and refused."""

from __future__ import annotations

import math
import struct
from dataclasses import replace

import numpy as np
import pytest

from compiler.checkpoint import ModelConfig, random_checkpoint
from compiler.errors import ModelError
from compiler.llama2c import load_checkpoint, quantise_groups, save_checkpoint

SMALL = ModelConfig(dim=8, hidden_dim=6, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=5,
                    seq_len=3, tied=True)
# File order of versions 1 and 2, with the shapes worked out by hand.
NORMS = {"norm_att": (2, 8), "norm_ffn": (2, 8), "norm_final": (8,)}
MATRICES = {"embedding": (5, 8), "wq": (2, 8, 8), "wk": (2, 4, 8), "wv": (2, 4, 8),
            "wo": (2, 8, 8), "w1": (2, 6, 8), "w2": (2, 8, 6), "w3": (2, 6, 8)}
# 16 + 16 + 8 norms; 40 + 128 + 64 + 64 + 128 + 96 + 96 + 96 values of matrices.
NORM_VALUES, MATRIX_VALUES = 40, 712
GROUP = 4


def header(version: int, shared: int = 1, group: int = 0, vocab: int = 5,
           magic: int = 0x616B3432) -> bytes:
    head = struct.pack("<Ii7iBi", magic, version, 8, 6, 2, 2, 1, vocab, 3, shared, group)
    return head + bytes(256 - len(head))


def version1(shared: int = 1) -> bytes:
    """Weights that count 0, 1, 2 ... in file order; a classifier of its own counts down."""
    data = header(1, shared) + struct.pack("<752f", *range(752))
    return data if shared else data + struct.pack("<40f", *(-float(i) for i in range(40)))


def version2(shared: int = 1, group: int = GROUP) -> bytes:
    """Norms that count from 0; value i of all matrices is i % 251 - 125, scale of group g is g."""
    data = header(2, shared, group) + struct.pack("<40f", *range(NORM_VALUES))
    first = 0
    for shape in [*MATRICES.values(), *[(5, 8)] * (not shared)]:
        layers, size = (shape[0], shape[1] * shape[2]) if len(shape) == 3 else (1, math.prod(shape))
        for _ in range(layers):
            values = range(first, first + size)
            data += struct.pack(f"<{size}b", *(i % 251 - 125 for i in values))
            data += struct.pack(f"<{size // group}f", *(i // group for i in values[::group]))
            first += size
    return data


def put(folder, data: bytes):
    path = folder / "model.bin"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("shared", [1, 0])
def test_version_1(tmp_path, shared):
    checkpoint = load_checkpoint(put(tmp_path, version1(shared)))
    assert checkpoint.config == replace(SMALL, tied=bool(shared))
    first = 0
    for name, shape in (NORMS | MATRICES).items():
        count = math.prod(shape)
        np.testing.assert_array_equal(getattr(checkpoint, name),
                                      np.arange(first, first + count).reshape(shape), name)
        first += count
    assert first == NORM_VALUES + MATRIX_VALUES
    expected = -np.arange(40).reshape(5, 8) if not shared else checkpoint.embedding
    np.testing.assert_array_equal(checkpoint.classifier, expected)


@pytest.mark.parametrize("shared", [1, 0])
def test_version_2(tmp_path, shared):
    checkpoint = load_checkpoint(put(tmp_path, version2(shared)))
    assert checkpoint.config == replace(SMALL, tied=bool(shared))
    first = 0
    for name, shape in NORMS.items():
        count = math.prod(shape)
        np.testing.assert_array_equal(getattr(checkpoint, name),
                                      np.arange(first, first + count).reshape(shape), name)
        first += count
    first = 0
    for name, shape in (MATRICES | {"classifier": (5, 8)} if not shared else MATRICES).items():
        i = np.arange(first, first + math.prod(shape))
        expected = ((i % 251 - 125) * (i // GROUP)).reshape(shape)
        np.testing.assert_array_equal(getattr(checkpoint, name), expected, name)
        first += len(i)


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_loaded(tmp_path, version, tied):
    original = random_checkpoint(replace(SMALL, tied=tied), seed=4)
    path = tmp_path / "model.bin"
    save_checkpoint(path, original, version, group_size=16)
    loaded = load_checkpoint(path)
    assert loaded.config == original.config
    for name, array in original.arrays.items():
        got = getattr(loaded, name)
        if version < 2 or name.startswith("norm"):
            np.testing.assert_array_equal(got, array, name)
            continue
        # 16 does not divide a width of 8: groups of 8 values, each off by half a step at most.
        groups = array.reshape(-1, 8)
        step = np.abs(groups).max(axis=1, keepdims=True) / 127
        assert np.abs(got.reshape(-1, 8) - groups).max() > 0
        assert (np.abs(got.reshape(-1, 8) - groups) <= step * 0.5001).all()


def test_rounding_twice_rounds_no_further(tmp_path):
    first, second = tmp_path / "first.bin", tmp_path / "second.bin"
    save_checkpoint(first, random_checkpoint(SMALL, seed=5), 2)
    once = load_checkpoint(first)
    save_checkpoint(second, once, 2)
    for name, array in once.arrays.items():
        np.testing.assert_allclose(getattr(load_checkpoint(second), name), array, rtol=3e-7)


def test_groups_by_hand():
    values, scales = quantise_groups(np.array([[1, -2, 0.5, 0], [0, 0, 0, 0]], np.float32), 4)
    # 127 steps to the largest: 1 is 63.5, which rounds to the even 64; 0.5 is 31.75.
    assert values.tolist() == [[64, -127, 32, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(scales, np.array([2 / 127, 0], np.float32))


@pytest.mark.parametrize("make", [version1, version2])
@pytest.mark.parametrize("shared", [1, 0])
def test_sizes_that_do_not_fit(tmp_path, make, shared):
    data = make(shared)
    for size in [*range(0, 300), len(data) // 2, len(data) - 1]:
        with pytest.raises(ModelError, match=f"has {size}|is truncated"):
            load_checkpoint(put(tmp_path, data[:size]))
    with pytest.raises(ModelError, match="has 7 bytes after its end"):
        load_checkpoint(put(tmp_path, data + bytes(7)))


@pytest.mark.parametrize("data, message", [
    (header(3), "is a llama2.c file of version 3; versions 0, 1 and 2 can be read"),
    (header(-1), "is a llama2.c file of version -1"),
    (header(1, shared=2), "the flag for a shared classifier must be 0 or 1, not 2"),
    (header(1, vocab=-5), "is no llama2.c version 1 model: vocab_size must be .* not -5"),
    (header(2, group=0), "the group size must be 1 or more, not 0"),
    (header(2, group=-64), "the group size must be 1 or more, not -64"),
    (header(2, group=3), "'embedding' has 40 values a layer, no multiple of the group size 3"),
    (header(2, group=2**31 - 1), "no multiple of the group size 2147483647"),
    (header(1, magic=0x616B3433), "is no llama2.c version 0 model"),
])
def test_bad_headers(tmp_path, data, message):
    with pytest.raises(ModelError, match=f"model.bin: .*{message}"):
        load_checkpoint(put(tmp_path, data + bytes(3000)))


@pytest.mark.parametrize("scale", [math.nan, math.inf, 3e38])
def test_scales_that_are_not_finite(tmp_path, scale):
    data = version2()
    at = 256 + 4 * NORM_VALUES + 40  # the first scale of the embedding, of values -125 to -122
    with pytest.raises(ModelError, match="'embedding': 4 of its values are NaN or infinite"):
        load_checkpoint(put(tmp_path, data[:at] + struct.pack("<f", scale) + data[at + 4:]))


def test_save_refuses_what_the_format_cannot_hold(tmp_path):
    gpt2 = random_checkpoint(replace(SMALL, n_kv_heads=2, family="gpt2"), 1)
    with pytest.raises(ModelError, match="family must be llama in a llama2.c file, not gpt2"):
        save_checkpoint(tmp_path / "model.bin", gpt2)
    with pytest.raises(ModelError, match="version must be 0, 1 or 2, not 3"):
        save_checkpoint(tmp_path / "model.bin", random_checkpoint(SMALL, 1), 3)
