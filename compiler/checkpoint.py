"""One description of both families of decoders: dimensions, kinds of layers, float32 weights.

Readers (`compiler.llama2c`, `compiler.huggingface`) make a `Checkpoint`; everything behind them
takes one. `ModelConfig.family` names the family; passes ask for the trait that they care about:

| trait        | llama                               | gpt2                               |
| ------------ | ----------------------------------- | ---------------------------------- |
| `norm`       | rms: gain                           | layer: mean off, gain and bias     |
| `activation` | silu_gated: gate w1, up w3, down w2 | gelu: up w1, down w2               |
| `positions`  | rope: queries and keys turned       | learned: added to the embedding    |
| `biases`     | none                                | in every projection                |

Otherwise a layer is the same: ``x += wo @ attention(norm(x)) + bo``, ``x += ffn(norm(x))``, and
after the last one ``logits = classifier @ norm(x)``. The classifier has no bias. ``ffn(x)`` is
``w2 @ (silu(w1 @ x) * (w3 @ x))`` or ``w2 @ gelu(w1 @ x + b1) + b2``, with GELU by tanh:
``0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))``.

An array has the same name in both families, matrices are [outputs, inputs] with the layer in
front, and an array that the family does not have is None.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.errors import ModelError

__all__ = ["ModelConfig", "Checkpoint", "weight_shapes", "random_checkpoint", "FAMILIES"]

F32 = NDArray[np.float32]

FAMILIES = ("llama", "gpt2")
_LIMITS = {"dim": 1 << 16, "hidden_dim": 1 << 18, "n_layers": 1 << 10, "n_heads": 1 << 12,
           "n_kv_heads": 1 << 12, "vocab_size": 1 << 17, "seq_len": 1 << 17}
#: More weights than any profile holds; bounds the memory that reading a model takes.
MAX_WEIGHTS = 1 << 25


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions and kind of a decoder.

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
    rope_theta : float
        Base of the rotary angles, where ``positions`` is rope.
    norm_eps : float
        The constant below the root of every norm.
    family : str
        One of `FAMILIES`.

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
    family: str = "llama"

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ModelError(f"family must be one of {', '.join(FAMILIES)}, not {self.family!r}")
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise ModelError(f"{name} must be an integer from 1 to {limit}, not {value!r}")
        if self.dim % self.n_heads:
            raise ModelError(f"dim must be a multiple of n_heads ({self.n_heads}), not {self.dim}")
        if self.positions == "rope" and self.head_size % 2:
            raise ModelError(f"head size (dim / n_heads) must be even, not {self.head_size}")
        if self.n_heads % self.n_kv_heads:
            raise ModelError(f"n_heads must be a multiple of n_kv_heads ({self.n_kv_heads}), "
                             f"not {self.n_heads}")
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise ModelError(f"{name} must be a positive finite number, not {value!r}")
        if self.weights > MAX_WEIGHTS:
            raise ModelError(f"the model has {self.weights} weights, at most {MAX_WEIGHTS} can be "
                             "read")

    @property
    def weights(self) -> int:
        """Number of weights, a tied classifier counted once."""
        count = sum(math.prod(shape) for shape in weight_shapes(self).values())
        return count + (0 if self.tied else self.vocab_size * self.dim)

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """Width of all keys (or all values) of one position."""
        return self.n_kv_heads * self.head_size

    @property
    def norm(self) -> str:
        """Kind of norm: rms or layer."""
        return "layer" if self.family == "gpt2" else "rms"

    @property
    def activation(self) -> str:
        """Kind of feed-forward layer: silu_gated or gelu."""
        return "gelu" if self.family == "gpt2" else "silu_gated"

    @property
    def positions(self) -> str:
        """How positions enter: rope or learned."""
        return "learned" if self.family == "gpt2" else "rope"

    @property
    def biases(self) -> bool:
        """Whether every projection has a bias."""
        return self.family == "gpt2"


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every array of a checkpoint that its family has, but the classifier."""
    layers, dim, hidden, kv_dim = config.n_layers, config.dim, config.hidden_dim, config.kv_dim
    shapes = {
        "embedding": (config.vocab_size, dim),
        "norm_att": (layers, dim),
        "wq": (layers, dim, dim),
        "wk": (layers, kv_dim, dim),
        "wv": (layers, kv_dim, dim),
        "wo": (layers, dim, dim),
        "norm_ffn": (layers, dim),
        "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim),
        "norm_final": (dim,),
    }
    if config.activation != "silu_gated":
        del shapes["w3"]
    if config.positions == "learned":
        shapes["positions"] = (config.seq_len, dim)
    if config.norm == "layer":
        shapes |= {"norm_att_bias": (layers, dim), "norm_ffn_bias": (layers, dim),
                   "norm_final_bias": (dim,)}
    if config.biases:
        shapes |= {"bq": (layers, dim), "bk": (layers, kv_dim), "bv": (layers, kv_dim),
                   "bo": (layers, dim), "b1": (layers, hidden), "b2": (layers, dim)}
    return shapes


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Dimensions and float32 weights of a decoder; every matrix is [outputs, inputs].

    Members
    -------
    config : ModelConfig
    embedding : float32 [vocab_size, dim]
    norm_att, norm_ffn : float32 [n_layers, dim]
        Gains of the norms before attention and before the feed-forward layer.
    wq : float32 [n_layers, n_heads * head_size, dim]
        RoPE turns interleaved pairs: rows 2i and 2i + 1 of a head.
    wk, wv : float32 [n_layers, n_kv_heads * head_size, dim]
    wo : float32 [n_layers, dim, n_heads * head_size]
    w1 : float32 [n_layers, hidden_dim, dim]
        Gate, or the only first projection.
    w2 : float32 [n_layers, dim, hidden_dim]
    norm_final : float32 [dim]
    classifier : float32 [vocab_size, dim]
        Equal to ``embedding`` when ``config.tied``.
    w3 : float32 [n_layers, hidden_dim, dim] or None
        Up projection of a gated layer.
    positions : float32 [seq_len, dim] or None
        Learned positions.
    norm_att_bias, norm_ffn_bias : float32 [n_layers, dim] or None
    norm_final_bias : float32 [dim] or None
        Biases of LayerNorm.
    bq, bk, bv, bo, b1, b2 : float32 [n_layers, outputs] or None
        Bias of the projection of the same letter.

    Raises
    ------
    ModelError
        If an array has another shape or type, holds a value that is not finite, or is missing.
    """

    config: ModelConfig
    embedding: F32
    norm_att: F32
    wq: F32
    wk: F32
    wv: F32
    wo: F32
    norm_ffn: F32
    w1: F32
    w2: F32
    norm_final: F32
    classifier: F32
    w3: F32 | None = None
    positions: F32 | None = None
    norm_att_bias: F32 | None = None
    norm_ffn_bias: F32 | None = None
    norm_final_bias: F32 | None = None
    bq: F32 | None = None
    bk: F32 | None = None
    bv: F32 | None = None
    bo: F32 | None = None
    b1: F32 | None = None
    b2: F32 | None = None

    def __post_init__(self) -> None:
        shapes = weight_shapes(self.config)
        shapes["classifier"] = shapes["embedding"]
        for name in self.__dataclass_fields__:
            if name != "config" and name not in shapes and getattr(self, name) is not None:
                raise ModelError(f"'{name}' has no place in a model of family "
                                 f"{self.config.family!r}")
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array is None:
                raise ModelError(f"'{name}' is missing; a model of family "
                                 f"{self.config.family!r} needs it")
            if array.dtype != np.float32 or array.shape != shape:
                raise ModelError(f"'{name}' must be float32 of shape {list(shape)}, not "
                                 f"{array.dtype} of shape {list(array.shape)}")
            _check_finite(name, array)
        if self.config.tied and not np.array_equal(self.classifier, self.embedding):
            raise ModelError("'classifier' must equal 'embedding' in a model with tied weights")

    @property
    def arrays(self) -> dict[str, F32]:
        """All arrays that the family has, by name; the classifier only when it is not tied."""
        names = list(weight_shapes(self.config)) + ["classifier"] * (not self.config.tied)
        return {name: getattr(self, name) for name in names}


#: Arrays without a layer in front.
_NOT_PER_LAYER = {"embedding", "classifier", "positions", "norm_final", "norm_final_bias"}


def _check_finite(name: str, array: F32) -> None:
    """Raise a ModelError that names the first layer of array with a NaN or an infinity."""
    finite = np.isfinite(array)
    if finite.all():
        return
    place = f"'{name}'"
    if name not in _NOT_PER_LAYER:
        place = f"layer {int(np.argwhere(~finite)[0, 0])} {place}"
    raise ModelError(f"{place}: {int((~finite).sum())} of its values are NaN or infinite; "
                     "the file is damaged or its training diverged")


def random_checkpoint(config: ModelConfig, seed: int) -> Checkpoint:
    """Return an untrained checkpoint whose activations are of ordinary size.

    Matrices are normal with standard deviation 1 / sqrt(inputs), gains are normal around 1, biases
    normal with standard deviation 0.1. The same config and seed give the same weights.
    """
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> F32:
        values = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("_bias") or name in ("bq", "bk", "bv", "bo", "b1", "b2"):
            return np.float32(0.1) * values
        if name.startswith("norm"):
            return np.float32(1) + np.float32(0.1) * values
        return values * np.float32(shape[-1] ** -0.5)

    arrays = {name: draw(name, shape) for name, shape in weight_shapes(config).items()}
    classifier = arrays["embedding"]
    if not config.tied:
        classifier = draw("classifier", classifier.shape)
    return Checkpoint(config=config, classifier=classifier, **arrays)
