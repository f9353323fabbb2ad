"""Rewriting a float checkpoint into one that computes the same and suits the machine better.

`simplified` leaves a decoder in which every norm divides by the root mean square and nothing else:

- gains fold into the columns of the weights behind them;
- biases of norms fold into the biases of the projections behind them; the bias of the keys adds
  one number to a row of scores and drops out of the softmax; that of the values passes the softmax
  unchanged, because its weights add up to one, and folds into the bias of the output;
- with LayerNorm, what writes the residual (positions, both output projections) loses its mean over
  the channels, so that the mean need not be taken off again. The embedding keeps its own, because
  a tied classifier uses it too: see `QuantModel.offsets`. What all rows of the classifier have in
  common is left out, so that logits lie around zero.
"""
import dataclasses

import numpy as np

from compiler.checkpoint import Checkpoint


def simplified(checkpoint: Checkpoint) -> Checkpoint:
    """The same decoder with gains, norm biases and means folded away; see the module.

    The final norm keeps its gain and bias where the classifier is tied or the norm has a bias.
    """
    config, c = checkpoint.config, checkpoint
    wide = lambda array: np.asarray(array, np.float64)  # noqa: E731 - folded exactly, rounded once
    arrays = {name: wide(array) for name, array in c.arrays.items()}
    arrays["classifier"] = wide(c.classifier)
    if config.norm == "layer":
        before = {"q": "norm_att_bias", "k": "norm_att_bias", "v": "norm_att_bias",
                  "1": "norm_ffn_bias"}
        for name, bias in before.items():
            arrays[f"b{name}"] += np.einsum("loi,li->lo", arrays[f"w{name}"], arrays[bias])
        for bias in ("norm_att_bias", "norm_ffn_bias"):
            arrays[bias][:] = 0
    for name, gain in (("wq", "norm_att"), ("wk", "norm_att"), ("wv", "norm_att"),
                       ("w1", "norm_ffn"), ("w3", "norm_ffn")):
        if name in arrays:
            arrays[name] *= arrays[gain][:, None, :]
            if config.norm == "layer":
                # The residual has no mean, so the mean of a row counts for nothing.
                arrays[name] -= arrays[name].mean(2, keepdims=True)
    arrays["norm_att"][:], arrays["norm_ffn"][:] = 1, 1
    if config.biases:
        group = config.n_heads // config.n_kv_heads
        heads = arrays["bv"].reshape(config.n_layers, config.n_kv_heads, -1)
        passed = np.repeat(heads, group, 1).reshape(config.n_layers, -1)
        arrays["bo"] += np.einsum("loi,li->lo", arrays["wo"], passed)
        arrays["bk"][:], arrays["bv"][:] = 0, 0
    if config.norm == "layer":
        # One number less in all logits changes no probability; the embedding gives it to positions.
        common = arrays["classifier"].mean(0)
        arrays["classifier"] -= common
        if config.tied:
            arrays["embedding"] -= common
            arrays["positions"] += common
        for name in ("wo", "w2"):
            arrays[name] -= arrays[name].mean(1, keepdims=True)
        for name in ("positions", "bo", "b2"):
            arrays[name] -= arrays[name].mean(-1, keepdims=True)
    elif not config.tied:
        arrays["classifier"] *= arrays["norm_final"]
        arrays["norm_final"][:] = 1
    return dataclasses.replace(c, **{name: array.astype(np.float32)
                                     for name, array in arrays.items()})
