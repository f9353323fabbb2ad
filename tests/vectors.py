"""Instruction vectors: programs with the cycles and words that they must give, as data.

`load` reads them, `check` compares what an engine did; any engine can be used.
"""
import dataclasses
import tomllib
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data" / "instruction_vectors.toml"


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
    with open(DATA, "rb") as file:
        return [Vector(**fields) for fields in tomllib.load(file)["vector"]]


def check(vector: Vector, cycles, sampled, writes, read_mem) -> None:
    """Compare a run with a vector.

    Parameters
    ----------
    cycles : list of int
        Of every step.
    sampled : list of int
        Tokens of the generate steps in which a token was sampled.
    writes : iterable of (step, cycle, bank, word)
    read_mem : callable
        ``read_mem(bank, word)`` gives the lanes of a word of MEM.
    """
    assert list(cycles) == vector.cycles, vector.name
    assert list(sampled) == vector.sampled, vector.name
    assert sorted(map(list, writes)) == sorted(vector.writes), vector.name
    for bank, word, lanes in vector.mem:
        found = np.asarray(read_mem(bank, word)).tolist()
        assert found == lanes, f"{vector.name}: bank {bank} word {word}"
