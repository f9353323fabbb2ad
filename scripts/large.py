"""Ten million weights on the flagship's array: ``python -m scripts.large [--check]``.

Prints how busy the multipliers of profile ``sim_large`` are, as the compiler predicts it. With
``--check`` it also runs the last of the models below (one layer of the first) on the RTL in
Verilator, compares every vector, logit, token and cycle with the reference, and writes the figures
into docs/verification.md.
"""
import argparse
import datetime
import sys
import time

import numpy as np

from arch.config import profile
from compiler.checkpoint import ModelConfig, random_checkpoint
from compiler.pipeline import Compiled, compile_model
from scripts.pages import ROOT, filled, table
from sim import engine as engines
from sim.reference_engine import first_difference

PROFILE, POSITION, PAGE = "sim_large", 127, ROOT / "docs" / "verification.md"
_DIM288 = {"dim": 288, "hidden_dim": 768, "n_heads": 6, "n_kv_heads": 6, "vocab_size": 4096,
           "seq_len": 256, "tied": True}
MODELS = {"dim 288, 6 layers": ModelConfig(n_layers=6, **_DIM288),
          "dim 128, heads of 8": ModelConfig(dim=128, hidden_dim=344, n_layers=6, n_heads=16,
                                             n_kv_heads=16, vocab_size=512, seq_len=256, tied=True),
          "dim 288, 1 layer": ModelConfig(n_layers=1, **_DIM288)}
#: Checked on the RTL: enough for two rows, that is, two different schedules.
PROMPT, STEPS = (1, 2, 3), 20


def compiled(name: str) -> Compiled:
    """One of `MODELS` with random weights; its cycles depend on the shape alone."""
    model = MODELS[name]
    text = np.random.default_rng(0).integers(0, model.vocab_size, (1, 8))
    return compile_model(random_checkpoint(model, 0), profile(PROFILE), text)


def run(model: Compiled) -> tuple:
    """Run on the RTL: the result, and the first difference from the reference or None."""
    settings = {"seed": 1, "inverse_temperature": 4096, "vocabulary": model.model.config.vocab_size}
    with engines.create("verilator", model.config) as engine:
        engine.load(model.image)
        result = engine.run(list(PROMPT), STEPS, trace=True, **settings)
    if result.fault:
        return result, str(result.fault)
    return result, first_difference(model, list(PROMPT), result, **settings)


def predictions() -> str:
    """Cycles and utilisation by the compiler."""
    rows = []
    for name, shape in MODELS.items():
        model = compiled(name)
        rows.append([f"{name}, vocabulary {shape.vocab_size:,}",
                     f"{model.predicted(POSITION):,}",
                     f"{100 * model.utilisation(POSITION):.1f} %"])
    return table(["model", f"cycles at position {POSITION}", "multipliers busy"], rows)


def check() -> tuple:
    """Text of the figures of the checked run, and whether it passed."""
    began = time.perf_counter()
    result, difference = run(compiled("dim 288, 1 layer"))
    if difference:
        return difference, False
    text = (f"Checked on {datetime.date.today()}: one layer of dim 288 with a vocabulary of 4,096 on "
            f"the RTL of `{PROFILE}` in Verilator. {len(result.cycles)} steps, "
            f"{sum(result.cycles):,} cycles, all as predicted; {len(result.writes):,} vectors, "
            f"{sum(map(len, result.logits.values())):,} logits and {len(result.tokens)} tokens equal "
            f"to the reference; {time.perf_counter() - began:.0f} s with build and reference.\n")
    return text, True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.large", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="run on the RTL, write the page")
    options = parser.parse_args()
    print(predictions())
    if not options.check:
        return 0
    text, passed = check()
    print(text)
    if passed:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(filled(page, {"scripts/large.py": lambda: {"check": text}}, "measured"),
                        encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
