"""The hand-written programs in ``programs/``, run on the machine model, against numpy."""
import math
from pathlib import Path

import numpy as np
import pytest

from arch import numerics
from compiler.asm import assemble
from sim.checker import check_schedule
from sim.machine import Machine

FOLDER = Path(__file__).parent.parent / "programs"


def run(name, position=0):
    """The image and a machine that has run one generate step of it."""
    image = assemble((FOLDER / f"{name}.asm").read_text())
    check_schedule(image)
    machine = Machine(image.config)
    machine.load(image)
    machine.run([0] * (position + 1), 1, first=position)
    return image, machine


def words(machine, bank, count):
    return np.array([machine.read_mem(bank, word) for word in range(count)], np.int64)


def test_gemm_hold():
    image, machine = run("gemm_hold")
    constants, weights = image.constants.astype(np.int64), image.weights.astype(np.int64)
    a, b = np.hstack([constants[:12], constants[12:24]]), weights.reshape(16, 8)
    expected = np.floor(a @ b / 32 + 0.5)
    assert np.abs(expected).max() < 32768 and np.abs(expected).max() > 1000
    assert (words(machine, 0, 12) == expected).all()


def test_mlp():
    image, machine = run("mlp")
    x, weights = image.constants[0].astype(np.int64), image.weights.astype(np.int64)
    w1 = np.block([[weights[0], weights[1]], [weights[2], weights[3]]])
    w2 = weights[4:8].reshape(16, 8)
    hidden = numerics.gelu(numerics.rshift(x @ w1, 1))
    assert (words(machine, 0, 2).ravel() == hidden).all()
    y = numerics.rshift(numerics.activation(hidden, 5, 8) @ w2, 4)
    assert (words(machine, 1, 1)[0] == y).all()
    # And it is a perceptron in real numbers, as far as 8 bits go (hidden units clip at 127/64).
    real = x / 32 @ w1 / 128
    real = np.array([value * 0.5 * math.erfc(-value / math.sqrt(2)) for value in real])
    real = np.clip(real, -127 / 64, 127 / 64) @ w2 / 128
    assert np.abs(words(machine, 1, 1)[0] / 512 - real).max() < 0.05


@pytest.mark.parametrize("position", [0, 3, 13])
def test_permute(position):
    image, machine = run("permute", position)
    x = image.constants[0]
    reversed_bits = x[[0, 4, 2, 6, 1, 5, 3, 7]]
    rotated = np.roll(reversed_bits, 1)
    compact = np.concatenate([rotated[::2], np.zeros(4)])
    assert (words(machine, 0, 3) == [reversed_bits, rotated, compact]).all()
    assert (machine.read_mem(1, 0) == x[np.arange(8) ^ position % 8]).all()


def test_softmax():
    image, machine = run("softmax")
    x = image.constants[:2].astype(np.int64).ravel()
    real = np.exp2(x / 256) / np.exp2(x / 256).sum()
    p = words(machine, 2, 2).ravel() / 2**15
    assert np.abs(p - real).max() < 3e-4 and abs(p.sum() - 1) < 1e-3
    powers = numerics.exp2(x, x.max(), 15)
    assert (words(machine, 1, 2).ravel() == powers).all()
    scale = numerics.recip(powers.sum(), 15)
    assert (words(machine, 2, 2).ravel() == numerics.mac(powers, scale, 0, 0, 0, True)).all()
