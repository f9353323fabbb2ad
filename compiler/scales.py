"""Scales of integers: weights, activations, and the multipliers and shifts of requantisation.

Every choice here is by squared error over the weights themselves or over calibrated samples, and
deterministic: the same input gives the same integers.
"""
import dataclasses
import math

import numpy as np

from compiler.errors import ModelError
from compiler.quantised import Requant

#: Headroom of 16-bit vectors and 18-bit multiplier inputs over the calibrated maximum.
HEADROOM = 2.0
#: How a scale may be chosen: see `clip_scale`.
CLIPS = ("mse", "percentile", "maximum")
#: Share of the samples that the percentile keeps.
PERCENTILE = 99.9


def quantise_weights(w: np.ndarray, clip: str = "mse") -> tuple:
    """Symmetric int8 per row, each row clipped where its squared error is least.

    Parameters
    ----------
    w : float array, [out, in]
    clip : str
        One of `CLIPS`.

    Returns
    -------
    int8 array [out, in], float64 array [out]
        ``w`` is about ``q * scale[:, None]``.
    """
    w = np.asarray(w, np.float64)
    peak = np.maximum(np.abs(w).max(1), 1e-12)
    if clip == "percentile":
        peak = np.maximum(np.percentile(np.abs(w), PERCENTILE, axis=1), 1e-12)
    best_error = np.full(len(w), np.inf)
    best_scale = peak / 127
    for part in np.linspace(1.0, 0.7, 13) if clip == "mse" else ():
        scale = peak * part / 127
        error = ((np.clip(np.rint(w / scale[:, None]), -127, 127) * scale[:, None] - w)**2).sum(1)
        better = error < best_error
        best_error, best_scale = np.where(better, error, best_error), np.where(better, scale,
                                                                                best_scale)
    q = np.clip(np.rint(w / best_scale[:, None]), -127, 127).astype(np.int8)
    return q, best_scale


def clip_scale(samples: np.ndarray, bits: int, clip: str = "mse",
               weights: np.ndarray | None = None) -> float:
    """Scale of a symmetric integer of ``bits`` bits for ``samples``.

    With ``mse`` the one of least squared error among 26 from the maximum down to half of it;
    ``weights``, which broadcast to the samples, say how much the error of each counts.
    """
    samples = np.abs(np.asarray(samples, np.float64))
    weights = np.ones(samples.shape) if weights is None else weights + np.zeros(samples.shape)
    samples, weights = samples.ravel(), weights.ravel()
    peak, limit = max(samples.max(), 1e-9), (1 << bits - 1) - 1
    if clip == "maximum":
        return float(peak / limit)
    if clip == "percentile":
        return float(max(np.percentile(samples, PERCENTILE), 1e-9) / limit)
    scales = peak * np.linspace(1.0, 0.5, 26) / limit
    errors = [np.mean(weights * (np.minimum(np.rint(samples / s), limit) * s - samples)**2)
              for s in scales]
    return float(scales[int(np.argmin(errors))])


def shift_error(samples, scale, shift, bits) -> float:
    """Relative squared error of quantising ``samples`` at ``scale * 2**shift``."""
    step, limit = scale * 2.0**shift, (1 << bits - 1) - 1
    q = np.clip(np.rint(samples / step), -limit, limit) * step
    return float(np.mean((q - samples)**2) / max(np.mean(samples**2), 1e-30))


def room(samples, scale, most: int = 7) -> int:
    """Bits that int16 has left over integers of ``scale`` (an array broadcasts), 0 to ``most``."""
    peak = float(np.max(np.abs(samples) / scale))
    return max(0, min(most, math.floor(math.log2(32767 / (HEADROOM * max(peak, 1e-9))))))


@dataclasses.dataclass(frozen=True)
class Ratio:
    """What a requantiser has to do: ``y = acc * ratio + bias`` [out], with |acc| up to ``peak``.

    ``extra`` is a power of two that another operand of the multiplication brings in: the result
    is ``acc * 2**-pre * (m * 2**extra) * 2**-post``. ``bias`` is in steps of the result.
    """
    ratio: np.ndarray
    peak: float
    extra: int = 0
    bias: np.ndarray | None = None


def requants(needs: list, what: str) -> list:
    """Multipliers for several layers with the same shifts, as the one loop body wants them.

    Raises
    ------
    ModelError
        If no multiplier of 16 bits and shift of 31 can do it.
    """
    pre = max(0, math.ceil(math.log2(max(max(n.peak for n in needs) * HEADROOM, 1.0))) - 17)
    peak = max(float(np.max(np.abs(n.ratio))) for n in needs)
    if not 0 < peak < np.inf:
        raise ModelError(f"{what}: weights or activations are all zero or not finite")
    exponent = math.floor(math.log2(peak)) - 14
    if peak * 2.0**-exponent >= 32767.5:
        exponent += 1
    post = needs[0].extra - exponent - pre
    # Beyond the range of the shift, low bits of the multiplier give way.
    exponent, post = exponent + (post - min(max(post, 0), 31)), min(max(post, 0), 31)
    if peak * 2.0**-exponent >= 32767.5:
        raise ModelError(f"{what}: a scale of {peak:.3g} is out of the range of the requantiser")
    return [Requant(np.rint(n.ratio * 2.0**-exponent).astype(np.int64), pre, post,
                    None if n.bias is None else lane(n.bias)) for n in needs]


def lane(values: np.ndarray) -> np.ndarray:
    """The nearest int16."""
    return np.clip(np.rint(values), -32768, 32767).astype(np.int64)
