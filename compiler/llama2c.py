"""Model files of llama2.c.

Ref: llama2.c, export.py (legacy_export) and run.c (memory_map_weights).
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from compiler.checkpoint import Checkpoint, ModelConfig, weight_shapes
from compiler.errors import ModelError

__all__ = ["load_checkpoint", "save_checkpoint"]

F32 = NDArray[np.float32]

_HEADER = struct.Struct("<7i")
_RE_EXPORT = "export it with llama2.c's export.py --version 0"
_FOREIGN = (
    (b"24ka", f"is a llama2.c file of version 1 or later; {_RE_EXPORT}"),
    (b"PK\x03\x04", f"is a PyTorch or zip archive; {_RE_EXPORT}"),
    (b"GGUF", "is a GGUF file; give a llama2.c .bin or a Hugging Face folder"),
)


def _rope_tables(config: ModelConfig) -> Iterator[F32]:
    """Yield cos and sin of the rotary angles, each float32 [seq_len, head_size / 2]."""
    rates = config.rope_theta ** (-np.arange(0, config.head_size, 2) / config.head_size)
    angles = np.outer(np.arange(config.seq_len), rates)
    yield np.cos(angles).astype("<f4")
    yield np.sin(angles).astype("<f4")


def _parse_header(head: bytes, size: int) -> ModelConfig:
    """Return the dimensions in the first bytes of a file of size bytes, checked against size."""
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            raise ModelError(what)
    if head[8:10] == b'{"':
        raise ModelError("is a safetensors file; give the Hugging Face folder that it is in")
    if len(head) < _HEADER.size:
        raise ModelError(f"has {len(head)} bytes, a llama2.c model starts with a header of "
                         f"{_HEADER.size}; copy or download it again")
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len = _HEADER.unpack(head)
    try:
        config = ModelConfig(dim=dim, hidden_dim=hidden_dim, n_layers=n_layers, n_heads=n_heads,
                             n_kv_heads=n_kv_heads, vocab_size=abs(vocab_size), seq_len=seq_len,
                             tied=vocab_size > 0)
    except ModelError as error:
        raise ModelError(f"is no llama2.c version 0 model: {error}; {_RE_EXPORT}") from None
    expected = _file_size(config)
    if size < expected:
        raise ModelError(f"is truncated: its header asks for {expected} bytes, it has {size}; "
                         "copy or download it again")
    if size > expected:
        raise ModelError(f"has {size - expected} bytes after its end: its header asks for "
                         f"{expected}, it has {size}; copy it again, or {_RE_EXPORT}")
    return config


def _file_size(config: ModelConfig) -> int:
    """Return the size of a legacy version 0 file in bytes."""
    count = sum(math.prod(shape) for shape in weight_shapes(config).values())
    count += config.seq_len * config.head_size
    if not config.tied:
        count += config.vocab_size * config.dim
    return _HEADER.size + 4 * count


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Load a llama2.c model file of legacy version 0.

    The file's size is checked against its header before any weight is read, so memory is bounded
    by the size of the file. The rotary tables at its end are skipped. The arrays are read-only.

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
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelError("is not a regular file; give a llama2.c .bin")
            config = _parse_header(file.read(_HEADER.size), status.st_size)
            return _read_arrays(file, config)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _read_arrays(file: BinaryIO, config: ModelConfig) -> Checkpoint:
    """Read all weights of a file positioned after its header."""
    def read(shape: tuple[int, ...]) -> F32:
        count = math.prod(shape)
        data = file.read(4 * count)
        if len(data) < 4 * count:
            raise ModelError("became shorter while it was read; try again")
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False).reshape(shape)

    arrays = {name: read(shape) for name, shape in weight_shapes(config).items()}
    file.seek(4 * config.seq_len * config.head_size, os.SEEK_CUR)
    classifier = arrays["embedding"] if config.tied else read(arrays["embedding"].shape)
    return Checkpoint(config=config, classifier=classifier, **arrays)


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Save a checkpoint as a llama2.c model file of legacy version 0.

    The file appears complete or not at all: it is written beside path and renamed into place.

    Raises
    ------
    ModelError
        If the format cannot hold the model (its rotary base and norm constant are fixed), or
        the file cannot be written.
    """
    config = checkpoint.config
    defaults = {field.name: field.default for field in fields(ModelConfig)}
    for name in ("family", "rope_theta", "norm_eps"):
        if getattr(config, name) != defaults[name]:
            raise ModelError(f"{path}: {name} must be {defaults[name]} in a llama2.c file, not "
                             f"{getattr(config, name)}; keep this model in its own format")
    vocab_size = config.vocab_size if config.tied else -config.vocab_size
    header = _HEADER.pack(config.dim, config.hidden_dim, config.n_layers, config.n_heads,
                          config.n_kv_heads, vocab_size, config.seq_len)
    arrays = [getattr(checkpoint, name) for name in weight_shapes(config)] + [*_rope_tables(config)]
    if not config.tied:
        arrays.append(checkpoint.classifier)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(header)
                for array in arrays:
                    file.write(array.astype("<f4", copy=False).tobytes())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written: {error.strerror or error}") from None
