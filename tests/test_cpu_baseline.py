"""The CPU baseline computes what the float model computes, and says what it cannot read."""
import numpy as np
import pytest

import metronome
from compiler.checkpoint import ModelConfig, random_checkpoint
from compiler.errors import MetronomeError
from compiler.llama2c import save_checkpoint
from scripts import cpu_baseline
from sim import toolchain
from sim.float_model import FloatModel

pytestmark = pytest.mark.skipif(toolchain.missing(toolchain.compiler) is not None,
                                reason="no C++ compiler")


def greedy(checkpoint, steps):
    model, token, tokens = FloatModel(checkpoint), 1, []
    for position in range(steps):
        token = int(np.argmax(model.step(token, position)))
        tokens.append(token)
    return tokens


def test_built_in_model():
    tokens, speed = cpu_baseline.run(metronome.MODELS / metronome.BUILT_IN, 200, repeats=1)
    assert tokens == greedy(metronome.load_model().checkpoint, 200)
    assert len(set(tokens)) > 10 and speed > 0


def test_another_shape(tmp_path):
    """Untied, grouped heads, sizes that no loop divides."""
    checkpoint = random_checkpoint(ModelConfig(dim=36, hidden_dim=50, n_layers=2, n_heads=6,
                                               n_kv_heads=2, vocab_size=45, seq_len=30,
                                               tied=False), 5)
    save_checkpoint(tmp_path / "model.bin", checkpoint, 0)
    assert cpu_baseline.run(tmp_path / "model.bin", 30, 2)[0] == greedy(checkpoint, 30)


def test_no_file(tmp_path):
    with pytest.raises(MetronomeError, match="absent.bin: usage"):
        cpu_baseline.run(tmp_path / "absent.bin", 1)
