"""Bit- and cycle-exact comparison of an engine's step with the reference and the schedule."""
import numpy as np

from compiler.pipeline import Compiled


class Mismatch(Exception):
    """The first difference: unit, cycle and vector."""


def expected_writes(compiled: Compiled, position: int, prompt: bool, kept: dict) -> np.ndarray:
    """Every MEM write that the schedule and the reference predict for a step.

    Parameters
    ----------
    kept : dict
        ``Reference.kept`` of the step.

    Returns
    -------
    structured array: cycle, bank, address, halves, lanes [lanes] (int16; 0 in unwritten halves)
    """
    stored = compiled.stored(position, prompt)
    lanes, half = compiled.config.lanes, compiled.config.half_columns
    log = np.zeros(len(stored), [("cycle", "<u4"), ("bank", "<u2"), ("address", "<u4"),
                                 ("halves", "<u2"), ("lanes", "<i2", (lanes,))])
    for entry, item in zip(log, stored):
        vector = kept[item.label, item.layer][item.index].copy()
        for part in (0, 1):
            if not item.halves >> part & 1:
                vector[part * half:(part + 1) * half] = 0
        entry["cycle"], entry["bank"], entry["address"] = item.cycle, item.bank, item.address
        entry["halves"], entry["lanes"] = item.halves, vector
    return log


def compare_writes(compiled: Compiled, position: int, prompt: bool, kept: dict,
                   writes: np.ndarray) -> None:
    """Check a step's write log.

    Parameters
    ----------
    writes : structured array
        Fields as in `expected_writes`, in any order.

    Raises
    ------
    Mismatch
        Naming the MEM bank, the cycle and the vector.
    """
    expected = expected_writes(compiled, position, prompt, kept)
    stored = compiled.stored(position, prompt)
    writes = np.sort(writes, order=["cycle", "bank"])
    for index in range(min(len(writes), len(expected))):
        seen, want = writes[index], expected[index]
        if all(np.array_equal(seen[name], want[name]) for name in want.dtype.names):
            continue
        item = stored[index]
        name = f"layer {item.layer} '{item.label}' vector {item.index}"
        for field in ("cycle", "bank", "address", "halves"):
            if seen[field] != want[field]:
                raise Mismatch(f"position {position}: {name}: {field} is {seen[field]}, expected "
                               f"{want[field]} (cycle {want['cycle']}, MEM bank {want['bank']})")
        lane = int(np.flatnonzero(seen["lanes"] != want["lanes"])[0])
        raise Mismatch(f"position {position}: {name}, written to MEM bank {item.bank} word "
                       f"{item.address} on cycle {item.cycle}: lane {lane} is "
                       f"{seen['lanes'][lane]}, expected {want['lanes'][lane]}")
    if len(writes) != len(expected):
        raise Mismatch(f"position {position}: {len(writes)} vectors written to MEM, expected "
                       f"{len(expected)}")


def compare_logits(position: int, expected: np.ndarray, seen: np.ndarray | None) -> None:
    """Check all logits of a generate step; None where the sampler took no vector in it.

    Raises
    ------
    Mismatch
        Naming the token, or how many logits there are.
    """
    count = 0 if seen is None else len(seen)
    if count != len(expected):
        raise Mismatch(f"position {position}: {count} logits, expected {len(expected)}")
    if not np.array_equal(expected, seen):
        token = int(np.flatnonzero(np.asarray(expected) != np.asarray(seen))[0])
        raise Mismatch(f"position {position}: logit of token {token} is {seen[token]}, expected "
                       f"{expected[token]}")
