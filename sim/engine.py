"""What every engine that runs an image has in common: the calls, and what they return.

An engine is a machine, modelled or simulated: it is loaded with an image, runs steps, and gives
back tokens, the cycles of every step, faults and, if asked, everything that was written to MEM.
"""
import abc
import dataclasses
import importlib
from collections.abc import Callable

import numpy as np

from arch.config import Config
from arch.faults import Fault
from arch.hostmap import NO_TOKEN, Space
from arch.image import Image
from arch.queues import QUEUES
from compiler.errors import MetronomeError


class EngineError(MetronomeError):
    """An engine cannot do what was asked, or what it simulates broke the rules of the host port."""


def write_log_type(config: Config) -> np.dtype:
    """One vector written to MEM.

    Fields: ``step`` (from 0 in a run), ``cycle`` in the step on which the write issues, ``bank``,
    ``halves`` (bit h: half h of the lanes was written), ``address``, ``lanes`` (16 bits each; those
    of a half that was not written are 0).
    """
    return np.dtype([("step", "<u4"), ("cycle", "<u4"), ("bank", "<u2"), ("halves", "<u2"),
                     ("address", "<u4"), ("lanes", "<i2", (config.lanes,))])


@dataclasses.dataclass(frozen=True)
class FaultInfo:
    """The first fault of a run: cause, queue (None: none in particular), cycle in the step."""
    cause: Fault
    queue: str | None
    cycle: int
    position: int

    def __str__(self):
        where = f"queue {self.queue}" if self.queue else "no queue in particular"
        return f"fault {self.cause.name}: {where}, position {self.position}, cycle {self.cycle}"


def fault_info(cause: int, queue: int, cycle: int, position: int) -> FaultInfo:
    """A `FaultInfo` from the numbers in the fault registers."""
    names = {entry.id: name for name, entry in QUEUES.items()}
    return FaultInfo(Fault(cause), names.get(queue), cycle, position)


@dataclasses.dataclass
class RunResult:
    """What a run gave.

    Members
    -------
    tokens : list of int
        Sampled tokens, in order.
    cycles : list of int
        Length of every step, prompt steps included, counted by the harness from barrier to barrier.
    reported : list of int
        The same as the machine itself counts them.
    fault : FaultInfo or None
    writes : structured array of `write_log_type`, or None unless traced
    simulated_cycles : int
        Cycles simulated, loading excluded.
    seconds : float
        Wall-clock time they took.
    logits : dict of int to int16 array, or None
        What the sampler took, by step; where the engine shows it and the run was traced.
    """
    tokens: list
    cycles: list
    reported: list
    fault: FaultInfo | None
    writes: np.ndarray | None
    simulated_cycles: int
    seconds: float
    logits: dict | None = None

    @property
    def simulated_hz(self) -> float:
        """Simulated cycles per second."""
        return self.simulated_cycles / self.seconds if self.seconds > 0 else 0.0


def checked_run(config: Config, prompt, steps: int, first: int) -> None:
    """Raise an EngineError unless a run stays within the context."""
    if not 0 < steps <= config.context - first:
        raise EngineError(f"steps must be 1 to {config.context - first} from position {first}, "
                          f"not {steps}")
    if not 0 < len(prompt) <= config.context:
        raise EngineError(f"the prompt must have 1 to {config.context} tokens, not {len(prompt)}")


class Engine(abc.ABC):
    """A machine that runs images.

    Parameters
    ----------
    config : Config
        The machine.
    """
    name = ""

    def __init__(self, config: Config):
        self.config = config

    @classmethod
    @abc.abstractmethod
    def unavailable(cls) -> str | None:
        """Why this engine cannot run here, in one line that names what is missing; else None."""

    @abc.abstractmethod
    def load(self, image: Image, backdoor: bool = True) -> None:
        """Load an image.

        Parameters
        ----------
        image : Image
            Made for this machine.
        backdoor : bool
            Write the memories directly instead of sending every byte through the host port. The
            result is the same.
        """

    @abc.abstractmethod
    def run(self, prompt: list, steps: int, *, first: int = 0, seed: int = 0,
            inverse_temperature: int = 0, stop: int = NO_TOKEN, vocabulary: int,
            progress: Callable | None = None, trace: bool = False) -> RunResult:
        """Run up to ``steps`` steps from position ``first``.

        Parameters
        ----------
        prompt : list of int
            Tokens from position 0 on. Those before ``first`` have been run already.
        steps : int
            Steps at most: prompt steps and generate steps.
        seed, inverse_temperature, stop, vocabulary : int
            Registers of the sampler (`arch.hostmap.Register`).
        progress : callable or None
            Called after each step with position, sampled token (None in a prompt step) and cycles.
        trace : bool
            Keep every vector written to MEM.
        """

    @abc.abstractmethod
    def write_constant(self, address: int, lanes: np.ndarray) -> None:
        """Change one vector of the constant SRAM, int16 lanes, between runs."""

    @abc.abstractmethod
    def read_space(self, space: Space, address: int, count: int) -> np.ndarray:
        """16-bit words of an address space, between runs."""

    def close(self) -> None:
        """Let go of the simulation."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


#: Engine names in the order in which they are offered, with the module and class of each.
ENGINES = {
    "machine": ("sim.machine_engine", "MachineEngine"),
    "verilator": ("sim.verilator", "VerilatorEngine"),
    "icarus": ("sim.icarus", "IcarusEngine"),
    "pysim": ("sim.pysim", "PysimEngine"),
    "board": ("sim.board", "BoardEngine"),
}


def engine_class(name: str) -> type:
    """The class of an engine.

    Raises
    ------
    EngineError
        If there is none of this name.
    """
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}; there are {', '.join(ENGINES)}")
    module, attribute = ENGINES[name]
    return getattr(importlib.import_module(module), attribute)


def create(name: str, config: Config, **options) -> Engine:
    """An engine that can run here.

    Raises
    ------
    EngineError
        If there is none of this name, or something that it needs is missing.
    """
    found = engine_class(name)
    reason = found.unavailable()
    if reason:
        raise EngineError(f"engine {name} cannot run here: {reason}")
    return found(config, **options)
