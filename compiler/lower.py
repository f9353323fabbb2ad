"""Quantised decoder to tasks: buffers, words, constants, and one task per vector pass or matmul.

Every pass goes from memory to memory. The order of the tasks here is that of a sequential machine;
`compiler.schedule` finds the parallel one. Labels of stored vectors are those of `sim.reference`.

The rooms: `lower_state` fixes where everything lives, `lower_place` fills the memories,
`lower_ends`, `lower_attention`, `lower_rope` and `lower_ffn` make the tasks.
"""
import dataclasses

import numpy as np

from arch.config import Config
from compiler import (lower_attention, lower_ends, lower_ffn, lower_place, lower_rope,
                      lower_sampling)
from compiler.layout import Heads
from compiler.lower_state import Lowering
from compiler.quantised import QuantModel, Requant
from compiler.tasks import Program

#: Least cycles tried between the first step of the logits' matmul and its first drain.
LOGIT_LAGS = (0, 24, 32, 40, 48, 56, 64, 72, 80, 96)


@dataclasses.dataclass(frozen=True)
class Lowered:
    """Tasks and memory contents of a model on a machine.

    ``epilogues`` holds the tasks behind the last layer once per candidate lag between the logits'
    matmul and their requantisation; the program has the first. ``sampling`` is what the image says
    of top-k and top-p, None without them: stages, and the addresses of their settings.
    """
    program: Program
    epilogues: tuple
    patterns: np.ndarray
    constants: np.ndarray
    weights: np.ndarray
    kv_words: int
    mem_words: int
    heads: Heads
    sampling: dict | None = None


def _body(low: Lowering) -> tuple:
    """One layer; shifts must be those of every layer: see `uniform`."""
    low.tasks = []
    layer = low.uniform
    lower_attention.projections(low, layer)
    addend = low.biased("att", "o", layer.o)
    lower_attention.attention(low, layer)
    low.residual("attention output", low.at["m_o"], addend, layer.o, "x_mid", "ffn.in",
                 layer.ffn_in)
    lower_ffn.feed_forward(low, layer)
    return tuple(low.tasks)


def finish(low: Lowering) -> Lowered:
    """Fill the memories, make all tasks."""
    lower_place.place(low)
    low.uniform = uniform(low.model)
    prologue, body = lower_ends.prologue(low), _body(low)
    epilogues = tuple(lower_ends.epilogue(low, lag) for lag in LOGIT_LAGS)
    tail = lower_sampling.tail(low) if low.sampling else ()
    program = Program(prologue, body, epilogues[0], len(low.model.layers), low.strides, tail)
    heads, layers = low.heads, len(low.model.layers)
    kv_words = layers * (heads.k_vectors * low.config.groups * low.kv_tiles
                         + heads.v_vectors * low.v_words)
    patterns = np.full((low.config.patterns, low.config.lanes), -1)
    lower_ends.patterns(low, patterns)
    if low.model.rope is not None:
        lower_rope.patterns(low, patterns)
    return Lowered(program, epilogues, patterns, low.constants.finish(), low.weights.finish(),
                   kv_words, sum(low.mem.peak), heads,
                   {"stages": list(low.sampling), "words": low.setting} if low.sampling else None)


def uniform(model: QuantModel):
    """The shifts of a layer, which the one loop body shares among all layers.

    `compiler.quantise` makes them equal.
    """
    first = model.layers[0]
    for number, layer in enumerate(model.layers):
        for field in dataclasses.fields(layer):
            if field.name.startswith("w") or field.name == "units":
                continue
            mine, theirs = getattr(layer, field.name), getattr(first, field.name)
            if isinstance(mine, Requant):
                mine, theirs = (mine.pre, mine.post), (theirs.pre, theirs.post)
            if mine != theirs:
                raise AssertionError(f"layer {number}: {field.name} differs from layer 0")
    return first


def lower(model: QuantModel, config: Config, sampling: tuple = ()) -> Lowered:
    """Tasks, weights and constants of a quantised model, with stages of `arch.selection`.

    Raises
    ------
    ModelError
        If the model does not fit the machine, with the resource and the shortage.
    """
    return finish(Lowering(model, config, sampling))
