"""Any model that can be read: a llama2.c file with its tokenizer, or a folder of Hugging Face."""

from __future__ import annotations

import os
from pathlib import Path

from compiler import huggingface, llama2c
from compiler.checkpoint import Checkpoint
from compiler.errors import ModelError
from compiler.files import read_bytes
from compiler.hf_tokenizer import LIMIT, HuggingFaceTokenizer
from compiler.tokenizer import Tokenizer

__all__ = ["AnyTokenizer", "load_files", "load_tokenizer", "unpack_tokenizer"]

AnyTokenizer = Tokenizer | HuggingFaceTokenizer

_HINT = "give a llama2.c tokenizer .bin or a tokenizer.json"


def load_files(path: str | Path, tokenizer: str | Path | None) -> tuple[Checkpoint, AnyTokenizer]:
    """Load a model and its tokenizer.

    Parameters
    ----------
    path : str or Path
        A llama2.c ``.bin``, or a folder with ``config.json`` and ``model.safetensors``.
    tokenizer : str, Path or None
        A llama2.c tokenizer or a ``tokenizer.json``. None: the one in the folder.

    Raises
    ------
    ModelError
        If a file cannot be used; the message starts with its path.
    """
    path = Path(path)
    bos, stop = None, None
    if os.path.isdir(path):
        checkpoint = huggingface.load_folder(path)
        bos, stop = huggingface.special_tokens(path, checkpoint.config.vocab_size)
        if tokenizer is None:
            tokenizer = path / "tokenizer.json"
            if not os.path.exists(tokenizer):
                raise ModelError(f"{path}: has no tokenizer.json; save it with the model, or give "
                                 "a tokenizer (--tokenizer)")
    else:
        checkpoint = llama2c.load_checkpoint(path)
    if tokenizer is None:
        raise ModelError(f"{path}: a llama2.c model needs its tokenizer; "
                         "give its .bin (--tokenizer)")
    return checkpoint, load_tokenizer(tokenizer, checkpoint.config.vocab_size, bos, stop)


def load_tokenizer(path: str | Path, vocab_size: int, bos: int | None = None,
                   stop: int | None = None) -> AnyTokenizer:
    """Load a tokenizer of either kind for a model with ``vocab_size`` tokens.

    Parameters
    ----------
    bos, stop : int or None
        Special tokens of a ``tokenizer.json``; a llama2.c tokenizer has its own.

    Raises
    ------
    ModelError
        If the file cannot be used; the message starts with its path.
    """
    data = read_bytes(path, LIMIT, _HINT)
    try:
        if data.lstrip()[:1] == b"{":
            return HuggingFaceTokenizer(data, vocab_size, bos, stop)
        return Tokenizer.from_bytes(data, vocab_size)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def unpack_tokenizer(data: bytes, vocab_size: int) -> AnyTokenizer:
    """The tokenizer whose ``to_bytes`` gave the data.

    Raises
    ------
    ModelError
        If they are damaged.
    """
    kind = HuggingFaceTokenizer if HuggingFaceTokenizer.packed(data) else Tokenizer
    return kind.from_bytes(data, vocab_size)
