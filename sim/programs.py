"""Runs of an image that need not be a model: steps, cycles, what is left in memory."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from arch.faults import Fault
from arch.hostmap import NO_TOKEN, ROW_GENERATE, Space, mem_address
from arch.image import Image
from sim import engine as engines

__all__ = ["ImageRun", "run_image"]


@dataclass(frozen=True)
class ImageRun:
    """What a run of an image gave.

    Members
    -------
    tokens, cycles, predicted : list of int
        Of every step: the token that it drew, its length as counted, and as the image says.
    writes : int
        Vectors written to MEM.
    memory : dict of str to list of int
        Words of MEM that are not all 0, by place ("m0[3]"), as lanes.
    fault : sim.engine fault or None
        With ``cause``, ``queue``, ``cycle`` and ``position``.
    """
    engine: str
    profile: str
    tokens: list
    cycles: list
    predicted: list
    writes: int
    memory: dict
    seconds: float
    simulated_hz: float
    fault: object = None

    @property
    def failure(self) -> str | None:
        """Why the run is no good, in one line: a fault, or cycles that the image does not say."""
        if self.fault is not None and self.fault.cause != Fault.NONE:
            return str(self.fault)
        if self.cycles != self.predicted:
            return f"the steps took {self.cycles} cycles, the program says {self.predicted}"
        return None


def run_image(image: Image, engine: str = "machine", steps: int = 1, token: int = 0,
              waves: str | None = None, notify: Callable | None = None) -> ImageRun:
    """Run an image for some steps.

    Parameters
    ----------
    token : int
        What the first step gets.
    waves : str or None
        Path of a wave file (engine verilator).
    notify : callable or None
        Told in words about long work (engine verilator).
    """
    config = image.config
    extra = {"notify": notify, "waves": waves} if engine == "verilator" else {}
    with engines.create(engine, config, **extra) as machine:
        machine.load(image)
        result = machine.run([token], steps, vocabulary=config.vocab_max, stop=NO_TOKEN,
                             trace=True)
        memory = _memory(machine, config)
    predicted = [int(image.rows[at // config.columns][ROW_GENERATE])
                 for at in range(len(result.cycles))]
    return ImageRun(engine, config.name, result.tokens, result.cycles, predicted,
                    len(result.writes), memory, result.seconds, result.simulated_hz, result.fault)


def _memory(engine: engines.Engine, config) -> dict:
    found = {}
    for bank in range(config.mem_banks):
        raw = engine.read_space(Space.MEM, mem_address(config, bank, 0, 0),
                                config.mem_depth * config.lanes)
        words = np.asarray(raw, np.uint16).view(np.int16).reshape(config.mem_depth, config.lanes)
        found |= {f"m{bank}[{word}]": lanes.tolist() for word, lanes in enumerate(words)
                  if lanes.any()}
    return found
