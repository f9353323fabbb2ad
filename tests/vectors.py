"""Instruction vectors: programs with the cycles and words that they must give, as data.

`load` reads them; `check_engine` runs one on any engine, `check` compares what any other did.
"""
import dataclasses
import tomllib
from pathlib import Path

import numpy as np

from arch.faults import Fault
from arch.hostmap import Space, mem_address
from compiler.asm import assemble

FOLDER = Path(__file__).parent / "data"


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
    with open(FOLDER / "instruction_vectors.toml", "rb") as file:
        return [Vector(**fields) for fields in tomllib.load(file)["vector"]]


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
    with open(FOLDER / "fault_vectors.toml", "rb") as file:
        found = tomllib.load(file)
    return found["head"], [FaultCase(**fields) for fields in found["fault"]]


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
