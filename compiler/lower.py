"""Quantised decoder to tasks: buffers, words, constants, and one task per vector pass or matmul.

Every pass goes from memory to memory. The order of the tasks here is that of a sequential machine;
`compiler.schedule` finds the parallel one. Labels of stored vectors are those of `sim.reference`.
"""
import dataclasses

import numpy as np

from arch.config import Config
from arch.hostmap import power_of_two
from arch.isa import Index
from arch.queues import Stream
from compiler.errors import ModelError
from compiler.layout import Constants, Heads, Vectors, Weights, ceil_div, heads_of, too_large
from compiler.passes import (Acc, Const, Feed, Mem, Perm, ReadOut, TaskBuilder, matmul,
                             matmul_uses, vector_pass)
from compiler.quantise import NORM_POST, ROPE_FRACTION, QuantModel, eps_vector
from compiler.tasks import ADD, READ, WRITE, N, Program

#: Least cycles tried between the first step of the logits' matmul and its first drain.
LOGIT_LAGS = (0, 24, 32, 40, 48, 56, 64, 72, 80, 96)
#: Rows of the permutation table.
SWAP, SPREAD_COS, SPREAD_SIN, BROADCAST = 0, 1, 2, 3


@dataclasses.dataclass(frozen=True)
class Lowered:
    """Tasks and memory contents of a model on a machine.

    ``epilogues`` holds the tasks behind the last layer once per candidate lag between the logits'
    matmul and their requantisation; the program has the first.
    """
    program: Program
    epilogues: tuple
    patterns: np.ndarray
    constants: np.ndarray
    weights: np.ndarray
    kv_words: int
    mem_words: int
    heads: Heads


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


def _chunks(count: int, size: int) -> list:
    """``(first, length)`` of pieces of at most ``size``, the last not the longest."""
    return [(first, min(size, count - first)) for first in range(0, count, size)]


def hidden_chunks(tiles: int) -> list:
    """Hidden tiles in the pieces that gate and up are computed in: (first, length) each.

    Small ones keep the chain of passes behind the last piece short.
    """
    return _chunks(tiles, 2)


class _Lowering:
    def __init__(self, model: QuantModel, config: Config):
        self.model, self.config = model, config
        self.dims, self.heads = model.config, heads_of(model.config, config)
        if config.mem_banks != 4:
            raise ModelError(f"the decoder needs 4 MEM banks; profile {config.name!r} has "
                             f"{config.mem_banks}")
        if model.context > config.context:
            raise too_large(config, "positions", model.context, config.context)
        if self.dims.vocab_size > config.vocab_max:
            raise too_large(config, "token ids", self.dims.vocab_size, config.vocab_max)
        self.kv_tiles = ceil_div(model.context, config.columns)
        self.x_tiles = ceil_div(self.dims.dim, config.lanes)
        self.x_steps = ceil_div(self.dims.dim, config.rows)
        self.h_tiles = ceil_div(self.dims.hidden_dim, config.lanes)
        self.v_tiles = ceil_div(self.dims.vocab_size, config.lanes)
        self.weights, self.constants = Weights(config), Constants(config)
        self._accumulators()
        self._buffers()

    # Resources.

    def _accumulators(self):
        """Output sums from 0, then scores and everything else in rings behind them."""
        total, tiles = self.config.accumulators, self.x_tiles
        spare = total - tiles - self.kv_tiles
        if spare < 2:
            raise too_large(self.config, "accumulators per column", tiles + self.kv_tiles + 2,
                            total)
        self.ring = (tiles, total - tiles)
        step = max(1, min(self.kv_tiles, (spare - 2) // 2)) if spare >= 4 else 0
        self.score_bases = [tiles + step * i for i in range(3)
                            if step * i + self.kv_tiles + 2 <= total - tiles] or [tiles]
        first = self.score_bases[-1] + self.kv_tiles
        self.pv_ring = (first, total - first)

    def _buffers(self):
        config, heads = self.config, self.heads
        take = (mem := Vectors(config)).take
        self.mem = mem
        self.x, self.x2 = take("x", 0, self.x_tiles), take("x2", 1, self.x_tiles + 1)
        self.cos, self.sin = take("cos", 1, heads.period), take("sin", 1, heads.period)
        self.scale, self.r = take("scale", 1, 1), take("r", 3, 1)
        q, k, v = heads.q_vectors, heads.k_vectors, heads.v_vectors
        self.m_qkv = take("m_qkv", 1, q + k + v, "att")
        self.raw, self.turn = take("raw", 2, q + k, "att"), take("turn", 3, q + k, "att")
        self.k, self.q = take("k", 3, k, "att"), take("q", 0, q, "att")
        self.att = take("att", 0, v * heads.group, "att")
        self._inverse_words()
        banks = [self.score_bank(head) for head in range(heads.count)]
        self.peak = [take(f"peak{bank}", bank, banks.count((bank + 2) % 4), "att")
                     for bank in range(4)]
        self._score_slots()
        h = self.h_tiles
        self.m_ffn = take("m_ffn", 1, 2 * h, "ffn")
        self.gate, self.up = take("gate", 2, h, "ffn"), take("up", 2, h, "ffn")
        self.silu, self.hidden = take("silu", 3, h, "ffn"), take("hidden", 0, h, "ffn")
        self.final = take("final", 2, self.x_tiles, "end")
        self.m_logits = take("m_logits", 1, self.v_tiles, "end")
        mem.check()

    def _score_slots(self):
        """Slots of ``kv_tiles`` words for the scores of a head, in the bank of its parity."""
        wanted = [[], [], [], []]
        for head in self.head_order():
            wanted[self.score_bank(head)].append(head)
        self.slot = {}
        for bank, members in enumerate(wanted):
            level = self.mem.used["att"][bank]
            room = (self.config.mem_depth - level) // self.kv_tiles
            if members and room < 1:
                raise too_large(self.config, f"words in MEM bank {bank}", level + self.kv_tiles,
                                self.config.mem_depth)
            slots = [self.mem.take(f"scores{bank}.{i}", bank, self.kv_tiles, "att")
                     for i in range(min(room, len(members)))]
            self.slot |= {head: slots[i % len(slots)] for i, head in enumerate(members)}

    def head_order(self) -> list:
        """Query heads, those whose values share a tile next to each other."""
        group = self.heads.group
        return [kv * group + member for first in range(0, self.heads.kv_count, 2)
                for member in range(group)
                for kv in range(first, min(first + 2, self.heads.kv_count))]

    def score_bank(self, head: int) -> int:
        kv, member = divmod(head, self.heads.group)
        pair = kv // 2 * self.heads.group + member
        return (2, 0)[pair % 2] + kv % 2

    # Memory contents.

    def _place(self):
        """Weights, constants and patterns; the addresses used by the tasks."""
        model, heads, lanes = self.model, self.heads, self.config.lanes
        weights, constants = self.weights, self.constants
        placed = [self._place_layer(layer) for layer in model.layers]
        begin, second = placed[0], placed[min(1, len(placed) - 1)]
        self.at = begin
        self.strides = {"mxm": second["wq"] - begin["wq"], "kv": second["wq"] - begin["wq"],
                        "const": second["m_qkv"] - begin["m_qkv"]}
        # Embedding, k-major, so that the tile of a token is the fastest index of its words.
        steps = self.x_tiles * self.config.groups
        words = weights.tiles(model.embedding)
        padded = np.zeros((words.shape[0], steps) + words.shape[2:], np.int8)
        padded[:, :words.shape[1]] = words
        self.embedding = weights.place(padded.transpose(1, 0, 2, 3))
        self.classifier, self.classifier_strides = self.embedding, (self.v_tiles, 1)
        if not self.dims.tied:
            self.classifier = weights.place(weights.tiles(model.classifier))
            self.classifier_strides = (1, self.x_steps)
        self.m_embedding = constants.place(constants.channels(model.embedding_m))
        self.m_classifier = self.m_embedding
        if not self.dims.tied:
            self.m_classifier = constants.place(constants.channels(model.logits.m))
        if model.final_gain is not None:
            self.gain = constants.place(constants.channels(model.final_gain.m))
        self.eps = constants.place(eps_vector(model.eps_total, lanes)[None])
        tiles = rope_tiles(model, heads)
        if rope_packed(heads):
            per_vector = lanes // heads.size
            flat = np.zeros((ceil_div(len(tiles), per_vector) * per_vector, heads.size), np.int64)
            flat[:len(tiles)] = model.rope
            self.rope = constants.place(flat.reshape(-1, lanes))
            self.sign = constants.place(np.where(np.arange(lanes) % 2, 1, -1)[None])
        else:
            # One run of all positions per factor: position is the fastest index.
            self.rope = constants.place(tiles.reshape(len(tiles), -1, lanes).transpose(1, 0, 2)
                                        .reshape(-1, lanes))

    def _place_layer(self, layer) -> dict:
        weights, constants, heads = self.weights, self.constants, self.heads
        spread = lambda rows, count: heads.spread(rows, count)  # noqa: E731
        at = {}
        at["wk"] = weights.place(weights.tiles(spread(layer.wk, heads.kv_count)))
        at["wq"] = weights.place(weights.tiles(spread(layer.wq, heads.count)))
        at["wv"] = weights.place(weights.tiles(layer.wv))
        attended = heads.attended()
        columns = np.where(attended >= 0, attended, 0).reshape(-1)
        wo = layer.wo[:, columns] * (attended.reshape(-1) >= 0)
        at["wo"] = weights.place(weights.tiles(wo).transpose(1, 0, 2, 3))
        gate, up = weights.tiles(layer.w1), weights.tiles(layer.w3)
        at["w13"] = weights.size
        for first, count in self.ffn_chunks():
            weights.place(gate[first:first + count])
            weights.place(up[first:first + count])
        at["w2"] = weights.place(weights.tiles(layer.w2).transpose(1, 0, 2, 3))
        self.w2_steps = ceil_div(self.dims.hidden_dim, self.config.rows)
        # Whole key vectors are written, with the padding behind the last head.
        key_words = heads.k_vectors * self.config.groups * self.kv_tiles
        kv = np.zeros((key_words, self.config.rows, self.config.columns), np.int8)
        at["keys"] = weights.place(kv)
        self.v_words = self.kv_tiles * self.config.groups
        at["values"] = weights.place(np.zeros((heads.v_vectors * self.v_words,) + kv.shape[1:],
                                              np.int8))
        at["m_qkv"] = constants.place(np.concatenate([
            constants.channels(spread(layer.k.m, heads.kv_count)),
            constants.channels(spread(layer.q.m, heads.count)),
            constants.channels(layer.v.m)]))
        at["m_scores"] = constants.place(np.repeat(layer.scores.m[:, None], self.config.lanes, 1))
        at["m_o"] = constants.place(constants.channels(layer.o.m))
        gate, up = constants.channels(layer.gate.m), constants.channels(layer.up.m)
        at["m_ffn"] = len(constants.rows)
        for first, count in self.ffn_chunks():
            constants.place(gate[first:first + count])
            constants.place(up[first:first + count])
        at["m_down"] = constants.place(constants.channels(layer.down.m))
        return at

    def ffn_chunks(self) -> list:
        return hidden_chunks(self.h_tiles)

    # Tasks.

    def pass_(self, name, op, count, a, b=None, c=None, **more):
        self.tasks.append(vector_pass(self.config, name, op, count, a, b, c, **more))

    def matmul(self, name, address, feeds, **more):
        feeds = feeds if isinstance(feeds, tuple) else (feeds, feeds)
        self.tasks.append(matmul(self.config, name, address, feeds, **more))

    def prologue(self) -> tuple:
        self.tasks, config, token = [], self.config, int(Index.TOKEN)
        bits = config.lanes.bit_length() - 1
        task = TaskBuilder(config, "embedding scale")
        stream = task.operand(Perm(Const(self.m_embedding, 1, token, bits), BROADCAST, token), 0,
                              1)
        task.store(stream, [Mem(self.scale)], 0, 1, label="scale")
        self.tasks.append(task.done())
        self.pass_("embedding", "MAC", self.x_tiles, ReadOut(self.embedding, self.v_tiles, bits),
                   Mem(self.scale, stride=0), gap=config.groups, post=self.model.embedding_post,
                   into=[Mem(self.x), Mem(self.x2)], label="embedding")
        task = TaskBuilder(config, "epsilon")
        task.store(task.operand(Const(self.eps), 0, 1), [Mem(self.x2, self.x_tiles)], 0, 1,
                   label="epsilon")
        self.tasks.append(task.done())
        self._rope_factors()
        return tuple(self.tasks)

    def _rope_factors(self):
        config, heads, position = self.config, self.heads, int(Index.POSITION)
        if not rope_packed(heads):
            task = TaskBuilder(config, "rope factors")
            positions = len(self.model.rope)
            at = task.timing.const_read
            task.use("const", "READ", 0, 2 * heads.period, address=self.rope, s1=positions,
                     index=position)
            for offset, (target, label) in enumerate(((self.cos, "cos"), (self.sin, "sin"))):
                task.store(Stream.CONST, [Mem(target)], at + offset * heads.period, heads.period,
                           label=label)
            self.tasks.append(task.done())
            return
        block, per_vector = heads.size.bit_length() - 1, config.lanes // heads.size
        source = Const(self.rope, 1, position, per_vector.bit_length() - 1)
        task = TaskBuilder(config, "cos")
        stream = task.operand(Perm(source, SPREAD_COS, position, block), 0, 1)
        task.store(stream, [Mem(self.cos)], 0, 1, label="cos")
        self.tasks.append(task.done())
        # The spread sine goes through MEM, because its sign is a constant as well.
        task = TaskBuilder(config, "sin spread")
        stream = task.operand(Perm(source, SPREAD_SIN, position, block), 0, 1)
        task.store(stream, [Mem(self.sin)], 0, 1, label="sin_spread")
        self.tasks.append(task.done())
        self.pass_("sin", "MAC", 1, Mem(self.sin), Const(self.sign), into=[Mem(self.sin)],
                   label="sin")

    def norm(self, name, bias):
        """float12 of 1 over the root of the residual's sum of squares."""
        self.pass_(f"{name} squares", "MAC", self.x_tiles + 1, Mem(self.x2), square=True, wide=1,
                   reduce=dict(op="RSQRT", post=bias, target=Mem(self.r), label=f"{name}.r"))

    def joined(self, name, address, target, first, count):
        """Multipliers times 1/rms."""
        self.pass_(f"{name} multipliers", "MAC", count, Const(address + first),
                   Mem(self.r, stride=0), b_float=1, post=NORM_POST, into=[Mem(target, first)],
                   label=f"{name}.m", first=first)

    def body(self) -> tuple:
        """One layer; shifts must be those of every layer: see `uniform`."""
        self.tasks = []
        layer = self.uniform
        self._projections(layer)
        self._attention(layer)
        self.pass_("attention output", "MAC", self.x_tiles, Acc(0), Const(self.at["m_o"]),
                   Mem(self.x2), pre=layer.o.pre, post=layer.o.post,
                   into=[Mem(self.x), Mem(self.x2)], label="x_mid")
        self._feed_forward(layer)
        return tuple(self.tasks)

    def _projections(self, layer):
        config, heads, at = self.config, self.heads, self.at
        q, k, v = heads.q_vectors, heads.k_vectors, heads.v_vectors
        self.norm("att", layer.att_norm_bias)
        self.joined("att", at["m_qkv"], self.m_qkv, 0, k + q + v)
        piece = max(heads.period, 2 // heads.period * heads.period)
        ring, entry = self.ring, 0
        positions = int(Index.POSITION)
        plan = [("k", 0, first, count, "wk", layer.k) for first, count in _chunks(k, piece)]
        plan += [("q", k, first, count, "wq", layer.q) for first, count in _chunks(q, piece)]
        plan += [("v", k + q, first, count, "wv", layer.v) for first, count in _chunks(v, 4)]
        for name, base, first, count, weight, requant in plan:
            entry = 0 if entry + count > ring[1] else entry
            accumulator = ring[0] + entry
            entry += count
            self.matmul(f"{name} {first}", at[weight] + first * self.x_steps, Feed(self.x),
                        order="inner", steps=self.x_steps, tiles=count, s1=1, s2=self.x_steps,
                        accumulator=accumulator, shift=layer.att_norm_shift)
            source = dict(a=Acc(accumulator), b=Mem(self.m_qkv, base + first), pre=requant.pre,
                          post=requant.post)
            if name == "v":
                word = at["values"] + first * self.v_words

                def write(task, moment, first=first, count=count, word=word):
                    task.use("kv", "WRITE_V", moment, count, address=word, s1=self.v_words,
                             index=positions, index_shift=config.rows.bit_length() - 1,
                             x=int(Stream.VXM))
                    seen = moment + task.timing.kv_write_to_matmul
                    task.touch("values", first, count, WRITE, seen)
                self.pass_(f"v {first} requantise", "MAC", count, tail=write, **source)
                continue
            self.pass_(f"{name} {first} requantise", "MAC", count, label="qk_raw",
                       first=base + first, into=[Mem(self.raw, base + first)], **source)
            self._turn(layer, name, base, first, count)

    def _turn(self, layer, name, base, first, count):
        """RoPE on raw vectors of q or k; keys go on into the cache."""
        config, heads, positions = self.config, self.heads, int(Index.POSITION)
        period, at = heads.period, base + first
        factor = lambda buffer: (Mem(buffer, stride=0) if period == 1  # noqa: E731
                                 else Mem(buffer, period=period))
        self.pass_(f"{name} {first} sine", "MAC", count, Perm(Mem(self.raw, at), SWAP),
                   factor(self.sin), post=ROPE_FRACTION, into=[Mem(self.turn, at)],
                   label="qk_turn", first=at)
        target = Mem(self.k, first) if name == "k" else Mem(self.q, first)
        self.pass_(f"{name} {first} cosine", "MAC", count, Mem(self.raw, at), factor(self.cos),
                   Mem(self.turn, at), post=ROPE_FRACTION, into=[target], label=name, first=first)
        if name == "q":
            return
        groups = config.groups
        task = TaskBuilder(config, f"k {first} write")
        issue = -task.timing.mem_read
        task.use(f"r{self.k.bank}", "READ", issue, groups, count,
                 address=self.k.base + first, s1=0, s2=1)
        task.touch(f"m{self.k.bank}", self.k.base + first, count, READ, issue,
                   issue + groups - 1, gap=groups)
        task.use("vxm", "MAC", 0, groups * count, a=int(Stream.M0) + self.k.bank,
                 post=layer.k_shift)
        done = task.timing.vxm
        halves = first * groups
        task.use("kv", "WRITE_K", done, groups * count, index=positions,
                 address=self.at["keys"] + halves * self.kv_tiles, s1=self.kv_tiles,
                 index_shift=config.lanes.bit_length() - 1, x=int(Stream.VXM))
        task.touch("keys", halves, groups * count, WRITE, done + task.timing.kv_write_to_matmul)
        self.tasks.append(task.done())

    def _attention(self, layer):
        heads, group = self.heads, self.heads.group
        scored, done, peaks, entry = set(), set(), [0] * 4, 0
        for number, head in enumerate(self.head_order()):
            self._scores(layer, head, self.score_bases[number % len(self.score_bases)], peaks)
            scored.add(head)
            for tile in range(heads.v_vectors):
                for member in range(group):
                    owners = [heads.half_owner(tile, half) * group + member for half in (0, 1)]
                    vector = tile * group + member
                    if vector in done or not {*owners} <= scored:
                        continue
                    self._weighted(tile, vector, owners, self.pv_ring[0] + entry)
                    entry = (entry + 1) % self.pv_ring[1]
                    self._project(vector, first=not done)
                    done.add(vector)

    def _scores(self, layer, head, base, peaks):
        config, heads, at = self.config, self.heads, self.at
        kv, slot, bank = head // heads.group, self.slot[head], self.slot[head].bank
        step = head * heads.step_stride
        feed = Feed(self.q, step // config.groups)
        keys = kv * heads.step_stride
        inner = heads.steps > config.groups
        strides = dict(s1=self.kv_tiles, s2=1) if inner else dict(s1=1, s2=self.kv_tiles)
        # The newest key is in the last tile: read tiles-1 steps after the first one.
        begin = (N - 1) * (heads.steps if inner else 1)
        touches = [("keys", keys, heads.steps, begin)]
        self.matmul(f"scores {head}", at["keys"] + keys * self.kv_tiles, (feed, feed),
                    order="inner" if inner else "outer", steps=heads.steps, tiles=N,
                    accumulator=base, half0=0 if inner else step % config.groups,
                    shift=layer.q_shift, touches=touches, **strides)
        peak_bank = (bank + 2) % 4
        peak = Mem(self.peak[peak_bank], peaks[peak_bank], stride=0)
        peaks[peak_bank] += 1
        self.pass_(f"scores {head} requantise", "MAC", N, Acc(base),
                   b=Const(at["m_scores"] + head, stride=0), pre=layer.scores.pre,
                   post=layer.scores.post, mask=1,
                   into=[Mem(slot)], label=f"scores.{head}",
                   reduce=dict(op="MAX", target=peak, label=f"peak.{head}"))
        self.tasks.append(self._exponential(head, slot, peak))

    def _inverse_words(self):
        """Words for 1/sum: one per combination of heads in the halves of a vector.

        A head is alone in at most one of them and shares at most one other, so that two banks
        let its scalar reach both words in the one cycle that the stream carries it.
        """
        alone, shared, heads = {}, {}, self.heads
        for tile in range(heads.v_vectors):
            for member in range(heads.group):
                owners = tuple(heads.half_owner(tile, half) * heads.group + member
                               for half in (0, 1))
                table = alone if owners[0] == owners[1] else shared
                table.setdefault(owners, len(table))
        self.inv_alone = self.mem.take("inv_alone", 3, len(alone), "att") if alone else None
        self.inv_shared = self.mem.take("inv_shared", 1, len(shared), "att") if shared else None
        self.inverse = {owners: Mem(self.inv_alone, word) for owners, word in alone.items()}
        self.inverse |= {owners: Mem(self.inv_shared, word) for owners, word in shared.items()}

    def _exponential(self, head, slot, peak):
        """exp of the scores; the reciprocal of their sum to every word that needs it."""
        task = TaskBuilder(self.config, f"exp {head}")
        a, c = task.operand(Mem(slot), 0, N), task.operand(peak, 0, N)
        task.use("vxm", "EXP2", 0, N, a=int(a), c=int(c), post=self.model.exp_post, mask=1)
        at = task.timing.vxm
        task.store(Stream.VXM, [Mem(slot)], at, N, label=f"exp.{head}")
        task.use("red", "RECIP", at, N, x=int(Stream.VXM), post=self.model.recip_bias)
        moment = N - 1 + (at + task.timing.reduce_function)
        for owners, target in self.inverse.items():
            halves = sum(1 << half for half in (0, 1) if owners[half] == head)
            if halves:
                task.store(Stream.RED, [target], moment, 1, label=f"inverse.{head}",
                           halves=halves)
        return task.done()

    def _weighted(self, tile, vector, owners, accumulator):
        config, at = self.config, self.at
        feeds = tuple(Feed(self.slot[head]) for head in owners)
        words = at["values"] + tile * self.v_words
        begin = (N - 1) * config.groups
        self.matmul(f"values {vector}", words, feeds, order="inner",
                    steps=N * config.groups, tiles=1, s1=1, s2=0, accumulator=accumulator,
                    touches=[("values", tile, 1, begin)])
        self.pass_(f"values {vector} normalise", "MAC", 1, Acc(accumulator),
                   self.inverse[tuple(owners)], pre=self.model.att_pre, post=self.model.att_post,
                   b_float=1, into=[Mem(self.att, vector)], label="att", first=vector)

    def _project(self, vector, first):
        groups, tiles = self.config.groups, self.x_tiles
        self.matmul(f"attention output {vector}", self.at["wo"] + vector * groups * tiles,
                    Feed(self.att, vector), order="outer", steps=groups, tiles=tiles, s1=1,
                    s2=tiles, accumulator=0, start=first)

    def _feed_forward(self, layer):
        at, tiles = self.at, self.x_tiles
        self.norm("ffn", layer.ffn_norm_bias)
        chunks = self.ffn_chunks()
        lead = 2 * chunks[0][1]
        self.joined("ffn", at["m_ffn"], self.m_ffn, 0, lead)
        if 2 * self.h_tiles > lead:
            self.joined("ffn", at["m_ffn"], self.m_ffn, lead, 2 * self.h_tiles - lead)
        entry, groups = 0, self.config.groups
        for first, count in chunks:
            entry = 0 if entry + 2 * count > self.ring[1] else entry
            base = self.ring[0] + entry
            entry += 2 * count
            self.matmul(f"gate, up {first}", at["w13"] + 2 * first * self.x_steps, Feed(self.x),
                        order="inner", steps=self.x_steps, tiles=2 * count, s1=1,
                        s2=self.x_steps, accumulator=base, shift=layer.ffn_norm_shift)
            self.pass_(f"gate {first}", "MAC", count, Acc(base), Mem(self.m_ffn, 2 * first),
                       pre=layer.gate.pre, post=layer.gate.post, into=[Mem(self.gate, first)],
                       label="gate", first=first)
            self.pass_(f"up {first}", "MAC", count, Acc(base + count),
                       Mem(self.m_ffn, 2 * first + count), pre=layer.up.pre, post=layer.up.post,
                       into=[Mem(self.up, first)], label="up", first=first)
            self.pass_(f"silu {first}", "SILU", count, Mem(self.gate, first),
                       into=[Mem(self.silu, first)], label="silu", first=first)
            self.pass_(f"hidden {first}", "MAC", count, Mem(self.silu, first),
                       Mem(self.up, first), post=layer.hidden_post,
                       into=[Mem(self.hidden, first)], label="hidden", first=first)
            step = first * groups
            self.matmul(f"down {first}", at["w2"] + step * tiles, Feed(self.hidden, first),
                        order="outer", steps=min(count * groups, self.w2_steps - step),
                        tiles=tiles, s1=1, s2=tiles, accumulator=0, start=first == 0,
                        shift=layer.hidden_shift)
        self.pass_("feed-forward output", "MAC", tiles, Acc(0), Const(at["m_down"]),
                   Mem(self.x2), pre=layer.down.pre, post=layer.down.post,
                   into=[Mem(self.x), Mem(self.x2)], label="x_out")

    def epilogue(self, logit_lag: int) -> tuple:
        self.tasks, model = [], self.model
        self.norm("final", model.final_bias)
        source = self.x
        if model.final_gain is not None:
            gain, source = model.final_gain, self.final
            self.pass_("final gain", "MAC", self.x_tiles, Mem(self.x2), Const(self.gain),
                       pre=gain.pre, post=gain.post, into=[Mem(self.final)], label="final")
        self.joined("logits", self.m_classifier, self.m_logits, 0, self.v_tiles)
        self._logits(source, logit_lag)
        return tuple(self.tasks)

    def _logits(self, source, logit_lag):
        """All logits in one task: matmul, requantisation and sampling in lockstep."""
        config, tiles = self.config, self.v_tiles
        task = TaskBuilder(config, "logits")
        pace = max(self.x_steps, task.timing.sample_gap)
        lag = max(self.x_steps + task.timing.matmul_to_drain, logit_lag)
        at = lag + task.timing.drain
        ring = config.accumulators
        if lag // pace + 2 > ring:
            raise too_large(config, "accumulators per column", lag // pace + 2, ring)
        s1, s2 = self.classifier_strides
        for first, count in _chunks(tiles, ring):
            matmul_uses(task, first * pace, self.classifier + first * s2, (Feed(source),) * 2,
                        order="inner", steps=self.x_steps, tiles=count, s1=s1, s2=s2,
                        accumulator=0, shift=self.model.final_shift, cadence=pace)
            task.use("drain", "DRAIN", lag + first * pace, count, d1=pace, accumulator=0)
        b = task.operand(Mem(self.m_logits), at, tiles, pace)
        requant = self.model.logits
        task.use("vxm", "MAC", at, tiles, d1=pace, a=int(Stream.ACC), b=int(b), pre=requant.pre,
                 post=requant.post)
        task.use("sample", "ARGMAX", at + task.timing.vxm - task.timing.sample_skew, tiles,
                 d1=pace, x=int(Stream.VXM))
        # Within the task the ring is safe by construction; towards others it is one block.
        task.touches = [touch for touch in task.touches if touch.space != "acc"]
        task.touch("acc", 0, min(tiles, ring), ADD, task.timing.matmul_to_drain,
                   lag + tiles * pace, gap=0)
        self.tasks.append(task.done())

    # Everything together.

    def lower(self) -> Lowered:
        self._place()
        self.uniform = uniform(self.model)
        prologue, body = self.prologue(), self.body()
        epilogues = tuple(self.epilogue(lag) for lag in LOGIT_LAGS)
        program = Program(prologue, body, epilogues[0], len(self.model.layers), self.strides)
        heads, layers = self.heads, len(self.model.layers)
        kv_words = layers * (heads.k_vectors * self.config.groups * self.kv_tiles
                             + heads.v_vectors * self.v_words)
        lane = np.arange(self.config.lanes)
        patterns = np.full((self.config.patterns, self.config.lanes), -1)
        patterns[SWAP], patterns[BROADCAST] = lane ^ 1, 0
        if rope_packed(heads):
            patterns[SPREAD_COS] = lane % heads.size // 2
            patterns[SPREAD_SIN] = heads.size // 2 + lane % heads.size // 2
        return Lowered(program, epilogues, patterns, self.constants.finish(), self.weights.finish(),
                       kv_words, sum(self.mem.peak), heads)


def uniform(model: QuantModel):
    """The shifts of a layer, which the one loop body shares among all layers.

    `compiler.quantise` makes them equal.
    """
    first = model.layers[0]
    for number, layer in enumerate(model.layers):
        for field in dataclasses.fields(layer):
            if field.name.startswith("w"):
                continue
            mine, theirs = getattr(layer, field.name), getattr(first, field.name)
            if hasattr(mine, "pre"):
                mine, theirs = (mine.pre, mine.post), (theirs.pre, theirs.post)
            if mine != theirs:
                raise AssertionError(f"layer {number}: {field.name} differs from layer 0")
    return first


def lower(model: QuantModel, config: Config) -> Lowered:
    """Tasks, weights and constants of a quantised model.

    Raises
    ------
    ModelError
        If the model does not fit the machine, with the resource and the shortage.
    """
    return _Lowering(model, config).lower()

