"""Where everything lives: weight words, constants, permutation patterns and vector buffers."""
import dataclasses

import numpy as np

from arch.config import Config
from compiler.errors import CapacityError, ModelError


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def too_large(config: Config, what: str, need: int, have: int) -> CapacityError:
    """The error for a model that does not fit: resource and shortage."""
    return CapacityError(f"profile {config.name!r} has {have} {what}, the model needs {need}, "
                         f"{need - have} more")


@dataclasses.dataclass(frozen=True)
class Buffer:
    """Words of a MEM bank."""
    name: str
    bank: int
    base: int
    size: int


class Vectors:
    """Allocator of MEM words: permanent buffers first, then phases that overlay each other."""

    def __init__(self, config: Config):
        self.config = config
        self.permanent = [0] * config.mem_banks
        self.used = {}
        self.peak = [0] * config.mem_banks
        self.buffers = []

    def take(self, name: str, bank: int, size: int, phase: str = "") -> Buffer:
        """Reserve ``size`` words; buffers of different phases may share words.

        Permanent buffers (no phase) must be taken before those of any phase.
        """
        if not phase:
            assert not self.used, "permanent buffers come first"
            base = self.permanent[bank]
            self.permanent[bank] += size
        else:
            levels = self.used.setdefault(phase, list(self.permanent))
            base = levels[bank]
            levels[bank] += size
        self.peak[bank] = max(self.peak[bank], base + size)
        buffer = Buffer(name, bank, base, size)
        self.buffers.append(buffer)
        return buffer

    def begin(self, phase: str, behind: str) -> None:
        """Begin a phase whose buffers lie behind those that another one has so far."""
        self.used[phase] = list(self.used[behind])

    def check(self) -> None:
        """Raise `ModelError` if a bank overflows."""
        worst = max(self.peak)
        if worst > self.config.mem_depth:
            raise too_large(self.config, f"words in MEM bank {self.peak.index(worst)}", worst,
                            self.config.mem_depth)


class Weights:
    """Builds the weight words: one int8 per multiplier."""

    def __init__(self, config: Config):
        self.config, self.blocks, self.size = config, [], 0

    def tiles(self, matrix: np.ndarray) -> np.ndarray:
        """Words [tiles, k, rows, columns] of ``matrix`` [out, in], zero-padded."""
        rows, columns = self.config.rows, self.config.columns
        out, inner = matrix.shape
        tiles, steps = ceil_div(out, columns), ceil_div(inner, rows)
        padded = np.zeros((tiles * columns, steps * rows), np.int8)
        padded[:out, :inner] = matrix
        return padded.reshape(tiles, columns, steps, rows).transpose(0, 2, 3, 1)

    def place(self, words: np.ndarray) -> int:
        """Append words [..., rows, columns]; returns the address of the first."""
        address = self.size
        words = words.reshape(-1, self.config.rows, self.config.columns)
        self.blocks.append(words)
        self.size += len(words)
        return address

    def finish(self) -> np.ndarray:
        """All words, or `ModelError` if there are more than the banks hold."""
        if self.size > self.config.weight_depth:
            raise too_large(self.config, "weight words (weights and KV cache)", self.size,
                            self.config.weight_depth)
        return np.concatenate(self.blocks)


class Constants:
    """Builds the constant SRAM: vectors of int16."""

    def __init__(self, config: Config):
        self.config, self.rows = config, []

    def place(self, vectors: np.ndarray) -> int:
        """Append vectors [count, lanes]; returns the address of the first."""
        address = len(self.rows)
        self.rows += list(np.asarray(vectors, np.int64))
        return address

    def channels(self, values: np.ndarray) -> np.ndarray:
        """One value per channel as vectors [tiles, lanes], zero-padded."""
        lanes = self.config.lanes
        padded = np.zeros(ceil_div(len(values), lanes) * lanes, np.int64)
        padded[:len(values)] = values
        return padded.reshape(-1, lanes)

    def finish(self) -> np.ndarray:
        if len(self.rows) > self.config.const_depth:
            raise too_large(self.config, "constant words", len(self.rows),
                            self.config.const_depth)
        table = np.array(self.rows, np.int64).reshape(-1, self.config.lanes)
        assert np.all(table == table.astype(np.int16))
        return table.astype(np.int16)


@dataclasses.dataclass(frozen=True)
class Heads:
    """How heads lie in vectors and words.

    Parameters
    ----------
    size : int
        Channels of a head.
    stride : int
        Channels from one head to the next in q and k vectors: heads that do not tile a vector
        start on a new one.
    """
    config: Config
    count: int
    kv_count: int
    size: int
    stride: int

    @property
    def group(self) -> int:
        return self.count // self.kv_count

    @property
    def steps(self) -> int:
        """K steps of one head's scores."""
        return self.size // self.config.rows

    @property
    def step_stride(self) -> int:
        """K words from one head to the next, padding included."""
        return self.stride // self.config.rows

    @property
    def q_vectors(self) -> int:
        return ceil_div(self.count * self.stride, self.config.lanes)

    @property
    def k_vectors(self) -> int:
        return ceil_div(self.kv_count * self.stride, self.config.lanes)

    @property
    def v_vectors(self) -> int:
        return ceil_div(self.kv_count * self.size, self.config.lanes)

    @property
    def period(self) -> int:
        """Vectors after which the RoPE factors of q and k repeat."""
        return max(1, self.stride // self.config.lanes)

    def spread(self, rows: np.ndarray, heads: int) -> np.ndarray:
        """Rows [heads * size, ...] with each head padded to ``stride`` rows."""
        shape = (heads, self.size) + rows.shape[1:]
        out = np.zeros((heads, self.stride) + rows.shape[1:], rows.dtype)
        out[:, :self.size] = rows.reshape(shape)
        return out.reshape((heads * self.stride,) + rows.shape[1:])

    def half_owner(self, tile: int, half: int) -> int:
        """KV head whose values lie in half ``half`` of value tile ``tile`` (the last, if none)."""
        channel = tile * self.config.columns + half * self.config.half_columns
        return min(channel // self.size, self.kv_count - 1)

    def attended(self) -> np.ndarray:
        """Natural channel of every lane of the weighted values, -1 for padding.

        Vector ``tile * group + member`` holds, in the lanes of a value tile, the heads ``owner *
        group + member``. Shape [vectors, lanes].
        """
        lanes, half = self.config.lanes, self.config.half_columns
        table = np.full((self.v_vectors * self.group, lanes), -1)
        for tile in range(self.v_vectors):
            for member in range(self.group):
                for lane in range(lanes):
                    channel = tile * lanes + lane
                    if channel < self.kv_count * self.size:
                        head = self.half_owner(tile, lane // half) * self.group + member
                        table[tile * self.group + member, lane] = (
                            head * self.size + channel % self.size)
        return table


def heads_of(model, config: Config) -> Heads:
    """Check that the machine can hold the model's heads, and lay them out."""
    size, rows, lanes = model.head_size, config.rows, config.lanes
    if size % rows or size % config.half_columns:
        raise ModelError(f"head size {size} is no multiple of the {rows} rows and "
                         f"{config.half_columns} columns per feed of profile {config.name!r}")
    tiles = lanes % size == 0 or size % lanes == 0
    return Heads(config, model.n_heads, model.n_kv_heads, size,
                 size if tiles else ceil_div(size, lanes) * lanes)
