"""The state of a lowering: where everything lives, and the tasks made so far.

Accumulators, MEM buffers and the two allocators are fixed here before any task is made; the
pieces of the decoder (`compiler.lower_attention` and its neighbours) only name them.
"""
from arch.config import Config
from arch.queues import Stream
from arch.timing import timing
from compiler import lower_sampling
from compiler.errors import ModelError
from compiler.layout import Constants, Vectors, Weights, ceil_div, heads_of, too_large
from compiler.passes import Acc, Const, Mem, matmul, vector_pass
from compiler.quantised import NORM_POST, QuantModel

#: Vectors of v, and hidden tiles of gate and up, in one piece: small ones keep the chain of passes
#: behind the last piece short.
V_PIECE, HIDDEN_PIECE = 4, 2
#: Largest scores of so many heads have words of their own in a bank.
PEAKS = 5


def chunks(count: int, size: int) -> list:
    """``(first, length)`` of pieces of at most ``size``, the last not the longest."""
    return [(first, min(size, count - first)) for first in range(0, count, size)]


class Lowering:
    """Buffers, accumulators, addresses and tasks of one model on one machine.

    ``sampling`` names the stages of `arch.selection` that the program is to have.
    """

    def __init__(self, model: QuantModel, config: Config, sampling: tuple = ()):
        self.model, self.config, self.sampling = model, config, sampling
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
        if self.v_tiles >= 1 << config.count_bits:
            raise too_large(config, "vectors of logits", self.v_tiles,
                            (1 << config.count_bits) - 1)
        self.weights, self.constants = Weights(config), Constants(config)
        self._accumulators()
        self._buffers()

    # Resources.

    @property
    def qk_piece(self) -> int:
        """Vectors of q or k in one piece: whole periods of the RoPE factors."""
        period = self.heads.period
        return max(period, 2 // period * period)

    def _accumulators(self):
        """Output sums from 0, then scores and everything else in rings behind them.

        Scores that leave no room take the whole file, round about: then no output is added to
        before the last of them are drained.
        """
        total, tiles, heads = self.config.accumulators, self.x_tiles, self.heads
        pieces = [min(self.qk_piece, heads.q_vectors), min(V_PIECE, heads.v_vectors), 2]
        if self.dims.activation == "silu_gated":
            pieces.append(2 * min(HIDDEN_PIECE, self.h_tiles))
        need = max(self.kv_tiles, tiles + max(pieces))
        if need > total:
            raise too_large(self.config, "accumulators per column", need, total)
        spare = total - tiles - self.kv_tiles
        self.ring = (tiles, total - tiles)
        self.scores_first = spare < 2
        if self.scores_first:
            self.score_bases = list(range(0, total, 4))
            self.pv_ring = (total - 2, 2)
            return
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
        self.r = take("r", 3, 1)
        if self.model.rope is not None:
            self.cos, self.sin = take("cos", 1, heads.period), take("sin", 1, heads.period)
        if self.dims.biases:
            self.with_bias = take("biased", 3, self.x_tiles)
        q, k, v = heads.q_vectors, heads.k_vectors, heads.v_vectors
        self.q, self.att = take("q", 0, q, "att"), take("att", 0, v * heads.group, "att")
        self._inverse_words()
        banks = [self.score_bank(head) for head in range(heads.count)]
        self.peak = [take(f"peak{bank}", bank,
                          min(PEAKS, sum(self.peak_bank(scores) == bank for scores in banks)), "att")
                     for bank in range(4)]
        # What q, k and v are made of is gone before the last scores.
        mem.begin("qkv", "att")
        self.m_qkv, self.k = take("m_qkv", 1, q + k + v, "qkv"), take("k", 3, k, "qkv")
        if self.model.rope is not None:
            self.raw, self.turn = take("raw", 2, q + k, "qkv"), take("turn", 3, q + k, "qkv")
        self._score_slots()
        h = self.h_tiles
        gated = self.dims.activation == "silu_gated"
        self.m_ffn = take("m_ffn", 1, (1 + gated) * h, "ffn")
        self.hidden = take("hidden", 0, h, "ffn")
        if gated:
            self.gate, self.up = take("gate", 2, h, "ffn"), take("up", 2, h, "ffn")
            self.silu = take("silu", 3, h, "ffn")
        self.final = take("final", 2, self.x_tiles, "end")
        if self.dims.norm == "layer":
            self.m_final = take("m_final", 0, self.x_tiles, "end")
        self.m_logits = take("m_logits", 1, self.v_tiles, "end")
        # What the embedding is made of is gone before the first layer.
        self.scale = take("scale", 1, 1, "begin")
        if self.model.offsets is not None:
            self.offset = take("offset", 2, self.x_tiles, "begin")
        if self.model.positions is not None:
            self.place_scale = take("place_scale", 1, 1, "begin")
            self.place = take("place", 3, self.x_tiles, "begin")
        if self.sampling:
            lower_sampling.buffers(self)
        mem.check()

    def _score_slots(self):
        """Slots of ``kv_tiles`` words for the scores of a head, in the bank of its parity.

        Where there is no room for all, those of the last heads overlay what is left of q, k and v.
        """
        wanted = [[], [], [], []]
        for head in self.head_order():
            wanted[self.score_bank(head)].append(head)
        self.slot = {}
        for bank, members in enumerate(wanted):
            level, depth = self.mem.used["att"][bank], self.config.mem_depth
            room = (depth - level) // self.kv_tiles
            if members and room < 1:
                raise too_large(self.config, f"words in MEM bank {bank}", level + self.kv_tiles,
                                depth)
            count = min(room, len(members))
            free = min(self.mem.used["qkv"][bank], depth - count * self.kv_tiles)
            self.mem.used["att"][bank] = max(level, free)
            slots = [self.mem.take(f"scores{bank}.{i}", bank, self.kv_tiles, "att")
                     for i in reversed(range(count))][::-1]
            self.slot |= {head: slots[i % count] for i, head in enumerate(members)}

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

    def peak_bank(self, score_bank: int) -> int:
        """Where the largest score goes: an odd bank, which RED reaches on wires of its own, and
        another one than that of the scores, which are read on the same cycles."""
        return 3 if score_bank == 1 else 1

    # Tasks.

    def pass_(self, name, op, count, a, b=None, c=None, **more):
        self.tasks.append(vector_pass(self.config, name, op, count, a, b, c, **more))

    def matmul(self, name, address, feeds, **more):
        feeds = feeds if isinstance(feeds, tuple) else (feeds, feeds)
        self.tasks.append(matmul(self.config, name, address, feeds, **more))

    def norm(self, name, bias):
        """float12 of 1 over the root of the residual's sum of squares."""
        self.pass_(f"{name} squares", "MAC", self.x_tiles + 1, Mem(self.x2), square=True, wide=1,
                   reduce=dict(op="RSQRT", post=bias, target=Mem(self.r), label=f"{name}.r"))

    def joined(self, name, address, target, first, count):
        """Multipliers times 1/rms."""
        self.pass_(f"{name} multipliers", "MAC", count, Const(address + first),
                   Mem(self.r, stride=0), b_float=1, post=NORM_POST, into=[Mem(target, first)],
                   label=f"{name}.m", first=first)

    def biased(self, name, requant_name, requant) -> Mem:
        """The residual as the addend of an output projection: with its bias, if there is one."""
        if requant.bias is None:
            return Mem(self.x2)
        self.pass_(f"{name} bias", "MAC", self.x_tiles, Mem(self.x2), None,
                   Const(self.at[f"bias_{requant_name}"]), into=[Mem(self.with_bias)],
                   label=f"{name}.biased")
        return Mem(self.with_bias)

    def following(self, number):
        """How the residual behind a layer is scaled for the next norm; None: not at all."""
        layers = self.model.layers
        return layers[number + 1].att_in if number + 1 < len(layers) else self.model.final_in

    def residual(self, name, multipliers, addend, requant, label, label_in, scaling) -> None:
        """Accumulators onto the residual, and the residual to where norm and matmuls take it."""
        fields = dict(pre=requant.pre, post=requant.post, label=label)
        sources = (Acc(0), Const(multipliers), addend)
        if scaling is None:
            self.pass_(name, "MAC", self.x_tiles, *sources, into=[Mem(self.x), Mem(self.x2)],
                       **fields)
            return
        factors, latency = self.at[label_in], timing(self.config).vxm
        if self.x_tiles > latency:
            self.pass_(name, "MAC", self.x_tiles, *sources, into=[Mem(self.x2)], **fields)
            self.scaled(f"{name} scaled", factors, scaling, label_in)
            return

        def scale(task, moment):
            b = task.operand(Const(factors), moment, self.x_tiles)
            task.use("vxm", "MAC", moment, self.x_tiles, a=int(Stream.VXM), b=int(b),
                     pre=scaling.pre, post=scaling.post)
            task.store(Stream.VXM, [Mem(self.x)], moment + latency, self.x_tiles, label=label_in)
        self.pass_(name, "MAC", self.x_tiles, *sources, into=[Mem(self.x2)], tail=scale, **fields)

    def scaled(self, name, factors, scaling, label) -> None:
        """The residual from MEM, times the factors, to where matmuls take it."""
        self.pass_(name, "MAC", self.x_tiles, Mem(self.x2), Const(factors), pre=scaling.pre,
                   post=scaling.post, into=[Mem(self.x)], label=label)
