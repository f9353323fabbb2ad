"""Where things live: words, constants, buffers and heads, against index formulas."""
import itertools

import numpy as np
import pytest

from arch.config import profile
from compiler.checkpoint import ModelConfig
from compiler.errors import CapacityError, ModelError
from compiler.layout import Buffer, Constants, Heads, Vectors, Weights, ceil_div, heads_of
from compiler.lower import finish
from compiler.lower_state import Lowering

TINY, BIG = profile("tiny"), profile("ecp5_85k")


@pytest.mark.parametrize("a, b, quotient", [(0, 3, 0), (1, 3, 1), (3, 3, 1), (4, 3, 2), (6, 3, 2)])
def test_ceil_div(a, b, quotient):
    assert ceil_div(a, b) == quotient


# Weight words.

@pytest.mark.parametrize("config", [TINY, profile("small"), BIG], ids=lambda config: config.name)
@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (17, 9), (40, 33), (5, 64)])
def test_tiles(config, shape):
    """Word (t, k): row r of column c multiplies input k * rows + r for output t * columns + c."""
    matrix = np.random.default_rng(1).integers(-127, 128, shape).astype(np.int8)
    words = Weights(config).tiles(matrix)
    assert words.dtype == np.int8
    assert words.shape == (ceil_div(shape[0], config.columns), ceil_div(shape[1], config.rows),
                           config.rows, config.columns)
    for (tile, step, row, column), value in np.ndenumerate(words):
        out, inner = tile * config.columns + column, step * config.rows + row
        inside = out < shape[0] and inner < shape[1]
        assert value == (matrix[out, inner] if inside else 0)


def test_place_and_finish():
    weights = Weights(TINY)
    first = np.full((3, TINY.rows, TINY.columns), 1, np.int8)
    second = np.arange(2 * 2 * 32, dtype=np.int8).reshape(2, 2, TINY.rows, TINY.columns)
    assert (weights.place(first), weights.place(second), weights.size) == (0, 3, 7)
    words = weights.finish()
    assert words.shape == (7, TINY.rows, TINY.columns)
    assert np.array_equal(words[:3], first) and np.array_equal(words[3:].reshape(-1),
                                                               second.reshape(-1))


def test_too_many_weights():
    weights = Weights(TINY)
    weights.place(np.zeros((1024, TINY.rows, TINY.columns), np.int8))
    assert len(weights.finish()) == 1024
    weights.place(np.zeros((5, TINY.rows, TINY.columns), np.int8))
    with pytest.raises(CapacityError) as caught:
        weights.finish()
    assert str(caught.value) == ("profile 'tiny' has 1024 weight words (weights and KV cache), the "
                                 "model needs 1029, 5 more")


# Constants.

def test_channels():
    vectors = Constants(TINY).channels(np.arange(1, 12))
    assert vectors.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 0, 0, 0, 0, 0]]
    assert Constants(TINY).channels(np.arange(8)).shape == (1, 8)


def test_constants_are_placed_in_order():
    constants = Constants(TINY)
    assert constants.place(np.full((2, 8), -32768)) == 0
    assert constants.place(np.full((1, 8), 32767)) == 2
    table = constants.finish()
    assert table.dtype == np.int16
    assert table.tolist() == [[-32768] * 8] * 2 + [[32767] * 8]


def test_constants_beyond_int16_are_a_bug():
    constants = Constants(TINY)
    constants.place(np.full((1, 8), 32768))
    with pytest.raises(AssertionError):
        constants.finish()


def test_too_many_constants():
    constants = Constants(TINY)
    constants.place(np.zeros((130, 8)))
    with pytest.raises(CapacityError) as caught:
        constants.finish()
    assert str(caught.value) == "profile 'tiny' has 128 constant words, the model needs 130, 2 more"


# Buffers.

def test_phases_share_words():
    vectors = Vectors(TINY)
    assert vectors.take("x", 0, 4) == Buffer("x", 0, 0, 4)
    assert vectors.take("y", 1, 2) == Buffer("y", 1, 0, 2)
    assert vectors.take("a", 0, 10, "one") == Buffer("a", 0, 4, 10)
    assert vectors.take("b", 0, 3, "one") == Buffer("b", 0, 14, 3)
    assert vectors.take("c", 0, 5, "two") == Buffer("c", 0, 4, 5)
    assert vectors.take("d", 1, 1, "two") == Buffer("d", 1, 2, 1)
    assert vectors.peak == [17, 3, 0, 0]
    with pytest.raises(AssertionError, match="permanent buffers come first"):
        vectors.take("z", 2, 1)


def test_a_phase_behind_another():
    vectors = Vectors(TINY)
    vectors.take("x", 0, 4)
    vectors.take("a", 0, 10, "one")
    vectors.begin("two", "one")
    assert vectors.take("b", 0, 3, "two") == Buffer("b", 0, 14, 3)
    assert vectors.take("c", 0, 5, "one") == Buffer("c", 0, 14, 5)
    assert vectors.take("d", 0, 1, "two") == Buffer("d", 0, 17, 1)
    assert vectors.peak == [19, 0, 0, 0]


@pytest.mark.parametrize("depth, bases", [(64, (28, 24)), (32, (28, 24)), (30, (26, 22)),
                                          (24, (20, 16))])
def test_scores_overlay_what_q_and_k_are_made_of(tiny, depth, bases):
    """Bank 1 by hand: residual 5, cos and sin 2, 1/sum 4, peaks 5; multipliers of q, k and v from
    word 16 to 23. Two heads have their scores there, 4 words each, the later one in lower words."""
    lowering = Lowering(tiny.model, tiny.config.replace(mem_depth=depth))
    assert lowering.m_qkv == Buffer("m_qkv", 1, 16, 8)
    slots = [lowering.slot[head] for head in lowering.head_order() if lowering.score_bank(head) == 1]
    assert tuple(slot.base for slot in slots) == bases
    assert {(slot.bank, slot.size) for slot in slots} == {(1, 4)}


def test_buffers_of_a_phase_are_disjoint(tiny):
    """Of a real model: no two buffers that live at the same time share a word."""
    lowering = Lowering(tiny.model, tiny.config)
    finish(lowering)
    by_phase = {}
    for phase, levels in lowering.mem.used.items():
        assert max(levels) <= tiny.config.mem_depth
        by_phase[phase] = levels
    assert set(by_phase) == {"begin", "qkv", "att", "ffn", "end"}
    fixed = [lowering.x, lowering.x2, lowering.cos, lowering.sin, lowering.r]
    attention = fixed + [lowering.m_qkv, lowering.raw, lowering.turn, lowering.k, lowering.q,
                         lowering.att, *lowering.peak, *{*lowering.slot.values()},
                         *(buffer for buffer in (lowering.inv_alone, lowering.inv_shared)
                           if buffer)]
    feed_forward = fixed + [lowering.m_ffn, lowering.gate, lowering.up, lowering.silu,
                            lowering.hidden]
    for alive in (fixed + [lowering.scale], attention, feed_forward, fixed + [lowering.final, lowering.m_logits]):
        words = [(buffer.bank, word) for buffer in alive
                 for word in range(buffer.base, buffer.base + buffer.size)]
        assert len(set(words)) == len(words)
        assert all(word < tiny.config.mem_depth for _, word in words)


def test_a_bank_overflows():
    vectors = Vectors(TINY)
    vectors.take("x", 2, 60)
    vectors.check()
    vectors.take("a", 2, 10, "one")
    with pytest.raises(CapacityError) as caught:
        vectors.check()
    assert str(caught.value) == ("profile 'tiny' has 64 words in MEM bank 2, the model needs 70, "
                                 "6 more")


# Heads.

def heads(config, count, kv_count, size):
    model = ModelConfig(dim=count * size, hidden_dim=8, n_layers=1, n_heads=count,
                        n_kv_heads=kv_count, vocab_size=8, seq_len=8, tied=True)
    return heads_of(model, config)


SHAPES = [(TINY, 8, 4, 4), (TINY, 4, 2, 8), (TINY, 2, 1, 16), (TINY, 6, 3, 12), (TINY, 9, 3, 4),
          (BIG, 8, 4, 8), (BIG, 3, 3, 24), (BIG, 2, 1, 48), (BIG, 6, 6, 16)]


def test_strides():
    assert [heads(*shape).stride for shape in SHAPES] == [4, 8, 16, 16, 4, 8, 32, 48, 16]
    assert [heads(*shape).period for shape in SHAPES] == [1, 1, 2, 2, 1, 1, 2, 3, 1]
    assert [heads(*shape).group for shape in SHAPES] == [2, 2, 2, 2, 3, 2, 1, 2, 1]
    wide = heads(BIG, 3, 3, 24)
    # Three heads of 24 on 32 channels each: six vectors of q and of k, five of v.
    assert (wide.q_vectors, wide.k_vectors, wide.v_vectors) == (6, 6, 5)
    assert (wide.steps, wide.step_stride) == (3, 4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_spread(shape):
    made = heads(*shape)
    rows = np.random.default_rng(2).integers(1, 100, (made.count * made.size, 3))
    out = made.spread(rows, made.count)
    assert out.shape == (made.count * made.stride, 3)
    for head, channel in itertools.product(range(made.count), range(made.stride)):
        expected = rows[head * made.size + channel] if channel < made.size else [0, 0, 0]
        assert np.array_equal(out[head * made.stride + channel], expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attended(shape):
    """Every channel of the weighted values has exactly one lane, and the lane the feed of its half.

    A half of columns has one feed, so that all lanes of a half belong to one query head, whose KV
    head has its values there.
    """
    config, count, kv_count, size = shape
    made = heads(*shape)
    table = made.attended()
    lanes, half = config.lanes, config.half_columns
    assert table.shape == (made.v_vectors * made.group, lanes)
    natural = sorted(table[table >= 0])
    assert natural == list(range(count * size))
    for vector, lane in np.ndindex(table.shape):
        channel = table[vector, lane]
        tile, member = divmod(vector, made.group)
        place = tile * lanes + lane
        if channel < 0:
            assert place >= kv_count * size
            continue
        head, within = divmod(channel, size)
        # The values of KV head h lie behind each other in the columns of the value tiles.
        assert place == head // made.group * size + within
        assert head % made.group == member
        assert head == made.half_owner(tile, lane // half) * made.group + member


def test_half_owner_beyond_the_last_head():
    odd = heads(TINY, 3, 3, 4)
    assert [odd.half_owner(tile, part) for tile in (0, 1) for part in (0, 1)] == [0, 1, 2, 2]


@pytest.mark.parametrize("config, size, message", [
    (TINY, 6, "head size 6 is no multiple of the 4 rows and 4 columns per feed of profile 'tiny'"),
    (BIG, 12, "head size 12 is no multiple of the 8 rows and 8 columns per feed of profile "
     "'ecp5_85k'"),
    (profile("small").replace(columns=32), 8, "head size 8 is no multiple of the 8 rows and 16 "
     "columns per feed of profile 'small'")])
def test_heads_that_no_array_holds(config, size, message):
    with pytest.raises(ModelError) as caught:
        heads(config, 2, 1, size)
    assert str(caught.value) == message
    assert isinstance(heads(config, 2, 1, 16), Heads)
