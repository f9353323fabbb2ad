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
        kv_heads, size], ``att`` [tokens, heads * size], ``gate``, ``up``, ``hidden`` [tokens,
        hidden_dim], ``x_out`` [tokens, dim].
    embedding, final : float array, [tokens, dim]
        Residual at the beginning and before the final norm.
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


def run(checkpoint: Checkpoint, tokens: np.ndarray) -> Activations:
    """Forward pass over ``tokens`` [batch, length], every vector kept."""
    config, (batch, length) = checkpoint.config, tokens.shape
    size, group = config.head_size, config.n_heads // config.n_kv_heads
    angles = rope_angles(checkpoint, length)
    future = np.triu(np.full((length, length), -np.inf, np.float32), 1)
    flat = lambda a: a.reshape(batch * length, *a.shape[2:])  # noqa: E731
    x = checkpoint.embedding[tokens]
    embedding, layers = flat(x), []
    for layer in range(config.n_layers):
        kept = {"x_att": flat(x)}
        n = _normalised(x, checkpoint.norm_att[layer], config.norm_eps)
        q_raw = (n @ checkpoint.wq[layer].T).reshape(batch, length, config.n_heads, size)
        k_raw = (n @ checkpoint.wk[layer].T).reshape(batch, length, config.n_kv_heads, size)
        v = (n @ checkpoint.wv[layer].T).reshape(batch, length, config.n_kv_heads, size)
        q, k = _rotate(q_raw, angles), _rotate(k_raw, angles)
        scores = np.einsum("bthd,bshd->bhts", q, np.repeat(k, group, 2)) / np.sqrt(size) + future
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        att = np.einsum("bhts,bshd->bthd", p, np.repeat(v, group, 2)).reshape(batch, length, -1)
        x = x + att @ checkpoint.wo[layer].T
        kept |= {"q_raw": flat(q_raw), "k_raw": flat(k_raw), "q": flat(q), "k": flat(k),
                 "v": flat(v), "att": flat(att), "x_ffn": flat(x)}
        n = _normalised(x, checkpoint.norm_ffn[layer], config.norm_eps)
        gate, up = n @ checkpoint.w1[layer].T, n @ checkpoint.w3[layer].T
        with np.errstate(over="ignore"):
            hidden = gate / (1 + np.exp(-gate)) * up
        x = x + hidden @ checkpoint.w2[layer].T
        kept |= {"gate": flat(gate), "up": flat(up), "hidden": flat(hidden), "x_out": flat(x)}
        layers.append(kept)
    logits = _normalised(x, checkpoint.norm_final, config.norm_eps) @ checkpoint.classifier.T
    return Activations(layers, embedding, flat(x), flat(logits))


def self_sampled(checkpoint: Checkpoint, bos: int, seed: int = 0, sequences: int = SEQUENCES,
                 length: int = LENGTH) -> np.ndarray:
    """Tokens [sequences, length] drawn from the model itself at temperature 1, BOS first."""
    config = checkpoint.config
    length = min(length, config.seq_len)
    size, group = config.head_size, config.n_heads // config.n_kv_heads
    rng = np.random.default_rng(seed)
    angles = rope_angles(checkpoint, length)
    keys = np.zeros((config.n_layers, sequences, length, config.n_kv_heads, size), np.float32)
    values = np.zeros_like(keys)
    tokens = np.full((sequences, length), bos, np.int64)
    for position in range(length - 1):
        x = checkpoint.embedding[tokens[:, position]]
        here = angles[position:position + 1]
        for layer in range(config.n_layers):
            n = _normalised(x, checkpoint.norm_att[layer], config.norm_eps)
            q = _rotate((n @ checkpoint.wq[layer].T).reshape(sequences, 1, -1, size), here)
            k = _rotate((n @ checkpoint.wk[layer].T).reshape(sequences, 1, -1, size), here)
            keys[layer, :, position] = k[:, 0]
            values[layer, :, position] = (n @ checkpoint.wv[layer].T).reshape(sequences, -1, size)
            past = slice(0, position + 1)
            q = q[:, 0].reshape(sequences, config.n_kv_heads, group, size)
            scores = np.einsum("bkgd,bskd->bkgs", q, keys[layer, :, past]) / np.sqrt(size)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            att = np.einsum("bkgs,bskd->bkgd", p, values[layer, :, past])
            x = x + att.reshape(sequences, -1) @ checkpoint.wo[layer].T
            n = _normalised(x, checkpoint.norm_ffn[layer], config.norm_eps)
            gate = n @ checkpoint.w1[layer].T
            with np.errstate(over="ignore"):
                hidden = gate / (1 + np.exp(-gate)) * (n @ checkpoint.w3[layer].T)
            x = x + hidden @ checkpoint.w2[layer].T
        logits = (_normalised(x, checkpoint.norm_final, config.norm_eps)
                  @ checkpoint.classifier.T).astype(np.float64)
        # Gumbel-max draws from the softmax without forming it.
        tokens[:, position + 1] = np.argmax(logits + rng.gumbel(size=logits.shape), -1)
    return tokens
