"""Attention: projections, scores, softmax, weighted values, and the way back into the residual."""
from arch.isa import Index
from arch.queues import Stream
from compiler import lower_rope
from compiler.lower_state import V_PIECE, Lowering, chunks
from compiler.passes import Acc, Const, Feed, Mem, TaskBuilder
from compiler.tasks import READ, WRITE, N


def projections(low: Lowering, layer) -> None:
    """Norm, then q, k and v; keys and values go on into the cache."""
    config, heads, at = low.config, low.heads, low.at
    q, k, v = heads.q_vectors, heads.k_vectors, heads.v_vectors
    low.norm("att", layer.att_norm_bias)
    low.joined("att", at["m_qkv"], low.m_qkv, 0, k + q + v)
    piece, ring, entry = low.qk_piece, low.ring, 0
    positions = int(Index.POSITION)
    plan = [("k", 0, first, count, "wk", layer.k) for first, count in chunks(k, piece)]
    plan += [("q", k, first, count, "wq", layer.q) for first, count in chunks(q, piece)]
    plan += [("v", k + q, first, count, "wv", layer.v) for first, count in chunks(v, V_PIECE)]
    for name, base, first, count, weight, requant in plan:
        entry = 0 if entry + count > ring[1] else entry
        accumulator = ring[0] + entry
        entry += count
        low.matmul(f"{name} {first}", at[weight] + first * low.x_steps, Feed(low.x),
                   order="inner", steps=low.x_steps, tiles=count, s1=1, s2=low.x_steps,
                   accumulator=accumulator, shift=layer.att_norm_shift)
        source = dict(a=Acc(accumulator), b=Mem(low.m_qkv, base + first), pre=requant.pre,
                      post=requant.post)
        if requant.bias is not None:
            source["c"] = Const(at[f"bias_{name}"] + first)
        if name == "v":
            word = at["values"] + first * low.v_words

            def write(task, moment, first=first, count=count, word=word):
                task.use("kv", "WRITE_V", moment, count, address=word, s1=low.v_words,
                         index=positions, index_shift=config.rows.bit_length() - 1,
                         x=int(Stream.VXM))
                seen = moment + task.timing.kv_write_to_matmul
                task.touch("values", first, count, WRITE, seen)
            low.pass_(f"v {first} requantise", "MAC", count, tail=write, **source)
            continue
        if low.model.rope is None:
            into = Mem(low.k, first) if name == "k" else Mem(low.q, first)
            low.pass_(f"{name} {first} requantise", "MAC", count, label=name, first=first, into=[into],
                      **source)
        else:
            low.pass_(f"{name} {first} requantise", "MAC", count, label="qk_raw",
                      first=base + first, into=[Mem(low.raw, base + first)], **source)
            lower_rope.turn(low, name, base, first, count)
        if name == "k":
            _write_keys(low, layer, first, count)


def _write_keys(low: Lowering, layer, first, count):
    """Key vectors into the cache, each in ``groups`` parts, rounded to 8 bits on the way."""
    config, groups, halves = low.config, low.config.groups, first * low.config.groups
    task = TaskBuilder(config, f"k {first} write")
    issue = -task.timing.mem_read
    task.use(f"r{low.k.bank}", "READ", issue, groups, count, address=low.k.base + first, s1=0,
             s2=1)
    task.touch(f"m{low.k.bank}", low.k.base + first, count, READ, issue, issue + groups - 1,
               gap=groups)
    task.use("vxm", "MAC", 0, groups * count, a=int(Stream.M0) + low.k.bank, post=layer.k_shift)
    done = task.timing.vxm
    task.use("kv", "WRITE_K", done, groups * count, index=int(Index.POSITION),
             address=low.at["keys"] + halves * low.kv_tiles, s1=low.kv_tiles,
             index_shift=config.lanes.bit_length() - 1, x=int(Stream.VXM))
    task.touch("keys", halves, groups * count, WRITE, done + task.timing.kv_write_to_matmul)
    low.tasks.append(task.done())


def attention(low: Lowering, layer) -> None:
    """All heads; each vector of weighted values goes through its part of wo when it is complete.

    Where scores take all accumulators, values wait until their place in MEM is wanted, and wo until
    the last scores are drained.
    """
    heads, order = low.heads, low.head_order()
    scored, done, peaks = set(), [], [0] * 4
    for number, head in enumerate(order):
        _scores(low, layer, head, low.score_bases[number % len(low.score_bases)], peaks)
        scored.add(head)
        if low.scores_first and not _wanted(low, order, number + 1):
            continue
        for tile in range(heads.v_vectors):
            for member in range(heads.group):
                owners = [heads.half_owner(tile, half) * heads.group + member for half in (0, 1)]
                vector = tile * heads.group + member
                if vector in done or not {*owners} <= scored:
                    continue
                _weighted(low, tile, vector, owners, low.pv_ring[0] + len(done) % low.pv_ring[1])
                if not low.scores_first:
                    _project(low, vector, first=not done)
                done.append(vector)
    if low.scores_first:
        for vector in done:
            _project(low, vector, first=vector == done[0])


def _wanted(low: Lowering, order, number) -> bool:
    """Whether head ``number`` of the order takes the place of scores before it; or is none."""
    return number == len(order) or low.slot[order[number]] in [low.slot[head]
                                                               for head in order[:number]]


def _scores(low: Lowering, layer, head, base, peaks):
    config, heads, at = low.config, low.heads, low.at
    kv, slot, bank = head // heads.group, low.slot[head], low.slot[head].bank
    step = head * heads.step_stride
    feed = Feed(low.q, step // config.groups)
    keys = kv * heads.step_stride
    inner = heads.steps > config.groups
    strides = dict(s1=low.kv_tiles, s2=1) if inner else dict(s1=1, s2=low.kv_tiles)
    # The newest key is in the last tile: read tiles-1 steps after the first one.
    begin = (N - 1) * (heads.steps if inner else 1)
    touches = [("keys", keys, heads.steps, begin)]
    low.matmul(f"scores {head}", at["keys"] + keys * low.kv_tiles, (feed, feed),
               order="inner" if inner else "outer", steps=heads.steps, tiles=N,
               accumulator=base, half0=0 if inner else step % config.groups,
               shift=layer.q_shift, touches=touches, **strides)
    peak_bank = low.peak_bank(bank)
    peak = Mem(low.peak[peak_bank], peaks[peak_bank] % low.peak[peak_bank].size, stride=0)
    peaks[peak_bank] += 1
    low.pass_(f"scores {head} requantise", "MAC", N, Acc(base),
              b=Const(at["m_scores"] + head, stride=0), pre=layer.scores.pre,
              post=layer.scores.post, mask=1,
              into=[Mem(slot)], label=f"scores.{head}",
              reduce=dict(op="MAX", target=peak, label=f"peak.{head}"))
    low.tasks.append(_exponential(low, head, slot, peak))


def _exponential(low: Lowering, head, slot, peak):
    """exp of the scores; the reciprocal of their sum to every word that needs it."""
    task = TaskBuilder(low.config, f"exp {head}")
    a, c = task.operand(Mem(slot), 0, N), task.operand(peak, 0, N)
    task.use("vxm", "EXP2", 0, N, a=int(a), c=int(c), post=low.model.exp_post, mask=1)
    at = task.timing.vxm
    task.store(Stream.VXM, [Mem(slot)], at, N, label=f"exp.{head}")
    task.use("red", "RECIP", at, N, x=int(Stream.VXM), post=low.model.recip_bias)
    moment = N - 1 + (at + task.timing.reduce_function)
    for owners, target in low.inverse.items():
        halves = sum(1 << half for half in (0, 1) if owners[half] == head)
        if halves:
            task.store(Stream.RED, [target], moment, 1, label=f"inverse.{head}",
                       halves=halves)
    return task.done()


def _weighted(low: Lowering, tile, vector, owners, accumulator):
    config, at = low.config, low.at
    feeds = tuple(Feed(low.slot[head]) for head in owners)
    words = at["values"] + tile * low.v_words
    begin = (N - 1) * config.groups
    low.matmul(f"values {vector}", words, feeds, order="inner",
               steps=N * config.groups, tiles=1, s1=1, s2=0, accumulator=accumulator,
               touches=[("values", tile, 1, begin)])
    low.pass_(f"values {vector} normalise", "MAC", 1, Acc(accumulator),
              low.inverse[tuple(owners)], pre=low.model.att_pre, post=low.model.att_post,
              b_float=1, into=[Mem(low.att, vector)], label="att", first=vector)


def _project(low: Lowering, vector, first):
    groups, tiles = low.config.groups, low.x_tiles
    low.matmul(f"attention output {vector}", low.at["wo"] + vector * groups * tiles,
               Feed(low.att, vector), order="outer", steps=groups, tiles=tiles, s1=1,
               s2=tiles, accumulator=0, start=first)
