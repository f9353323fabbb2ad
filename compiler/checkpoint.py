"""Float checkpoints: the decoder's dimensions, its weights, and llama2.c's legacy files.

Ref: llama2.c, export.py (legacy_export) and run.c (memory_map_weights).
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from compiler.errors import ModelError

__all__ = ["ModelConfig", "Checkpoint", "load_checkpoint", "save_checkpoint", "random_checkpoint"]

F32 = NDArray[np.float32]

_HEADER = struct.Struct("<7i")
_LIMITS = {"dim": 1 << 16, "hidden_dim": 1 << 18, "n_layers": 1 << 10, "n_heads": 1 << 12,
           "n_kv_heads": 1 << 12, "vocab_size": 1 << 20, "seq_len": 1 << 20}
_RE_EXPORT = "export it with llama2.c's export.py --version 0"
_FOREIGN = (
    (b"24ka", f"is a llama2.c file of version 1 or later; {_RE_EXPORT}"),
    (b"PK\x03\x04", f"is a PyTorch or zip archive; {_RE_EXPORT}"),
    (b"GGUF", "is a GGUF file; give a llama2.c .bin or a Hugging Face folder"),
)


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions of a Llama-type decoder.

    Members
    -------
    dim, hidden_dim : int
        Widths of the residual stream and of the feed-forward layer.
    n_layers, n_heads, n_kv_heads : int
        Counts; ``n_heads`` divides ``dim`` and ``n_kv_heads`` divides ``n_heads``.
    vocab_size, seq_len : int
        Number of tokens known, and positions at most.
    tied : bool
        Whether the classifier is the embedding.
    rope_theta, norm_eps : float
        Base of the rotary angles and the constant below the root of RMSNorm.

    Raises
    ------
    ModelError
        If a number is out of its range or two of them do not fit each other.
    """

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    tied: bool
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise ModelError(f"{name} must be an integer from 1 to {limit}, not {value!r}")
        if self.dim % self.n_heads:
            raise ModelError(f"dim must be a multiple of n_heads ({self.n_heads}), not {self.dim}")
        if self.head_size % 2:
            raise ModelError(f"head size (dim / n_heads) must be even, not {self.head_size}")
        if self.n_heads % self.n_kv_heads:
            raise ModelError(f"n_heads must be a multiple of n_kv_heads ({self.n_kv_heads}), "
                             f"not {self.n_heads}")
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise ModelError(f"{name} must be a positive finite number, not {value!r}")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """Width of all keys (or all values) of one position."""
        return self.n_kv_heads * self.head_size


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array of a checkpoint but the classifier, in file order."""
    layers, dim, hidden = config.n_layers, config.dim, config.hidden_dim
    return {
        "embedding": (config.vocab_size, dim),
        "rms_att": (layers, dim),
        "wq": (layers, dim, dim),
        "wk": (layers, config.kv_dim, dim),
        "wv": (layers, config.kv_dim, dim),
        "wo": (layers, dim, dim),
        "rms_ffn": (layers, dim),
        "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim),
        "rms_final": (dim,),
    }


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Dimensions and float32 weights of a decoder; every matrix is [outputs, inputs].

    Members
    -------
    config : ModelConfig
    embedding : float32 [vocab_size, dim]
    rms_att, rms_ffn : float32 [n_layers, dim]
        Gains of the norms before attention and before the feed-forward layer.
    wq : float32 [n_layers, n_heads * head_size, dim]
    wk, wv : float32 [n_layers, n_kv_heads * head_size, dim]
    wo : float32 [n_layers, dim, n_heads * head_size]
    w1, w3 : float32 [n_layers, hidden_dim, dim]
        Gate and up projection: the layer computes ``w2 @ (silu(w1 @ x) * (w3 @ x))``.
    w2 : float32 [n_layers, dim, hidden_dim]
    rms_final : float32 [dim]
    classifier : float32 [vocab_size, dim]
        Equal to ``embedding`` when ``config.tied``.

    Raises
    ------
    ModelError
        If an array has another shape or type, or holds a value that is not finite.
    """

    config: ModelConfig
    embedding: F32
    rms_att: F32
    wq: F32
    wk: F32
    wv: F32
    wo: F32
    rms_ffn: F32
    w1: F32
    w2: F32
    w3: F32
    rms_final: F32
    classifier: F32

    def __post_init__(self) -> None:
        shapes = _shapes(self.config)
        shapes["classifier"] = shapes["embedding"]
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.dtype != np.float32 or array.shape != shape:
                raise ModelError(f"'{name}' must be float32 of shape {list(shape)}, not "
                                 f"{array.dtype} of shape {list(array.shape)}")
            _check_finite(name, array)
        if self.config.tied and not np.array_equal(self.classifier, self.embedding):
            raise ModelError("'classifier' must equal 'embedding' in a model with tied weights")


def _check_finite(name: str, array: F32) -> None:
    """Raise a ModelError that names the first layer of array with a NaN or an infinity."""
    finite = np.isfinite(array)
    if finite.all():
        return
    place = f"'{name}'"
    if name in ("rms_att", "rms_ffn") or array.ndim == 3:
        place = f"layer {int(np.argwhere(~finite)[0, 0])} '{name}'"
    raise ModelError(f"{place}: {int((~finite).sum())} of its values are NaN or infinite; "
                     "the file is damaged or its training diverged")


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
    count = sum(math.prod(shape) for shape in _shapes(config).values())
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

    arrays = {name: read(shape) for name, shape in _shapes(config).items()}
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
    for name in ("rope_theta", "norm_eps"):
        if getattr(config, name) != defaults[name]:
            raise ModelError(f"{path}: {name} must be {defaults[name]} in a llama2.c file, not "
                             f"{getattr(config, name)}; keep this model in its own format")
    vocab_size = config.vocab_size if config.tied else -config.vocab_size
    header = _HEADER.pack(config.dim, config.hidden_dim, config.n_layers, config.n_heads,
                          config.n_kv_heads, vocab_size, config.seq_len)
    arrays = [getattr(checkpoint, name) for name in _shapes(config)] + [*_rope_tables(config)]
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


def random_checkpoint(config: ModelConfig, seed: int) -> Checkpoint:
    """Return an untrained checkpoint whose activations are of ordinary size.

    Matrices are normal with standard deviation 1 / sqrt(inputs), gains are normal around 1. The
    same config and seed give the same weights.
    """
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> F32:
        values = rng.standard_normal(shape, dtype=np.float32)
        if name.startswith("rms"):
            return np.float32(1) + np.float32(0.1) * values
        return values * np.float32(shape[-1] ** -0.5)

    arrays = {name: draw(name, shape) for name, shape in _shapes(config).items()}
    classifier = arrays["embedding"]
    if not config.tied:
        classifier = draw("classifier", classifier.shape)
    return Checkpoint(config=config, classifier=classifier, **arrays)
