"""Activation ranges: what a checkpoint's vectors look like on calibration text.

The forward pass here is in float32 over a batch of sequences and keeps every vector that the
machine quantises. Without a text, the model samples its own with a fixed seed.
"""
import dataclasses

import numpy as np

from compiler.checkpoint import Checkpoint

#: Sequences and tokens per sequence of self-sampled calibration text.
SEQUENCES, LENGTH = 4, 192


@dataclasses.dataclass(frozen=True)
class Activations:
    """Samples of every quantised vector; first axis: tokens, all sequences together.

    Parameters
    ----------
    layers : list of dict of str to float array
        Per layer: ``x_att``, ``x_ffn`` [tokens, dim] (residual before the norms), ``q`` [tokens,
        heads, size] and ``k`` (after RoPE), ``q_raw``, ``k_raw`` (before), ``v`` [tokens,
        kv_heads, size], ``att`` [tokens, heads * size], ``gate``, ``hidden`` [tokens, hidden_dim],
        ``up`` where there is one, ``x_out`` [tokens, dim]; ``received`` [tokens, kv_heads], the
        attention that the queries of all positions paid to a token.
    embedding, final : float array, [tokens, dim]
        Residual at the beginning and before the final norm. With LayerNorm the mean over the
        channels is taken off every residual.
    logits : float array, [tokens, vocab]
    """
    layers: list
    embedding: np.ndarray
    final: np.ndarray
    logits: np.ndarray


def rope_angles(checkpoint: Checkpoint, length: int) -> np.ndarray:
    """Angles of RoPE, [length, head_size / 2]. Ref: Su et al., RoFormer, 2021, section 3.2."""
    config = checkpoint.config
    rates = config.rope_theta ** (-np.arange(0, config.head_size, 2) / config.head_size)
    return np.outer(np.arange(length), rates)


def _rotate(x, angles):
    """Turn interleaved pairs of x [batch, length, heads, size]."""
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = odd * cos + even * sin
    return out


def _normalised(x, gain, eps):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * gain


def _silu(x):
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def gelu(x):
    """GELU by tanh, as GPT-2 has it."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class _Decoder:
    """A checkpoint on a batch of sequences, with the keys and values so far."""

    def __init__(self, checkpoint: Checkpoint, batch: int, length: int):
        self.checkpoint, self.config = checkpoint, checkpoint.config
        config = self.config
        cache = (config.n_layers, batch, length, config.n_kv_heads, config.head_size)
        self.keys, self.values = np.zeros(cache, np.float32), np.zeros(cache, np.float32)
        self.angles = rope_angles(checkpoint, length) if config.positions == "rope" else None

    def forward(self, tokens: np.ndarray, start: int) -> tuple:
        """Tokens [batch, count] at ``start`` and on: kept vectors by layer, the residual before
        the first and after the last layer, logits; [batch, count, ...] all of them."""
        c, config = self.checkpoint, self.config
        x = c.embedding[tokens]
        if config.positions == "learned":
            x = x + c.positions[start:start + tokens.shape[1]]
        x = first = self._centred(x)
        layers = []
        for layer in range(config.n_layers):
            x, kept = self._layer(layer, x, start)
            layers.append(kept)
        n = self._norm("final", None, x)
        return layers, first, x, n @ c.classifier.T

    def _centred(self, x):
        return x - x.mean(-1, keepdims=True) if self.config.norm == "layer" else x

    def _norm(self, name, layer, x):
        at = slice(None) if layer is None else layer
        n = _normalised(self._centred(x), getattr(self.checkpoint, f"norm_{name}")[at],
                        self.config.norm_eps)
        bias = getattr(self.checkpoint, f"norm_{name}_bias")
        return n if bias is None else n + bias[at]

    def _linear(self, name, layer, x):
        y = x @ getattr(self.checkpoint, f"w{name}")[layer].T
        bias = getattr(self.checkpoint, f"b{name}", None)
        return y if bias is None else y + bias[layer]

    def _layer(self, layer, x, start):
        kept = {"x_att": x}
        x = self._centred(x + self._linear("o", layer, self._attention(layer, x, start, kept)))
        kept["x_ffn"] = x
        n = self._norm("ffn", layer, x)
        kept["gate"] = gate = self._linear("1", layer, n)
        if self.config.activation == "silu_gated":
            kept["up"] = self._linear("3", layer, n)
            kept["hidden"] = _silu(gate) * kept["up"]
        else:
            kept["hidden"] = gelu(gate)
        x = kept["x_out"] = self._centred(x + self._linear("2", layer, kept["hidden"]))
        return x, kept

    def _attention(self, layer, x, start, kept):
        config, (batch, count) = self.config, x.shape[:2]
        size, group, end = config.head_size, config.n_heads // config.n_kv_heads, start + count
        n = self._norm("att", layer, x)
        for name in "qkv":
            kept[name] = self._linear(name, layer, n).reshape(batch, count, -1, size)
        kept["q_raw"], kept["k_raw"] = kept["q"], kept["k"]
        if config.positions == "rope":
            for name in "qk":
                kept[name] = _rotate(kept[name], self.angles[start:end])
        keys, values = self.keys[layer, :, :end], self.values[layer, :, :end]
        keys[:, start:], values[:, start:] = kept["k"], kept["v"]
        q = kept["q"].reshape(batch, count, config.n_kv_heads, group, size)
        scores = np.einsum("btkgd,bskd->bkgts", q, keys) / np.sqrt(size)
        future = np.arange(end) > np.arange(start, end)[:, None]
        scores = np.where(future, -np.inf, scores)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        kept["received"] = p.sum((2, 3)).transpose(0, 2, 1)[:, start:]
        kept["att"] = np.einsum("bkgts,bskd->btkgd", p, values).reshape(batch, count, -1)
        return kept["att"]


def run(checkpoint: Checkpoint, tokens: np.ndarray) -> Activations:
    """Forward pass over ``tokens`` [batch, length], every vector kept."""
    flat = lambda a: a.reshape(-1, *a.shape[2:])  # noqa: E731
    layers, first, last, logits = _Decoder(checkpoint, *tokens.shape).forward(tokens, 0)
    return Activations([{name: flat(kept) for name, kept in layer.items()} for layer in layers],
                       flat(first), flat(last), flat(logits))


def self_sampled(checkpoint: Checkpoint, bos: int, seed: int = 0, sequences: int = SEQUENCES,
                 length: int = LENGTH) -> np.ndarray:
    """Tokens [sequences, length] drawn from the model itself at temperature 1, BOS first."""
    length = min(length, checkpoint.config.seq_len)
    rng = np.random.default_rng(seed)
    tokens = np.full((sequences, length), bos, np.int64)
    decoder = _Decoder(checkpoint, sequences, length)
    for position in range(length - 1):
        logits = decoder.forward(tokens[:, position:position + 1], position)[-1][:, 0]
        # Gumbel-max draws from the softmax without forming it.
        logits = logits.astype(np.float64)
        tokens[:, position + 1] = np.argmax(logits + rng.gumbel(size=logits.shape), -1)
    return tokens
