"""A GPT-2 block through the compiler's scheduler: what ``docs/isa.md`` shows as a listing.

The block differs from the built-in decoder in everything that makes GPT-2 different: LayerNorm,
biases, GELU, learned positions, heads of 64. It is a sketch of a front end, not one: the integers
are drawn at random. ``tests/test_sketches.py`` runs it on the machine model against numpy.

How the pieces map. The mean never has to be subtracted: embedding, positions and both projections
back into the residual are centred over the channels, so the residual has mean zero and LayerNorm is
RMSNorm. Gains fold into the weights behind them. The bias of k cancels in the softmax; the bias of
v passes the softmax unchanged and folds into that of the projection. What is left rides on operand
c of the requantising pass, or, where c is the residual, is added to the residual beforehand.
"""
import dataclasses
import functools

import numpy as np

from arch.config import Config, profile
from arch.image import Image
from arch.isa import Index
from arch.queues import Stream
from compiler.disasm import disassemble
from compiler.emit import emit
from compiler.layout import Constants, Vectors, Weights
from compiler.passes import Acc, Const, Feed, Mem, Perm, ReadOut, TaskBuilder, matmul, vector_pass
from compiler.quantised import NORM_POST, eps_vector
from compiler.schedule import schedule
from compiler.tasks import WRITE, N, Program

DIM, HEADS, SIZE, HIDDEN, CONTEXT, VOCABULARY = 128, 2, 64, 512, 32, 64


@dataclasses.dataclass(frozen=True)
class Shifts:
    """Shifts of the passes; chosen so that random weights give numbers of ordinary size."""
    embedding: int = 10
    norm: int = 4
    norm_bias: int = 24
    pre: int = 2
    q: int = 18
    k: int = 20
    v: int = 20
    q_in: int = 2
    scores_pre: int = 1
    scores: int = 14
    exp: int = 20
    recip: int = 20
    att_pre: int = 4
    att: int = 14
    out: int = 16
    fc: int = 17
    hidden: int = 4
    proj: int = 16


@dataclasses.dataclass(frozen=True)
class Block:
    """Integers of the block: int8 weights [out, in], int16 multipliers and biases [out]."""
    embedding: np.ndarray
    embedding_m: np.ndarray
    positions: np.ndarray
    w: dict
    m: dict
    bias: dict
    eps_total: int
    shifts: Shifts = Shifts()


def random_block(seed: int = 0) -> Block:
    """Random integers; those that write the residual have (nearly) no mean over the channels."""
    rng = np.random.default_rng(seed)

    def centred(values):
        return np.rint(values - values.mean(0 if values.ndim == 2 else None)).astype(np.int64)

    def weights(out, inner):
        return np.clip(rng.normal(0, 40, (out, inner)), -127, 127).astype(np.int64)
    shapes = {"q": (DIM, DIM), "k": (DIM, DIM), "v": (DIM, DIM), "out": (DIM, DIM),
              "fc": (HIDDEN, DIM), "proj": (DIM, HIDDEN)}
    w = {name: weights(*shape) for name, shape in shapes.items()}
    for name in ("out", "proj"):
        w[name] = np.clip(centred(w[name]), -127, 127)
    m = {name: rng.integers(8000, 16000, shape[0]) for name, shape in shapes.items()}
    m["out"], m["proj"] = (np.full(DIM, value) for value in (9000, 7000))
    m["scores"] = rng.integers(8000, 16000, HEADS)
    bias = {"q": rng.integers(-400, 400, DIM), "fc": rng.integers(-800, 800, HIDDEN)}
    bias |= {name: centred(rng.normal(0, 200, DIM)) for name in ("out", "proj")}
    embedding = np.clip(centred(weights(VOCABULARY, DIM).T).T, -127, 127)
    return Block(embedding, rng.integers(20000, 30000, VOCABULARY),
                 centred(rng.normal(0, 300, (DIM, CONTEXT))).T, w, m, bias, 5000)


class _Builder:
    """Places the integers and makes the tasks, as `compiler.lower` does for the decoder."""

    def __init__(self, block: Block, config: Config):
        self.block, self.config, self.shifts = block, config, block.shifts
        self.kv_tiles = CONTEXT // config.columns
        self.tiles = {name: len(w) // config.columns for name, w in block.w.items()}
        self.steps = {name: w.shape[1] // config.rows for name, w in block.w.items()}
        self.x_tiles = DIM // config.lanes
        self._place()
        self._buffers()

    def _place(self):
        config, block = self.config, self.block
        weights, constants = self.weights, self.constants = Weights(config), Constants(config)
        inner = {name: weights.tiles(block.w[name]) for name in block.w}
        self.at = {name: weights.place(inner[name]) for name in ("k", "v", "q", "fc")}
        self.at |= {name: weights.place(inner[name].transpose(1, 0, 2, 3))
                    for name in ("out", "proj")}
        self.at["embedding"] = weights.place(weights.tiles(block.embedding).transpose(1, 0, 2, 3))
        empty = np.zeros((config.rows, config.columns), np.int8)
        head_words = SIZE // config.rows * self.kv_tiles
        self.at["keys"] = weights.place(np.array([empty] * (HEADS * head_words)))
        self.v_words = self.kv_tiles * config.groups
        self.at["values"] = weights.place(np.array([empty] * (self.x_tiles * self.v_words)))
        self.m = {"qkv": constants.place(np.concatenate(
            [constants.channels(block.m[name]) for name in "kqv"]))}
        self.m |= {name: constants.place(constants.channels(block.m[name]))
                   for name in ("out", "fc", "proj")}
        self.m["scores"] = constants.place(np.repeat(block.m["scores"][:, None], config.lanes, 1))
        self.m["embedding"] = constants.place(constants.channels(block.embedding_m))
        self.bias = {name: constants.place(constants.channels(values))
                     for name, values in block.bias.items()}
        self.eps = constants.place(eps_vector(block.eps_total, config.lanes)[None])
        # Position is the fastest index, so that it can be added to the address.
        self.positions = constants.place(
            block.positions.reshape(CONTEXT, -1, config.lanes).transpose(1, 0, 2)
            .reshape(-1, config.lanes))

    def _buffers(self):
        take = (mem := Vectors(self.config)).take
        x = self.x_tiles
        self.x, self.x2 = take("x", 0, x), take("x2", 1, x + 1)
        self.scale, self.r, self.biased = take("scale", 2, 1), take("r", 3, 1), take("b", 3, x)
        self.q, self.att, self.m_qkv = (take("q", 0, x, "att"), take("att", 0, x, "att"),
                                        take("m_qkv", 1, 3 * x, "att"))
        self.k, self.scores = take("k", 2, x, "att"), take("s", 2, HEADS * self.kv_tiles, "att")
        self.peak, self.inverse = take("peak", 3, HEADS, "att"), take("inv", 3, HEADS, "att")
        self.hidden = take("hidden", 0, self.tiles["fc"], "ffn")
        self.m_fc = take("m_fc", 1, self.tiles["fc"], "ffn")
        mem.check()

    def pass_(self, name, op, count, a, b=None, c=None, **more):
        self.tasks.append(vector_pass(self.config, name, op, count, a, b, c, **more))

    def matmul(self, name, address, feed, **more):
        self.tasks.append(matmul(self.config, name, address, (feed, feed), **more))

    def prologue(self) -> tuple:
        self.tasks, token = [], int(Index.TOKEN)
        bits = self.config.lanes.bit_length() - 1
        task = TaskBuilder(self.config, "embedding scale")
        stream = task.operand(Perm(Const(self.m["embedding"], 1, token, bits), 0, token), 0, 1)
        task.store(stream, [Mem(self.scale)], 0, 1)
        self.tasks.append(task.done())
        self.pass_("embedding and position", "MAC", self.x_tiles,
                   ReadOut(self.at["embedding"], VOCABULARY // self.config.columns, bits),
                   Mem(self.scale, stride=0),
                   Const(self.positions, CONTEXT, int(Index.POSITION)), gap=self.config.groups,
                   post=self.shifts.embedding, into=[Mem(self.x), Mem(self.x2)])
        task = TaskBuilder(self.config, "epsilon")
        task.store(task.operand(Const(self.eps), 0, 1), [Mem(self.x2, self.x_tiles)], 0, 1)
        self.tasks.append(task.done())
        return tuple(self.tasks)

    def norm(self):
        """1/rms of the residual; its mean is zero, so this is LayerNorm."""
        self.pass_("squares", "MAC", self.x_tiles + 1, Mem(self.x2), square=True, wide=1,
                   reduce=dict(op="RSQRT", post=self.shifts.norm_bias, target=Mem(self.r)))

    def joined(self, constant, target, first, count):
        self.pass_("multipliers", "MAC", count, Const(constant + first),
                   Mem(self.r, stride=0), b_float=1, post=NORM_POST, into=[Mem(target, first)])

    def project(self, name, base, post, **more):
        """All tiles of q, k or v, then their requantisation."""
        count = self.tiles[name]
        self.matmul(name, self.at[name], Feed(self.x), order="inner", steps=self.steps[name],
                    tiles=count, s1=1, s2=self.steps[name], accumulator=8 + base,
                    shift=self.shifts.norm)
        self.pass_(f"{name} requantise", "MAC", count, Acc(8 + base), Mem(self.m_qkv, base),
                   pre=self.shifts.pre, post=post, **more)

    def body(self) -> tuple:
        self.tasks, x, shifts = [], self.x_tiles, self.shifts
        self.norm()
        self.joined(self.m["qkv"], self.m_qkv, 0, 3 * x)
        self.project("k", 0, shifts.k, into=[Mem(self.k)])
        self._write_keys()

        def write(task, moment):
            task.use("kv", "WRITE_V", moment, x, address=self.at["values"], s1=self.v_words,
                     index=int(Index.POSITION), index_shift=self.config.rows.bit_length() - 1,
                     x=int(Stream.VXM))
            task.touch("values", 0, x, WRITE, moment + task.timing.kv_write_to_matmul)
        self.project("q", x, shifts.q, c=Const(self.bias["q"]), into=[Mem(self.q)])
        self.project("v", 2 * x, shifts.v, tail=write)
        self.pass_("x + bias", "MAC", x, Mem(self.x2), None, Const(self.bias["out"]),
                   into=[Mem(self.biased)])
        for head in range(HEADS):
            self._attend(head)
        self.pass_("attention output", "MAC", x, Acc(0), Const(self.m["out"]), Mem(self.biased),
                   pre=shifts.pre, post=shifts.out, into=[Mem(self.x), Mem(self.x2)])
        self._feed_forward()
        return tuple(self.tasks)

    def _write_keys(self):
        groups, x = self.config.groups, self.x_tiles
        task = TaskBuilder(self.config, "k write")
        issue = -task.timing.vxm - task.timing.mem_read
        task.use(f"r{self.k.bank}", "READ", issue, groups, x, address=self.k.base, s1=0, s2=1)
        task.use("vxm", "MAC", -task.timing.vxm, groups, x, a=int(Stream.M0) + self.k.bank)
        task.touch(f"m{self.k.bank}", self.k.base, x, "read", issue, issue + groups - 1,
                   gap=groups)
        task.use("kv", "WRITE_K", 0, groups * x, address=self.at["keys"], s1=self.kv_tiles,
                 index=int(Index.POSITION), index_shift=self.config.lanes.bit_length() - 1,
                 x=int(Stream.VXM))
        task.touch("keys", 0, groups * x, WRITE, task.timing.kv_write_to_matmul)
        self.tasks.append(task.done())

    def _attend(self, head):
        shifts, groups, per_head = self.shifts, self.config.groups, self.x_tiles // HEADS
        steps, base = SIZE // self.config.rows, 8 + 2 * head
        scores = Mem(self.scores, head * self.kv_tiles)
        peak, inverse = Mem(self.peak, head, stride=0), Mem(self.inverse, head, stride=0)
        self.matmul(f"scores {head}", self.at["keys"] + head * steps * self.kv_tiles,
                    Feed(self.q, head * per_head), order="inner", steps=steps, tiles=N,
                    s1=self.kv_tiles, s2=1, accumulator=base, shift=shifts.q_in,
                    touches=[("keys", head * steps, steps, (N - 1) * steps)])
        self.pass_(f"scores {head} requantise", "MAC", N, Acc(base),
                   Const(self.m["scores"] + head, stride=0), pre=shifts.scores_pre,
                   post=shifts.scores, mask=1, into=[scores], reduce=dict(op="MAX", target=peak))
        self.pass_(f"exp {head}", "EXP2", N, scores, None, peak, post=shifts.exp, mask=1,
                   into=[scores],
                   reduce=dict(op="RECIP", post=shifts.recip, target=inverse))
        for tile in range(head * per_head, (head + 1) * per_head):
            self.matmul(f"values {tile}", self.at["values"] + tile * self.v_words,
                        Feed(self.scores, head * self.kv_tiles), order="inner", steps=N * groups,
                        tiles=1, s1=1, s2=0, accumulator=16 + tile,
                        touches=[("values", tile, 1, (N - 1) * groups)])
        first = head * per_head
        self.pass_(f"values {head} normalise", "MAC", per_head, Acc(16 + first), inverse,
                   pre=shifts.att_pre, post=shifts.att, b_float=1, into=[Mem(self.att, first)])
        self.matmul(f"attention output {head}", self.at["out"] + head * steps * self.x_tiles,
                    Feed(self.att, first), order="outer", steps=steps, tiles=self.x_tiles, s1=1,
                    s2=self.x_tiles, accumulator=0, start=head == 0)

    def _feed_forward(self):
        x, shifts, steps = self.x_tiles, self.shifts, self.steps["fc"]
        self.norm()
        chunk = self.config.lanes // 2
        groups = self.config.groups
        for first in range(0, self.tiles["fc"], chunk):
            self.joined(self.m["fc"], self.m_fc, first, chunk)
        self.pass_("x + bias", "MAC", x, Mem(self.x2), None, Const(self.bias["proj"]),
                   into=[Mem(self.biased)])
        for first in range(0, self.tiles["fc"], chunk):
            base = 8 + first % 24
            self.matmul(f"fc {first}", self.at["fc"] + first * steps, Feed(self.x),
                        order="inner", steps=steps, tiles=chunk, s1=1, s2=steps,
                        accumulator=base, shift=shifts.norm)

            def gelu(task, at, first=first):
                # The requantised vectors come on cycles at .. at + 7 and go straight in again.
                task.use("vxm", "GELU", at, chunk, a=int(Stream.VXM))
                task.store(Stream.VXM, [Mem(self.hidden, first)], at + task.timing.vxm, chunk)
            self.pass_(f"gelu {first}", "MAC", chunk, Acc(base), Mem(self.m_fc, first),
                       Const(self.bias["fc"] + first), pre=shifts.pre, post=shifts.fc, tail=gelu)
            self.matmul(f"proj {first}", self.at["proj"] + first * groups * x,
                        Feed(self.hidden, first), order="outer", steps=chunk * groups, tiles=x,
                        s1=1, s2=x, accumulator=0, start=first == 0, shift=shifts.hidden)
        self.pass_("feed-forward output", "MAC", x, Acc(0), Const(self.m["proj"]),
                   Mem(self.biased), pre=shifts.pre, post=shifts.proj,
                   into=[Mem(self.x), Mem(self.x2)])

    def epilogue(self) -> tuple:
        self.tasks = []
        self.norm()
        return tuple(self.tasks)


def gpt2(block: Block | None = None) -> Image:
    """The image of one block, with embedding and positions before it and a norm behind it."""
    config = profile("ecp5_85k")
    builder = _Builder(block or random_block(), config)
    program = Program(builder.prologue(), builder.body(), builder.epilogue(), 1, {})
    order, rows = schedule(program, config, builder.kv_tiles)
    words, params, table = emit(program, order, rows, config)
    patterns = np.full((config.patterns, config.lanes), -1)
    patterns[0] = 0
    return Image(config, words, params, table, patterns, builder.constants.finish(),
                 builder.weights.finish())


@functools.lru_cache(maxsize=None)
def listing(name: str) -> str:
    """A compiled sketch as assembly in a code block, without the contents of the memories."""
    image = {"gpt2": gpt2}[name]()
    shown = [line for line in disassemble(image).split("\n.weights ")[0].splitlines()
             if not line.startswith((".const", ".pattern", ".extra", ".meta"))]
    rows = image.rows
    useful = DIM * DIM * 4 + 2 * DIM * HIDDEN + 2 * DIM * CONTEXT
    cycles = int(rows[-1, 4])
    count = sum(len(words) for words in image.program.values())
    return (f"{count} instructions; {int(rows[0, 4])} cycles at position 0, {cycles} at position "
            f"{CONTEXT - 1}, of which {useful // image.config.macs_per_cycle} are useful work of "
            f"the multipliers ({100 * useful / cycles / image.config.macs_per_cycle:.0f} %).\n\n"
            "<details><summary>The listing</summary>\n\n```\n" + "\n".join(shown).strip()
            + "\n```\n\n</details>")
