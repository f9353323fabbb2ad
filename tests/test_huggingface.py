"""Folders of Hugging Face: values and layouts by hand, and everything that is refused by name."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest
from safetensors.numpy import save

from compiler.errors import ModelError
from compiler.huggingface import load_folder, special_tokens
from sim.float_model import FloatModel

LLAMA = {"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 6,
         "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
         "vocab_size": 5, "max_position_embeddings": 7, "rms_norm_eps": 1e-5,
         "rope_theta": 100.0, "hidden_act": "silu", "tie_word_embeddings": False,
         "bos_token_id": 1, "eos_token_id": [2, 3]}
GPT2 = {"architectures": ["GPT2LMHeadModel"], "n_embd": 6, "n_layer": 2, "n_head": 2,
        "n_positions": 7, "vocab_size": 5, "n_inner": 9, "activation_function": "gelu_new"}


def llama_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors of LLAMA: head size 4, keys and values of width 4."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (5, 8), "model.norm.weight": (8,),
              "lm_head.weight": (5, 8)}
    for layer in range(2):
        place = f"model.layers.{layer}."
        shapes |= {place + "input_layernorm.weight": (8,),
                   place + "post_attention_layernorm.weight": (8,),
                   place + "self_attn.q_proj.weight": (8, 8),
                   place + "self_attn.k_proj.weight": (4, 8),
                   place + "self_attn.v_proj.weight": (4, 8),
                   place + "self_attn.o_proj.weight": (8, 8),
                   place + "mlp.gate_proj.weight": (6, 8),
                   place + "mlp.up_proj.weight": (6, 8), place + "mlp.down_proj.weight": (8, 6)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def gpt2_tensors(prefix: str = "transformer.") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {"wte.weight": (5, 6), "wpe.weight": (7, 6), "ln_f.weight": (6,), "ln_f.bias": (6,)}
    for layer in range(2):
        place = f"h.{layer}."
        shapes |= {place + "ln_1.weight": (6,), place + "ln_1.bias": (6,),
                   place + "ln_2.weight": (6,), place + "ln_2.bias": (6,),
                   place + "attn.c_attn.weight": (6, 18), place + "attn.c_attn.bias": (18,),
                   place + "attn.c_proj.weight": (6, 6), place + "attn.c_proj.bias": (6,),
                   place + "mlp.c_fc.weight": (6, 9), place + "mlp.c_fc.bias": (9,),
                   place + "mlp.c_proj.weight": (9, 6), place + "mlp.c_proj.bias": (6,)}
    return {prefix + name: rng.standard_normal(shape).astype(np.float32)
            for name, shape in shapes.items()}


def folder(path, config: dict, tensors: dict | None = None, **change):
    """A folder with a configuration and, if given, one file of weights."""
    config = {name: value for name, value in (config | change).items() if value is not ...}
    (path / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        (path / "model.safetensors").write_bytes(save(tensors))
    return path


def raw_safetensors(header: dict | bytes, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def llama_logits(t: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """The formulas of transformers' modeling_llama.py on the tensors as they are, in float64."""
    x = t["model.embed_tokens.weight"][tokens].astype(np.float64)                    # [T, 8]
    inverse = 100.0 ** (-np.arange(0, 4, 2) / 4)
    angles = np.concatenate([np.outer(np.arange(len(tokens)), inverse)] * 2, axis=1)  # [T, 4]
    cos, sin = np.cos(angles), np.sin(angles)

    def rotated(v):                                                                  # [T, 4]
        return v * cos + np.concatenate([-v[:, 2:], v[:, :2]], axis=1) * sin

    def norm(v, gain):
        return gain * v / np.sqrt((v * v).mean(axis=1, keepdims=True) + 1e-5)
    for layer in range(2):
        w = {name.split(".")[-2]: value for name, value in t.items()
             if name.startswith(f"model.layers.{layer}.")}
        h = norm(x, w["input_layernorm"])
        q, k, v = (h @ w[name].T for name in ("q_proj", "k_proj", "v_proj"))
        k, heads = rotated(k), []
        for head in range(2):
            scores = rotated(q[:, 4 * head:4 * head + 4]) @ k.T / 2.0
            scores[np.triu_indices(len(tokens), 1)] = -np.inf
            p = np.exp(scores - scores.max(axis=1, keepdims=True))
            heads.append(p / p.sum(axis=1, keepdims=True) @ v)
        x = x + np.concatenate(heads, axis=1) @ w["o_proj"].T
        h = norm(x, w["post_attention_layernorm"])
        gate = h @ w["gate_proj"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["up_proj"].T)) @ w["down_proj"].T
    return norm(x, t["model.norm.weight"]) @ t["lm_head.weight"].T


def test_llama_computes_what_its_tensors_say(tmp_path):
    tensors = llama_tensors()
    checkpoint = load_folder(folder(tmp_path, LLAMA, tensors))
    tokens = [1, 4, 0, 2, 2, 3, 1]
    got = FloatModel(checkpoint, dtype=np.float64).logits(tokens)
    np.testing.assert_allclose(got, llama_logits(tensors, tokens), rtol=0, atol=1e-9)
    config = checkpoint.config
    assert (config.family, config.tied, config.seq_len) == ("llama", False, 7)
    assert special_tokens(tmp_path, 5) == (1, 2)


def test_rows_of_queries_change_places(tmp_path):
    tensors = llama_tensors()
    tensors["model.layers.1.self_attn.q_proj.weight"][:] = np.arange(8)[:, None]
    tensors["model.layers.1.self_attn.k_proj.weight"][:] = np.arange(4)[:, None]
    checkpoint = load_folder(folder(tmp_path, LLAMA, tensors))
    assert checkpoint.wq[1, :, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert checkpoint.wk[1, :, 0].tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2_layout(tmp_path, prefix):
    tensors = gpt2_tensors(prefix)
    tensors[prefix + "h.0.attn.bias"] = np.ones((1, 1, 7, 7), np.float32)  # a mask of old files
    checkpoint = load_folder(folder(tmp_path, GPT2, tensors))
    config = checkpoint.config
    assert (config.family, config.tied, config.hidden_dim, config.n_kv_heads, config.norm_eps) == (
        "gpt2", True, 9, 2, 1e-5)
    layer = {name.removeprefix(prefix + "h.1."): value for name, value in tensors.items()}
    fused, bias = layer["attn.c_attn.weight"], layer["attn.c_attn.bias"]
    for at, name in enumerate("qkv"):
        # Element [i, o] of Conv1D leads from input i to output o.
        expected = [[fused[i, 6 * at + o] for i in range(6)] for o in range(6)]
        assert getattr(checkpoint, "w" + name)[1].tolist() == expected
        assert getattr(checkpoint, "b" + name)[1].tolist() == list(bias[6 * at:6 * at + 6])
    assert checkpoint.w1[1].tolist() == [[layer["mlp.c_fc.weight"][i, o] for i in range(6)]
                                         for o in range(9)]
    assert checkpoint.w2[1].tolist() == [[layer["mlp.c_proj.weight"][i, o] for i in range(9)]
                                         for o in range(6)]
    assert checkpoint.wo[1].tolist() == layer["attn.c_proj.weight"].T.tolist()
    for name, tensor in {"bo": "attn.c_proj.bias", "b1": "mlp.c_fc.bias", "b2": "mlp.c_proj.bias",
                         "norm_att": "ln_1.weight", "norm_att_bias": "ln_1.bias",
                         "norm_ffn": "ln_2.weight", "norm_ffn_bias": "ln_2.bias"}.items():
        assert getattr(checkpoint, name)[1].tolist() == layer[tensor].tolist(), name
    for name, tensor in {"embedding": "wte.weight", "positions": "wpe.weight",
                         "norm_final": "ln_f.weight", "norm_final_bias": "ln_f.bias",
                         "classifier": "wte.weight"}.items():
        assert getattr(checkpoint, name).tolist() == tensors[prefix + tensor].tolist(), name


def test_defaults_of_the_configurations(tmp_path):
    for name in ("num_key_value_heads", "rope_theta", "rms_norm_eps", "tie_word_embeddings",
                 "max_position_embeddings", "hidden_act"):
        change = {name: ...}
        if name == "num_key_value_heads":
            continue
        checkpoint = load_folder(folder(tmp_path, LLAMA, llama_tensors(), **change)).config
        expected = {"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
                    "max_position_embeddings": 2048, "hidden_act": "silu_gated"}[name]
        found = {"rope_theta": checkpoint.rope_theta, "rms_norm_eps": checkpoint.norm_eps,
                 "tie_word_embeddings": checkpoint.tied, "hidden_act": checkpoint.activation,
                 "max_position_embeddings": checkpoint.seq_len}[name]
        assert found == expected, name
    # As many KV heads as heads: the keys of these tensors are too narrow for that.
    with pytest.raises(ModelError, match=r"k_proj.weight' must have shape \[8, 8\], not \[4, 8\]"):
        load_folder(folder(tmp_path, LLAMA, llama_tensors(), num_key_value_heads=...))


@pytest.mark.parametrize("rope", [{"rope_theta": 100.0, "rope_type": "default"},
                                  {"rope_theta": 100}])
def test_rope_parameters_of_later_versions(tmp_path, rope):
    path = folder(tmp_path, LLAMA, llama_tensors(), rope_theta=..., rope_parameters=rope)
    assert load_folder(path).config.rope_theta == 100.0


@pytest.mark.parametrize("dtype, rtol", [("F16", 2.0**-11), ("BF16", 2.0**-7)])
def test_short_types(tmp_path, dtype, rtol):
    tensors, header, data = llama_tensors(), {}, b""
    for name, values in tensors.items():
        if dtype == "F16":
            raw = values.astype(np.float16).tobytes()
        else:
            # The upper half of a float32: truncated, not rounded.
            raw = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    folder(tmp_path, LLAMA)
    (tmp_path / "model.safetensors").write_bytes(raw_safetensors(header, data))
    checkpoint = load_folder(tmp_path)
    exact = tensors["model.layers.0.mlp.down_proj.weight"]
    np.testing.assert_allclose(checkpoint.w2[0], exact, rtol=rtol, atol=1e-7)
    if dtype == "F16":
        np.testing.assert_array_equal(checkpoint.w2[0], exact.astype(np.float16))
    else:
        assert (checkpoint.w2[0].view(np.uint32) & 0xFFFF == 0).all()


def shard(path, change=lambda index: None) -> None:
    tensors = llama_tensors()
    names = sorted(tensors)
    index = {}
    for part in range(3):
        name = f"model-{part}.safetensors"
        (path / name).write_bytes(save({tensor: tensors[tensor] for tensor in names[part::3]}))
        index |= dict.fromkeys(names[part::3], name)
    change(index)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def test_sharded_weights(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    shard(folder(parts, LLAMA))
    a, b = load_folder(folder(whole, LLAMA, llama_tensors())), load_folder(parts)
    for name, array in a.arrays.items():
        np.testing.assert_array_equal(array, getattr(b, name), name)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors",
                                  "..", "", ".", "model.bin", 7, None, "a\\b.safetensors",
                                  "x\0.safetensors"])
def test_index_must_not_lead_out_of_the_folder(tmp_path, name):
    (tmp_path / "secret.safetensors").write_bytes(save(llama_tensors()))
    (tmp_path / "in").mkdir()
    path = folder(tmp_path / "in", LLAMA)
    shard(path, lambda index: index.update({"lm_head.weight": name}))
    with pytest.raises(ModelError, match="is not the name of a .safetensors file in the folder"):
        load_folder(path)


def test_index_that_does_not_hold(tmp_path):
    path = folder(tmp_path, LLAMA)
    shard(path, lambda index: index.update({"lm_head.weight": "none.safetensors"}))
    with pytest.raises(ModelError, match="none.safetensors: cannot be read: No such file"):
        load_folder(path)
    shard(path, lambda index: index.update({"lm_head.weight": "model-1.safetensors"}))
    with pytest.raises(ModelError, match="tensor 'lm_head.weight' is missing; the index says"):
        load_folder(path)
    shard(path)
    (path / "model-1.safetensors").write_bytes((path / "model-0.safetensors").read_bytes())
    with pytest.raises(ModelError, match="is missing; the index says"):
        load_folder(path)
    for bad in ({}, [], "x", {"weight_map": []}, {"weight_map": {}}):
        (path / "model.safetensors.index.json").write_text(json.dumps(bad))
        with pytest.raises(ModelError, match="index.json: (weight_map must|is no index)"):
            load_folder(path)


@pytest.mark.parametrize("base, change, message", [
    (LLAMA, {"architectures": ["MistralForCausalLM"]},
     "architecture 'MistralForCausalLM' is not supported, only LlamaForCausalLM and GPT2LMHead"),
    (LLAMA, {"architectures": ...}, "architectures must name one architecture, not None"),
    (LLAMA, {"architectures": "LlamaForCausalLM"}, "architectures must name one architecture"),
    (LLAMA, {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported, only 'silu' or 'swish'"),
    (LLAMA, {"attention_bias": True}, "attention_bias True is not supported, only False"),
    (LLAMA, {"mlp_bias": True}, "mlp_bias True is not supported"),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}},
     "rope_scaling of type 'linear' is not supported, only plain RoPE"),
    (LLAMA, {"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling of type 'llama3'"),
    (LLAMA, {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters of type 'yarn'"),
    (LLAMA, {"rope_scaling": 2.0}, "rope_scaling must be an object, not 2.0"),
    (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
    (LLAMA, {"head_dim": 8}, r"head_dim 8 is not supported, only hidden_size / num_attention"),
    (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
    (LLAMA, {"hidden_size": ...}, "hidden_size is missing"),
    (LLAMA, {"hidden_size": "8"}, "hidden_size must be a positive integer, not '8'"),
    (LLAMA, {"hidden_size": -8}, "hidden_size must be a positive integer, not -8"),
    (LLAMA, {"hidden_size": 10**300}, "hidden_size must be a positive integer, not 1000"),
    (LLAMA, {"hidden_size": 8.0}, "hidden_size must be a positive integer, not 8.0"),
    (LLAMA, {"num_hidden_layers": True}, "num_hidden_layers must be a positive integer, not True"),
    (LLAMA, {"num_attention_heads": 3}, "head_dim None is not supported|multiple of n_heads"),
    (LLAMA, {"vocab_size": 1 << 24}, "vocab_size must be an integer from 1 to 131072"),
    (LLAMA, {"hidden_size": 65536, "num_attention_heads": 64, "num_key_value_heads": 64},
     "the model has [0-9]+ weights, at most 33554432 can be read"),
    (LLAMA, {"rms_norm_eps": 0}, "rms_norm_eps must be a positive number, not 0"),
    (LLAMA, {"rope_theta": "big"}, "rope_theta must be a positive number, not 'big'"),
    (LLAMA, {"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, not 1"),
    (GPT2, {"activation_function": "relu"}, "activation_function 'relu' is not supported, only"),
    (GPT2, {"activation_function": "gelu"}, "activation_function 'gelu' is not supported"),
    (GPT2, {"scale_attn_weights": False}, "scale_attn_weights False is not supported"),
    (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
    (GPT2, {"add_cross_attention": True}, "add_cross_attention True is not supported"),
    (GPT2, {"n_head": 4}, "dim must be a multiple of n_heads"),
])
def test_unsupported_configurations(tmp_path, base, change, message):
    tensors = llama_tensors() if base is LLAMA else gpt2_tensors()
    with pytest.raises(ModelError, match=f"config.json: .*{message}") as caught:
        load_folder(folder(tmp_path, base, tensors, **change))
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.parametrize("text, message", [
    (b"", "not valid JSON"), (b"[1]", "must hold a JSON object"), (b"{", "not valid JSON"),
    (b"[" * 100000, "is nested too deep"), (b'{"a":' * 100000, "is nested too deep"),
    (b"\xff\xfe\x00", "not valid JSON"), (b'{"hidden_size": ' + b"9" * 5000 + b"}", "not valid"),
    (b" " * (1 << 21), "has 2097152 bytes, at most 1048576 can be read"),
])
def test_configurations_that_are_none(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ModelError, match=f"config.json: .*{message}"):
        load_folder(tmp_path)


def test_tensors_that_do_not_fit(tmp_path):
    def load(**change):
        tensors = llama_tensors() | change
        return load_folder(folder(tmp_path, LLAMA, {name: value for name, value in tensors.items()
                                                    if value is not None}))
    with pytest.raises(ModelError, match="tensor 'model.norm.weight' is missing"):
        load(**{"model.norm.weight": None})
    with pytest.raises(ModelError, match="tensor 'lm_head.weight' is missing, although tie_word"):
        load(**{"lm_head.weight": None})
    with pytest.raises(ModelError, match=r"'model.norm.weight' must have shape \[8\], not \[9\]"):
        load(**{"model.norm.weight": np.ones(9, np.float32)})
    with pytest.raises(ModelError, match="'model.norm.weight' has type F64; only F32, F16 and BF"):
        load(**{"model.norm.weight": np.ones(8)})
    with pytest.raises(ModelError, match="'model.norm.weight' has type I8"):
        load(**{"model.norm.weight": np.ones(8, np.int8)})
    with pytest.raises(ModelError, match="tensor 'extra' is not supported in a model of family"):
        load(extra=np.ones(3, np.float32))
    with pytest.raises(ModelError, match="layer 1 'wq': 64 of its values are NaN or infinite"):
        load(**{"model.layers.1.self_attn.q_proj.weight": np.full((8, 8), np.nan, np.float32)})
    assert load(**{"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2)}).config.dim == 8


def test_tied_weights(tmp_path):
    tensors = llama_tensors()
    with pytest.raises(ModelError, match="'lm_head.weight' differs from the embedding, although"):
        load_folder(folder(tmp_path, LLAMA, tensors, tie_word_embeddings=True))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    # Equal weights are stored once, whatever the configuration says.
    for tied in (True, False):
        assert load_folder(folder(tmp_path, LLAMA, tensors, tie_word_embeddings=tied)).config.tied
    del tensors["lm_head.weight"]
    assert load_folder(folder(tmp_path, LLAMA, tensors, tie_word_embeddings=True)).config.tied


@pytest.mark.parametrize("data, message", [
    (b"", "is no safetensors file: its header is longer"),
    (struct.pack("<Q", 1 << 40) + b"{}", "its header is longer than the file"),
    (struct.pack("<Q", 2**64 - 1), "its header is longer than the file"),
    (raw_safetensors(b"[" * 9999), "is no valid safetensors file"),
    (raw_safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
     "is no valid safetensors file"),
    (raw_safetensors({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 4]}},
                     bytes(4)), "is no valid safetensors file"),
    (raw_safetensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
     "is no valid safetensors file"),
    (raw_safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
     "is no valid safetensors file"),
    (raw_safetensors({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
     "is no valid safetensors file"),
])
def test_damaged_weights(tmp_path, data, message):
    folder(tmp_path, LLAMA)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match=f"model.safetensors: .*{message}") as caught:
        load_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_and_odd_files(tmp_path):
    with pytest.raises(ModelError, match="has no config.json; give a Hugging Face folder with"):
        load_folder(tmp_path)
    folder(tmp_path, LLAMA)
    with pytest.raises(ModelError, match="has no model.safetensors"):
        load_folder(tmp_path)
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="model.safetensors: is not a regular file"):
        load_folder(tmp_path)
    os.unlink(tmp_path / "model.safetensors")
    # A file of holes, far larger than any model that can be read.
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match="the weights have more than 268435456 bytes"):
        load_folder(tmp_path)
