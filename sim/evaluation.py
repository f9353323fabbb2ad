"""How well a model predicts a text: windows of it, their logits, nats per token."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from arch.config import Config, profile
from arch.numerics import LOGIT_FRACTION
from compiler import notebook
from compiler.errors import MetronomeError
from compiler.model import Model
from compiler.program import DEFAULT_PROFILE, compile
from sim.float_model import FloatModel
from sim.quality import compare
from sim.session import reference_logits

__all__ = ["Evaluation", "evaluate", "windows", "nats", "mean_nats"]


def windows(tokens: Sequence[int], context: int, bos: int | None,
            limit: int | None = None) -> list[list[int]]:
    """Consecutive windows that do not overlap: BOS, then up to ``context`` tokens to score.

    A window is fed without its last token, so BOS and ``context - 1`` tokens fill the context.
    Without a BOS the first token of a window is given, not scored.
    """
    tokens = list(tokens if limit is None else tokens[:limit])
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


def mean_nats(score: Callable[[np.ndarray], np.ndarray], parts: Sequence[Sequence[int]],
              progress: Callable[[int], None] | None = None) -> tuple[float, int]:
    """Mean negative log-likelihood of the tokens of windows, and how many were scored.

    Parameters
    ----------
    score : callable
        Maps tokens [T] to logits [T, vocab].
    progress : callable or None
        Told how many tokens each window scored.

    Raises
    ------
    ValueError
        If the logits are not finite.
    """
    total, count = 0.0, 0
    for part in parts:
        ids = np.array(part)
        with np.errstate(over="ignore", invalid="ignore"):  # told below
            total += nats(score(ids[:-1]), ids[1:])
        count += len(ids) - 1
        if progress:
            progress(len(ids) - 1)
    if not math.isfinite(total):
        raise ValueError("the logits are not finite")
    return total / count, count


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    Members
    -------
    tokens : int
        How many were scored.
    nats_per_token, perplexity : float
        Mean negative log-likelihood, and e to that power.
    engine : str
        ``float`` or ``reference``.
    context : int
        Tokens per window.
    quality : dict or None
        With a report: what `sim.quality.compare` gives; `quality_table` makes text of it.
    """
    tokens: int
    nats_per_token: float
    perplexity: float
    engine: str
    context: int
    quality: dict | None = None

    def _repr_html_(self) -> str:
        return notebook.table(f"{self.tokens} tokens, engine {self.engine}", {
            "nats per token": f"{self.nats_per_token:.4f}",
            "perplexity": f"{self.perplexity:.2f}", "context": self.context})


def evaluate(model: Model, text: str, engine: str = "reference",
             config: Config | str = DEFAULT_PROFILE, *, context: int | None = None,
             limit: int | None = None, calibration: str | None = None, report: bool = False,
             progress: Callable[[int, int], None] | None = None) -> Evaluation:
    """Measure a model on a text, in windows that do not overlap.

    Parameters
    ----------
    engine : str
        ``reference`` (quantised, as the machine computes) or ``float``.
    config : Config or str
        The machine, or the name of its profile; also bounds the windows of engine float, so that
        the figures of both compare.
    context : int or None
        Tokens per window; None: as many as machine and model hold.
    limit : int or None
        Score only so many tokens.
    calibration : str or None
        As in `compile`; must not be the text.
    report : bool
        Also compare every vector of every layer with float (engine reference).
    progress : callable or None
        Told after every window how many tokens it scored, and how many there are in all.

    Raises
    ------
    MetronomeError
        If nothing can be scored or the context is too long.
    """
    config = profile(config) if isinstance(config, str) else config
    longest = model.checkpoint.config.seq_len
    usual = min(config.context, longest)
    if engine == "float":
        if report:
            raise MetronomeError("a report compares engine reference with float: evaluate that")
        score = FloatModel(model.checkpoint).logits
    else:
        program = compile(model, config, calibration)
        longest, logits = usual, reference_logits(program)
        score = lambda ids: logits(ids) / 2**LOGIT_FRACTION  # noqa: E731
    context = context or usual
    if context > longest:
        raise MetronomeError(f"the context must be at most {longest}, not {context}")
    parts = windows(model.tokenizer.encode(text, bos=False), context, model.tokenizer.bos_id,
                    limit)
    total = sum(map(len, parts)) - len(parts)
    if not total:
        raise MetronomeError("the text has no token to score")
    tell = progress and (lambda done: progress(done, total))
    try:
        if report:
            with np.errstate(over="ignore", invalid="ignore"):  # as in mean_nats
                found = compare(model.checkpoint, program.compiled.model, config, parts, tell)
            return Evaluation(found["tokens"], found["nats"], math.exp(found["nats"]), engine,
                              context, found)
        mean, count = mean_nats(score, parts, tell)
    except ValueError as error:
        raise MetronomeError(f"{model.name}: {error}: its weights are too large") from None
    return Evaluation(count, mean, math.exp(mean), engine, context)
