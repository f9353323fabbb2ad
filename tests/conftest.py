"""Models that several tests share, compiled once per session."""
import pytest

from arch.config import profile
from compiler.checkpoint import ModelConfig, random_checkpoint
from compiler.pipeline import compile_model

#: Two layers; four KV heads for eight heads, half a vector each; a hidden state and a vocabulary
#: that fill no vector.
TINY = ModelConfig(dim=32, hidden_dim=44, n_layers=2, n_heads=8, n_kv_heads=4, vocab_size=43,
                   seq_len=32, tied=True)

#: Files that simulate hardware in Python, or compile many models: all their tests are slow.
SLOW_FILES = {"test_chip.py", "test_formats.py", "test_hostile_files.py", "test_large.py",
              "test_large_shapes.py", "test_mxm.py", "test_mxm_kv.py", "test_mxm_timing.py",
              "test_shapes.py", "test_vxm.py"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.name in SLOW_FILES:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny_checkpoint():
    """An untrained checkpoint that fits profile tiny."""
    return random_checkpoint(TINY, 1)


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint):
    """`tiny_checkpoint` compiled for profile tiny; do not change it."""
    return compile_model(tiny_checkpoint, profile("tiny"))


@pytest.fixture(scope="session")
def choosy(tiny_checkpoint):
    """The same model with top-k and top-p, whose rounds are loops."""
    return compile_model(tiny_checkpoint, profile("tiny"), sampling=("top-k", "top-p"))


@pytest.fixture(scope="session")
def untied():
    """A model of three layers with its own classifier and an odd context, on profile small."""
    config = ModelConfig(dim=24, hidden_dim=20, n_layers=3, n_heads=3, n_kv_heads=1, vocab_size=70,
                         seq_len=21, tied=False)
    return compile_model(random_checkpoint(config, 2), profile("small"))


@pytest.fixture(scope="session")
def many_heads():
    """Twelve heads over four KV tiles: the scores of a head share accumulators with others'."""
    config = ModelConfig(dim=48, hidden_dim=20, n_layers=1, n_heads=12, n_kv_heads=4, vocab_size=30,
                         seq_len=32, tied=True)
    return compile_model(random_checkpoint(config, 3), profile("tiny").replace(
        accumulators=32, weight_depth=4096, const_depth=512, program_depth=(("*", 512),),
        param_columns=32))
