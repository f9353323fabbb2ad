"""``metronome eval``: mean negative log-likelihood of a text, and what quantisation costs."""
import dataclasses
import sys

from tqdm import tqdm

import metronome
from scripts.commands.common import calibration_of, config_of, read_text, say


def run(options) -> dict:
    if options.report and options.engine == "float":
        raise metronome.MetronomeError("--report compares the integers with float: it needs "
                                       "--engine reference")
    text = read_text(options.text)
    model = metronome.load_model(options.model, options.tokenizer)
    config = config_of(options)
    if options.engine != "float":
        say(f"compiling {model.name} for {config.name}")
    with tqdm(unit="token", file=sys.stderr, leave=False,
              disable=not sys.stderr.isatty()) as bar:
        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)
        result = metronome.evaluate(model, text, options.engine, config, context=options.context,
                                    limit=options.limit, calibration=calibration_of(options),
                                    report=options.report, progress=progress)
    if not options.json:
        print(metronome.quality_table(result.quality) if result.quality else
              f"{result.tokens} tokens, {result.nats_per_token:.4f} nats per token, "
              f"perplexity {result.perplexity:.2f}")
    report = dataclasses.asdict(result)
    quality = report.pop("quality")
    if quality:
        report |= {"float_nats_per_token": quality["float_nats"], "loss": quality["loss"],
                   "layers": quality["layers"], "logits": quality["logits"]}
    return report
