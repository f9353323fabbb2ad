"""RoPE: the factors as the lanes need them, in CONST and in MEM, and the turn itself."""
import numpy as np

from arch.hostmap import power_of_two
from arch.isa import Index
from arch.queues import Stream
from arch.timing import timing
from compiler.layout import Heads, ceil_div
from compiler.lower_state import Lowering
from compiler.passes import Const, Mem, Perm, TaskBuilder
from compiler.quantised import ROPE_FRACTION, QuantModel

#: Rows of the permutation table.
SWAP, SPREAD_COS, SPREAD_SIN = 0, 1, 2


def rope_packed(heads: Heads) -> bool:
    """Whether cos and sin of a position share a vector and the SXM spreads them."""
    return heads.size <= heads.config.lanes and power_of_two(heads.size) == heads.size


def rope_tiles(model: QuantModel, heads: Heads) -> np.ndarray:
    """RoPE factors as the lanes need them: [positions, 2, period, lanes], cos then signed sin.

    The sine multiplies the other lane of the pair: negative in even lanes.
    """
    lanes, size, period = heads.config.lanes, heads.size, heads.period
    channel = np.arange(period * lanes) % heads.stride
    inside = channel < size
    pair = np.minimum(channel // 2, size // 2 - 1)
    cos = np.where(inside, model.rope[:, pair], 0)
    sin = np.where(inside, model.rope[:, size // 2 + pair], 0) * np.where(channel % 2, 1, -1)
    return np.stack([cos, sin], 1).reshape(len(model.rope), 2, period, lanes)


def place(low: Lowering) -> None:
    """Put the factors of all positions into CONST."""
    model, heads, lanes, constants = low.model, low.heads, low.config.lanes, low.constants
    tiles = rope_tiles(model, heads)
    if rope_packed(heads):
        per_vector = lanes // heads.size
        flat = np.zeros((ceil_div(len(tiles), per_vector) * per_vector, heads.size), np.int64)
        flat[:len(tiles)] = model.rope
        low.rope = constants.place(flat.reshape(-1, lanes))
        low.sign = constants.place(np.where(np.arange(lanes) % 2, 1, -1)[None])
    else:
        # One run of all positions per factor: position is the fastest index.
        low.rope = constants.place(tiles.reshape(len(tiles), -1, lanes).transpose(1, 0, 2)
                                   .reshape(-1, lanes))


def patterns(low: Lowering, table: np.ndarray) -> None:
    """Fill in the lane patterns that the turn needs."""
    lane, size = np.arange(low.config.lanes), low.heads.size
    table[SWAP] = lane ^ 1
    if rope_packed(low.heads):
        table[SPREAD_COS], table[SPREAD_SIN] = lane % size // 2, size // 2 + lane % size // 2


def factors(low: Lowering) -> None:
    """Tasks that bring the factors of the present position into MEM."""
    config, heads, position = low.config, low.heads, int(Index.POSITION)
    if not rope_packed(heads):
        task = TaskBuilder(config, "rope factors")
        positions = len(low.model.rope)
        at = task.timing.const_read
        task.use("const", "READ", 0, 2 * heads.period, address=low.rope, s1=positions,
                 index=position)
        for offset, (target, label) in enumerate(((low.cos, "cos"), (low.sin, "sin"))):
            task.store(Stream.CONST, [Mem(target)], at + offset * heads.period, heads.period,
                       label=label)
        low.tasks.append(task.done())
        return
    block, per_vector = heads.size.bit_length() - 1, config.lanes // heads.size
    source = Const(low.rope, 1, position, per_vector.bit_length() - 1)
    task = TaskBuilder(config, "cos")
    stream = task.operand(Perm(source, SPREAD_COS, position, block), 0, 1)
    task.store(stream, [Mem(low.cos)], 0, 1, label="cos")
    low.tasks.append(task.done())
    # The spread sine goes through MEM, because its sign is a constant as well.
    task = TaskBuilder(config, "sin spread")
    stream = task.operand(Perm(source, SPREAD_SIN, position, block), 0, 1)
    task.store(stream, [Mem(low.sin)], 0, 1, label="sin_spread")
    low.tasks.append(task.done())
    low.pass_("sin", "MAC", 1, Mem(low.sin), Const(low.sign), into=[Mem(low.sin)],
              label="sin")


def turn(low: Lowering, name, base, first, count) -> None:
    """RoPE on raw vectors of q or k."""
    period, at = low.heads.period, base + first
    factor = lambda buffer: (Mem(buffer, stride=0) if period == 1  # noqa: E731
                             else Mem(buffer, period=period))
    low.pass_(f"{name} {first} sine", "MAC", count, Perm(Mem(low.raw, at), SWAP),
              factor(low.sin), gap=timing(low.config).perm_gap, post=ROPE_FRACTION,
              into=[Mem(low.turn, at)],
              label="qk_turn", first=at)
    target = Mem(low.k, first) if name == "k" else Mem(low.q, first)
    low.pass_(f"{name} {first} cosine", "MAC", count, Mem(low.raw, at), factor(low.cos),
              Mem(low.turn, at), post=ROPE_FRACTION, into=[target], label=name, first=first)
