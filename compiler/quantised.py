"""The quantised decoder: every integer that the machine computes with, and what the fields mean.

Per token, with all shifts and multipliers below being fields of `QuantModel`::

    x        int16 residual, one scale for the whole model
    n = x    enters matmuls as activation(x, shift) *before* its norm (multiplied by a constant of
             each channel first, where residuals differ too much for one scale); 1/rms, a float12 r, joins
             the per-channel multipliers afterwards: m' = mac(m, r, 0, 0, 12), y = mac(acc, m', ...)
    q, k     int16; RoPE turns them (cos and sin with 14 fraction bits); k shifted to int8
    scores   int16 with 8 fraction bits in powers of two; masked, exp2 against the row maximum
    att      sum(p * v) * recip(sum p)
    hidden   gate with 11 fraction bits into SiLU, times up; or the first projection into GELU
    logits   int16 with 8 fraction bits

A bias is added after the shift of its requantiser. Where the residual is the addend (after ``wo``
and ``w2``), the bias is added to the residual beforehand.
"""
import dataclasses
import math

import numpy as np

from compiler.checkpoint import ModelConfig

#: Right shift of the pass that joins a multiplier and the float12 of 1/rms.
NORM_POST = 12
#: Fraction bits of cos and sin.
ROPE_FRACTION = 14


@dataclasses.dataclass(frozen=True)
class Requant:
    """Multiplier of each output channel [out], shift before and after the multiplication.

    ``bias`` [out] is in steps of the result; None: there is none.
    """
    m: np.ndarray
    pre: int
    post: int
    bias: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Rows:
    """A table of int8 rows: row t is about ``rows[t] * m[t] * 2**-post``, in steps of the residual.

    Parameters
    ----------
    rows : int8 array, [count, dim]
    m : int array, [count]
    post : int
    """
    rows: np.ndarray
    m: np.ndarray
    post: int


@dataclasses.dataclass(frozen=True)
class QuantLayer:
    """One decoder layer in integers; weights [out, in] int8, as in the checkpoint's order.

    ``gate`` belongs to ``w1``, in a layer without gate too; ``w3`` and ``up`` are None there.
    ``att_in`` and ``ffn_in``, where they are, scale the residual for the matmuls behind its norm.
    ``units`` is for reports only: what one step of a vector is in the float model, by the names of
    `compiler.calibrate.Activations`.
    """
    wq: np.ndarray
    wk: np.ndarray
    wv: np.ndarray
    wo: np.ndarray
    w1: np.ndarray
    w2: np.ndarray
    w3: np.ndarray | None
    q: Requant
    k: Requant
    v: Requant
    o: Requant
    gate: Requant
    up: Requant | None
    down: Requant
    att_norm_shift: int
    att_norm_bias: int
    ffn_norm_shift: int
    ffn_norm_bias: int
    q_shift: int
    k_shift: int
    scores: Requant
    hidden_post: int
    hidden_shift: int
    att_in: Requant | None = None
    ffn_in: Requant | None = None
    units: dict | None = None


@dataclasses.dataclass(frozen=True)
class QuantModel:
    """The whole decoder in integers.

    Parameters
    ----------
    embedding : Rows
        One row per token.
    positions : Rows or None
        Learned positions, one row per position.
    offsets : int array [vocab], or None
        With LayerNorm: added to all channels of a token's embedding, so that the residual, to
        which everything else adds vectors without mean, has none either.
    classifier : int8 array, [vocab, dim]
        The same object as ``embedding.rows`` when tied.
    eps_total : int
        What the norm's epsilon adds to a sum of squares.
    rope : int array [context, head_size], or None
        cos, then sin, of each pair.
    exp_post, recip_bias, att_pre, att_post : int
        Of softmax and of the weighted sum of values.
    final_gain : Requant or None
        Gain of the final norm when it can't be folded into the classifier. With LayerNorm it is
        there always, has the bias of the norm, and 1/rms joins its multipliers; otherwise 1/rms
        joins those of the logits.
    """
    config: ModelConfig
    activation_bits: int
    context: int
    embedding: Rows
    positions: Rows | None
    offsets: np.ndarray | None
    classifier: np.ndarray
    eps_total: int
    rope: np.ndarray | None
    layers: list
    exp_post: int
    recip_bias: int
    att_pre: int
    att_post: int
    final_gain: Requant | None
    final_shift: int
    final_bias: int
    logits: Requant
    residual_scale: float
    final_in: Requant | None = None


def eps_vector(total: int, lanes: int) -> np.ndarray:
    """A vector whose squares add up to ``total``, as nearly as its lanes allow."""
    vector = np.zeros(lanes, np.int64)
    for lane in range(lanes):
        vector[lane] = min(math.isqrt(total), 32767)
        total -= int(vector[lane])**2
    return vector
