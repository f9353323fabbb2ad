"""Memory contents: weights, KV cache, constants, and the addresses that the tasks use."""
import numpy as np

from compiler import lower_rope, lower_sampling
from compiler.layout import ceil_div
from compiler.lower_ffn import hidden_chunks
from compiler.lower_state import Lowering
from compiler.quantised import Rows, eps_vector


def place(low: Lowering) -> None:
    """Weights, constants and patterns; the addresses used by the tasks."""
    model, heads, lanes = low.model, low.heads, low.config.lanes
    weights, constants = low.weights, low.constants
    placed = [_place_layer(low, number, layer) for number, layer in enumerate(model.layers)]
    begin, second = placed[0], placed[min(1, len(placed) - 1)]
    low.at = begin
    low.strides = {"mxm": second["wq"] - begin["wq"], "kv": second["wq"] - begin["wq"],
                   "const": second["m_qkv"] - begin["m_qkv"]}
    low.embedding = _place_rows(low, model.embedding)
    low.m_embedding = constants.place(constants.channels(model.embedding.m))
    if model.positions is not None:
        low.positions = _place_rows(low, model.positions)
        low.m_positions = constants.place(constants.channels(model.positions.m))
    if model.offsets is not None:
        low.offsets = constants.place(constants.channels(model.offsets))
    low.classifier, low.classifier_strides = low.embedding, (low.v_tiles, 1)
    if not low.dims.tied:
        low.classifier = weights.place(weights.tiles(model.classifier))
        low.classifier_strides = (1, low.x_steps)
    low.m_classifier = low.m_embedding
    if not low.dims.tied:
        low.m_classifier = constants.place(constants.channels(model.logits.m))
    if model.final_gain is not None:
        low.gain = constants.place(constants.channels(model.final_gain.m))
        if model.final_gain.bias is not None:
            low.final_bias = constants.place(constants.channels(model.final_gain.bias))
    if model.final_in is not None:
        low.first_in = constants.place(constants.channels(model.layers[0].att_in.m))
    low.eps = constants.place(eps_vector(model.eps_total, lanes)[None])
    if model.rope is not None:
        lower_rope.place(low)
    if low.sampling:
        lower_sampling.place(low)


def _place_rows(low: Lowering, table: Rows) -> int:
    """A table of rows, k-major, so that the tile of a row is the fastest index of its words."""
    words = low.weights.tiles(table.rows)
    padded = np.zeros((words.shape[0], low.x_tiles * low.config.groups) + words.shape[2:], np.int8)
    padded[:, :words.shape[1]] = words
    return low.weights.place(padded.transpose(1, 0, 2, 3))


def _place_layer(low: Lowering, number, layer) -> dict:
    weights, constants, heads = low.weights, low.constants, low.heads
    spread = lambda rows, count: heads.spread(rows, count)  # noqa: E731
    at, following = {}, low.following(number)
    at["wk"] = weights.place(weights.tiles(spread(layer.wk, heads.kv_count)))
    at["wq"] = weights.place(weights.tiles(spread(layer.wq, heads.count)))
    at["wv"] = weights.place(weights.tiles(layer.wv))
    attended = heads.attended()
    columns = np.where(attended >= 0, attended, 0).reshape(-1)
    wo = layer.wo[:, columns] * (attended.reshape(-1) >= 0)
    at["wo"] = weights.place(weights.tiles(wo).transpose(1, 0, 2, 3))
    first_projections = [weights.tiles(w) for w in (layer.w1, layer.w3) if w is not None]
    at["w13"] = weights.size
    for first, count in hidden_chunks(low.h_tiles):
        for words in first_projections:
            weights.place(words[first:first + count])
    at["w2"] = weights.place(weights.tiles(layer.w2).transpose(1, 0, 2, 3))
    low.w2_steps = ceil_div(low.dims.hidden_dim, low.config.rows)
    # Whole key vectors are written, with the padding behind the last head.
    key_words = heads.k_vectors * low.config.groups * low.kv_tiles
    kv = np.zeros((key_words, low.config.rows, low.config.columns), np.int8)
    at["keys"] = weights.place(kv)
    low.v_words = low.kv_tiles * low.config.groups
    at["values"] = weights.place(np.zeros((heads.v_vectors * low.v_words,) + kv.shape[1:],
                                          np.int8))
    at["m_qkv"] = constants.place(np.concatenate([
        constants.channels(spread(layer.k.m, heads.kv_count)),
        constants.channels(spread(layer.q.m, heads.count)),
        constants.channels(layer.v.m)]))
    at["m_scores"] = constants.place(np.repeat(layer.scores.m[:, None], low.config.lanes, 1))
    at["m_o"] = constants.place(constants.channels(layer.o.m))
    first_multipliers = [constants.channels(requant.m) for requant in (layer.gate, layer.up)
                         if requant is not None]
    at["m_ffn"] = len(constants.rows)
    for first, count in hidden_chunks(low.h_tiles):
        for vectors in first_multipliers:
            constants.place(vectors[first:first + count])
    at["m_down"] = constants.place(constants.channels(layer.down.m))
    for name in ("q", "k", "v", "o", "gate", "down"):
        bias = getattr(layer, name).bias
        if bias is not None:
            bias = spread(bias, {"q": heads.count, "k": heads.kv_count}[name]) if name in "qk" else bias
            at[f"bias_{name}"] = constants.place(constants.channels(bias))
    for name, requant in (("ffn.in", layer.ffn_in), ("att.in", following)):
        if requant is not None:
            at[name] = constants.place(constants.channels(requant.m))
    return at
