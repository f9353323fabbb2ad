"""Imported models against the library that their formats come from; runs where it is installed.

Neither torch nor transformers is a dependency: pip install torch transformers.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: nothing to compare with")

import metronome  # noqa: E402
from compiler.hf_export import DTYPES, save_folder  # noqa: E402
from compiler.huggingface import load_folder  # noqa: E402
from sim.float_model import FloatModel  # noqa: E402

CONFIGS = {
    "llama, grouped": transformers.LlamaConfig(
        vocab_size=70, hidden_size=48, intermediate_size=52, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=40,
        bos_token_id=1, eos_token_id=2, initializer_range=0.3),
    "llama, tied, other base": transformers.LlamaConfig(
        vocab_size=70, hidden_size=32, intermediate_size=52, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=40,
        tie_word_embeddings=True, rms_norm_eps=1e-3, initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    "gpt2": transformers.GPT2Config(
        vocab_size=70, n_embd=48, n_layer=3, n_head=6, n_positions=40, bos_token_id=1,
        eos_token_id=1, initializer_range=0.3),
    "gpt2, untied": transformers.GPT2Config(
        vocab_size=70, n_embd=32, n_layer=2, n_head=2, n_positions=40, n_inner=52,
        bos_token_id=1, eos_token_id=1, tie_word_embeddings=False, layer_norm_epsilon=1e-3,
        initializer_range=0.3, activation_function="gelu_pytorch_tanh"),
}
TOKENS = np.random.default_rng(7).integers(0, 70, 40)


def theirs(model, tokens) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens))[None]).logits[0].float().numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_models_that_transformers_saves(tmp_path, name):
    torch.manual_seed(3)
    kind = "GPT2LMHeadModel" if "gpt2" in name else "LlamaForCausalLM"
    model = getattr(transformers, kind)(CONFIGS[name]).eval()
    # Norms and biases of an untrained model are all 1 and 0: draw them as well.
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight += 0.3 * torch.randn_like(weight)
    model.save_pretrained(tmp_path)
    checkpoint = load_folder(tmp_path)
    expected = theirs(model, TOKENS)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(FloatModel(checkpoint).logits(TOKENS), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_built_in_model_in_transformers(tmp_path, dtype):
    """What is exported is what the library reads, tokenizer included."""
    built_in = metronome.load_model()
    save_folder(tmp_path, built_in.checkpoint, built_in.tokenizer, dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"))
    text = "ROMEO:\nWhat light through yonder window breaks?"
    imported = metronome.load_model(str(tmp_path))
    tokens = imported.tokenizer.encode(text)
    assert tokenizer.encode(text) == tokens
    np.testing.assert_allclose(FloatModel(imported.checkpoint).logits(tokens),
                               theirs(model.eval(), tokens), rtol=0, atol=1e-4)
