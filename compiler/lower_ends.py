"""Both ends of a step: from the token to the residual, and from the residual to the next token."""
from arch.isa import Index
from arch.queues import Stream
from compiler import lower_rope, lower_sampling
from compiler.layout import too_large
from compiler.lower_state import Lowering, chunks
from compiler.passes import (Const, Feed, Mem, Perm, ReadOut, TaskBuilder, matmul_uses)
from compiler.tasks import ADD

#: Row of the permutation table.
BROADCAST = 3


def prologue(low: Lowering) -> tuple:
    """Embedding, epsilon and the factors of the position."""
    low.tasks, config, token = [], low.config, int(Index.TOKEN)
    bits = config.lanes.bit_length() - 1
    task = TaskBuilder(config, "embedding scale")
    stream = task.operand(Perm(Const(low.m_embedding, 1, token, bits), BROADCAST, token), 0,
                          1)
    task.store(stream, [Mem(low.scale)], 0, 1, label="scale")
    low.tasks.append(task.done())
    low.pass_("embedding", "MAC", low.x_tiles, ReadOut(low.embedding, low.v_tiles, bits),
              Mem(low.scale, stride=0), gap=config.groups, post=low.model.embedding_post,
              into=[Mem(low.x), Mem(low.x2)], label="embedding")
    task = TaskBuilder(config, "epsilon")
    task.store(task.operand(Const(low.eps), 0, 1), [Mem(low.x2, low.x_tiles)], 0, 1,
               label="epsilon")
    low.tasks.append(task.done())
    lower_rope.factors(low)
    return tuple(low.tasks)


def epilogue(low: Lowering, logit_lag: int) -> tuple:
    """Final norm, logits and the sampler; ``logit_lag`` as in `compiler.lower.LOGIT_LAGS`."""
    low.tasks, model = [], low.model
    low.norm("final", model.final_bias)
    source = low.x
    if model.final_gain is not None:
        gain, source = model.final_gain, low.final
        low.pass_("final gain", "MAC", low.x_tiles, Mem(low.x2), Const(low.gain),
                  pre=gain.pre, post=gain.post, into=[Mem(low.final)], label="final")
    low.joined("logits", low.m_classifier, low.m_logits, 0, low.v_tiles)
    if low.sampling:
        lower_sampling.load(low)
    _logits(low, source, logit_lag)
    return tuple(low.tasks)


def _logits(low: Lowering, source, logit_lag):
    """All logits in one task: matmul, requantisation and sampling (or storing) in lockstep."""
    config, tiles = low.config, low.v_tiles
    task = TaskBuilder(config, "logits")
    pace = max(low.x_steps, task.timing.sample_gap)
    lag = max(low.x_steps + task.timing.matmul_to_drain, logit_lag)
    at = lag + task.timing.drain
    ring = config.accumulators
    if lag // pace + 2 > ring:
        raise too_large(config, "accumulators per column", lag // pace + 2, ring)
    s1, s2 = low.classifier_strides
    for first, count in chunks(tiles, ring):
        matmul_uses(task, first * pace, low.classifier + first * s2, (Feed(source),) * 2,
                    order="inner", steps=low.x_steps, tiles=count, s1=s1, s2=s2,
                    accumulator=0, shift=low.model.final_shift, cadence=pace)
        task.use("drain", "DRAIN", lag + first * pace, count, d1=pace, accumulator=0)
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
