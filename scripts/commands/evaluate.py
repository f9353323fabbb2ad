"""``metronome eval``: mean negative log-likelihood of a text."""
import math
import sys

import numpy as np
from tqdm import tqdm

import metronome
from arch.numerics import LOGIT_FRACTION
from compiler.errors import MetronomeError
from scripts.commands.common import calibration_of, config_of, read_text, say
from sim.float_model import FloatModel
from sim.quality import compare, table


def windows(tokens: list, context: int, bos: int | None, limit: int | None) -> list:
    """Consecutive windows that do not overlap: BOS, then up to ``context`` tokens to score.

    A window is fed without its last token, so BOS and ``context - 1`` tokens fill the context.
    Without a BOS the first token of a window is given, not scored.
    """
    if limit is not None:
        tokens = tokens[:limit]
    head = [] if bos is None else [bos]
    parts = [head + tokens[at:at + context] for at in range(0, len(tokens), context)]
    return [part for part in parts if len(part) > 1]


def nats(logits: np.ndarray, targets: np.ndarray) -> float:
    """Summed negative log-likelihood of targets [T] under logits [T, vocab]."""
    total = 0.0
    for row, target in zip(logits, targets):
        row = np.asarray(row, np.float64)
        total += float(np.log(np.exp(row - row.max()).sum()) + row.max() - row[target])
    return total


def run(options) -> dict:
    if options.report and options.engine != "reference":
        raise MetronomeError("--report compares the integers with float: it needs --engine "
                             "reference")
    text = read_text(options.text)
    model = metronome.load_model(options.model, options.tokenizer)
    config = config_of(options)
    usual = min(config.context, model.checkpoint.config.seq_len)
    if options.engine == "float":
        longest = model.checkpoint.config.seq_len
        float_model = FloatModel(model.checkpoint)
        score = float_model.logits
    else:
        longest = usual
        say(f"compiling {model.name} for {config.name}")
        program = metronome.compile(model, config, calibration=calibration_of(options))
        reference = metronome.reference_logits(program)
        score = lambda ids: reference(ids) / 2**LOGIT_FRACTION  # noqa: E731
    # The same windows for both engines, so that their figures compare.
    context = options.context or usual
    if context > longest:
        raise MetronomeError(f"--context must be at most {longest}, not {context}")
    tokens = model.tokenizer.encode(text, bos=False)
    parts = windows(tokens, context, model.tokenizer.bos_id, options.limit)
    if not parts:
        raise MetronomeError(f"{options.text}: has no token to score")
    report, total, count = {}, 0.0, 0
    with tqdm(total=sum(map(len, parts)) - len(parts), unit="token", file=sys.stderr,
              leave=False, disable=not sys.stderr.isatty()) as bar:
        if options.report:
            with np.errstate(over="ignore", invalid="ignore"):  # told below
                report = compare(model.checkpoint, program.compiled.model, config, parts,
                                 bar.update)
            count, total = report["tokens"], report["nats"] * report["tokens"]
        for part in parts if not report else ():
            ids = np.array(part)
            with np.errstate(over="ignore", invalid="ignore"):  # told below
                total += nats(score(ids[:-1]), ids[1:])
            count += len(ids) - 1
            bar.update(len(ids) - 1)
    mean = total / count
    if not math.isfinite(mean):
        raise MetronomeError(f"{model.name}: the logits are not finite: its weights are too large")
    result = {"tokens": count, "nats_per_token": mean, "perplexity": math.exp(mean),
              "engine": options.engine, "context": context}
    if report:
        result |= {"float_nats_per_token": report["float_nats"], "loss": report["loss"],
                   "layers": report["layers"], "logits": report["logits"]}
        if not options.json:
            print(table(report))
    elif not options.json:
        print(f"{count} tokens, {mean:.4f} nats per token, perplexity {math.exp(mean):.2f}")
    return result
