"""``metronome eval``: mean negative log-likelihood of a text."""
import dataclasses
import sys

from tqdm import tqdm

import metronome
from scripts.commands.common import calibration_of, config_of, read_text, say


def run(options) -> dict:
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
                                    progress=progress)
    if not options.json:
        print(f"{result.tokens} tokens, {result.nats_per_token:.4f} nats per token, "
              f"perplexity {result.perplexity:.2f}")
    return dataclasses.asdict(result)
