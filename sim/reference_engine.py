"""The numpy reference run like an engine, and an engine's run checked against it."""
import time
from collections.abc import Callable

import numpy as np

from arch.hostmap import NO_TOKEN
from arch.numerics import sampling_keys
from arch.selection import Selection
from compiler.pipeline import Compiled
from sim.compare import Mismatch, compare_logits, compare_writes
from sim.engine import RunResult, checked_run
from sim.reference import Reference
from sim.selection import Selector


def pick(logits: np.ndarray, inverse_temperature: int, seed: int, position: int) -> int:
    """The token that the sampler takes."""
    return int(np.argmax(sampling_keys(logits, inverse_temperature, seed, position)))


def selector_of(compiled: Compiled) -> Selector:
    """The stages of a program between its logits and the sampler."""
    return Selector(compiled.sampling, compiled.config.lanes, compiled.model.config.n_layers)


def run_reference(compiled: Compiled, prompt: list, steps: int, *, seed: int = 0,
                  inverse_temperature: int = 0, stop: int = NO_TOKEN, vocabulary: int,
                  progress: Callable | None = None,
                  selection: Selection | None = None) -> RunResult:
    """`sim.engine.Engine.run` from position 0 with the reference; cycles are the compiler's.

    ``selection`` holds the settings of a program with stages.
    """
    checked_run(compiled.config, prompt, steps, 0)
    reference, began = Reference(compiled.model, compiled.config), time.perf_counter()
    token, tokens, cycles = prompt[0], [], []
    selector = selector_of(compiled)
    for position in range(steps):
        given = position + 1 < len(prompt)
        logits = reference.step(token, position)
        if given:
            token = prompt[position + 1]
        else:
            if selection:
                logits = selector(logits, selection)
            token = pick(logits[:vocabulary], inverse_temperature, seed, position)
        cycles.append(compiled.predicted(position, given))
        if not given:
            tokens.append(token)
        if progress:
            progress(position, None if given else token, cycles[-1])
        if not given and token == stop:
            break
    return RunResult(tokens, cycles, list(cycles), None, None, sum(cycles),
                     time.perf_counter() - began)


def first_difference(compiled: Compiled, prompt: list, result: RunResult, *, seed: int = 0,
                     inverse_temperature: int = 0, vocabulary: int,
                     selection: Selection | None = None, **_) -> str | None:
    """What differs first between a traced run from position 0 and the reference, in words.

    Compared are, step by step: the cycles as the harness and as the machine counted them against
    the prediction, every vector written to MEM (cycle, bank, word, lanes), all logits where the
    engine shows them, and the token.
    """
    reference, selector = Reference(compiled.model, compiled.config), selector_of(compiled)
    sequence = [*prompt, *result.tokens]
    try:
        for position, (counted, reported) in enumerate(zip(result.cycles, result.reported)):
            given = position + 1 < len(prompt)
            expected = compiled.predicted(position, given)
            for who, cycles in (("the harness counted", counted), ("the machine says", reported)):
                if cycles != expected:
                    return f"position {position}: {who} {cycles} cycles, predicted are {expected}"
            logits = reference.step(sequence[position], position, keep=True)
            if selection and not given:
                logits = selector(logits, selection, reference.kept)
            writes = result.writes[result.writes["step"] == position]
            compare_writes(compiled, position, given, reference.kept, _unplaced(writes))
            if given:
                continue
            if result.logits is not None:
                seen = result.logits.get(position)
                compare_logits(position, logits, None if seen is None else seen[:len(logits)])
            token = pick(logits[:vocabulary], inverse_temperature, seed, position)
            if token != sequence[position + 1]:
                return (f"position {position}: the sampler took token {sequence[position + 1]}, "
                        f"expected {token}")
    except Mismatch as mismatch:
        return str(mismatch)
    if len(result.cycles) != len(result.reported):
        return f"{len(result.cycles)} steps counted, {len(result.reported)} reported"
    return None


def _unplaced(writes: np.ndarray) -> np.ndarray:
    """A write log without its steps, as `sim.compare` takes it."""
    return writes[["cycle", "bank", "address", "halves", "lanes"]]
