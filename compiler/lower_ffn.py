"""The feed-forward part of a layer, hidden tiles in pieces."""
from arch.queues import Stream
from arch.timing import timing
from compiler.lower_state import HIDDEN_PIECE, Lowering, chunks
from compiler.passes import Acc, Const, Feed, Mem

#: Hidden tiles that GELU takes in one piece.
GELU_PIECE = 4


def hidden_chunks(tiles: int) -> list:
    """Hidden tiles in the pieces that gate and up are computed in: (first, length) each."""
    return chunks(tiles, HIDDEN_PIECE)


def feed_forward(low: Lowering, layer) -> None:
    """Norm, hidden state, its way back into the residual."""
    low.norm("ffn", layer.ffn_norm_bias)
    if low.dims.activation == "gelu":
        _gelu(low, layer)
    else:
        _gated(low, layer)
    low.residual("feed-forward output", low.at["m_down"], low.biased("ffn", "down", layer.down),
                 layer.down, "x_out", "att.in", layer.att_in)


def _multipliers(low: Lowering, lead, total):
    """1/rms into the multipliers; those that are wanted first by themselves."""
    low.joined("ffn", low.at["m_ffn"], low.m_ffn, 0, lead)
    if total > lead:
        low.joined("ffn", low.at["m_ffn"], low.m_ffn, lead, total - lead)


def _down(low: Lowering, layer, first, count):
    """Hidden tiles ``first`` and on through their part of w2."""
    groups, tiles = low.config.groups, low.x_tiles
    step = first * groups
    low.matmul(f"down {first}", low.at["w2"] + step * tiles, Feed(low.hidden, first),
               order="outer", steps=min(count * groups, low.w2_steps - step), tiles=tiles, s1=1,
               s2=tiles, accumulator=0, start=first == 0, shift=layer.hidden_shift)


def _gelu(low: Lowering, layer) -> None:
    """GELU takes the requantised vectors off the stream, as long as they fit into its latency."""
    at, latency = low.at, timing(low.config).vxm
    pieces = chunks(low.h_tiles, min(GELU_PIECE, latency, low.ring[1]))
    _multipliers(low, pieces[0][1], low.h_tiles)
    entry = 0
    for first, count in pieces:
        entry = 0 if entry + count > low.ring[1] else entry
        base = low.ring[0] + entry
        entry += count
        low.matmul(f"first {first}", at["w13"] + first * low.x_steps, Feed(low.x), order="inner",
                   steps=low.x_steps, tiles=count, s1=1, s2=low.x_steps, accumulator=base,
                   shift=layer.ffn_norm_shift)

        def gelu(task, moment, first=first, count=count):
            task.use("vxm", "GELU", moment, count, a=int(Stream.VXM))
            task.store(Stream.VXM, [Mem(low.hidden, first)], moment + latency, count,
                       label="hidden", first=first)
        low.pass_(f"gelu {first}", "MAC", count, Acc(base), Mem(low.m_ffn, first),
                  Const(at["bias_gate"] + first), pre=layer.gate.pre, post=layer.gate.post,
                  tail=gelu)
        _down(low, layer, first, count)


def _gated(low: Lowering, layer) -> None:
    """Gate and up, SiLU, their product."""
    at, pieces = low.at, hidden_chunks(low.h_tiles)
    _multipliers(low, 2 * pieces[0][1], 2 * low.h_tiles)
    entry = 0
    for first, count in pieces:
        entry = 0 if entry + 2 * count > low.ring[1] else entry
        base = low.ring[0] + entry
        entry += 2 * count
        low.matmul(f"gate, up {first}", at["w13"] + 2 * first * low.x_steps, Feed(low.x),
                   order="inner", steps=low.x_steps, tiles=2 * count, s1=1,
                   s2=low.x_steps, accumulator=base, shift=layer.ffn_norm_shift)
        low.pass_(f"gate {first}", "MAC", count, Acc(base), Mem(low.m_ffn, 2 * first),
                  pre=layer.gate.pre, post=layer.gate.post, into=[Mem(low.gate, first)],
                  label="gate", first=first)
        low.pass_(f"up {first}", "MAC", count, Acc(base + count),
                  Mem(low.m_ffn, 2 * first + count), pre=layer.up.pre, post=layer.up.post,
                  into=[Mem(low.up, first)], label="up", first=first)
        low.pass_(f"silu {first}", "SILU", count, Mem(low.gate, first),
                  into=[Mem(low.silu, first)], label="silu", first=first)
        low.pass_(f"hidden {first}", "MAC", count, Mem(low.silu, first),
                  Mem(low.up, first), post=layer.hidden_post,
                  into=[Mem(low.hidden, first)], label="hidden", first=first)
        _down(low, layer, first, count)
