"""Models written as folders of Hugging Face, for other tools and for tests of the reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler import hf_weights
from compiler.checkpoint import Checkpoint
from compiler.errors import ModelError
from compiler.files import in_one_piece
from compiler.hf_tokenizer import HuggingFaceTokenizer
from compiler.huggingface import CONFIG, INDEX, WEIGHTS
from compiler.load import AnyTokenizer
from compiler.tokenizer import Tokenizer

__all__ = ["DTYPES", "save_folder", "to_bfloat16", "tokenizer_json"]

DTYPES = ("float32", "float16", "bfloat16")


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bits of the nearest bfloat16, ties to even; for finite values."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _stored(values: NDArray[np.float32], dtype: str) -> NDArray:
    if dtype == "bfloat16":
        return to_bfloat16(values)
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, dtype)
    if not np.isfinite(stored).all():
        raise ModelError(f"a weight is too large for {dtype}; use bfloat16")
    return stored


def _config(checkpoint: Checkpoint, dtype: str, tokenizer: AnyTokenizer) -> dict[str, Any]:
    config = checkpoint.config
    common = {"dtype": dtype, "vocab_size": config.vocab_size,
              "tie_word_embeddings": config.tied, "bos_token_id": tokenizer.bos_id,
              "eos_token_id": tokenizer.stop_id}
    if config.family == "gpt2":
        return common | {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": config.dim,
            "n_inner": config.hidden_dim, "n_layer": config.n_layers, "n_head": config.n_heads,
            "n_positions": config.seq_len, "layer_norm_epsilon": config.norm_eps,
            "activation_function": "gelu_new"}
    return common | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim, "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads, "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_size, "max_position_embeddings": config.seq_len,
        "rope_theta": config.rope_theta, "rms_norm_eps": config.norm_eps, "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False}


def tokenizer_json(tokenizer: AnyTokenizer) -> bytes:
    """A ``tokenizer.json`` that encodes as ``tokenizer`` does.

    For a byte-pair vocabulary that holds where no two pieces have the same score, which is how
    sentencepiece numbers them.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.file
    pieces = tokenizer.pieces
    try:
        names = [piece.decode() for piece in pieces]
    except UnicodeDecodeError:
        raise ModelError("a token is not valid UTF-8; a tokenizer.json cannot hold it") from None
    special = [Tokenizer.unk_id, Tokenizer.bos_id, Tokenizer.eos_id]
    value: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": token, "content": names[token], "single_word": False,
                          "lstrip": False, "rstrip": False, "normalized": False, "special": True}
                         for token in special],
        "normalizer": None, "pre_tokenizer": None, "decoder": {"type": "Fuse"},
        "post_processor": {
            "type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": names[1], "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {names[1]: {"id": names[1], "ids": [1], "tokens": [names[1]]}}},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": tokenizer.has_bytes,
                  "vocab": {name: token for token, name in reversed([*enumerate(names)])},
                  "merges": []}}
    if tokenizer.has_bytes:
        value["normalizer"] = {"type": "Prepend", "prepend": " "}
        value["decoder"] = {"type": "Sequence", "decoders": [
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
        value["model"]["merges"] = _merges(tokenizer)
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    """All pairs of tokens that make a token, those of the highest score first."""
    known, found = {}, []
    for token, piece in enumerate(tokenizer.pieces):
        known.setdefault(piece.decode(), token)
    for name, token in known.items():
        if token <= Tokenizer.eos_id:
            continue
        for at in range(1, len(name)):
            pair = name[:at], name[at:]
            if pair[0] in known and pair[1] in known:
                found.append((-tokenizer.scores[token], token, list(pair)))
    return [pair for _, _, pair in sorted(found, key=lambda merge: merge[:2])]


def save_folder(path: str | Path, checkpoint: Checkpoint, tokenizer: AnyTokenizer,
                dtype: str = "float32", shards: int = 1) -> None:
    """Save a model and its tokenizer as a folder of Hugging Face.

    Parameters
    ----------
    dtype : str
        One of `DTYPES`; the two short ones round to nearest even.
    shards : int
        Files that the weights are spread over.

    Raises
    ------
    ModelError
        If a weight is out of the range of ``dtype``, or a file cannot be written.
    """
    from safetensors import TensorSpec, serialize
    folder = Path(path)
    stored = {name: _stored(values, dtype)
              for name, values in sorted(hf_weights.tensors(checkpoint).items())}

    def packed(names: list[str]) -> bytes:
        return serialize({name: TensorSpec(dtype=dtype, shape=stored[name].shape,
                                           data_ptr=stored[name].ctypes.data,
                                           data_len=stored[name].nbytes) for name in names},
                         metadata={"format": "pt"})
    names = list(stored)
    files = {WEIGHTS: names}
    if shards > 1:
        files = {f"model-{part + 1:05}-of-{shards:05}.safetensors": names[part::shards]
                 for part in range(shards)}
    contents = {name: packed(listed) for name, listed in files.items()}
    if shards > 1:
        size = sum(values.nbytes for values in stored.values())
        index = {"metadata": {"total_size": size},
                 "weight_map": {tensor: name for name, listed in files.items()
                                for tensor in listed}}
        contents[INDEX] = json.dumps(index, indent=1).encode()
    contents["tokenizer.json"] = tokenizer_json(tokenizer)
    contents[CONFIG] = json.dumps(_config(checkpoint, dtype, tokenizer), indent=1).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"{folder}: cannot be made: {error.strerror or error}") from None
    for name, data in contents.items():
        in_one_piece(folder / name, lambda file, data=data: file.write(data))
