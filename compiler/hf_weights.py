"""Names and layouts of the tensors of `LlamaForCausalLM` and `GPT2LMHeadModel`, in both directions.

Llama: a matrix is [outputs, inputs] as here, but RoPE turns element i of a head together with
element i + head_size / 2, where the machine turns 2i with 2i + 1: rows of queries and keys change
places. GPT-2: its ``Conv1D`` keeps a matrix as [inputs, outputs], and queries, keys and values in
one.

Ref: transformers, modeling_llama.py (rotate_half), modeling_gpt2.py (GPT2Attention) and
pytorch_utils.py (Conv1D).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from compiler.checkpoint import Checkpoint, ModelConfig, weight_shapes
from compiler.errors import ModelError
from compiler.files import short

__all__ = ["checkpoint", "tensors"]

F32 = NDArray[np.float32]

_CLASSIFIER = "lm_head.weight"
_LLAMA = {"embedding": "model.embed_tokens.weight", "norm_final": "model.norm.weight"}
_LLAMA_LAYER = {
    "norm_att": "input_layernorm.weight", "norm_ffn": "post_attention_layernorm.weight",
    "wq": "self_attn.q_proj.weight", "wk": "self_attn.k_proj.weight",
    "wv": "self_attn.v_proj.weight", "wo": "self_attn.o_proj.weight",
    "w1": "mlp.gate_proj.weight", "w2": "mlp.down_proj.weight", "w3": "mlp.up_proj.weight",
}
_GPT2 = {"embedding": "wte.weight", "positions": "wpe.weight", "norm_final": "ln_f.weight",
         "norm_final_bias": "ln_f.bias"}
_GPT2_LAYER = {
    "norm_att": "ln_1.weight", "norm_att_bias": "ln_1.bias",
    "norm_ffn": "ln_2.weight", "norm_ffn_bias": "ln_2.bias",
    "wo": "attn.c_proj.weight", "bo": "attn.c_proj.bias",
    "w1": "mlp.c_fc.weight", "b1": "mlp.c_fc.bias",
    "w2": "mlp.c_proj.weight", "b2": "mlp.c_proj.bias",
}
_GPT2_QKV = {"w": "attn.c_attn.weight", "b": "attn.c_attn.bias"}
#: Tensors that older files carry and that follow from the dimensions.
_BUFFERS = re.compile(r".*\.(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)")


def _halves_to_pairs(w: F32, config: ModelConfig) -> F32:
    """Rows [i, i + half] of each head of w [heads * head_size, inputs] to [2i, 2i + 1]."""
    split = w.reshape(-1, 2, config.head_size // 2, w.shape[-1])
    return split.swapaxes(1, 2).reshape(w.shape)


def _pairs_to_halves(w: F32, config: ModelConfig) -> F32:
    """The inverse of `_halves_to_pairs`."""
    split = w.reshape(-1, config.head_size // 2, 2, w.shape[-1])
    return split.swapaxes(1, 2).reshape(w.shape)


def checkpoint(config: ModelConfig, tensors: dict[str, dict],
               float32: Callable[[str, dict], F32]) -> Checkpoint:
    """Make a checkpoint of the tensors of a folder.

    Parameters
    ----------
    tensors : dict of str to dict
        By name: ``shape``, and what ``float32`` makes an array of.
    float32 : callable
        Values of a tensor, given its name and its entry.

    Raises
    ------
    ModelError
        If a tensor is missing, has another shape, or is none of the model's.
    """
    # Files saved from the bare transformer leave out the prefix.
    prefix = "" if config.family == "llama" or "wte.weight" in tensors else "transformer."
    unused = {name for name in tensors if not _BUFFERS.fullmatch(name)}

    def take(name: str, *shape: int) -> F32:
        if name not in tensors:
            raise ModelError(f"tensor '{name}' is missing")
        found = tensors[name]["shape"]
        if list(found) != list(shape):
            raise ModelError(f"tensor '{name}' must have shape {list(shape)}, not {short(found)}")
        unused.discard(name)
        return float32(name, tensors[name])

    arrays = (_from_llama if config.family == "llama" else _from_gpt2)(config, prefix, take)
    if _CLASSIFIER in tensors:
        arrays["classifier"] = take(_CLASSIFIER, config.vocab_size, config.dim)
        same = np.array_equal(arrays["classifier"], arrays["embedding"])
        if config.tied and not same:
            raise ModelError(f"tensor '{_CLASSIFIER}' differs from the embedding, although "
                             "tie_word_embeddings is true")
        config = replace(config, tied=same)
    elif config.tied:
        arrays["classifier"] = arrays["embedding"]
    else:
        raise ModelError(f"tensor '{_CLASSIFIER}' is missing, although tie_word_embeddings is "
                         "false")
    if unused:
        raise ModelError(f"tensor {short(min(unused))} is not supported in a model of family "
                         f"{config.family!r}")
    return Checkpoint(config=config, **arrays)


def _from_llama(config: ModelConfig, prefix: str, take: Callable) -> dict[str, F32]:
    shapes = weight_shapes(config)
    arrays = {name: take(tensor, *shapes[name]) for name, tensor in _LLAMA.items()}
    for name, tensor in _LLAMA_LAYER.items():
        layers = [take(f"model.layers.{layer}.{tensor}", *shapes[name][1:])
                  for layer in range(config.n_layers)]
        if name in ("wq", "wk"):
            layers = [_halves_to_pairs(layer, config) for layer in layers]
        arrays[name] = np.stack(layers)
    return arrays


def _from_gpt2(config: ModelConfig, prefix: str, take: Callable) -> dict[str, F32]:
    shapes = weight_shapes(config)
    arrays = {name: take(prefix + tensor, *shapes[name]) for name, tensor in _GPT2.items()}
    layers = [f"{prefix}h.{layer}." for layer in range(config.n_layers)]
    for name, tensor in _GPT2_LAYER.items():
        # Reversed: [inputs, outputs]; the same for a vector.
        arrays[name] = np.stack([take(layer + tensor, *reversed(shapes[name][1:])).T
                                 for layer in layers])
    for letter, tensor in _GPT2_QKV.items():
        inputs = (config.dim,) if letter == "w" else ()
        fused = np.stack([take(layer + tensor, *inputs, 3 * config.dim).T for layer in layers])
        for name, part in zip("qkv", np.split(fused, 3, axis=1)):
            arrays[letter + name] = np.ascontiguousarray(part)
    return arrays


def tensors(checkpoint: Checkpoint) -> dict[str, F32]:
    """The tensors of a checkpoint by the names and in the layouts of its architecture."""
    config, found = checkpoint.config, {}
    if config.family == "llama":
        found |= {tensor: getattr(checkpoint, name) for name, tensor in _LLAMA.items()}
        for name, tensor in _LLAMA_LAYER.items():
            for layer, w in enumerate(getattr(checkpoint, name)):
                turned = _pairs_to_halves(w, config) if name in ("wq", "wk") else w
                found[f"model.layers.{layer}.{tensor}"] = turned
    else:
        found |= {f"transformer.{tensor}": getattr(checkpoint, name)
                  for name, tensor in _GPT2.items()}
        for layer in range(config.n_layers):
            place = f"transformer.h.{layer}."
            found |= {place + tensor: getattr(checkpoint, name)[layer].T
                      for name, tensor in _GPT2_LAYER.items()}
            for letter, tensor in _GPT2_QKV.items():
                found[place + tensor] = np.concatenate(
                    [getattr(checkpoint, letter + name)[layer] for name in "qkv"]).T
    if not config.tied:
        found[_CLASSIFIER] = checkpoint.classifier
    return {name: np.ascontiguousarray(array) for name, array in found.items()}
