"""The feed-forward part of a layer, hidden tiles in pieces."""
from compiler.lower_state import Lowering, chunks
from compiler.passes import Acc, Const, Feed, Mem


def hidden_chunks(tiles: int) -> list:
    """Hidden tiles in the pieces that gate and up are computed in: (first, length) each.

    Small ones keep the chain of passes behind the last piece short.
    """
    return chunks(tiles, 2)


def feed_forward(low: Lowering, layer) -> None:
    """Norm, gate and up, SiLU, their product, down, back into the residual."""
    at, tiles = low.at, low.x_tiles
    low.norm("ffn", layer.ffn_norm_bias)
    pieces = hidden_chunks(low.h_tiles)
    lead = 2 * pieces[0][1]
    low.joined("ffn", at["m_ffn"], low.m_ffn, 0, lead)
    if 2 * low.h_tiles > lead:
        low.joined("ffn", at["m_ffn"], low.m_ffn, lead, 2 * low.h_tiles - lead)
    entry, groups = 0, low.config.groups
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
        step = first * groups
        low.matmul(f"down {first}", at["w2"] + step * tiles, Feed(low.hidden, first),
                   order="outer", steps=min(count * groups, low.w2_steps - step),
                   tiles=tiles, s1=1, s2=tiles, accumulator=0, start=first == 0,
                   shift=layer.hidden_shift)
    low.pass_("feed-forward output", "MAC", tiles, Acc(0), Const(at["m_down"]),
              Mem(low.x2), pre=layer.down.pre, post=layer.down.post,
              into=[Mem(low.x), Mem(low.x2)], label="x_out")
