"""A model as a user has it: a float checkpoint with its tokenizer, from a file, a folder or built in."""
from __future__ import annotations

import pathlib
from dataclasses import dataclass

from compiler import notebook
from compiler.checkpoint import Checkpoint
from compiler.load import AnyTokenizer, load_files

__all__ = ["Model", "load_model", "MODELS", "BUILT_IN", "BUILT_IN_TOKENIZER"]

MODELS = pathlib.Path(__file__).parents[1] / "models"
BUILT_IN, BUILT_IN_TOKENIZER = "shakespeare.bin", "shakespeare_tokenizer.bin"
#: The built-in models of profiles that `BUILT_IN` is too large for; all have one vocabulary.
BUILT_IN_OF = {"ecp5_25k": "shakespeare_small.bin"}


@dataclass(frozen=True)
class Model:
    """A float checkpoint with its tokenizer.

    Members
    -------
    name : str
        The path it came from.
    """
    checkpoint: Checkpoint
    tokenizer: AnyTokenizer
    name: str

    def summary(self) -> dict[str, object]:
        """The model's kind and sizes, by name."""
        config = self.checkpoint.config
        return {"family": config.family, "weights": config.weights, "layers": config.n_layers,
                "width": config.dim, "hidden width": config.hidden_dim, "heads": config.n_heads,
                "key and value heads": config.n_kv_heads, "vocabulary": config.vocab_size,
                "context": config.seq_len, "tied": config.tied, "tokenizer": self.tokenizer}

    def __repr__(self) -> str:
        config = self.checkpoint.config
        return f"<Model {self.name}: {config.family} of {config.weights:,} weights>"

    def _repr_html_(self) -> str:
        return notebook.table(f"Model {self.name}", self.summary())


def load_model(path: str | None = None, tokenizer: str | None = None, *,
               profile: str | None = None) -> Model:
    """Load a model: the built-in one, a llama2.c ``.bin`` or a Hugging Face folder.

    Parameters
    ----------
    path : str or None
        None: the built-in model, which writes in the manner of Shakespeare.
    tokenizer : str or None
        A llama2.c tokenizer ``.bin`` or a ``tokenizer.json``; a ``.bin`` model of one's own needs
        it, a folder has its own.
    profile : str or None
        Which built-in model: the one that fits this profile.

    Raises
    ------
    MetronomeError
        If a file is missing or cannot be used.
    """
    if path is None:
        path = MODELS / BUILT_IN_OF.get(profile, BUILT_IN)
        tokenizer = tokenizer or MODELS / BUILT_IN_TOKENIZER
    return Model(*load_files(path, tokenizer), str(path))
