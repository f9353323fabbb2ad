"""The programs in docs/isa.md do what the page says: machine model against numpy."""
import re

import numpy as np
import pytest

from arch import numerics
from arch.queues import Stream
from compiler.asm import assemble
from scripts.pages import ROOT
from sim.checker import check_schedule
from sim.machine import Machine

_BLOCK = re.compile(r"^```asm (\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SOURCES = dict(_BLOCK.findall((ROOT / "docs" / "isa_sketches.md").read_text(encoding="utf-8")))


def words(matrix, config):
    """Weight words of a matrix [out, in], tile after tile, one word per k step."""
    out, inner = matrix.shape
    rows, columns = config.rows, config.columns
    return matrix.reshape(out // columns, columns, inner // rows, rows).transpose(
        0, 2, 3, 1).reshape(-1, rows, columns).astype(np.int8)


def loaded(name, constants, matrix=None):
    """A machine with the program of the page, its constants and its weights."""
    image = assemble(SOURCES[name])
    lanes = image.config.lanes
    image.constants = np.asarray(constants).astype(np.int16).reshape(-1, lanes)
    if matrix is not None:
        image.weights = words(matrix, image.config)
    check_schedule(image)
    machine = Machine(image.config)
    machine.load(image)
    return machine


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_every_program_of_the_page_is_tested():
    assert set(SOURCES) == {"layer_norm", "prefill", "two_sequences", "encoder", "groups",
                            "split"}


def test_layer_norm_is_exact_and_normalises(rng):
    x, gain = rng.integers(-3000, 3900, 16), rng.normal(1, 0.2, 16)
    w, bias = rng.normal(0, 1, (8, 16)), rng.normal(0, 3, 8)
    folded = (w * gain) @ (np.eye(16) - 1 / 16)
    scale = np.abs(folded).max(1) / 127
    weights = np.rint(folded / scale[:, None]).astype(np.int64)
    m = np.rint(scale / scale.max() * 30000).astype(np.int64)
    # y = acc m r / 2**(12 + 16) with r = 2**24 / (4 sigma), and acc is in steps of 2**5.
    unit = scale.max() / 30000 * 2.0**(12 + 16) * 4 * 2.0**(5 - 24)
    biases = np.rint(bias / unit).astype(np.int64)
    machine = loaded("layer_norm", [*x, *[20] * 8, *[-1] * 8, *m, *biases], weights)
    machine.run_step(0, 0)
    seen = machine.read_mem(2, 0).astype(np.int64)

    mean = numerics.rshift(x.sum(), 4)
    centred = numerics.mac(mean, -1, x, 0, 0)
    r = numerics.rsqrt((centred**2).sum() + 8 * 20**2, 24)
    joined = numerics.mac(m, r, 0, 0, 12, b_float=True)
    acc = weights @ numerics.activation(x, 5, 8)
    assert np.array_equal(seen, numerics.mac(acc, joined, biases, 0, 16))
    normalised = (x - x.mean()) / x.std() * gain
    expected = w @ normalised + bias
    assert np.abs(seen * unit - expected).max() < 0.05 * np.abs(expected).max()


def test_prefill_holds_weights(rng):
    x, w = rng.integers(-500, 500, (4, 16)), rng.integers(-127, 128, (16, 16))
    m = rng.integers(100, 1000, 16)
    vectors = [x[token, 8 * v:8 * v + 8] for v in range(2) for token in range(4)]
    machine = loaded("prefill", np.concatenate([*vectors, m]), w)
    machine.run_step(0, 0)
    expected = numerics.mac(numerics.activation(x, 2, 8) @ w.T, m, 0, 0, 10)
    for token in range(4):
        for tile in range(2):
            assert np.array_equal(machine.read_mem(1, 4 * tile + token),
                                  expected[token, 8 * tile:8 * tile + 8])


def test_two_sequences_keep_their_caches_apart(rng):
    queries, keys = (rng.integers(-127, 128, (2, 32, 8)) for _ in range(2))
    machine = loaded("two_sequences",
                     np.concatenate([queries[0], keys[0], queries[1], keys[1]]))
    for position in range(32):
        machine.run_step(position, 0)
        tiles = position // 8 + 1
        for sequence in range(2):
            expected = np.full(8 * tiles, numerics.MASKED)
            scores = keys[sequence, :position + 1] @ queries[sequence, position]
            expected[:position + 1] = numerics.rshift(scores, 2)
            seen = [machine.read_mem(sequence, tile) for tile in range(tiles)]
            assert np.array_equal(np.concatenate(seen), expected), (position, sequence)


def test_encoder_attends_to_every_position(rng):
    queries = rng.integers(-250, 250, (8, 8))
    keys, values = (rng.integers(-127, 128, (8, 8)) for _ in range(2))
    machine = loaded("encoder", np.concatenate([queries, keys, values]))
    for position in range(8):
        machine.run_step(position, 0, prompt=position < 7)
    scores = numerics.rshift(numerics.activation(queries, 1, 8) @ keys.T, 3)
    p = numerics.exp2(scores, scores.max(1, keepdims=True), 22)
    inverse = numerics.recip(p.sum(1), 18)
    expected = numerics.mac(p @ values, inverse[:, None], 0, 0, 10, b_float=True)
    seen = np.array([machine.read_mem(0, 8 + query) for query in range(8)])
    assert np.array_equal(seen, expected)
    exact = np.exp2((scores - scores.max(1, keepdims=True)) / 256)
    exact = exact / exact.sum(1, keepdims=True) @ values
    assert np.abs(seen / 256 - exact).max() < 2


def test_groups_of_inputs_have_scales_of_their_own(rng):
    x, w = rng.integers(-127, 128, 16), rng.integers(-8, 8, (8, 16))
    m = rng.integers(100, 1000, (2, 8))
    machine = loaded("groups", np.concatenate([x, *m]), w)
    machine.run_step(0, 0)
    first = numerics.rshift(w[:, :8] @ x[:8] * m[0], 8)
    expected = numerics.rshift(w[:, 8:] @ x[8:] * m[1], 8) + first
    assert np.array_equal(machine.read_mem(0, 0), expected)


def test_partial_sums_of_two_chips_add_up(rng):
    x, w = rng.integers(-127, 128, 16), rng.integers(-127, 128, (8, 16))
    sums = []
    for chip in range(2):
        part = slice(8 * chip, 8 * chip + 8)
        record = loaded("split", x[part], w[:, part]).run_step(0, 0, watch=(Stream.ACC,))
        [(_, stream, lanes)] = record.streams
        assert stream == Stream.ACC
        sums.append(lanes.astype(np.int64))
    assert np.array_equal(sums[0] + sums[1], w @ x)
