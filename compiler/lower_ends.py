"""Both ends of a step: from the token to the residual, and from the residual to the next token."""
import numpy as np

from arch.isa import Index
from arch.queues import Stream
from compiler import lower_rope, lower_sampling
from compiler.layout import too_large
from compiler.lower_state import Lowering
from compiler.passes import (Const, Feed, Mem, Perm, ReadOut, TaskBuilder, matmul_uses)
from compiler.tasks import ADD

#: Rows of the permutation table. Without RoPE, a pattern for the lanes of the last channels takes
#: the place of its first one.
BROADCAST, TAIL = 3, 0


def prologue(low: Lowering) -> tuple:
    """Embedding, epsilon and the factors of the position."""
    low.tasks, config, model = [], low.config, low.model
    addend = None
    if model.offsets is not None:
        whole, rest = divmod(low.dims.dim, config.lanes)
        if whole:
            _broadcast(low, low.offsets, Index.TOKEN, Mem(low.offset), "offset", whole)
        if rest:
            _broadcast(low, low.offsets, Index.TOKEN, Mem(low.offset, whole), "offset", 1, TAIL)
        addend = Mem(low.offset)
    if model.positions is not None:
        _rows(low, "place", low.positions, low.kv_tiles, low.m_positions, Index.POSITION,
              low.place_scale, "place.scale", addend, model.positions.post, [Mem(low.place)])
        addend = Mem(low.place)
    _rows(low, "embedding", low.embedding, low.v_tiles, low.m_embedding, Index.TOKEN, low.scale,
          "scale", addend, model.embedding.post,
          [Mem(low.x2)] if model.final_in is not None else [Mem(low.x), Mem(low.x2)])
    if model.final_in is not None:
        low.scaled("embedding scaled", low.first_in, model.layers[0].att_in, "att.in")
    task = TaskBuilder(config, "epsilon")
    task.store(task.operand(Const(low.eps), 0, 1), [Mem(low.x2, low.x_tiles)], 0, 1,
               label="epsilon")
    low.tasks.append(task.done())
    if model.rope is not None:
        lower_rope.factors(low)
    return tuple(low.tasks)


def patterns(low: Lowering, table: np.ndarray) -> None:
    """Fill in the lane patterns of the prologue."""
    table[BROADCAST] = 0
    if low.model.offsets is not None:
        table[TAIL] = np.where(np.arange(low.config.lanes) < low.dims.dim % low.config.lanes, 0, -1)


def _broadcast(low: Lowering, address, index, target, label, count=1, pattern=BROADCAST) -> None:
    """The constant of a token or a position, on all lanes of the pattern, into words of MEM."""
    task = TaskBuilder(low.config, f"{label} {target.start}")
    source = Const(address, 0, int(index), low.config.lanes.bit_length() - 1)
    gap = task.timing.perm_gap
    stream = task.operand(Perm(source, pattern, int(index)), 0, count, gap)
    task.store(stream, [target], 0, count, gap, label=label, first=target.start)
    low.tasks.append(task.done())


def _rows(low: Lowering, label, address, tiles, multipliers, index, scale, scale_label, addend,
          post, into) -> None:
    """The row of a token or a position from the weight banks, times its multiplier."""
    _broadcast(low, multipliers, index, Mem(scale), scale_label)
    row = ReadOut(address, tiles, low.config.lanes.bit_length() - 1, int(index))
    low.pass_(label, "MAC", low.x_tiles, row, Mem(scale, stride=0), addend,
              gap=low.config.groups, post=post, into=into, label=label)


def epilogue(low: Lowering, logit_lag: int) -> tuple:
    """Final norm, logits and the sampler; ``logit_lag`` as in `compiler.lower.LOGIT_LAGS`."""
    low.tasks, model = [], low.model
    low.norm("final", model.final_bias)
    source = low.x
    if low.dims.norm == "layer":
        gain, source = model.final_gain, low.final
        low.joined("final", low.gain, low.m_final, 0, low.x_tiles)
        low.pass_("final norm", "MAC", low.x_tiles, Mem(low.x2), Mem(low.m_final),
                  Const(low.final_bias), pre=gain.pre, post=gain.post, into=[Mem(low.final)],
                  label="final")
        task = TaskBuilder(low.config, "logits multipliers")
        task.store(task.operand(Const(low.m_classifier), 0, low.v_tiles), [Mem(low.m_logits)], 0,
                   low.v_tiles, label="logits.m")
        low.tasks.append(task.done())
        return _finished(low, source, logit_lag)
    if model.final_gain is not None:
        gain, source = model.final_gain, low.final
        low.pass_("final gain", "MAC", low.x_tiles, Mem(low.x2), Const(low.gain),
                  pre=gain.pre, post=gain.post, into=[Mem(low.final)], label="final")
    low.joined("logits", low.m_classifier, low.m_logits, 0, low.v_tiles)
    return _finished(low, source, logit_lag)


def _finished(low: Lowering, source, logit_lag) -> tuple:
    """Logits and sampling behind the tasks so far."""
    if low.sampling:
        lower_sampling.load(low)
    _logits(low, source, logit_lag)
    return tuple(low.tasks)


def _logits(low: Lowering, source, logit_lag):
    """All logits in one task: matmul, requantisation and sampling (or storing) in lockstep."""
    config, tiles = low.config, low.v_tiles
    task = TaskBuilder(config, "logits")
    pace = max(low.x_steps, task.timing.sample_gap)
    ring, least = config.accumulators, low.x_steps + task.timing.matmul_to_drain
    if least // pace + 2 > ring:
        raise too_large(config, "accumulators per column", least // pace + 2, ring)
    # A longer lag holds more sums at a time: never more than there are accumulators.
    lag = min(max(least, logit_lag), (ring - 1) * pace - 1)
    at = lag + task.timing.drain
    s1, s2 = low.classifier_strides
    matmul_uses(task, 0, low.classifier, (Feed(source),) * 2, order="inner", steps=low.x_steps,
                tiles=tiles, s1=s1, s2=s2, accumulator=0, shift=low.model.final_shift,
                cadence=pace)
    task.use("drain", "DRAIN", lag, tiles, d1=pace, accumulator=0)
    b = task.operand(Mem(low.m_logits), at, tiles, pace)
    requant = low.model.logits
    fields = dict(a=int(Stream.ACC), b=int(b), pre=requant.pre, post=requant.post)
    if low.sampling:
        lower_sampling.keep_logits(low, task, at, pace, **fields)
    else:
        task.use("vxm", "MAC", at, tiles, d1=pace, **fields)
        task.use("sample", "ARGMAX", at + task.timing.vxm - task.timing.sample_skew, tiles,
                 d1=pace, x=int(Stream.VXM))
    # Within the task the ring is safe by construction; towards others it is one block.
    task.touches = [touch for touch in task.touches if touch.space != "acc"]
    task.touch("acc", 0, min(tiles, ring), ADD, task.timing.matmul_to_drain,
               lag + tiles * pace, gap=0)
    low.tasks.append(task.done())
