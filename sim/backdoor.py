"""An image as the contents of the memories of the RTL: the back door around the host port.

The names are those of the hardware's memories (`sim.rtl.Rtl.memories`); the layouts of the words
are those of the slices. A test loads an image both ways and compares everything that can be read.
"""
import re
from collections.abc import Iterable

import numpy as np

from arch.hostmap import ROW_WORDS, power_of_two
from arch.image import Image
from arch.isa import unit_of, word_bits
from arch.queues import QUEUES, queue_ids
from sim.engine import EngineError

#: Memories of a queue, by the name of its instance.
_QUEUE = re.compile(r"(?:^|\.)(?:queue_)?(?P<queue>[a-z0-9]+)\.program\.bank(?P<bank>\d+)$")
#: Instructions of one bank of a program memory.
_BANK_WORDS = 16
_WEIGHTS = re.compile(r"(?:^|\.)tile_(?P<tile>\d+)\.bank_(?P<column>\d+)_(?P<pair>\d+)\.memory$")


def _packed(values, bits: int) -> np.ndarray:
    """Integers of any size as little-endian words: uint8 [count, bytes]."""
    size = -(-bits // 8)
    raw = b"".join(int(value).to_bytes(size, "little") for value in values)
    return np.frombuffer(raw, np.uint8).reshape(-1, size)


def with_parity(values: np.ndarray) -> np.ndarray:
    """Bytes as they are stored: a ninth bit above makes the parity even."""
    values = np.asarray(values, np.int64) & 0xFF
    ones = values ^ values >> 4
    ones ^= ones >> 2
    ones ^= ones >> 1
    return values | (ones & 1) << 8


def _lanes_with_parity(words: np.ndarray) -> np.ndarray:
    """Vectors [words, lanes] of 16 bits as stored: 18 bits a lane, lane 0 lowest."""
    lanes = np.asarray(words, np.int64) & 0xFFFF
    stored = with_parity(lanes) | with_parity(lanes >> 8) << 9
    bits = stored[..., None] >> np.arange(18) & 1
    return np.packbits(bits.reshape(len(stored), 18 * lanes.shape[1]).astype(np.uint8), axis=1,
                       bitorder="little")


def _weights(image: Image, tile: int, column: int, pair: int) -> np.ndarray:
    """Words of one weight bank."""
    column += tile * image.config.tile_columns
    low, high = (with_parity(image.weights[:, 2 * pair + half, column]) for half in range(2))
    words = low | high << 9
    return np.stack([words >> 8 * byte & 0xFF for byte in range(3)], axis=1).astype(np.uint8)


def _program(image: Image, queue: str, bank: int) -> np.ndarray:
    """One bank of the instructions of a queue."""
    bits = 16 * -(-word_bits(unit_of(queue), image.config) // 16)
    return _packed(image.program[queue][_BANK_WORDS * bank:_BANK_WORDS * (bank + 1)], bits)


def _params(image: Image) -> np.ndarray:
    """Delay parameters of all queues: by queue, row and column, each a power of two."""
    rows, columns = (power_of_two(size) for size in (image.config.param_rows,
                                                     image.config.param_columns))
    padded = np.zeros((queue_ids(image.config), rows, columns), np.int64)
    for queue, table in image.params.items():
        padded[QUEUES[queue].id, :len(table), :table.shape[1]] = table
    return _packed(padded.ravel(), 16)


def _rows(image: Image) -> np.ndarray:
    """Count registers and step lengths, 16 bits each."""
    table = np.zeros((len(image.rows), ROW_WORDS), "<u2")
    table[:, :image.rows.shape[1]] = image.rows
    return table.view(np.uint8)


def _patterns(image: Image) -> np.ndarray:
    """Source lanes, and above each the bit that makes the result 0."""
    bits = image.config.lane_bits + 1
    patterns = np.asarray(image.patterns, np.int64)
    entries = np.where(patterns < 0, 1 << bits - 1, patterns)
    return _packed([sum(int(entry) << bits * lane for lane, entry in enumerate(row))
                    for row in entries], bits * image.config.lanes)


#: Memories of which there is one: what they hold, and how it is laid out.
_TABLES = {"params.store": ("params", _params), "const.data": ("constants", lambda image: _lanes_with_parity(image.constants)),
           "sequencer.rows": ("rows", _rows), "perm.table": ("patterns", _patterns)}


def contents(image: Image, names: Iterable[str]) -> dict:
    """Words of every memory that the image fills: uint8 [words, bytes], lowest byte first.

    Parameters
    ----------
    names : iterable of str
        All memories of the machine.

    Raises
    ------
    EngineError
        If a part of the image finds no memory.
    """
    found, missing = {}, {f"program of {queue}" for queue in image.program}
    missing |= {"params", "weights", "constants", "patterns", "rows"}
    for name in names:
        weights, queue = _WEIGHTS.search(name), _QUEUE.search(name)
        if weights:
            found[name] = _weights(image, *(int(part) for part in weights.groups()))
            missing.discard("weights")
        elif queue and queue["queue"] in image.config.queues:
            which = queue["queue"]
            if which in image.program:
                found[name] = _program(image, which, int(queue["bank"]))
                missing.discard(f"program of {which}")
        elif name in _TABLES:
            part, make = _TABLES[name]
            found[name] = make(image)
            missing.discard(part)
    if missing:
        raise EngineError(f"no memory of the machine for {', '.join(sorted(missing))}")
    return found
