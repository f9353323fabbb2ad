"""Instruction vectors: programs with the cycles and words that they must give, as data.

`load` reads them; `check_engine` runs one on any engine, `check` compares what any other did.
"""
import dataclasses
import functools
import re
import tomllib
from pathlib import Path

import numpy as np

from arch import timing
from arch.config import profile
from arch.faults import Fault
from arch.hostmap import Space, mem_address
from compiler.asm import assemble

FOLDER = Path(__file__).parent / "data"
#: The machine of all vectors.
CONFIG = profile("tiny")


def _read(name: str) -> dict:
    with open(FOLDER / name, "rb") as file:
        return tomllib.load(file)


@functools.cache
def times() -> dict:
    """The letters that stand for latencies, with their cycles."""
    latencies = dataclasses.asdict(timing.timing(CONFIG)) | {
        "FIRST_ISSUE": timing.FIRST_ISSUE, "LOOP_WAIT_MIN": timing.LOOP_WAIT_MIN}
    return {letter: latencies[name]
            for letter, name in _read("instruction_vectors.toml")["times"].items()}


def cycle_of(time) -> int:
    """A cycle, given as a number or as a sum of latencies."""
    return eval(str(time), {"__builtins__": {}}, times())


def timed(source: str) -> str:
    """A source with the times in braces worked out."""
    return re.sub(r"\{([^}]+)\}", lambda match: str(cycle_of(match[1])), source)


@dataclasses.dataclass
class Vector:
    """One vector; see the head of the data file.

    Members
    -------
    name, source : str
    prompt : list of int
    first, steps, vocabulary : int
    cycles, sampled : lists of int
    writes : list of [step, cycle, bank, word]
    mem : list of [bank, word, lanes]
    """
    name: str
    source: str
    cycles: list
    writes: list
    mem: list
    prompt: list = dataclasses.field(default_factory=lambda: [0])
    first: int = 0
    steps: int = 1
    vocabulary: int = 256
    sampled: list = dataclasses.field(default_factory=list)


def load() -> list:
    """All vectors."""
    found = [Vector(**fields) for fields in _read("instruction_vectors.toml")["vector"]]
    for vector in found:
        vector.source = timed(vector.source)
        vector.writes = [[step, cycle_of(cycle), *place] for step, cycle, *place in vector.writes]
    return found


@dataclasses.dataclass
class FaultCase:
    """An illegal program; see the head of the data file.

    Members
    -------
    name, source, cause, queue : str
    cycle : int
    hardware : bool
        Whether the hardware sees the fault.
    """
    name: str
    source: str
    cause: str
    cycle: int
    queue: str
    hardware: bool = True

    @property
    def fault(self) -> Fault:
        return Fault[self.cause]


def load_faults() -> tuple:
    """Text that goes before every source, and the cases."""
    found = _read("fault_vectors.toml")
    return found["head"], [FaultCase(**fields | {"source": timed(fields["source"]),
                                                 "cycle": cycle_of(fields["cycle"])})
                           for fields in found["fault"]]


def check(vector: Vector, cycles, sampled, writes, read_mem) -> None:
    """Compare a run with a vector.

    Parameters
    ----------
    cycles : list of int
        Of every step.
    sampled : list of int
        Tokens of the generate steps; they do not matter where nothing is sampled.
    writes : iterable of (step, cycle, bank, word)
    read_mem : callable
        ``read_mem(bank, word)`` gives the lanes of a word of MEM.
    """
    assert list(cycles) == vector.cycles, vector.name
    assert not vector.sampled or list(sampled) == vector.sampled, vector.name
    assert sorted(map(list, writes)) == sorted(vector.writes), vector.name
    for bank, word, lanes in vector.mem:
        found = np.asarray(read_mem(bank, word)).tolist()
        assert found == lanes, f"{vector.name}: bank {bank} word {word}"


def check_engine(vector: Vector, engine) -> None:
    """Run a vector on a `sim.engine.Engine` of its machine and compare."""
    image = assemble(vector.source)
    engine.load(image)
    result = engine.run(vector.prompt, vector.steps, first=vector.first,
                        vocabulary=vector.vocabulary, trace=True)
    assert result.fault is None, vector.name

    def read_mem(bank, word):
        address = mem_address(image.config, bank, word, 0)
        words = engine.read_space(Space.MEM, address, image.config.lanes)
        return np.asarray(words, np.uint16).view(np.int16)
    check(vector, result.cycles, result.tokens,
          [[int(entry[name]) for name in ("step", "cycle", "bank", "address")]
           for entry in result.writes], read_mem)
