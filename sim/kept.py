"""Vectors of the reference in the shape in which the machine stores them, for checks."""
import numpy as np

from arch import numerics
from arch.config import Config
from compiler.layout import Heads, ceil_div


class Kept:
    """What one step of the reference stores: ``vectors`` maps (label, layer) to [count, lanes].

    Arrays have a first axis of one, that of the token.
    """

    def __init__(self, config: Config, heads: Heads):
        self.config, self.heads, self.vectors = config, heads, {}

    def put(self, label: str, layer: int, values) -> None:
        """Channels [1, n] as vectors, zero-padded."""
        self.vectors[label, layer] = self.padded(values).reshape(-1, self.config.lanes)

    def scalar(self, label: str, layer: int, value) -> None:
        """A value that is on every lane of a vector."""
        self.put(label, layer, np.repeat(value, self.config.lanes)[None])

    def padded(self, values) -> np.ndarray:
        """[1, n] with n filled up to whole vectors."""
        lanes = self.config.lanes
        padded = np.zeros((1, ceil_div(values.shape[1], lanes) * lanes), np.int64)
        padded[:, :values.shape[1]] = values
        return padded

    def spread(self, values, heads: int) -> np.ndarray:
        """[1, heads * size] with each head padded to its stride, and whole vectors."""
        return self.padded(self.heads.spread(np.asarray(values)[0], heads)[None])

    def attention(self, layer, scores, peak, p, inverse, att) -> None:
        """Scores [kv heads, group, positions] and what follows from them, head by head."""
        lanes, heads = self.config.lanes, self.heads
        count = scores.shape[-1]
        width = ceil_div(count, lanes) * lanes
        for head in range(heads.count):
            kv, member = divmod(head, heads.group)
            row = np.full((1, width), numerics.MASKED)
            row[0, :count] = scores[kv, member]
            self.put(f"scores.{head}", layer, row)
            self.scalar(f"peak.{head}", layer, peak[kv, member])
            self.put(f"exp.{head}", layer, p[kv, member][None])
            self.scalar(f"inverse.{head}", layer, inverse[kv, member])
        table = heads.attended()
        flat = att.reshape(-1)
        self.put("att", layer, np.where(table >= 0, flat[np.maximum(table, 0)], 0).reshape(1, -1))
