"""What tests of the RTL share: engines that may be missing here, and comparing two of them."""
import dataclasses

import numpy as np
import pytest

from arch.config import Config, profile
from sim import engine as engines

TINY = profile("tiny")
#: The machines of the tests: `tiny`, and the same with one more stage wherever there can be one.
CONFIGS = {"tiny": TINY, "stages": TINY.replace(
    **{field.name: 1 for field in dataclasses.fields(Config) if field.name.endswith("_stages")})}


def available(name: str) -> None:
    """Skip the test, with the reason, where an engine cannot run."""
    reason = engines.engine_class(name).unavailable()
    if reason:
        pytest.skip(f"engine {name} cannot run here: {reason}")


def sorted_writes(result) -> np.ndarray:
    """The write log of a run in the order of step, cycle and bank."""
    log = result.writes.copy()
    log.sort(order=["step", "cycle", "bank"], kind="stable")
    return log


def same_run(found, expected) -> None:
    """Tokens, cycles, first fault and every vector written to MEM, with its cycle, are the same."""
    assert found.tokens == expected.tokens
    assert found.cycles == expected.cycles == found.reported
    assert found.fault == expected.fault
    log, wanted = sorted_writes(found), sorted_writes(expected)
    assert len(log) == len(wanted)
    different = np.flatnonzero(log != wanted)
    assert not len(different), (f"write {different[0]}: {log[different[0]]}, expected "
                                f"{wanted[different[0]]}")


def agree(pair, image, prompt, **options):
    """Run on model and hardware and compare everything; returns both results.

    Parameters
    ----------
    pair : (Engine, Engine)
        Machine model and hardware of the same machine.
    """
    results = []
    for engine in pair:
        engine.load(image)
        results.append(engine.run(prompt, trace=True, **options))
    model, rtl = results
    if model.fault is None:
        same_run(rtl, model)
    else:
        assert rtl.fault == model.fault
    return model, rtl


def pair_of(config: Config):
    """A context with machine model and Verilated RTL of a machine."""
    available("verilator")
    with engines.create("machine", config) as model, engines.create("verilator", config) as rtl:
        yield model, rtl
