"""Float checkpoint and activation ranges to the integers that the machine computes with.

The quantised decoder, per token (all shifts and multipliers below are fields of `QuantModel`)::

    x        int16 residual, one scale for the whole model
    n = x    enters matmuls as activation(x, shift) *before* its norm; 1/rms, a float12 r, joins
             the per-channel multipliers afterwards: m' = mac(m, r, 0, 0, 12), y = mac(acc, m', ...)
    q, k     int16, turned by RoPE (cos and sin with 14 fraction bits), k shifted to int8
    scores   int16 with 8 fraction bits in powers of two; masked, exp2 against the row maximum
    att      sum(p * v) * recip(sum p)
    gate     11 fraction bits into SiLU, times up, into w2
    logits   int16 with 8 fraction bits
"""
import dataclasses
import math

import numpy as np

from arch import numerics
from arch.config import Config
from compiler import calibrate
from compiler.checkpoint import Checkpoint, ModelConfig
from compiler.errors import ModelError

#: Right shift of the pass that joins a multiplier and the float12 of 1/rms.
NORM_POST = 12
#: Fraction bits of cos and sin.
ROPE_FRACTION = 14
#: Headroom of 16-bit vectors and 18-bit multiplier inputs over the calibrated maximum.
HEADROOM = 2.0


@dataclasses.dataclass(frozen=True)
class Requant:
    """Multiplier of each output channel [out], shift before and after the multiplication."""
    m: np.ndarray
    pre: int
    post: int


@dataclasses.dataclass(frozen=True)
class QuantLayer:
    """One decoder layer in integers; weights [out, in] int8, as in the checkpoint's order."""
    wq: np.ndarray
    wk: np.ndarray
    wv: np.ndarray
    wo: np.ndarray
    w1: np.ndarray
    w2: np.ndarray
    w3: np.ndarray
    q: Requant
    k: Requant
    v: Requant
    o: Requant
    gate: Requant
    up: Requant
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


@dataclasses.dataclass(frozen=True)
class QuantModel:
    """The whole decoder in integers.

    Parameters
    ----------
    embedding, classifier : int8 arrays, [vocab, dim]
        The same object when tied.
    embedding_m : int array, [vocab]
        Multiplier of each row of the embedding, before ``embedding_post``.
    eps_total : int
        What RMSNorm's epsilon adds to a sum of squares.
    rope : int array, [context, head_size]
        cos, then sin, of each pair.
    exp_post, recip_bias, att_pre, att_post : int
        Of softmax and of the weighted sum of values.
    final_gain : Requant or None
        Gain of the final norm when it can't be folded into a tied classifier.
    """
    config: ModelConfig
    activation_bits: int
    context: int
    embedding: np.ndarray
    classifier: np.ndarray
    embedding_m: np.ndarray
    embedding_post: int
    eps_total: int
    rope: np.ndarray
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


def quantise_weights(w: np.ndarray) -> tuple:
    """Symmetric int8 per row, each row clipped where its squared error is least.

    Parameters
    ----------
    w : float array, [out, in]

    Returns
    -------
    int8 array [out, in], float64 array [out]
        ``w`` is about ``q * scale[:, None]``.
    """
    w = np.asarray(w, np.float64)
    peak = np.maximum(np.abs(w).max(1), 1e-12)
    best_error = np.full(len(w), np.inf)
    best_scale = peak / 127
    for clip in np.linspace(1.0, 0.7, 13):
        scale = peak * clip / 127
        error = ((np.clip(np.rint(w / scale[:, None]), -127, 127) * scale[:, None] - w)**2).sum(1)
        better = error < best_error
        best_error, best_scale = np.where(better, error, best_error), np.where(better, scale,
                                                                                best_scale)
    q = np.clip(np.rint(w / best_scale[:, None]), -127, 127).astype(np.int8)
    return q, best_scale


def clip_scale(samples: np.ndarray, bits: int) -> float:
    """Scale of a symmetric integer of ``bits`` bits with least squared error over ``samples``."""
    samples = np.abs(np.asarray(samples, np.float64)).ravel()
    peak, limit = max(samples.max(), 1e-9), (1 << bits - 1) - 1
    scales = peak * np.linspace(1.0, 0.5, 26) / limit
    errors = [np.mean((np.minimum(np.rint(samples / s), limit) * s - samples)**2) for s in scales]
    return float(scales[int(np.argmin(errors))])


def _shift_error(samples, scale, shift, bits):
    """Relative squared error of quantising ``samples`` at ``scale * 2**shift``."""
    step, limit = scale * 2.0**shift, (1 << bits - 1) - 1
    q = np.clip(np.rint(samples / step), -limit, limit) * step
    return float(np.mean((q - samples)**2) / max(np.mean(samples**2), 1e-30))


@dataclasses.dataclass(frozen=True)
class _Ratio:
    """What a requantiser has to do: ``y = acc * ratio`` [out], with |acc| up to ``peak``.

    ``extra`` is a power of two that another operand of the multiplication brings in: the result
    is ``acc * 2**-pre * (m * 2**extra) * 2**-post``.
    """
    ratio: np.ndarray
    peak: float
    extra: int = 0


def _requants(needs: list, what: str) -> list:
    """Multipliers for several layers with the same shifts, as the one loop body wants them."""
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
    return [Requant(np.rint(n.ratio * 2.0**-exponent).astype(np.int64), pre, post) for n in needs]


def eps_vector(total: int, lanes: int) -> np.ndarray:
    """A vector whose squares add up to ``total``, as nearly as its lanes allow."""
    vector = np.zeros(lanes, np.int64)
    for lane in range(lanes):
        vector[lane] = min(math.isqrt(total), 32767)
        total -= int(vector[lane])**2
    return vector


def _residual_scale(acts: calibrate.Activations, bits: int) -> float:
    """One scale for the residual that suits the power-of-two shifts of all norms best."""
    points = [layer[name] for layer in acts.layers for name in ("x_att", "x_ffn")] + [acts.final]
    peak = max(float(np.abs(point).max()) for point in points)
    floor = peak * HEADROOM / 32767
    thin = [point[::max(1, len(point) // 128)] for point in points]
    def cost(scale):
        return sum(min(_shift_error(point, scale, shift, bits) for shift in range(2, 11))
                   for point in thin)
    return min((floor * 2.0**(step / 8) for step in range(8)), key=cost)


def _room(samples, scale, most: int = 7) -> int:
    """Bits that int16 has left over integers of ``scale`` (an array broadcasts), 0 to ``most``."""
    peak = float(np.max(np.abs(samples) / scale))
    return max(0, min(most, math.floor(math.log2(32767 / (HEADROOM * max(peak, 1e-9))))))


class _Quantiser:
    """State shared by the parts of `quantise`: scales per layer, shifts for all layers."""

    def __init__(self, checkpoint, acts, config, context):
        self.ckpt, self.acts, self.config = checkpoint, acts, config
        self.model, self.bits, self.context = checkpoint.config, config.activation_bits, context
        self.sx = _residual_scale(acts, self.bits)
        self.eps_total = round(self.model.norm_eps * self.model.dim / self.sx**2)
        layers = acts.layers
        heads = range(self.model.n_heads), range(self.model.n_kv_heads)
        self.q_scale = [np.array([clip_scale(a["q"][:, h], self.bits) for h in heads[0]])
                        for a in layers]
        self.k_scale = [np.array([clip_scale(a["k"][:, h], 8) for h in heads[1]]) for a in layers]
        self.v_scale = [np.array([clip_scale(a["v"][:, h], 8) for h in heads[1]]) for a in layers]
        self.hidden_scale = [clip_scale(a["hidden"], self.bits) for a in layers]
        self.q_shift = min(_room(a["q_raw"], s[:, None])
                           for a, s in zip(layers, self.q_scale))
        self.k_shift = min(_room(a["k_raw"], s[:, None])
                           for a, s in zip(layers, self.k_scale))
        self.hidden_shift = min(_room(a["hidden"], s) for a, s in zip(layers, self.hidden_scale))
        # silu has ACT_FRACTION bits; up gets what is left, at HEADROOM over its largest.
        self.hidden_post = min(math.floor(math.log2(
            s * 2.0**-self.hidden_shift / (np.abs(a["up"]).max() * HEADROOM / 32767))
            + numerics.ACT_FRACTION) for a, s in zip(layers, self.hidden_scale))
        self.hidden_post = max(0, min(31, self.hidden_post))
        self.shift = {name: self._norm_shift([a[name] for a in layers])
                      for name in ("x_att", "x_ffn")}
        self.bias = {name: min(self.norm_bias(a[name]) for a in layers)
                     for name in ("x_att", "x_ffn")}

    def _norm_shift(self, points) -> int:
        thin = [point[::max(1, len(point) // 256)] for point in points]
        return min(range(16), key=lambda shift: sum(
            _shift_error(point, self.sx, shift, self.bits) for point in thin))

    def norm_bias(self, x) -> int:
        """Bias of 1/rms: the smallest calibrated rms, halved, still fits a float12."""
        total = (np.rint(x / self.sx)**2).sum(-1) + self.eps_total
        return 12 + math.floor(math.log2(max(float(total.min()), 1.0)) / 2) - 1

    def normed(self, w, gain, x, shift, bias, out_scale):
        """Weights with the gain folded in, and what their requantiser has to do."""
        q, scale = quantise_weights(w * gain[None, :])
        acc = numerics.activation(np.rint(x / self.sx), shift, self.bits) @ q.T.astype(np.int64)
        ratio = scale * 2.0**shift * math.sqrt(self.model.dim) / out_scale
        return q, _Ratio(ratio, float(np.abs(acc).max()), bias - NORM_POST)

    def plain(self, w, inputs, in_scale, out_scale):
        """Weights and ratio of a matmul whose ``inputs`` are divided by ``in_scale``."""
        q, scale = quantise_weights(w)
        integers = numerics.saturate_symmetric(np.rint(inputs / in_scale), self.bits)
        acc = integers @ q.T.astype(np.int64)
        return q, _Ratio(scale * in_scale / out_scale if np.isscalar(in_scale)
                         else scale / out_scale, float(np.abs(acc).max()))

    def layer_parts(self, number: int) -> tuple:
        """Weights and ratios of one layer, by name."""
        model, acts, ckpt = self.model, self.acts.layers[number], self.ckpt
        size, group = model.head_size, model.n_heads // model.n_kv_heads
        q_scale, k_scale = self.q_scale[number], self.k_scale[number]
        v_scale, hidden_scale = self.v_scale[number], self.hidden_scale[number]

        def normed(w, point, gain, out_scale):
            return self.normed(w[number], gain[number].astype(np.float64), acts[point],
                               self.shift[point], self.bias[point], out_scale)
        parts = {
            "q": normed(ckpt.wq, "x_att", ckpt.norm_att,
                        np.repeat(q_scale * 2.0**-self.q_shift, size)),
            "k": normed(ckpt.wk, "x_att", ckpt.norm_att,
                        np.repeat(k_scale * 2.0**-self.k_shift, size)),
            "v": normed(ckpt.wv, "x_att", ckpt.norm_att, np.repeat(v_scale, size)),
            "gate": normed(ckpt.w1, "x_ffn", ckpt.norm_ffn, 2.0**-numerics.ACT_FRACTION),
            "up": normed(ckpt.w3, "x_ffn", ckpt.norm_ffn, hidden_scale
                         * 2.0**(numerics.ACT_FRACTION - self.hidden_post - self.hidden_shift)),
            "down": self.plain(ckpt.w2[number], acts["hidden"], hidden_scale, self.sx),
        }
        # The weighted values keep 2**(bits - 8) steps per step of v; v's scale joins wo.
        step = np.repeat(np.repeat(v_scale, group), size) * 2.0**(8 - self.bits)
        parts["o"] = self.plain(ckpt.wo[number] * step[None, :], acts["att"], step, self.sx)
        unit = math.log2(math.e) * 2.0**numerics.EXP_FRACTION / math.sqrt(size)
        peak = size * 127 * ((1 << self.bits - 1) - 1) / HEADROOM
        parts["scores"] = None, _Ratio(q_scale * np.repeat(k_scale, group) * unit, peak)
        return parts

    def layers(self) -> list:
        """All layers, with the same shifts."""
        parts = [self.layer_parts(number) for number in range(self.model.n_layers)]
        requants = {name: _requants([part[name][1] for part in parts], f"'{name}'")
                    for name in parts[0]}
        weights = {"wq": "q", "wk": "k", "wv": "v", "wo": "o", "w1": "gate", "w2": "down",
                   "w3": "up"}
        return [QuantLayer(**{field: part[name][0] for field, name in weights.items()},
                           **{name: requants[name][number] for name in requants},
                           att_norm_shift=self.shift["x_att"], att_norm_bias=self.bias["x_att"],
                           ffn_norm_shift=self.shift["x_ffn"], ffn_norm_bias=self.bias["x_ffn"],
                           q_shift=self.q_shift, k_shift=self.k_shift,
                           hidden_post=self.hidden_post, hidden_shift=self.hidden_shift)
                for number, part in enumerate(parts)]

    def classifier(self, embedding, unit) -> dict:
        """Fields of `QuantModel` that belong to the final norm and the logits.

        ``embedding`` and ``unit`` (scale of a row over its multiplier) serve a tied classifier.
        """
        acts, ckpt, model = self.acts, self.ckpt, self.model
        bias, one = self.norm_bias(acts.final), 2.0**-numerics.LOGIT_FRACTION
        gain = ckpt.norm_final.astype(np.float64)
        if not model.tied:
            shift = self._norm_shift([acts.final])
            w, ratio = self.normed(ckpt.classifier, gain, acts.final, shift, bias, one)
            return dict(final_gain=None, final_shift=shift, final_bias=bias, classifier=w,
                        logits=_requants([ratio], "classifier")[0])
        # Tied: the multipliers are the embedding's, so a power of two must do the rest; the scale
        # of the gained residual takes up the slack.
        gained = acts.final * gain
        per_step = unit / self.sx * math.sqrt(model.dim) / one
        exponent = math.ceil(math.log2(clip_scale(gained, self.bits) * per_step))
        step = 2.0**exponent / per_step
        shift = _room(gained, step)
        to_final = _Ratio(gain * self.sx / (step * 2.0**-shift), 32767 / HEADROOM)
        x = numerics.saturate_symmetric(np.rint(gained / step), self.bits)
        peak = float(np.abs(x @ embedding.T.astype(np.int64)).max())
        pre = max(0, math.ceil(math.log2(max(peak * HEADROOM, 1.0))) - 17)
        post = bias - NORM_POST - pre - exponent
        if not 0 <= post <= 31:
            raise ModelError("classifier: the logits are out of the range of the requantiser")
        return dict(final_gain=_requants([to_final], "final norm")[0], final_shift=shift,
                    final_bias=bias, classifier=embedding,
                    logits=Requant(None, pre, post))

    def whole(self) -> QuantModel:
        """The whole model."""
        model, ckpt = self.model, self.ckpt
        embedding, scale = quantise_weights(ckpt.embedding)
        # Multipliers of the embedding such that the residual's scale is a power of two away.
        post = math.floor(math.log2(32767 * self.sx / scale.max()))
        if not 0 <= post <= 31:
            raise ModelError("embedding: its scale is out of the range of the requantiser")
        unit = self.sx * 2.0**-post
        embedding_m = np.rint(scale / unit).astype(np.int64)
        final = self.classifier(embedding, unit)
        if final["logits"].m is None:
            final["logits"] = dataclasses.replace(final["logits"], m=embedding_m)
        angles = calibrate.rope_angles(ckpt, self.context)
        rope = np.concatenate([np.cos(angles), np.sin(angles)], 1) * 2.0**ROPE_FRACTION
        exp_bits = self.bits - 1
        recip_bias = 12 + exp_bits - 1
        att_pre = max(0, exp_bits + 7 + math.ceil(math.log2(self.context)) + 1 - 18)
        return QuantModel(
            config=model, activation_bits=self.bits, context=self.context, embedding=embedding,
            embedding_m=embedding_m, embedding_post=post, eps_total=self.eps_total,
            rope=np.rint(rope).astype(np.int64), layers=self.layers(), exp_post=29 - exp_bits,
            recip_bias=recip_bias, att_pre=att_pre,
            att_post=recip_bias - att_pre - (self.bits - 8), residual_scale=self.sx, **final)


def quantise(checkpoint: Checkpoint, config: Config, calibration: np.ndarray,
             context: int) -> QuantModel:
    """Quantise a checkpoint for a machine.

    Parameters
    ----------
    checkpoint : Checkpoint
    config : Config
        Gives ``activation_bits``.
    calibration : int array, [sequences, length]
        Tokens whose activations set the scales.
    context : int
        Positions that the KV cache will hold.

    Raises
    ------
    ModelError
        If a scale does not fit the fixed-point formats.
    """
    acts = calibrate.run(checkpoint, calibration)
    return _Quantiser(checkpoint, acts, config, context).whole()
