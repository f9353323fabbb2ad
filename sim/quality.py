"""What quantisation costs: float against integers on a text, as a whole and layer by layer."""
import math
from collections.abc import Callable, Iterable

import numpy as np

from arch.config import Config
from arch.numerics import LOGIT_FRACTION
from compiler import calibrate
from compiler.checkpoint import Checkpoint
from compiler.equivalent import simplified
from compiler.quantised import QuantModel
from sim.float_model import FloatModel
from sim.reference import Reference

#: The vectors of a layer in order of their computation: name in a report, and where it is from.
VECTORS = {"q": "queries", "k": "keys", "v": "values", "att": "weighted values",
           "x_ffn": "residual behind attention", "gate": "first projection",
           "hidden": "hidden state", "x_out": "residual behind the layer"}


def nats(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of each target [T] under logits [T, vocab]."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(axis=-1)) + top[:, 0]
    return total - logits[np.arange(len(targets)), targets]


class _Compared:
    """Energies of a vector and of its error, and how many of its values saturated."""

    def __init__(self):
        self.signal = self.error = 0.0
        self.saturated = self.count = 0

    def add(self, real, integers, unit, bits):
        error = integers * unit - real
        self.signal += float((real.astype(np.float64)**2).sum())
        self.error += float((error.astype(np.float64)**2).sum())
        self.saturated += int((np.abs(integers) >= (1 << bits - 1) - 1).sum())
        self.count += integers.size

    def row(self) -> dict:
        """Signal-to-noise ratio in dB, None when there is no signal or no noise."""
        known = self.signal > 0 and self.error > 0
        return {"snr_db": round(10 * math.log10(self.signal / self.error), 2) if known else None,
                "saturated": self.saturated, "values": self.count}


def compare(checkpoint: Checkpoint, model: QuantModel, config: Config, windows: Iterable,
            progress: Callable | None = None) -> dict:
    """Run both models over token windows and compare every vector of every layer.

    Errors are those that have built up to there, not those of one step. A value counts as saturated
    when it is at the end of its format: 16 bits, or those of an activation, a key or a value.

    Parameters
    ----------
    windows : iterable of int [T]
        Fed without their last token; scored are all tokens but the first.
    progress : callable or None
        Told the number of tokens after each window.

    Returns
    -------
    dict
        ``tokens``, ``float_nats``, ``nats``, ``loss`` (their difference, per token), ``logits`` and
        ``layers`` (each a list of rows with ``layer``, ``vector``, ``snr_db``, ``saturated``,
        ``values``).
    """
    plain, real_model = simplified(checkpoint), FloatModel(checkpoint)
    reference, count, totals = Reference(model, config), 0, np.zeros(2)
    last = len(model.layers)
    found = {(layer, name): _Compared() for layer in range(last) for name in VECTORS}
    logits = _Compared()
    for window in windows:
        ids, targets = np.asarray(window[:-1]), np.asarray(window[1:])
        acts = calibrate.run(plain, ids[None])

        def listen(name, layer, values, bits, acts=acts):
            if name == "logits":
                logits.add(acts.logits, values, 2.0**-LOGIT_FRACTION, bits)
            elif (unit := (model.layers[layer].units or {}).get(name)) is not None:
                real = acts.layers[layer][name]
                found[layer, name].add(real, values.reshape(real.shape), unit, bits)
        reference.listener = listen
        seen = reference.logits(ids) * 2.0**-LOGIT_FRACTION
        totals += [nats(real_model.logits(ids), targets).sum(), nats(seen, targets).sum()]
        count += len(targets)
        if progress:
            progress(len(targets))
    before, after = (float(total) / count for total in totals)
    return {"tokens": count, "float_nats": before, "nats": after, "loss": after - before,
            "logits": logits.row(),
            "layers": [{"layer": layer, "vector": VECTORS[name]} | compared.row()
                       for (layer, name), compared in found.items()]}


def table(report: dict) -> str:
    """A report in words and columns."""
    lines = [f"{report['tokens']} tokens: {report['float_nats']:.4f} nats per token in float, "
             f"{report['nats']:.4f} in integers, {report['loss']:+.4f}",
             f"{'layer':>5}  {'vector':28}{'signal to noise':>16}  {'saturated':>16}"]
    rows = [*report["layers"], {"layer": "", "vector": "logits"} | report["logits"]]
    for row in rows:
        noise = "-" if row["snr_db"] is None else f"{row['snr_db']:.1f} dB"
        lines.append(f"{row['layer']:>5}  {row['vector']:28}{noise:>16}  "
                     f"{row['saturated']:>7} of {row['values']}")
    return "\n".join(lines)
