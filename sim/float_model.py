"""The decoder in floating point: what every quantised model is compared with.

Ref: llama2.c, run.c (forward); the rotary embedding turns interleaved pairs. GPT-2: Radford et al.,
Language Models are Unsupervised Multitask Learners, 2019, and the code published with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from compiler.checkpoint import Checkpoint

__all__ = ["FloatModel", "nats_per_token"]

Array = NDArray[np.floating]


class FloatModel:
    """A checkpoint evaluated in numpy, a whole sequence at once or token by token.

    Parameters
    ----------
    checkpoint : Checkpoint
    dtype : numpy.float32 or numpy.float64
        Type of every intermediate value.
    """

    def __init__(self, checkpoint: Checkpoint, *, dtype: DTypeLike = np.float32) -> None:
        self._dtype = np.dtype(dtype)
        if self._dtype not in (np.float32, np.float64):
            raise TypeError(f"dtype must be float32 or float64, not {self._dtype}")
        self._config = config = checkpoint.config
        self._weights = {name: array.astype(self._dtype)
                         for name, array in checkpoint.arrays.items()}
        self._weights["classifier"] = checkpoint.classifier.astype(self._dtype)
        size = config.head_size
        if config.positions == "rope":
            rates = config.rope_theta ** (-np.arange(0, size, 2) / size)
            angles = np.outer(np.arange(config.seq_len), rates)
            self._cos = np.cos(angles).astype(self._dtype)             # [seq_len, head_size / 2]
            self._sin = np.sin(angles).astype(self._dtype)
        cache = (config.n_layers, config.seq_len, config.n_kv_heads, size)
        self._keys = np.zeros(cache, self._dtype)
        self._values = np.zeros(cache, self._dtype)
        self._filled = 0

    def logits(self, tokens: Sequence[int] | NDArray[np.integer]) -> Array:
        """Return the logits after every token of a sequence.

        The state of `step` is neither used nor changed.

        Parameters
        ----------
        tokens : int [T]
            1 <= T <= seq_len.

        Returns
        -------
        [T, vocab_size]

        Raises
        ------
        ValueError
            If the sequence is empty or too long, or a token is not in the vocabulary.
        """
        ids = self._check_tokens(tokens)
        shape = (self._config.n_layers, len(ids), self._config.n_kv_heads, self._config.head_size)
        return self._forward(ids, 0, np.empty(shape, self._dtype), np.empty(shape, self._dtype))

    def step(self, token: int, pos: int) -> Array:
        """Return the logits after one token at a position, keeping its keys and values.

        Positions come in order from 0; going back to an earlier one forgets those after it.

        Returns
        -------
        [vocab_size]

        Raises
        ------
        ValueError
            If pos leaves a gap or exceeds seq_len, or the token is not in the vocabulary.
        """
        last = min(self._filled, self._config.seq_len - 1)
        if not 0 <= pos <= last:
            raise ValueError(f"pos must be from 0 to {last}, not {pos!r}")
        ids = self._check_tokens([token])
        end = pos + 1
        logits = self._forward(ids, pos, self._keys[:, :end], self._values[:, :end])
        self._filled = end
        return logits[0]

    def _check_tokens(self, tokens: Sequence[int] | NDArray[np.integer]) -> NDArray[np.integer]:
        ids = np.asarray(tokens)
        if ids.ndim != 1 or not 1 <= len(ids) <= self._config.seq_len:
            raise ValueError(f"tokens must be a sequence of 1 to {self._config.seq_len}, not of "
                             f"shape {list(ids.shape)}")
        if ids.dtype.kind not in "iu":
            raise ValueError(f"tokens must be integers, not {ids.dtype}")
        outside = ids[(ids < 0) | (ids >= self._config.vocab_size)]
        if len(outside):
            raise ValueError(f"tokens must be from 0 to {self._config.vocab_size - 1}, "
                             f"not {int(outside[0])}")
        return ids

    def _forward(self, ids: NDArray[np.integer], start: int, keys: Array, values: Array) -> Array:
        """Run ids [T] at positions start to start + T - 1 and return logits [T, vocab_size].

        keys and values [n_layers, start + T, n_kv_heads, head_size] hold the earlier positions;
        those of ids are written into them.
        """
        config, weights = self._config, self._weights
        x = weights["embedding"][ids]                                              # [T, dim]
        if config.positions == "learned":
            x = x + weights["positions"][start:start + len(ids)]
        for layer in range(config.n_layers):
            h = self._norm(x, "norm_att", layer)
            x = x + self._attention(h, layer, start, keys[layer], values[layer])
            h = self._norm(x, "norm_ffn", layer)
            inner = self._linear(h, "1", layer)                                    # [T, hidden]
            inner = (_silu(inner) * self._linear(h, "3", layer)
                     if config.activation == "silu_gated" else _gelu(inner))
            x = x + self._linear(inner, "2", layer)
        return self._norm(x, "norm_final") @ weights["classifier"].T

    def _linear(self, h: Array, name: str, layer: int) -> Array:
        """Return h [T, inputs] through the projection "w" + name, [T, outputs], with its bias."""
        y = h @ self._weights[f"w{name}"][layer].T
        return y + self._weights[f"b{name}"][layer] if self._config.biases else y

    def _attention(self, h: Array, layer: int, start: int, keys: Array, values: Array) -> Array:
        """Return the attention output [T, dim] of normed inputs h [T, dim], filling the cache."""
        config = self._config
        count, groups, size = len(h), config.n_kv_heads, config.head_size
        end = start + count
        q = self._linear(h, "q", layer).reshape(count, config.n_heads, size)
        k = self._linear(h, "k", layer).reshape(count, groups, size)
        keys[start:end] = self._rotate(k, start)
        values[start:end] = self._linear(h, "v", layer).reshape(count, groups, size)
        # Query head i reads key head i // (n_heads / n_kv_heads).
        q = self._rotate(q, start).reshape(count, groups, -1, size).transpose(1, 2, 0, 3)
        scores = q @ keys.transpose(1, 2, 0)[:, None]                # [groups, heads, T, end]
        scores /= self._dtype.type(np.sqrt(size))
        future = np.arange(end) > np.arange(start, end)[:, None]     # [T, end]
        scores = np.where(future, -np.inf, scores)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = scores @ values.transpose(1, 0, 2)[:, None]          # [groups, heads, T, size]
        return self._linear(mixed.transpose(2, 0, 1, 3).reshape(count, -1), "o", layer)

    def _rotate(self, x: Array, start: int) -> Array:
        """Rotate the interleaved pairs of x [T, heads, head_size] by their positions' angles."""
        if self._config.positions != "rope":
            return x
        cos = self._cos[start:start + len(x), None]                  # [T, 1, head_size / 2]
        sin = self._sin[start:start + len(x), None]
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = np.empty_like(x)
        turned[..., 0::2] = even * cos - odd * sin
        turned[..., 1::2] = even * sin + odd * cos
        return turned

    def _norm(self, x: Array, name: str, layer: int | None = None) -> Array:
        """Return the norm of x [T, dim] with the gain (and bias) called name."""
        at = slice(None) if layer is None else layer
        if self._config.norm == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
        square = np.mean(x * x, axis=-1, keepdims=True)
        x = x / np.sqrt(square + self._dtype.type(self._config.norm_eps)) * self._weights[name][at]
        return x + self._weights[f"{name}_bias"][at] if self._config.norm == "layer" else x


def _silu(x: Array) -> Array:
    """Return x * sigmoid(x), written so that nothing overflows."""
    half = x.dtype.type(0.5)
    return x * (half + half * np.tanh(half * x))


def _gelu(x: Array) -> Array:
    """Return GELU of x by tanh, as GPT-2 has it."""
    half, cubic = x.dtype.type(0.5), x.dtype.type(0.044715)
    return half * x * (1 + np.tanh(x.dtype.type(np.sqrt(2 / np.pi)) * (x + cubic * x * x * x)))


def nats_per_token(
    logits_fn: Callable[[NDArray[np.integer]], Array],
    token_windows: Iterable[Sequence[int] | NDArray[np.integer]],
) -> float:
    """Return the mean negative log-likelihood of all tokens but each window's first, in nats.

    Parameters
    ----------
    logits_fn : callable
        Maps tokens int [T] to logits [T, vocab_size], for instance `FloatModel.logits`.
    token_windows : iterable of int [T]
        T of at least 2, which may differ from window to window; each starts a new context.

    Raises
    ------
    ValueError
        If there is no window, or one with fewer than two tokens.
    """
    total, count = 0.0, 0
    for window in token_windows:
        ids = np.asarray(window)
        if ids.ndim != 1 or len(ids) < 2:
            raise ValueError("token windows must be sequences of at least 2 tokens, not of shape "
                             f"{list(ids.shape)}")
        logits = np.asarray(logits_fn(ids[:-1]), np.float64)                   # [T - 1, vocab]
        logits = logits - logits.max(axis=-1, keepdims=True)
        chosen = logits[np.arange(len(ids) - 1), ids[1:]]
        total += float((np.log(np.exp(logits).sum(axis=-1)) - chosen).sum())
        count += len(ids) - 1
    if not count:
        raise ValueError("token windows must be at least one, not none")
    return total / count
