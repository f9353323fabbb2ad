"""Every memory of the RTL as a place where bits flip: what it holds, its bits, how a host sees them."""
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from arch.config import Config
from arch.hostmap import (ROW_WORDS, Space, constant_address, mem_address, param_address,
                          pattern_address, program_address, row_address, weight_address)
from arch.image import Image
from arch.isa import PARAM_BITS, unit_of, word_bits
from arch.queues import QUEUES, queue_ids

_WEIGHTS = re.compile(r"tile_(\d+)\.bank_(\d+)_(\d+)\.memory$")
_MEM = re.compile(r"mem\.bank(\d+)\.(data|checks)")
_PROGRAM = re.compile(r"queue_(\w+)\.program\.bank(\d+)$")
_BANK_WORDS = 16
#: Memories without a host's way to them: the kind, a pattern of their names, bits, words.
HIDDEN = (("noise table", re.compile(r"gumbel_\w+\.table$"), 26, 512),
          ("parameters in the queues", re.compile(r"queue_\w+\.params\d$"), PARAM_BITS, 16),
          ("accumulators", re.compile(r"accumulators_\d+\.column_\d+$"), 32, 16),
          ("events", re.compile(r"events\.storage$"), 27, 31))


@dataclasses.dataclass(frozen=True)
class Memory:
    """Words of one memory that are of one kind.

    Members
    -------
    kind : str
    name : str
        Dotted path in the RTL.
    words : sequence of int
        Numbers of the words.
    bits : int
        Of a word.
    space : Space or None
    address : callable
        ``address(word, bit)``: the 16-bit word of ``space`` that the bit, or what it is the parity
        of, belongs to.
    """
    kind: str
    name: str
    words: Sequence
    bits: int
    space: Space | None = None
    address: Callable | None = None


def memories(image: Image, names: Iterable[str]) -> Iterator[Memory]:
    """What ``image`` uses of all memories of a machine, and the KV cache, MEM and tokens.

    Parameters
    ----------
    names : iterable of str
        All memories of the machine (`sim.rtl.Rtl.memories`).
    """
    config = image.config
    loaded = np.flatnonzero(image.weights.any(axis=(1, 2))).tolist()
    for name in names:
        if match := _WEIGHTS.search(name):
            tile, place, pair = map(int, match.groups())
            column = tile * config.tile_columns + place

            def weight(word, bit, column=column, pair=pair):
                return weight_address(config, word, column, pair)
            yield Memory("weights", name, loaded, 18, Space.WEIGHTS, weight)
            yield Memory("KV cache", name, sorted({*range(config.weight_depth)} - {*loaded}), 18,
                         Space.WEIGHTS, weight)
        elif match := _MEM.search(name):
            bank, bits = int(match[1]), 1 if match[2] == "checks" else 16
            yield Memory("MEM", name, range(config.mem_depth), bits * config.lanes, Space.MEM,
                         lambda word, bit, bank=bank, bits=bits:
                         mem_address(config, bank, word, bit // bits))
        elif match := _PROGRAM.search(name):
            queue, bank = match[1], int(match[2])
            used = len(image.program.get(queue, ())) - _BANK_WORDS * bank
            if used > 0:
                yield Memory("programs", name, range(min(used, _BANK_WORDS)),
                             word_bits(unit_of(queue), config), Space.PROGRAM,
                             lambda word, bit, number=QUEUES[queue].id, bank=bank:
                             program_address(number, _BANK_WORDS * bank + word, bit // 16))
        else:
            yield from _tables(image, config, name)


def _tables(image: Image, config: Config, name: str) -> Iterator[Memory]:
    """Memories of which there is one, and those that no host sees."""
    lanes, entry = config.lanes, config.lane_bits + 1
    tables = {
        "const.data": ("constants", len(image.constants), 18 * lanes, Space.CONSTANTS,
                       lambda word, bit: constant_address(config, word, bit // 18)),
        "params.store": ("parameters", param_address(config, queue_ids(config), 0, 0), PARAM_BITS,
                         Space.PARAMS, lambda word, bit: word),
        "sequencer.rows": ("rows", len(image.rows), 16 * ROW_WORDS, Space.ROWS,
                           lambda word, bit: row_address(word, bit // 16)),
        "sequencer.tokens": ("tokens", config.context, config.token_bits, Space.TOKENS,
                             lambda word, bit: word),
        "perm.table": ("patterns", len(image.patterns), entry * lanes, Space.PATTERNS,
                       lambda word, bit: pattern_address(config, word, bit // entry))}
    if name in tables:
        kind, count, *rest = tables[name]
        yield Memory(kind, name, range(count), *rest)
    for kind, pattern, bits, count in HIDDEN:
        if pattern.search(name):
            yield Memory(kind, name, range(count), bits)
