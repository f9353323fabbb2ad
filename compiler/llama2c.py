"""Model files of llama2.c: legacy version 0, version 1, and version 2 with int8 weights in groups.

Version 0 has a header of seven numbers and no magic; its vocabulary is negative where the
classifier is not the embedding; the rotary tables are in the file and are skipped. Versions 1 and 2
have a header of 256 bytes, the norms before everything else, and no tables. In version 2 a matrix
is its int8 values followed by one float32 scale for each group of them, layer by layer.

Ref: llama2.c, export.py (legacy_export, version1_export, version2_export), run.c and runq.c
(memory_map_weights).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from compiler.checkpoint import Checkpoint, ModelConfig, weight_shapes
from compiler.errors import ModelError
from compiler.files import in_one_piece, opened

__all__ = ["VERSIONS", "load_checkpoint", "save_checkpoint", "quantise_groups"]

F32 = NDArray[np.float32]

VERSIONS = (0, 1, 2)
#: What the reference exporter takes, halved until it divides the model's width.
GROUP_SIZE = 64

_MAGIC = b"24ka"
_LEGACY = struct.Struct("<7i")
_HEADER = struct.Struct("<4si7iBi")
_HEADER_SIZE = 256
_LEGACY_ORDER = ("embedding", "norm_att", "wq", "wk", "wv", "wo", "norm_ffn", "w1", "w2", "w3",
                 "norm_final", "rope")
_NORMS = ("norm_att", "norm_ffn", "norm_final")
_MATRICES = ("embedding", "wq", "wk", "wv", "wo", "w1", "w2", "w3")
_RE_EXPORT = "export it with llama2.c's export.py"
_FOREIGN = (
    (b"PK\x03\x04", f"is a PyTorch or zip archive; {_RE_EXPORT}"),
    (b"GGUF", "is a GGUF file; give a llama2.c .bin or a Hugging Face folder"),
)


@dataclass(frozen=True)
class _Layout:
    """How a file is laid out; the group size counts values to a scale (version 2)."""
    version: int
    config: ModelConfig
    group_size: int = 0

    @property
    def names(self) -> list[str]:
        """The arrays in file order."""
        if self.version == 0:
            names = [*_LEGACY_ORDER]
        else:
            names = [*_NORMS, *_MATRICES]
        return names + ["classifier"] * (not self.config.tied)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array of the file."""
        if name == "rope":
            return 2, self.config.seq_len, self.config.head_size // 2
        return weight_shapes(self.config)["embedding" if name == "classifier" else name]

    def grouped(self, name: str) -> bool:
        """Whether an array is stored as int8 in groups."""
        return self.version == 2 and name not in _NORMS

    def size(self) -> int:
        """Size of the whole file in bytes."""
        total = _LEGACY.size if self.version == 0 else _HEADER_SIZE
        for name in self.names:
            count = math.prod(self.shape(name))
            total += count + 4 * (count // self.group_size) if self.grouped(name) else 4 * count
        return total


def _parse_header(head: bytes, size: int) -> _Layout:
    """Layout told by the first bytes of a file of size bytes, checked against size."""
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            raise ModelError(what)
    if head[8:10] == b'{"':
        raise ModelError("is a safetensors file; give the Hugging Face folder that it is in")
    if len(head) < _LEGACY.size:
        raise ModelError(f"has {len(head)} bytes, a llama2.c model starts with a header of "
                         f"{_LEGACY.size}; copy or download it again")
    layout = _versioned(head) if head.startswith(_MAGIC) else _legacy(head)
    expected = layout.size()
    if size < expected:
        raise ModelError(f"is truncated: its header asks for {expected} bytes, it has {size}; "
                         "copy or download it again")
    if size > expected:
        raise ModelError(f"has {size - expected} bytes after its end: its header asks for "
                         f"{expected}, it has {size}; copy it again, or {_RE_EXPORT}")
    return layout


def _config(numbers: tuple[int, ...], tied: bool, version: int) -> ModelConfig:
    try:
        return ModelConfig(**dict(zip(_NUMBERS, numbers)), tied=tied)
    except ModelError as error:
        raise ModelError(f"is no llama2.c version {version} model: {error}; {_RE_EXPORT}") from None


_NUMBERS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")


def _legacy(head: bytes) -> _Layout:
    *sizes, vocab_size, seq_len = _LEGACY.unpack_from(head)
    return _Layout(0, _config((*sizes, abs(vocab_size), seq_len), vocab_size > 0, 0))


def _versioned(head: bytes) -> _Layout:
    if len(head) < _HEADER_SIZE:
        raise ModelError(f"has {len(head)} bytes, too few for a header of {_HEADER_SIZE}; "
                         "copy or download it again")
    _, version, *numbers, shared, group_size = _HEADER.unpack_from(head)
    if version not in (1, 2):
        raise ModelError(f"is a llama2.c file of version {version}; versions 0, 1 and 2 can be "
                         "read")
    if shared > 1:
        raise ModelError("is damaged: the flag for a shared classifier must be 0 or 1, not "
                         f"{shared}; copy or download it again")
    config = _config(tuple(numbers), bool(shared), version)
    if version == 1:
        return _Layout(1, config)
    layout = _Layout(2, config, group_size)
    if group_size < 1:
        raise ModelError(f"is damaged: the group size must be 1 or more, not {group_size}; "
                         "copy or download it again")
    for name in filter(layout.grouped, layout.names):
        # A group never reaches into the next layer.
        count = math.prod(layout.shape(name)[-2:])
        if count % group_size:
            raise ModelError(f"is damaged: '{name}' has {count} values a layer, no multiple of the "
                             f"group size {group_size}; copy or download it again")
    return layout


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Load a llama2.c model file of version 0, 1 or 2.

    The file's size is checked against its header before any weight is read, so memory is bounded
    by the size of the file. The arrays are read-only.

    Parameters
    ----------
    path : str or Path
        A regular file.

    Raises
    ------
    ModelError
        If the file cannot be read, is of another format, has impossible dimensions, is too short
        or too long, or holds values that are not finite. The message starts with the path.
    """
    with opened(path, "give a llama2.c .bin") as (file, size):
        layout = _parse_header(file.read(_HEADER_SIZE), size)
        file.seek(_LEGACY.size if layout.version == 0 else _HEADER_SIZE)
        arrays = {name: _read(file, layout, name) for name in layout.names}
        arrays.pop("rope", None)
        return Checkpoint(config=layout.config, **({"classifier": arrays["embedding"]} | arrays))


def _read(file: BinaryIO, layout: _Layout, name: str) -> F32:
    """Read the next array of a file."""
    shape = layout.shape(name)
    if not layout.grouped(name):
        return _take(file, math.prod(shape), "<f4").astype(np.float32, copy=False).reshape(shape)
    values = np.empty(shape, np.float32)
    for matrix in values.reshape(-1, *shape[-2:]):
        groups = _take(file, matrix.size, "i1").reshape(-1, layout.group_size)
        scales = _take(file, len(groups), "<f4")
        with np.errstate(over="ignore", invalid="ignore"):  # refused when the checkpoint is made
            np.multiply(groups, scales[:, None], out=matrix.reshape(groups.shape),
                        dtype=np.float32)
    values.setflags(write=False)
    return values


def _take(file: BinaryIO, count: int, dtype: str) -> NDArray:
    wanted = count * np.dtype(dtype).itemsize
    data = file.read(wanted)
    if len(data) < wanted:
        raise ModelError("became shorter while it was read; try again")
    return np.frombuffer(data, dtype)


# Writing.

def _rope_tables(config: ModelConfig) -> F32:
    """Cos and sin of the rotary angles, float32 [2, seq_len, head_size / 2]."""
    rates = config.rope_theta ** (-np.arange(0, config.head_size, 2) / config.head_size)
    angles = np.outer(np.arange(config.seq_len), rates)
    return np.array([np.cos(angles), np.sin(angles)], np.float32)


def quantise_groups(matrix: F32, group_size: int) -> tuple[NDArray[np.int8], F32]:
    """Values int8 [groups, group_size] and scales float32 [groups] of a matrix in version 2."""
    groups = matrix.reshape(-1, group_size)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    # A group of zeros has scale 0; its values are 0 whatever they are divided by.
    divisor = np.where(scales == 0, np.float32(1), scales)
    return np.rint(groups / divisor[:, None]).astype(np.int8), scales


def save_checkpoint(path: str | Path, checkpoint: Checkpoint, version: int = 0,
                    group_size: int = GROUP_SIZE) -> None:
    """Save a checkpoint as a llama2.c model file.

    The file appears complete or not at all.

    Parameters
    ----------
    version : int
        0 or 1: float32, without loss; 2: int8 in groups.
    group_size : int
        Values to a scale in version 2; halved until it divides the model's width.

    Raises
    ------
    ModelError
        If the format cannot hold the model (its family, rotary base and norm constant are fixed),
        or the file cannot be written.
    """
    config = checkpoint.config
    defaults = {field.name: field.default for field in fields(ModelConfig)}
    for name in ("family", "rope_theta", "norm_eps"):
        if getattr(config, name) != defaults[name]:
            raise ModelError(f"{path}: {name} must be {defaults[name]} in a llama2.c file, not "
                             f"{getattr(config, name)}; keep this model in its own format")
    if version not in VERSIONS:
        raise ModelError(f"{path}: version must be 0, 1 or 2, not {version!r}")
    while config.dim % group_size:
        group_size //= 2
    layout = _Layout(version, config, group_size)
    in_one_piece(path, lambda file: file.writelines(_parts(layout, checkpoint)))


def _parts(layout: _Layout, checkpoint: Checkpoint) -> Iterator[bytes]:
    """Yield the bytes of a file, piece by piece."""
    config = layout.config
    numbers = [getattr(config, name) for name in _NUMBERS]
    if layout.version == 0:
        numbers[5] = config.vocab_size if config.tied else -config.vocab_size
        yield _LEGACY.pack(*numbers)
    else:
        yield _HEADER.pack(_MAGIC, layout.version, *numbers, config.tied,
                           layout.group_size if layout.version == 2 else 0).ljust(_HEADER_SIZE,
                                                                                 b"\0")
    for name in layout.names:
        array = _rope_tables(config) if name == "rope" else getattr(checkpoint, name)
        if not layout.grouped(name):
            yield array.astype("<f4", copy=False).tobytes()
            continue
        for matrix in array.reshape(-1, *array.shape[-2:]):
            values, scales = quantise_groups(matrix, layout.group_size)
            yield values.tobytes()
            yield scales.astype("<f4").tobytes()
