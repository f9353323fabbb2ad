"""Models of ten million weights on the flagship's array: how busy the compiler keeps it."""
import pytest

from scripts.large import MODELS, POSITION, compiled


def multiplications(shape, position: int) -> int:
    """Multiplications of one step, from the formulas of a decoder; no padding."""
    kv_dim = shape.dim // shape.n_heads * shape.n_kv_heads
    layer = 2 * shape.dim * (shape.dim + kv_dim) + 3 * shape.dim * shape.hidden_dim
    return (shape.n_layers * (layer + 2 * shape.dim * (position + 1))
            + shape.dim * shape.vocab_size)


@pytest.mark.parametrize("name, least", [("dim 288, 6 layers", 0.97),
                                         ("dim 128, heads of 8", 0.80)])
def test_the_array_is_busy(name, least):
    model = compiled(name)
    useful = multiplications(MODELS[name], POSITION)
    assert useful / (128 * model.predicted(POSITION)) >= least
