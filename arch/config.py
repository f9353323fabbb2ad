"""Sizes of one machine: the frozen `Config` and the named profiles.

Everything that the compiler, the machine model, the hardware and the documentation know about the
size of a machine comes from here. A board or a test picks a profile by name; a variant is
``profile("tiny").replace(vxm_stages=1)``.
"""
import dataclasses
import hashlib
import json

from arch.queues import MEM_BANKS_MAX, QUEUES


class ConfigError(ValueError):
    """A `Config` field is out of its range, or two fields contradict each other."""


def _bits_for(count: int) -> int:
    """Width of an unsigned field that can hold ``0 .. count - 1``."""
    return max(1, (count - 1).bit_length())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One machine.

    Parameters
    ----------
    name : str
        Profile name; part of the hash that ties an image to a machine.
    rows : int
        MXM rows: activations consumed per cycle and feed. Even.
    columns : int
        MXM columns; also the number of vector lanes. A power of two, ``rows`` to ``4 * rows``.
    tile_columns : int
        Columns of one systolic tile: activations reach the next tile one cycle later.
    weight_depth : int
        Words of every weight bank. One word is a byte per multiplier, ``rows * columns`` in all.
    weight_bits, activation_bits : int
        Operand widths of the multipliers, in bits.
    accumulators : int
        Entries of the int32 accumulator file of each column. A power of two.
    mem_banks, mem_depth : int
        Vector SRAM: banks of ``mem_depth`` words, a word being ``columns`` lanes of 16 bits.
    const_depth : int
        Words of the constant SRAM, as wide as a vector.
    patterns : int
        Entries of the lane-permutation table of the SXM.
    context : int
        Positions of the KV cache, a multiple of ``columns``; also the depth of the token memory.
    vocab_max : int
        Largest token id plus one that the sequencer and the sampler can hold.
    program_depth : dict of str to int
        Instructions per queue, by queue name; ``"*"`` is the default.
    param_columns : int
        Delay parameters per queue and row.
    count_bits : int
        Width of the counts of repeats and of the count registers.
    mem_stages, const_stages, mxm_stages, drain_stages, vxm_stages, perm_stages, reduce_stages : int
        Extra pipeline registers per slice (0 to 3), for timing closure. Schedules follow.
    links : int
        Chip-to-chip links. Reserved: must be 0.
    """
    name: str
    rows: int = 8
    columns: int = 16
    tile_columns: int = 4
    weight_depth: int = 3072
    weight_bits: int = 8
    activation_bits: int = 8
    accumulators: int = 16
    mem_banks: int = 4
    mem_depth: int = 64
    const_depth: int = 512
    patterns: int = 8
    context: int = 256
    vocab_max: int = 1024
    program_depth: tuple = (("*", 64),)
    param_columns: int = 16
    count_bits: int = 9
    mem_stages: int = 0
    const_stages: int = 0
    mxm_stages: int = 0
    drain_stages: int = 0
    vxm_stages: int = 0
    perm_stages: int = 0
    reduce_stages: int = 0
    links: int = 0

    def __post_init__(self):
        def need(condition, message):
            if not condition:
                raise ConfigError(f"profile {self.name!r}: {message}")
        need(self.rows in (2, 4, 8, 16, 32), f"rows must be 2, 4, 8, 16 or 32, not {self.rows!r}")
        need(self.columns in (self.rows, 2 * self.rows, 4 * self.rows),
             f"columns must be 1, 2 or 4 times rows, not {self.columns!r}")
        need(self.columns >= 4, f"columns must be at least 4, not {self.columns!r}")
        for name in ("tile_columns", "weight_depth", "mem_depth", "const_depth", "patterns",
                     "context", "param_columns"):
            size = getattr(self, name)
            need(size >= 1, f"{name} must be at least 1, not {size!r}")
        need(self.half_columns % self.tile_columns == 0,
             f"tile_columns must divide half of the columns, not {self.tile_columns!r}")
        need(self.weight_bits == 8, f"weight_bits must be 8, not {self.weight_bits!r}")
        need(8 <= self.activation_bits <= 10,
             f"activation_bits must be 8 to 10, not {self.activation_bits!r}")
        need(self.accumulators in (4, 8, 16, 32, 64),
             f"accumulators must be a power of two from 4 to 64, not {self.accumulators!r}")
        need(2 <= self.mem_banks <= MEM_BANKS_MAX,
             f"mem_banks must be 2 to {MEM_BANKS_MAX}, not {self.mem_banks!r}")
        need(self.context % self.columns == 0,
             f"context must be a multiple of columns, not {self.context!r}")
        # Tokens have 16 bits, of which the highest number means none (`arch.hostmap.NO_TOKEN`).
        need(2 <= self.vocab_max <= 0xFFFF,
             f"vocab_max must be 2 to 65535, not {self.vocab_max!r}")
        need(4 <= self.count_bits <= 9, f"count_bits must be 4 to 9, not {self.count_bits!r}")
        need(self.links == 0, f"links must be 0 (reserved), not {self.links!r}")
        for field in dataclasses.fields(self):
            if field.name.endswith("_stages"):
                stages = getattr(self, field.name)
                need(0 <= stages <= 3, f"{field.name} must be 0 to 3, not {stages!r}")
        for queue, depth in self.program_depth:
            need(queue == "*" or queue in QUEUES, f"program_depth names no queue {queue!r}")
            need(4 <= depth <= 512, f"program_depth must be 4 to 512, not {depth!r}")

    # Derived sizes.

    @property
    def lanes(self) -> int:
        """Lanes of a vector."""
        return self.columns

    @property
    def half_columns(self) -> int:
        """Columns served by one of the two activation feeds."""
        return self.columns // 2

    @property
    def groups(self) -> int:
        """K steps that one activation vector serves: lanes over rows."""
        return self.columns // self.rows

    @property
    def pairs(self) -> int:
        """Weight banks of a column: each holds the bytes of two neighbouring rows."""
        return self.rows // 2

    @property
    def macs_per_cycle(self) -> int:
        return self.rows * self.columns

    @property
    def param_rows(self) -> int:
        """Parameter rows: one per KV tile of ``columns`` positions."""
        return self.context // self.columns

    @property
    def weight_address_bits(self) -> int:
        return _bits_for(self.weight_depth)

    @property
    def mem_address_bits(self) -> int:
        return _bits_for(self.mem_depth)

    @property
    def const_address_bits(self) -> int:
        return _bits_for(self.const_depth)

    @property
    def accumulator_bits(self) -> int:
        return _bits_for(self.accumulators)

    @property
    def pattern_bits(self) -> int:
        return _bits_for(self.patterns)

    @property
    def lane_bits(self) -> int:
        return _bits_for(self.lanes)

    @property
    def position_bits(self) -> int:
        return _bits_for(self.context)

    @property
    def token_bits(self) -> int:
        return _bits_for(self.vocab_max)

    def depth_of(self, queue: str) -> int:
        """Instructions that the program memory of ``queue`` holds."""
        depths = dict(self.program_depth)
        return depths.get(queue, depths["*"])

    @property
    def gap_bits(self) -> int:
        """Width of inner gaps, and of the length of a loop body, which is below the depth."""
        return max(7, _bits_for(max(depth for _, depth in self.program_depth)))

    @property
    def queues(self) -> tuple:
        """Names of the queues that this machine has, in the order of their ids."""
        return tuple(name for name, queue in QUEUES.items() if queue.exists(self))

    def replace(self, **changes) -> "Config":
        """The same machine with some fields changed."""
        return dataclasses.replace(self, **changes)

    def digest(self) -> bytes:
        """Eight bytes that tie an image to the machine it was compiled for."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).digest()[:8]


PROFILES = {
    "tiny": Config(name="tiny", rows=4, columns=8, tile_columns=2, weight_depth=1024,
                   mem_depth=64, const_depth=128, context=32, vocab_max=256,
                   program_depth=(("*", 64), ("vxm", 96))),
    "small": Config(name="small", rows=8, columns=8, tile_columns=4, weight_depth=2048,
                    accumulators=32,
                    mem_depth=128, const_depth=512, context=64, vocab_max=512,
                    program_depth=(("*", 64), ("vxm", 96))),
    # Programs in distributed RAM, of 16 words a bank: as deep as models need, with room.
    "ecp5_85k": Config(name="ecp5_85k", activation_bits=10, mem_depth=48, mem_stages=1,
                       const_stages=1, mxm_stages=1, vxm_stages=2, reduce_stages=3, count_bits=7,
                       program_depth=(("*", 48), ("vxm", 96), ("kv", 16), ("sample", 16),
                                      ("perm", 16), ("red", 32), ("const", 64), ("r1", 64),
                                      ("r3", 32), ("w0", 32), ("w2", 32), ("w3", 32))),
    # For a part with 28 multipliers, 56 block RAMs and 24,000 LUTs.
    "ecp5_25k": Config(name="ecp5_25k", rows=4, columns=4, tile_columns=2, weight_depth=5120,
                       mem_depth=48, const_stages=1, mxm_stages=1, reduce_stages=3,
                       const_depth=1024, context=64, vocab_max=128,
                       program_depth=(("*", 48), ("vxm", 96), ("kv", 16), ("sample", 16),
                                      ("perm", 16), ("red", 16), ("const", 32), ("r1", 64),
                                      *((f"w{bank}", 32) for bank in range(4)))),
    "sim_large": Config(name="sim_large", activation_bits=10, weight_depth=131072,
                        mem_depth=1024, const_depth=16384, accumulators=64, patterns=32,
                        vocab_max=32768, param_columns=128, program_depth=(("*", 512),)),
}


def profile(name: str) -> Config:
    """The profile called ``name``.

    Raises
    ------
    ConfigError
        If there is none; the message lists those that exist.
    """
    if name not in PROFILES:
        raise ConfigError(f"unknown profile {name!r}; there are {', '.join(PROFILES)}")
    return PROFILES[name]
