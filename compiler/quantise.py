"""Float checkpoint and activation ranges to the integers of `compiler.quantised`.

The checkpoint is rewritten first (`compiler.equivalent`), so that only norms without gain are left.
All layers share one program and with it their shifts; multipliers take up the rest.
"""
import dataclasses
import functools
import math

import numpy as np

from arch import numerics
from arch.config import Config
from compiler import calibrate, scales
from compiler.checkpoint import Checkpoint
from compiler.equalise import equalised, factors
from compiler.equivalent import simplified
from compiler.errors import ModelError
from compiler.quantised import NORM_POST, ROPE_FRACTION, QuantLayer, QuantModel, Requant, Rows
from compiler.scales import (HEADROOM, Ratio, lane, quantise_weights, requants, room, shift_error)

#: The scale of a row of the embedding is a multiplier of 15 bits below this shift.
MOST_POST = 31
#: Scaling the residual for each norm by itself costs some cycles: it must better the squared error
#: of some input by this factor, and that error must be above this floor, relative to the input.
SCALING_PAYS, SCALING_FLOOR = 8.0, 2.0**-9


def _residual_scale(acts: calibrate.Activations, bits: int, least: float) -> float:
    """One scale for the residual that suits the power-of-two shifts of all norms best."""
    points = [layer[name] for layer in acts.layers for name in ("x_att", "x_ffn")] + [acts.final]
    peak = max(float(np.abs(point).max()) for point in points)
    floor = max(peak * HEADROOM, least) / 32767
    thin = [point[::max(1, len(point) // 128)] for point in points]

    def cost(scale):
        return sum(min(shift_error(point, scale, shift, bits) for shift in range(2, 11))
                   for point in thin)
    return min((floor * 2.0**(step / 8) for step in range(8)), key=cost)


@dataclasses.dataclass(frozen=True)
class Method:
    """How outliers are handled. The default is what measured best: see docs/numerics.md.

    Parameters
    ----------
    clip : str
        How activation scales are chosen, one of `compiler.scales.CLIPS`.
    weighted : bool
        Whether errors of keys and values count as much as the attention that they receive.
    scaled : bool or None
        Whether the residual is scaled for each norm by itself; None: if that is worth it.
    equalise : bool
        `compiler.equalise`.
    """
    clip: str = "mse"
    weighted: bool = True
    scaled: bool | None = None
    equalise: bool = True


METHOD = Method()


class _Quantiser:
    """State shared by the parts of `quantise`: scales per layer, shifts for all layers."""

    def __init__(self, checkpoint, acts, config, context, method=METHOD):
        clip_scale = functools.partial(scales.clip_scale, clip=method.clip)
        self.clip_scale = clip_scale
        self.ckpt, self.acts, self.config = checkpoint, acts, config
        self.model, self.bits, self.context = checkpoint.config, config.activation_bits, context
        # Any row of the embedding fits; and so does the norm's epsilon, into its vector.
        eps_step = math.sqrt(self.model.norm_eps * self.model.dim / config.lanes)
        least = max(float(np.abs(checkpoint.embedding).max()), eps_step)
        self.sx = _residual_scale(acts, self.bits, least)
        self.eps_total = round(self.model.norm_eps * self.model.dim / self.sx**2)
        layers = acts.layers
        heads = range(self.model.n_heads), range(self.model.n_kv_heads)
        self.q_scale = [np.array([clip_scale(a["q"][:, h], self.bits) for h in heads[0]])
                        for a in layers]
        self.k_scale, self.v_scale = ([np.array([
            clip_scale(a[name][:, h], 8, weights=a["received"][:, h, None] if method.weighted
                       else None) for h in heads[1]]) for a in layers] for name in "kv")
        self.q_shift = min(room(a["q_raw"], s[:, None]) for a, s in zip(layers, self.q_scale))
        self.k_shift = min(room(a["k_raw"], s[:, None]) for a, s in zip(layers, self.k_scale))
        self._hidden()
        self.shift = {name: self._norm_shift([a[name] for a in layers])
                      for name in ("x_att", "x_ffn")}
        self.inputs = {}
        if self._scaling_pays() if method.scaled is None else method.scaled:
            self._scale_inputs()
        self.bias = {name: min(self.norm_bias(a[name]) for a in layers)
                     for name in ("x_att", "x_ffn")}

    def _hidden(self):
        """Scale of the hidden state in w2, and how the passes before get there."""
        layers, unit = self.acts.layers, 2.0**-numerics.ACT_FRACTION
        if self.model.activation == "gelu":
            # GELU's result enters as it is: the scale is a power of two, one for all layers.
            thin = [a["hidden"][::max(1, len(a["hidden"]) // 256)] for a in layers]
            self.hidden_shift = min(range(16), key=lambda shift: sum(
                shift_error(hidden, unit, shift, self.bits) for hidden in thin))
            self.hidden_scale = [unit * 2.0**self.hidden_shift] * len(layers)
            self.hidden_post = 0
            return
        self.hidden_scale = [self.clip_scale(a["hidden"], self.bits) for a in layers]
        self.hidden_shift = min(room(a["hidden"], s) for a, s in zip(layers, self.hidden_scale))
        # silu has ACT_FRACTION bits; up gets what is left, at HEADROOM over its largest.
        self.hidden_post = min(math.floor(math.log2(
            s * 2.0**-self.hidden_shift / (max(np.abs(a["up"]).max(), 1e-9) * HEADROOM / 32767))
            + numerics.ACT_FRACTION) for a, s in zip(layers, self.hidden_scale))
        self.hidden_post = max(0, min(31, self.hidden_post))

    def _norm_shift(self, points) -> int:
        thin = [point[::max(1, len(point) // 256)] for point in points]
        return min(range(16), key=lambda shift: sum(
            shift_error(point, self.sx, shift, self.bits) for point in thin))

    def _error(self, x, step) -> float:
        """Squared error of x / rms with x quantised at ``step`` [dim] or a number."""
        limit = (1 << self.bits - 1) - 1
        rms = np.maximum(np.sqrt(np.mean(x * x, -1, keepdims=True)), 1e-12)
        return float(np.mean(((np.clip(np.rint(x / step), -limit, limit) * step - x) / rms)**2))

    def _scaling_pays(self) -> bool:
        """Whether a norm's input is much worse at the shared scale than at one of its own."""
        for name in ("x_att", "x_ffn"):
            shared = self.sx * 2.0**self.shift[name]
            for layer in self.acts.layers:
                x = layer[name][::max(1, len(layer[name]) // 256)]
                own = self._error(x, self._own_step(x, 1.0))
                if self._error(x, shared) > max(SCALING_PAYS * own, SCALING_FLOOR):
                    return True
        return False

    def _own_step(self, x, ratio):
        """Scale of a norm's input with its channels over ``ratio``, every token counted alike."""
        weights = 1 / np.maximum(np.mean(x * x, -1, keepdims=True), 1e-24)
        return self.clip_scale(x / ratio, self.bits, weights=weights) * ratio

    def _scale_inputs(self):
        """A scale for every channel before every norm, by the error behind the weights."""
        ckpt, layers = self.ckpt, self.acts.layers
        behind = {"x_att": ("wq", "wk", "wv"), "x_ffn": ("w1", "w3")}
        points = [(name, number, layer[name], np.concatenate([
            getattr(ckpt, w)[number] for w in behind[name] if getattr(ckpt, w) is not None]))
            for name in behind for number, layer in enumerate(layers)]
        points.append(("final", 0, self.acts.final, ckpt.classifier))
        found = {}
        for name, number, x, w in points:
            thin, ratio = x[::max(1, len(x) // 256)].astype(np.float64), factors(np.abs(x).max(0))
            rms = np.maximum(np.sqrt(np.mean(thin**2, -1, keepdims=True)), 1e-12)
            limit, best = (1 << self.bits - 1) - 1, None
            for exponent in (0.0, 0.5, 1.0):
                step = self._own_step(thin, ratio**exponent) * np.ones(x.shape[1])
                q, scale = quantise_weights(w * ratio**exponent)
                behind_it = ((np.clip(np.rint(thin / step), -limit, limit) * step / ratio**exponent)
                             @ (q * scale[:, None]).T - thin @ w.T) / rms
                error = float((behind_it**2).sum())
                if best is None or error < best[0]:
                    best = error, step, ratio**exponent
            found[name, number] = best[1:]
        self.input_shift = {name: min(room(x, found[name, number][0]) for at, number, x, _ in points
                                      if at == name) for name in ("x_att", "x_ffn", "final")}
        # One scaling pass serves the norms of attention and the final one: they share their shift.
        shared = min(self.input_shift["x_att"], self.input_shift["final"])
        self.input_shift |= {"x_att": shared, "final": shared}
        self.steps = found
        for group in (("x_att", "final"), ("x_ffn",)):
            keys = [key for key in found if key[0] in group]
            made = requants([Ratio(self.sx / found[key][0] * 2.0**self.input_shift[key[0]],
                                   32767 / HEADROOM) for key in keys], "norm's input")
            self.inputs |= dict(zip(keys, made))
        self.shift |= {name: self.input_shift[name] for name in ("x_att", "x_ffn")}

    def norm_bias(self, x) -> int:
        """Bias of 1/rms: the smallest calibrated rms, halved, still fits a float12."""
        total = (np.rint(x / self.sx)**2).sum(-1) + self.eps_total
        return min(63, 12 + math.floor(math.log2(max(float(total.min()), 1.0)) / 2) - 1)

    def normed(self, w, bias, x, shift, norm_bias, out_scale, key):
        """Weights behind a norm, and what their requantiser has to do."""
        step, spread = self.sx * 2.0**shift, 1.0
        if key in self.inputs:
            step, spread = self.steps[key]
        q, scale = quantise_weights(w * spread)
        n = numerics.saturate_symmetric(np.rint(x / step), self.bits)
        acc = n @ q.T.astype(np.int64)
        step = float(np.max(step / spread))
        ratio = scale * (step / self.sx) * math.sqrt(self.model.dim) / out_scale
        return q, Ratio(ratio, float(np.abs(acc).max()), norm_bias - NORM_POST,
                        None if bias is None else bias / out_scale)

    def plain(self, w, bias, inputs, in_scale):
        """Weights and ratio of a matmul into the residual; its ``inputs`` are over ``in_scale``."""
        q, scale = quantise_weights(w)
        integers = numerics.saturate_symmetric(np.rint(inputs / in_scale), self.bits)
        acc = integers @ q.T.astype(np.int64)
        ratio = scale * (in_scale if np.isscalar(in_scale) else 1) / self.sx
        return q, Ratio(ratio, float(np.abs(acc).max()), 0,
                        None if bias is None else bias / self.sx)

    def layer_parts(self, number: int) -> tuple:
        """Weights and ratios of one layer, by name."""
        model, acts, ckpt = self.model, self.acts.layers[number], self.ckpt
        size, group = model.head_size, model.n_heads // model.n_kv_heads
        q_scale, k_scale = self.q_scale[number], self.k_scale[number]
        v_scale, hidden_scale = self.v_scale[number], self.hidden_scale[number]
        biased = lambda name: (getattr(ckpt, name)[number].astype(np.float64)  # noqa: E731
                               if model.biases else None)

        def normed(w, point, out_scale, bias=None):
            return self.normed(w[number], bias, acts[point], self.shift[point], self.bias[point],
                               out_scale, (point, number))
        gate_unit = 2.0**-numerics.ACT_FRACTION
        parts = {
            "q": normed(ckpt.wq, "x_att", np.repeat(q_scale * 2.0**-self.q_shift, size),
                        biased("bq")),
            "k": normed(ckpt.wk, "x_att", np.repeat(k_scale * 2.0**-self.k_shift, size)),
            "v": normed(ckpt.wv, "x_att", np.repeat(v_scale, size)),
            "gate": normed(ckpt.w1, "x_ffn", gate_unit, biased("b1")),
            "down": self.plain(ckpt.w2[number], biased("b2"), acts["hidden"], hidden_scale),
        }
        if model.activation == "silu_gated":
            parts["up"] = normed(ckpt.w3, "x_ffn", hidden_scale * 2.0**(
                numerics.ACT_FRACTION - self.hidden_post - self.hidden_shift))
        # The weighted values keep 2**(bits - 8) steps per step of v; v's scale joins wo.
        step = np.repeat(np.repeat(v_scale, group), size) * 2.0**(8 - self.bits)
        parts["o"] = self.plain(ckpt.wo[number] * step[None, :], biased("bo"), acts["att"], step)
        unit = math.log2(math.e) * 2.0**numerics.EXP_FRACTION / math.sqrt(size)
        peak = size * 127 * ((1 << self.bits - 1) - 1) / HEADROOM
        parts["scores"] = None, Ratio(q_scale * np.repeat(k_scale, group) * unit, peak)
        return parts

    def layers(self) -> list:
        """All layers, with the same shifts."""
        parts = [self.layer_parts(number) for number in range(self.model.n_layers)]
        made = {name: requants([part[name][1] for part in parts], f"'{name}'")
                for name in parts[0]}
        weights = {"wq": "q", "wk": "k", "wv": "v", "wo": "o", "w1": "gate", "w2": "down",
                   "w3": "up"}
        missing = {} if "up" in made else {"up": None}
        return [QuantLayer(**{field: part[name][0] if name in part else None
                              for field, name in weights.items()},
                           **{name: made[name][number] for name in made}, **missing,
                           att_norm_shift=self.shift["x_att"], att_norm_bias=self.bias["x_att"],
                           ffn_norm_shift=self.shift["x_ffn"], ffn_norm_bias=self.bias["x_ffn"],
                           q_shift=self.q_shift, k_shift=self.k_shift,
                           hidden_post=self.hidden_post, hidden_shift=self.hidden_shift,
                           att_in=self.inputs.get(("x_att", number)),
                           ffn_in=self.inputs.get(("x_ffn", number)), units=self.units(number))
                for number, part in enumerate(parts)]

    def units(self, number: int) -> dict:
        """Steps of the vectors of a layer, shaped to multiply [tokens, ...]."""
        group = self.model.n_heads // self.model.n_kv_heads
        v = self.v_scale[number]
        return {"q": self.q_scale[number][:, None], "k": self.k_scale[number][:, None],
                "v": v[:, None], "gate": 2.0**-numerics.ACT_FRACTION,
                "att": np.repeat(v, group * self.model.head_size) * 2.0**(8 - self.bits),
                "hidden": self.hidden_scale[number], "x_ffn": self.sx, "x_out": self.sx}

    def rows(self, table) -> Rows:
        """A table of int8 rows whose scale is a power of two away from the residual's."""
        q, scale = quantise_weights(table)
        post = min(MOST_POST, math.floor(math.log2(32767 * self.sx / scale.max())))
        if post < 0:
            raise ModelError("embedding: its scale is out of the range of the requantiser")
        return Rows(q, np.rint(scale / (self.sx * 2.0**-post)).astype(np.int64), post)

    def classifier(self, embedding: Rows) -> dict:
        """Fields of `QuantModel` that belong to the final norm and the logits."""
        if not self.model.tied and self.model.norm == "rms":
            acts, one = self.acts, 2.0**-numerics.LOGIT_FRACTION
            bias, shift = self.norm_bias(acts.final), self._norm_shift([acts.final])
            shift = self.input_shift["final"] if self.inputs else shift
            w, ratio = self.normed(self.ckpt.classifier, None, acts.final, shift, bias, one,
                                   ("final", 0))
            return dict(final_gain=None, final_shift=shift, final_bias=bias, classifier=w,
                        logits=requants([ratio], "classifier")[0])
        return self._gained(embedding)

    def _gained(self, embedding: Rows) -> dict:
        """The gained residual has an integer format of its own.

        When tied, the multipliers of the logits are the embedding's, so a power of two must do the
        rest; the scale of the gained residual takes up the slack.
        """
        acts, ckpt, model = self.acts, self.ckpt, self.model
        bias, one = self.norm_bias(acts.final), 2.0**-numerics.LOGIT_FRACTION
        gain, joined = ckpt.norm_final.astype(np.float64), model.norm == "layer"
        root = math.sqrt(model.dim)
        if joined:
            rms = np.sqrt(np.mean(acts.final.astype(np.float64)**2, -1, keepdims=True)
                          + model.norm_eps)
            gained = acts.final / rms * gain + ckpt.norm_final_bias
        else:
            gained = acts.final * gain
        if model.tied:
            rows, unit = embedding.rows, self.sx * 2.0**-embedding.post
            per_step = unit / one * (1 if joined else root / self.sx)
            middle = math.log2(self.clip_scale(gained, self.bits) * per_step)
            exponent = min((math.floor(middle), math.ceil(middle)), key=lambda e: shift_error(
                gained, 2.0**e / per_step, 0, self.bits))
            step = 2.0**exponent / per_step
        else:
            rows, scale = quantise_weights(ckpt.classifier)
            step = self.clip_scale(gained, self.bits)
        shift = room(gained, step)
        out = step * 2.0**-shift
        if joined:
            to_final = Ratio(gain * root / out, 32767 / HEADROOM, bias - NORM_POST,
                             ckpt.norm_final_bias / out)
        else:
            to_final = Ratio(gain * self.sx / out, 32767 / HEADROOM)
        x = numerics.saturate_symmetric(np.rint(gained / step), self.bits)
        peak = float(np.abs(x @ rows.T.astype(np.int64)).max())
        if model.tied:
            pre = max(0, math.ceil(math.log2(max(peak * HEADROOM, 1.0))) - 17)
            post = (0 if joined else bias - NORM_POST) - pre - exponent
            # Logits of almost nothing: the sum gives way.
            pre, post = min(15, pre + max(0, post - MOST_POST)), min(post, MOST_POST)
            if not 0 <= post <= 31:
                raise ModelError("classifier: the logits are out of the range of the requantiser")
            logits = Requant(embedding.m, pre, post)
        else:
            logits = requants([Ratio(scale * step / one, peak)], "classifier")[0]
        return dict(final_gain=requants([to_final], "final norm")[0], final_shift=shift,
                    final_bias=bias, classifier=rows, logits=logits)

    def whole(self) -> QuantModel:
        """The whole model."""
        model, ckpt = self.model, self.ckpt
        embedding, offsets, positions, rope = self.rows(ckpt.embedding), None, None, None
        if model.norm == "layer":
            exact = embedding.rows * (embedding.m * 2.0**-embedding.post)[:, None]
            offsets = lane(-exact.mean(1))
        if model.positions == "learned":
            positions = self.rows(ckpt.positions[:self.context])
        else:
            angles = calibrate.rope_angles(ckpt, self.context)
            rope = np.concatenate([np.cos(angles), np.sin(angles)], 1) * 2.0**ROPE_FRACTION
            rope = np.rint(rope).astype(np.int64)
        exp_bits = self.bits - 1
        recip_bias = 12 + exp_bits - 1
        att_pre = max(0, exp_bits + 7 + math.ceil(math.log2(self.context)) + 1 - 18)
        return QuantModel(
            config=model, activation_bits=self.bits, context=self.context, embedding=embedding,
            positions=positions, offsets=offsets, eps_total=self.eps_total, rope=rope,
            layers=self.layers(), exp_post=29 - exp_bits, recip_bias=recip_bias, att_pre=att_pre,
            att_post=recip_bias - att_pre - (self.bits - 8), residual_scale=self.sx,
            final_in=self.inputs.get(("final", 0)),
            **self.classifier(embedding))


def _check_finite(acts: calibrate.Activations) -> None:
    """Raise a ModelError that names the first vector beyond what float32 can square and add up."""
    for number, layer in enumerate(acts.layers):
        for name, values in layer.items():
            if not np.abs(values).max() < 1e15:
                raise ModelError(f"layer {number}: the values of '{name}' grow beyond all bounds; "
                                 "the file is damaged or its training diverged")


def quantise(checkpoint: Checkpoint, config: Config, calibration: np.ndarray,
             context: int, method: Method = METHOD) -> QuantModel:
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
    checkpoint = simplified(checkpoint)
    with np.errstate(over="ignore", invalid="ignore"):
        acts = calibrate.run(checkpoint, calibration)
    _check_finite(acts)
    if method.equalise:
        checkpoint = equalised(checkpoint, acts, config.activation_bits)
        acts = calibrate.run(checkpoint, calibration)
    return _Quantiser(checkpoint, acts, config, context, method).whole()
