"""How well a model predicts a text: windows of it, their logits, nats per token."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["windows", "nats", "mean_nats"]


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
