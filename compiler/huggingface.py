"""Models in folders of Hugging Face: ``config.json`` and ``model.safetensors``.

`LlamaForCausalLM` and `GPT2LMHeadModel` can be read; what differs from them in any way that changes
a number is refused by name. `compiler.hf_weights` knows the names of the tensors.

Ref: transformers, LlamaConfig and GPT2Config; safetensors, "Format".
"""

from __future__ import annotations

import math
import struct
from os.path import exists
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler import hf_weights
from compiler.checkpoint import MAX_WEIGHTS, Checkpoint, ModelConfig
from compiler.errors import ModelError
from compiler.files import one_line, opened, parse_json, read_bytes, short

__all__ = ["load_folder", "read_config", "special_tokens", "CONFIG", "WEIGHTS", "INDEX"]

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_HINT = "give a Hugging Face folder with config.json, model.safetensors and tokenizer.json"
_JSON_LIMIT, _HEADER_LIMIT = 1 << 20, 1 << 22
#: Bytes of all weight files together: float32, and as much again for masks and padding.
_WEIGHTS_LIMIT = 8 * MAX_WEIGHTS


class _Fields:
    """The entries of ``config.json``, taken by name and checked."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def get(self, name: str, default: Any = None) -> Any:
        """An entry; null counts as absent."""
        value = self._values.get(name)
        return default if value is None else value

    def count(self, name: str, default: int | None = None) -> int:
        """An entry that counts something."""
        value = self.get(name, default)
        if value is None:
            raise ModelError(f"{name} is missing")
        if type(value) is not int or not 0 < value < 1 << 31:
            raise ModelError(f"{name} must be a positive integer, not {short(value)}")
        return value

    def real(self, name: str, default: float) -> float:
        """An entry that is a positive number."""
        value = self.get(name, default)
        if type(value) not in (int, float) or not 0 < value < 1e30 or not math.isfinite(value):
            raise ModelError(f"{name} must be a positive number, not {short(value)}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """An entry that is true or false."""
        value = self.get(name, default)
        if type(value) is not bool:
            raise ModelError(f"{name} must be true or false, not {short(value)}")
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """Refuse any value but the allowed ones; the first of them is the default."""
        value = self.get(name, allowed[0])
        if not any(type(value) is type(good) and value == good for good in allowed):
            listed = " or ".join(short(good) for good in allowed)
            raise ModelError(f"{name} {short(value)} is not supported, only {listed}")


def _rope_theta(fields: _Fields) -> float:
    """Base of the rotary angles; both places where transformers has kept it."""
    theta = fields.real("rope_theta", 10000.0)
    for name in ("rope_scaling", "rope_parameters"):
        rope = fields.get(name, {})
        if not isinstance(rope, dict):
            raise ModelError(f"{name} must be an object, not {short(rope)}")
        kind = rope.get("rope_type", rope.get("type"))
        if kind not in (None, "default"):
            raise ModelError(f"{name} of type {short(kind)} is not supported, only plain RoPE")
        inner = _Fields(rope)
        inner.only("partial_rotary_factor", 1.0, 1)
        theta = inner.real("rope_theta", theta)
    return theta


def _llama(fields: _Fields) -> ModelConfig:
    fields.only("hidden_act", "silu", "swish")
    for name in ("attention_bias", "mlp_bias"):
        fields.only(name, False)
    fields.only("partial_rotary_factor", 1.0, 1)
    dim, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    if fields.count("head_dim", max(1, dim // heads)) * heads != dim:
        raise ModelError(f"head_dim {fields.get('head_dim')} is not supported, only hidden_size / "
                         f"num_attention_heads ({dim} / {heads})")
    return ModelConfig(
        dim=dim, hidden_dim=fields.count("intermediate_size"),
        n_layers=fields.count("num_hidden_layers"), n_heads=heads,
        n_kv_heads=fields.count("num_key_value_heads", heads),
        vocab_size=fields.count("vocab_size"),
        seq_len=fields.count("max_position_embeddings", 2048),
        tied=fields.flag("tie_word_embeddings", False), rope_theta=_rope_theta(fields),
        norm_eps=fields.real("rms_norm_eps", 1e-6))


def _gpt2(fields: _Fields) -> ModelConfig:
    fields.only("activation_function", "gelu_new", "gelu_pytorch_tanh")
    fields.only("scale_attn_weights", True)
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        fields.only(name, False)
    dim, heads = fields.count("n_embd", 768), fields.count("n_head", 12)
    return ModelConfig(
        dim=dim, hidden_dim=fields.count("n_inner", 4 * dim), n_layers=fields.count("n_layer", 12),
        n_heads=heads, n_kv_heads=heads, vocab_size=fields.count("vocab_size", 50257),
        seq_len=fields.count("n_positions", 1024), tied=fields.flag("tie_word_embeddings", True),
        norm_eps=fields.real("layer_norm_epsilon", 1e-5), family="gpt2")


_ARCHITECTURES = {"LlamaForCausalLM": _llama, "GPT2LMHeadModel": _gpt2}


def _read_fields(folder: Path) -> dict[str, Any]:
    if not exists(folder / CONFIG):
        raise ModelError(f"{folder}: has no {CONFIG}; {_HINT}")
    data = read_bytes(folder / CONFIG, _JSON_LIMIT, _HINT)
    try:
        return parse_json(data, "configuration of a model")
    except ModelError as error:
        raise ModelError(f"{folder / CONFIG}: {error}") from None


def read_config(folder: Path) -> ModelConfig:
    """Dimensions and kind of the model in a folder.

    Raises
    ------
    ModelError
        If ``config.json`` cannot be read, or asks for what is not supported: the message names it.
    """
    values = _read_fields(folder)
    try:
        names = values.get("architectures")
        if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
            raise ModelError(f"architectures must name one architecture, not {short(names)}")
        if names[0] not in _ARCHITECTURES:
            raise ModelError(f"architecture {short(names[0])} is not supported, only "
                             f"{' and '.join(_ARCHITECTURES)}")
        if values.get("quantization_config") is not None:
            raise ModelError("quantization_config is not supported, only weights in float32, "
                             "float16 and bfloat16")
        return _ARCHITECTURES[names[0]](_Fields(values))
    except ModelError as error:
        raise ModelError(f"{folder / CONFIG}: {error}") from None


def special_tokens(folder: Path, vocab_size: int) -> tuple[int | None, int | None]:
    """The tokens that begin and end a text, as ``config.json`` names them; None: it names none.

    Of several ends the first one counts.
    """
    values = _read_fields(folder)

    def token(name: str) -> int | None:
        value = values.get(name)
        if isinstance(value, list) and value:
            value = value[0]
        return value if type(value) is int and 0 <= value < vocab_size else None
    return token("bos_token_id"), token("eos_token_id")


# Weights.

def _shards(folder: Path) -> dict[str, list[str]]:
    """The weight files of a folder, and the tensors that the index says are in each."""
    if exists(folder / WEIGHTS):
        return {WEIGHTS: []}
    if not exists(folder / INDEX):
        raise ModelError(f"{folder}: has no {WEIGHTS}; {_HINT}")
    data = read_bytes(folder / INDEX, _JSON_LIMIT, _HINT)
    try:
        index = parse_json(data, "index of weights").get("weight_map")
        if not isinstance(index, dict) or not index:
            raise ModelError(f"weight_map must map tensors to files, not be {short(index)}")
        shards: dict[str, list[str]] = {}
        for tensor, name in index.items():
            # Only plain names: an index must not lead out of its folder.
            if (not isinstance(name, str) or not name.endswith(".safetensors") or len(name) > 255
                    or name != Path(name).name or "\\" in name or "\0" in name):
                raise ModelError(f"weight_map: {short(name)} is not the name of a .safetensors "
                                 "file in the folder")
            shards.setdefault(name, []).append(tensor)
        return shards
    except ModelError as error:
        raise ModelError(f"{folder / INDEX}: {error}") from None


def _read_tensors(path: Path, room: int) -> tuple[dict[str, dict], int]:
    """The tensors of a safetensors file of at most ``room`` bytes, and its size."""
    from safetensors import SafetensorError, deserialize
    with opened(path, _HINT) as (file, size):
        if size > room:
            raise ModelError(f"the weights have more than {_WEIGHTS_LIMIT} bytes, too many for "
                             f"{MAX_WEIGHTS} weights")
        head = file.read(8)
        if len(head) < 8 or struct.unpack("<Q", head)[0] > min(size - 8, _HEADER_LIMIT):
            raise ModelError("is no safetensors file: its header is longer than the file or "
                             f"{_HEADER_LIMIT} bytes")
        try:
            file.seek(0)
            return dict(deserialize(file.read(size))), size
        except SafetensorError as error:
            raise ModelError(f"is no valid safetensors file: {one_line(error)}") from None


def _float32(name: str, tensor: dict) -> NDArray[np.float32]:
    """Values of a tensor in one of the three types that can be read."""
    kind, data = tensor["dtype"], tensor["data"]
    if kind == "BF16":
        bits = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        values = bits.view(np.float32)
    elif kind in ("F16", "F32"):
        values = np.frombuffer(data, {"F16": "<f2", "F32": "<f4"}[kind])
        values = values.astype(np.float32, copy=False)
    else:
        raise ModelError(f"tensor {short(name)} has type {kind}; only F32, F16 and BF16 can be "
                         "read")
    return values.reshape(tensor["shape"])


def load_folder(path: str | Path) -> Checkpoint:
    """Load a model from a folder of Hugging Face.

    A separate classifier that equals the embedding counts as tied.

    Raises
    ------
    ModelError
        If a file is missing or damaged, or anything in it is not supported. The message starts
        with the path of the file.
    """
    folder = Path(path)
    config = read_config(folder)
    tensors: dict[str, dict] = {}
    room = _WEIGHTS_LIMIT
    for name, listed in sorted(_shards(folder).items()):
        found, size = _read_tensors(folder / name, room)
        room -= size
        missing = next((tensor for tensor in listed if tensor not in found), None)
        if missing is not None:
            raise ModelError(f"{folder / name}: tensor {short(missing)} is missing; the index says "
                             "that it is in this file")
        twice = next((tensor for tensor in found if tensor in tensors), None)
        if twice is not None:
            raise ModelError(f"{folder / name}: tensor {short(twice)} is also in another file")
        tensors |= found
    try:
        return hf_weights.checkpoint(config, tensors, _float32)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None
