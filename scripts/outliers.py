"""How outliers are handled, by measurement: ``python -m scripts.outliers --text FILE``.

Writes the blocks marked ``measured: scripts/outliers.py`` of docs/numerics.md: what each way of
choosing activation scales loses on a text, and what loud channels lose, equalised and as they are.
"""
import argparse
import dataclasses
import pathlib
import sys

import numpy as np
from tqdm import tqdm

import metronome
from arch.config import profile
from arch.numerics import LOGIT_FRACTION
from compiler import calibrate
from compiler.checkpoint import Checkpoint
from compiler.quantise import Method, quantise
from compiler.scales import CLIPS
from scripts.pages import ROOT, filled, table
from sim.evaluation import mean_nats, windows
from sim.float_model import FloatModel
from sim.reference import Reference

PAGE = ROOT / "docs" / "numerics.md"
CONTEXT, TOKENS, FACTOR = 256, 4096, 30
_CLIP = {"mse": "least squared error", "maximum": "maximum", "percentile": "percentile 99.9"}


def louder(checkpoint: Checkpoint, what: str, factor: float) -> Checkpoint:
    """The same function with some channels ``factor`` times as large, taken back behind.

    Parameters
    ----------
    what : str
        ``value``: the second channel of every head's values; ``hidden``: the first four hidden
        channels; ``key``: the second pair of every head's keys. Needs rotary positions and no
        biases.
    """
    config = checkpoint.config
    arrays = {name: array.copy() for name, array in checkpoint.arrays.items()}
    size = config.head_size
    heads, kv_heads = (np.arange(count) * size for count in (config.n_heads, config.n_kv_heads))
    if what == "value":
        arrays["wv"][:, kv_heads + 1] *= factor
        arrays["wo"][:, :, heads + 1] /= factor
    elif what == "hidden":
        arrays["w3"][:, :4] *= factor
        arrays["w2"][:, :, :4] /= factor
    elif what == "key":
        for pair in (2, 3):
            arrays["wk"][:, kv_heads + pair] *= factor
            arrays["wq"][:, heads + pair] /= factor
    else:
        raise ValueError(f"there is no {what!r}")
    return dataclasses.replace(checkpoint, **arrays)


def loss(checkpoint: Checkpoint, method: Method, bits: int, calibration, parts: list) -> float:
    """Nats per token that the integers lose against float."""
    config = profile(metronome.DEFAULT_PROFILE).replace(activation_bits=bits)
    model = quantise(checkpoint, config, calibration, CONTEXT, method)
    reference, plain = Reference(model, config), FloatModel(checkpoint)
    integers, _ = mean_nats(lambda ids: reference.logits(ids) / 2**LOGIT_FRACTION, parts)
    return integers - mean_nats(plain.logits, parts)[0]


def clips(text: str) -> str:
    """Loss on a text by the way activation scales are chosen."""
    model = metronome.load_model()
    calibration = calibrate.self_sampled(model.checkpoint, model.tokenizer.bos_id)
    tokens = model.tokenizer.encode(text, bos=False)
    parts = windows(tokens, CONTEXT, model.tokenizer.bos_id, TOKENS)

    def lost(clip, bits):
        return f"{loss(model.checkpoint, Method(clip=clip), bits, calibration, parts):+.4f}"
    rows = [[_CLIP[clip], *(lost(clip, bits) for bits in (10, 8))]
            for clip in tqdm(sorted(CLIPS, key=list(_CLIP).index), desc="scales")]
    scored = sum(map(len, parts)) - len(parts)
    return (table(["activation scales", "10 bits", "8 bits"], rows)
            + f"\nNats per token lost over {scored:,} characters of held-out text.\n")


def loud() -> str:
    """Loss on text of the model itself when some channels are `FACTOR` times louder."""
    model = metronome.load_model()
    sampled = calibrate.self_sampled(model.checkpoint, model.tokenizer.bos_id, seed=1, sequences=8)
    calibration = calibrate.self_sampled(model.checkpoint, model.tokenizer.bos_id)
    rows = []
    for what, shown in (("value", "one of every value"), ("hidden", "four of every hidden state"),
                        ("key", "one pair of every key")):
        changed = louder(model.checkpoint, what, FACTOR)
        lost = [loss(changed, Method(equalise=equalise), 10, calibration, sampled)
                for equalise in tqdm((False, True), desc=what)]
        rows.append([shown, *(f"{value:+.4f}" for value in lost)])
    plain = loss(model.checkpoint, Method(), 10, calibration, sampled)
    return (table([f"channels {FACTOR} times louder", "as they are", "equalised"], rows)
            + f"\nNats per token lost over {sampled.size - len(sampled):,} characters that the "
            f"model drew, with 10-bit activations; {plain:+.4f} with no channel louder.\n")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.outliers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=pathlib.Path, required=True,
                        help="text that the built-in model was not trained on")
    options = parser.parse_args()
    try:
        text = options.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        print(f"outliers: {options.text}: cannot be read: {error}", file=sys.stderr)
        return 2
    made = {"clips": clips(text), "loud": loud()}
    for shown in made.values():
        print(shown)
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(filled(page, {"scripts/outliers.py": lambda: made}, "measured"),
                    encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
