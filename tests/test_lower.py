"""Lowering: the placed words compute the model's products, and what does not fit is refused."""
import dataclasses
import re
import types

import numpy as np
import pytest

from arch.config import profile
from compiler.checkpoint import ModelConfig, random_checkpoint
from compiler.errors import CapacityError, ModelError
from compiler.layout import heads_of
from compiler.lower import lower, uniform
from compiler.lower_ffn import hidden_chunks
from compiler.lower_rope import rope_packed, rope_tiles
from compiler.pipeline import compile_model
from compiler.tasks import Program, Task, Touch, affine, make_use
from compiler.verify import ProgramError, verify_program


def computed(compiled, layer, prefix, x, section="body"):
    """Accumulators of all matmuls whose task's name begins with ``prefix``, by the formula of
    `arch.isa`: {task name: [tiles, columns]}; ``x`` are the vectors that its feeds would read."""
    config, weights = compiled.config, compiled.lowered.weights.astype(np.int64)
    built, found = compiled.lowered.program, {}
    base = layer * built.strides["mxm"] if section == "body" else 0
    vectors = np.asarray(x).reshape(-1, config.groups, config.rows)
    for task in getattr(built, section):
        for use in task.uses:
            if use.queue != "mxm" or not task.name.startswith(prefix):
                continue
            fields, inner = use.instruction.fields, use.instruction["order"] == 0
            first = task.name.split()[-1]
            start = int(first) if fields["order"] == 1 and prefix in ("down", "attention") else 0
            tiles = use.n2(1) if inner else use.n1(1)
            total = found.setdefault((task.name, use.offset(1), fields["accumulator"],
                                      fields["start"]),
                                     np.zeros((tiles, config.columns), np.int64))
            for i in range(use.n2(1)):
                for j in range(use.n1(1)):
                    k, tile = (j, i) if inner else (i, j)
                    vector, half = divmod(fields["half0"] + k, config.groups)
                    word = weights[fields["address"] + base + i * fields["s2"]
                                   + j * fields["s1"]]
                    total[tile] += vectors[start + vector, half] @ word
    return found


def padded(values, lanes):
    out = np.zeros(-(-len(values) // lanes) * lanes, np.int64)
    out[:len(values)] = values
    return out


@pytest.fixture(params=["tiny", "untied", "wide_heads"])
def compiled(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def wide_heads():
    """Heads of one and a half vectors, hidden state of an odd number of tiles."""
    config = ModelConfig(dim=24, hidden_dim=37, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=21,
                         seq_len=8, tied=False)
    return compile_model(random_checkpoint(config, 4),
                         profile("tiny").replace(accumulators=32, const_depth=256))


@pytest.fixture
def layers(compiled):
    return list(enumerate(compiled.model.layers))


def random_vector(size, seed=1):
    return np.random.default_rng(seed).integers(-127, 128, size)


def test_projections(compiled, layers):
    heads, lanes = compiled.lowered.heads, compiled.config.lanes
    x = random_vector(compiled.model.config.dim)
    for number, layer in layers:
        for name, weights in (("k", layer.wk), ("q", layer.wq), ("v", layer.wv)):
            outputs = computed(compiled, number, f"{name} ", padded(x, lanes))
            ordered = sorted(outputs.items(), key=lambda item: int(item[0][0].split()[1]))
            flat = np.concatenate([tiles.reshape(-1) for _, tiles in ordered])
            expected = weights.astype(np.int64) @ x
            if name == "v":
                assert np.array_equal(flat, padded(expected, lanes))
                continue
            for head, part in enumerate(expected.reshape(-1, heads.size)):
                at = head * heads.stride
                assert np.array_equal(flat[at:at + heads.size], part)
                assert not flat[at + heads.size:at + heads.stride].any()


def test_attention_output(compiled, layers):
    """Weighted values come in the lanes of `Heads.attended`; all of wo is used once."""
    att = random_vector(compiled.model.config.dim)
    table = compiled.lowered.heads.attended()
    x = np.where(table >= 0, att[np.maximum(table, 0)], 99)
    for number, layer in layers:
        outputs = computed(compiled, number, "attention", x)
        assert sum(start for *_, start in outputs) == 1
        expected = padded(layer.wo.astype(np.int64) @ att, compiled.config.lanes)
        assert np.array_equal(sum(outputs.values()).reshape(-1), expected)


def test_feed_forward(compiled, layers):
    lanes, hidden = compiled.config.lanes, compiled.model.config.hidden_dim
    x, inner = random_vector(compiled.model.config.dim), random_vector(hidden, 2)
    for number, layer in layers:
        gate, up = (padded(w.astype(np.int64) @ x, lanes) for w in (layer.w1, layer.w3))
        outputs = computed(compiled, number, "gate, up", padded(x, lanes))
        assert len(outputs) == len(hidden_chunks(-(-hidden // lanes)))
        for (name, *_), tiles in outputs.items():
            first, count = int(name.split()[-1]), len(tiles) // 2
            part = slice(first * lanes, (first + count) * lanes)
            assert np.array_equal(tiles[:count].reshape(-1), gate[part])
            assert np.array_equal(tiles[count:].reshape(-1), up[part])
        outputs = computed(compiled, number, "down", padded(inner, lanes))
        assert sum(start for *_, start in outputs) == 1
        expected = padded(layer.w2.astype(np.int64) @ inner, lanes)
        assert np.array_equal(sum(outputs.values()).reshape(-1), expected)


def test_classifier(compiled):
    lanes, model = compiled.config.lanes, compiled.model
    x = random_vector(model.config.dim)
    outputs = computed(compiled, 0, "logits", padded(x, lanes), "epilogue")
    ordered = [outputs[key] for key in sorted(outputs, key=lambda key: key[1])]
    expected = padded(model.classifier.astype(np.int64) @ x, lanes)
    assert np.array_equal(np.concatenate(ordered).reshape(-1), expected)


def test_embedding(compiled):
    """READ_OUT of a token collects its row."""
    config, model = compiled.config, compiled.model
    task = next(task for task in compiled.lowered.program.prologue if task.name == "embedding")
    use = next(use for use in task.uses if use.queue == "kv")
    fields, words = use.instruction.fields, compiled.lowered.weights
    assert fields["index"] == 2
    for token in range(model.config.vocab_size):
        row = [words[fields["address"] + j * fields["s1"] + (token >> fields["index_shift"]),
                     r, token % config.columns]
               for j in range(use.n1(1)) for r in range(config.rows)]
        assert np.array_equal(row, padded(model.embedding.rows[token], config.lanes))


def test_kv_cache_is_empty_and_counted(compiled):
    """Per layer the cache lies behind the weights, for keys of all and values of all heads."""
    config, lowered, model = compiled.config, compiled.lowered, compiled.model
    heads, rows = lowered.heads, len(compiled.schedules)
    keys = -(-heads.kv_count * heads.stride // config.lanes) * config.groups * rows
    values = -(-heads.kv_count * heads.size // config.lanes) * config.groups * rows
    assert lowered.kv_words == model.config.n_layers * (keys + values)
    stride = lowered.program.strides["mxm"] if model.config.n_layers > 1 else keys + values
    for layer in range(model.config.n_layers):
        end = (layer + 1) * stride
        assert not lowered.weights[end - keys - values:end].any()


# RoPE.

@pytest.mark.parametrize("size, packed", [(4, True), (8, True), (12, False), (16, False),
                                          (24, False)])
def test_rope_tiles(size, packed):
    config = profile("tiny")
    model = types.SimpleNamespace(head_size=size, n_heads=2, n_kv_heads=1)
    heads = heads_of(model, config)
    rope = np.random.default_rng(3).integers(-16384, 16385, (5, size))
    tiles = rope_tiles(types.SimpleNamespace(rope=rope), heads)
    assert rope_packed(heads) == packed
    assert tiles.shape == (5, 2, heads.period, config.lanes)
    for position, part, vector, lane in np.ndindex(tiles.shape):
        channel = (vector * config.lanes + lane) % heads.stride
        value = 0
        if channel < size:
            value = rope[position, channel // 2 + (size // 2 if part else 0)]
            if part and channel % 2 == 0:
                value = -value
        assert tiles[position, part, vector, lane] == value


def test_patterns(tiny):
    """Of heads of four lanes: swap pairs, spread cos and sin of two pairs, broadcast lane 0."""
    assert tiny.lowered.patterns[:4].tolist() == [
        [1, 0, 3, 2, 5, 4, 7, 6], [0, 0, 1, 1, 0, 0, 1, 1], [2, 2, 3, 3, 2, 2, 3, 3], [0] * 8]
    assert (tiny.lowered.patterns[4:] == -1).all()


@pytest.mark.parametrize("tiles", range(1, 8))
def test_hidden_chunks(tiles):
    chunks = hidden_chunks(tiles)
    assert [first + i for first, count in chunks for i in range(count)] == list(range(tiles))
    assert all(1 <= count <= 2 for _, count in chunks)


# What does not fit.

BASE = dict(dim=32, hidden_dim=40, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=40, seq_len=16,
            tied=True)


@pytest.mark.parametrize("change, machine, message", [
    (dict(vocab_size=300), {}, "profile 'tiny' has 256 token ids, the model needs 300, 44 more"),
    (dict(), dict(accumulators=4), "profile 'tiny' has 4 accumulators per column, the model needs "
     "8, 4 more"),
    (dict(), dict(const_depth=20), "constant words"),
    (dict(), dict(weight_depth=100), "weight words (weights and KV cache)"),
    (dict(), dict(mem_depth=16), "words in MEM bank"),
    (dict(hidden_dim=300), {}, "words in MEM bank 1"),
    (dict(n_heads=4, n_kv_heads=4, hidden_dim=8), dict(mem_depth=12), "words in MEM bank"),
])
def test_does_not_fit(change, machine, message):
    config = profile("tiny").replace(**machine)
    with pytest.raises(CapacityError) as caught:
        compile_model(random_checkpoint(ModelConfig(**BASE | change), 1), config)
    text = str(caught.value)
    assert message in text
    have, need, more = map(int, re.match(
        r"profile 'tiny' has (\d+) .*, the model needs (\d+), (\d+) more", text).groups())
    assert need - have == more > 0


def test_needs_four_banks(tiny):
    with pytest.raises(ModelError) as caught:
        lower(tiny.model, tiny.config.replace(mem_banks=3))
    assert str(caught.value) == "the decoder needs 4 MEM banks; profile 'tiny' has 3"


def test_context_beyond_the_machine(tiny):
    model = dataclasses.replace(tiny.model, context=40)
    with pytest.raises(CapacityError) as caught:
        lower(model, tiny.config)
    assert str(caught.value) == "profile 'tiny' has 32 positions, the model needs 40, 8 more"


@pytest.mark.parametrize("change", [dict(q_shift=9), dict(hidden_post=1), dict(att_norm_bias=0)])
def test_layers_must_share_their_shifts(tiny, change):
    first, second = tiny.model.layers
    with pytest.raises(AssertionError, match=f"layer 1: {[*change][0]} differs from layer 0"):
        uniform(dataclasses.replace(tiny.model, layers=[first, dataclasses.replace(second,
                                                                                   **change)]))
    other = dataclasses.replace(second.up, post=second.up.post + 1)
    with pytest.raises(AssertionError, match="layer 1: up differs"):
        uniform(dataclasses.replace(tiny.model, layers=[first, dataclasses.replace(second,
                                                                                   up=other)]))
    assert uniform(tiny.model) is first


# The verifier between lowering and scheduling.

def verify(uses, touches=()):
    task = Task("made", tuple(uses), tuple(touches))
    verify_program(Program((task,), (), (), 1, {}), profile("tiny"))


def test_verifier():
    write = make_use("w0", "WRITE", 3, x=5, halves=3)
    verify([write])
    with pytest.raises(ProgramError, match="made: w0 issues 2 cycles before the task"):
        verify([dataclasses.replace(write, offset=affine(-2))])
    with pytest.raises(ProgramError, match="made: w0 issues twice in cycle 3"):
        verify([write, dataclasses.replace(write, offset=affine(1), n1=affine(3))])
    read = Touch("m0", 4, affine(2), "read", affine(0), affine(0))
    with pytest.raises(ProgramError, match=r"made: reads \('m0', 5\) before any task writes it"):
        verify([write], [Touch("m0", 4, affine(1), "write", affine(0), affine(0)), read])
    verify([write], [Touch("m0", 3, affine(3), "add", affine(0), affine(0)), read])
    verify([write], [dataclasses.replace(read, space="keys")])
