"""Models written to every format that can be read."""
from __future__ import annotations

from pathlib import Path

from compiler.checkpoint import Checkpoint
from compiler.errors import ModelError
from compiler.files import in_one_piece
from compiler.hf_export import DTYPES, save_folder
from compiler.llama2c import VERSIONS, save_checkpoint
from compiler.load import AnyTokenizer
from compiler.tokenizer import Tokenizer

__all__ = ["FORMATS", "export"]

_LLAMA2C = {f"llama2c-v{version}": version for version in VERSIONS}
_FOLDERS = {f"hf-{dtype}": dtype for dtype in DTYPES}
FORMATS = (*_LLAMA2C, *_FOLDERS)


def export(path: str | Path, checkpoint: Checkpoint, tokenizer: AnyTokenizer,
           form: str) -> list[Path]:
    """Write a model and its tokenizer; returns the files and folders written.

    Parameters
    ----------
    path : str or Path
        The ``.bin``, beside which ``<name>_tokenizer.bin`` is written, or the folder.
    form : str
        One of `FORMATS`.

    Raises
    ------
    ModelError
        If the format is not known or cannot hold the model, or a file cannot be written.
    """
    path = Path(path)
    if form in _FOLDERS:
        save_folder(path, checkpoint, tokenizer, _FOLDERS[form])
        return [path]
    if form not in _LLAMA2C:
        raise ModelError(f"format must be one of {', '.join(FORMATS)}, not {form}")
    if not isinstance(tokenizer, Tokenizer):
        raise ModelError(f"{path}: a tokenizer.json cannot be written as a llama2.c tokenizer; "
                         f"use format {' or '.join(_FOLDERS)}")
    save_checkpoint(path, checkpoint, _LLAMA2C[form])
    beside = path.with_name(f"{path.stem}_tokenizer.bin")
    in_one_piece(beside, lambda file: file.write(tokenizer.to_bytes()))
    return [path, beside]
