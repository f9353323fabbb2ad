"""Equalisation: channels of one vector are brought nearer to each other in size.

One scale serves all channels of a key, a value or a hidden state, so that one loud channel takes
the precision of the others. A factor can move from one projection into the next without changing
what the model computes: from keys into queries (for both channels of a pair that RoPE turns), from
values into the output projection, from up into down. The price is paid by the weights behind,
whose rows become less even; so each layer takes an exponent only where it measures much better.

Ref: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV
2019, section 4.1.
"""
import dataclasses

import numpy as np

from compiler.calibrate import Activations
from compiler.checkpoint import Checkpoint
from compiler.scales import clip_scale, quantise_weights

#: Exponents tried: 0 leaves a vector as it is, 1 makes all of its channels equally large.
EXPONENTS = (0.0, 0.5, 1.0)
#: An exponent must bring the squared error below this share of what it is without.
WORTH = 0.5
#: Tokens that a trial looks at, at most.
SAMPLES = 192


def factors(peaks: np.ndarray) -> np.ndarray:
    """Peaks over their geometric mean along the last axis, where channels of almost nothing stay
    as they are."""
    peaks = np.asarray(peaks, np.float64)
    peaks = np.maximum(peaks, peaks.max(-1, keepdims=True) * 1e-3)
    peaks = np.where(peaks > 0, peaks, 1)
    return peaks / np.exp(np.log(peaks).mean(-1, keepdims=True))


def _rounded(x, bits, axis=None, weights=None):
    """What is left of samples x [tokens, ...] as integers; one scale per index of ``axis``."""
    if axis is not None:
        return np.stack([_rounded(np.take(x, at, axis), bits, None, None if weights is None
                                  else weights[:, at, None]) for at in range(x.shape[axis])], axis)
    scale, limit = clip_scale(x, bits, weights=weights), (1 << bits - 1) - 1
    return np.clip(np.rint(x / scale), -limit, limit) * scale


def _through(x, w):
    """Samples [tokens, in] through weights [out, in] as int8."""
    q, scale = quantise_weights(w)
    return x @ (q * scale[:, None]).T


def _best(error):
    """The exponent of least error, or 0 if none is worth it."""
    errors = [float(error(exponent)) for exponent in EXPONENTS]
    least = int(np.argmin(errors))
    return EXPONENTS[least] if errors[least] < WORTH * errors[0] else 0.0


def _thin(x):
    return x[::-(-len(x) // SAMPLES)].astype(np.float64)


def _hidden(acts, w2, bits):
    """Factor of each hidden channel."""
    hidden, ratio = _thin(acts["hidden"]), factors(np.abs(acts["hidden"]).max(0))

    def error(exponent):
        move = ratio**exponent
        return ((_through(_rounded(hidden / move, bits), w2 * move) - hidden @ w2.T)**2).sum()
    return ratio**_best(error)


def _values(acts, wo, group):
    """Factor of each channel of the values, [kv heads, size]."""
    v, received = _thin(acts["v"]), _thin(acts["received"])
    ratio = factors(np.abs(acts["v"]).max(0))
    flat = lambda x: np.repeat(x, group, -2).reshape(*x.shape[:-2], -1)  # noqa: E731

    def error(exponent):
        move = ratio**exponent
        out = _through(flat(_rounded(v / move, 8, 1, received)), wo * flat(move))
        # A value counts by the attention that it receives.
        return (received.sum(1)[:, None] * (out - flat(v) @ wo.T)**2).sum()
    return ratio**_best(error)


def _keys(acts, group, paired, bits):
    """Factor of each channel of the keys, [kv heads, size]; queries take its inverse."""
    q, k = _thin(acts["q"]), _thin(acts["k"])
    q = q.reshape(len(q), -1, group, q.shape[-1])
    peak = [np.abs(acts["k"]).max(0), np.abs(acts["q"]).max(0).reshape(*q.shape[1:]).max(1)]
    if paired:
        peak = [np.repeat(x.reshape(len(x), -1, 2).max(-1), 2, -1) for x in peak]
    # Keys end as k**(1 - e) * q**(1 - e), queries as the rest.
    move_by = lambda e: (factors(peak[0])**e / factors(peak[1])**(1 - e)  # noqa: E731
                         if e else np.ones_like(peak[0], np.float64))

    def scores(q, k):
        s = np.einsum("tkgd,skd->kgts", q, k)
        return s - s.mean(-1, keepdims=True)
    exact = scores(q, k)

    def error(exponent):
        move = move_by(exponent)
        rounded = _rounded((q * move[:, None]).reshape(len(q), -1, q.shape[-1]), bits, 1)
        return ((scores(rounded.reshape(q.shape), _rounded(k / move, 8, 1)) - exact)**2).sum()
    return move_by(_best(error))


def equalised(checkpoint: Checkpoint, acts: Activations, bits: int) -> Checkpoint:
    """The same decoder with factors moved between its projections, layer by layer.

    Parameters
    ----------
    acts : Activations
        Of this checkpoint.
    bits : int
        Width of an activation.
    """
    config = checkpoint.config
    group = config.n_heads // config.n_kv_heads
    names = [name for name in ("wq", "wk", "wv", "wo", "w2", "w3", "bq", "bk", "bv")
             if getattr(checkpoint, name) is not None]
    arrays = {name: getattr(checkpoint, name).astype(np.float64) for name in names}

    def scale(letter, number, by):
        arrays[f"w{letter}"][number] *= by.reshape(-1, 1)
        if f"b{letter}" in arrays:
            arrays[f"b{letter}"][number] *= by.ravel()
    for number, layer in enumerate(acts.layers):
        move = _keys(layer, group, config.positions == "rope", bits)
        scale("k", number, 1 / move)
        scale("q", number, np.repeat(move, group, 0))
        move = _values(layer, arrays["wo"][number], group)
        scale("v", number, 1 / move)
        arrays["wo"][number] *= np.repeat(move, group, 0).ravel()
        if "w3" in arrays:
            move = _hidden(layer, arrays["w2"][number], bits)
            scale("3", number, 1 / move)
            arrays["w2"][number] *= move
    return dataclasses.replace(checkpoint, **{name: array.astype(np.float32)
                                              for name, array in arrays.items()})
