"""A compiled model as a user has it: from a `Model` or an image file, to an image file."""
from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from arch import image as image_format
from arch.config import Config, profile
from arch.hostmap import ROW_GENERATE, ROW_PROMPT
from arch.image import Image
from arch.selection import STAGES, Selection
from compiler import notebook
from compiler.checkpoint import Checkpoint
from compiler.errors import MetronomeError
from compiler.load import AnyTokenizer, unpack_tokenizer
from compiler.model import Model
from compiler.pipeline import Compiled, compile_model

__all__ = ["Program", "compile", "load_program", "load_image", "is_image", "needed_sampling",
           "DEFAULT_PROFILE"]

DEFAULT_PROFILE = "ecp5_85k"
#: Most of a calibration text that is used.
CALIBRATION_SEQUENCES, CALIBRATION_LENGTH = 16, 256


@dataclass(frozen=True)
class Program:
    """A compiled model, ready to run.

    Members
    -------
    image : Image
        What the machine is loaded with.
    tokenizer : Tokenizer or HuggingFaceTokenizer
    compiled : Compiled or None
        What the compiler knows besides; None for a program read from an image file.
    """
    image: Image
    tokenizer: AnyTokenizer
    compiled: Compiled | None = None

    def known(self, what: str) -> Compiled:
        """What the compiler knows of the program, needed for ``what``.

        Raises
        ------
        MetronomeError
            If the program was read from an image.
        """
        if self.compiled is None:
            raise MetronomeError(f"{what} needs the model, not only its image: "
                                 "give --model instead of --image")
        return self.compiled

    @property
    def config(self) -> Config:
        return self.image.config

    def encode(self, prompt: str) -> list[int]:
        """The tokens of a prompt, never none.

        Raises
        ------
        MetronomeError
            If the vocabulary cannot express it, or it is empty and nothing else begins a text.
        """
        tokens = self.tokenizer.encode(prompt)
        if not tokens:
            raise MetronomeError("this model has no token that begins a text: give a prompt")
        return tokens

    def predicted(self, position: int, prompt: bool) -> int:
        """Cycles of the step at a position."""
        row = self.image.rows[position // self.config.columns]
        return int(row[ROW_PROMPT if prompt else ROW_GENERATE])

    @property
    def sampling(self) -> tuple:
        """What the program can do besides temperature, of ``top-k`` and ``top-p``."""
        return tuple(self.image.meta.get("sampling", {}).get("stages", ()))

    def selection(self, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0) -> Selection:
        """Settings of the sampler, checked.

        Raises
        ------
        MetronomeError
            If one is out of its range, or the program was not compiled for it.
        """
        try:
            chosen = Selection(temperature, top_k, top_p)
        except ValueError as error:
            raise MetronomeError(str(error)) from None
        for stage in chosen.stages:
            if stage not in self.sampling:
                wanted = ",".join(stage for stage in STAGES
                                  if stage in (*chosen.stages, *self.sampling))
                raise MetronomeError(f"the program was compiled without {stage}: compile it with "
                                     f"sampling {wanted}")
        return chosen

    def useful_macs(self, position: int, prompt: bool) -> int:
        """Multiplications that the model asks for in the step at a position, padding excluded."""
        macs = self.image.meta["macs"]
        return (macs["layers"] + macs["per_context"] * (position + 1)
                + (0 if prompt else macs["logits"]))

    def report(self) -> dict:
        """Memory used, cycles and utilisation by position: what ``metronome compile`` tells.

        Raises
        ------
        MetronomeError
            If the program was read from an image.
        """
        return self.known("a report").report()

    def cycles(self) -> list[int]:
        """Cycles of the generate step at every position of the context."""
        return [self.predicted(at, prompt=False) for at in range(self.image.meta["context"])]

    def __repr__(self) -> str:
        cycles = self.cycles()
        return (f"<Program for {self.config.name}: {cycles[0]:,} to {cycles[-1]:,} cycles a "
                f"token, {len(cycles)} positions>")

    def _repr_html_(self) -> str:
        cycles = self.cycles()
        return notebook.table(f"Program for {self.config.name}", {
            "multipliers": self.config.macs_per_cycle, "positions": len(cycles),
            "program": f"{self.image.program_bytes:,} bytes",
            "weights": f"{self.image.weights.size:,} bytes",
        }) + notebook.curve("cycles of a token, by position", cycles)

    def save(self, path: str) -> None:
        """Write the image file."""
        try:
            self.image.save(path)
        except OSError as error:
            raise MetronomeError(f"{path}: cannot be written: {error.strerror}") from None


def _work(checkpoint: Checkpoint) -> dict:
    """Useful multiplications of a step: of all layers, of the logits, and per token of context."""
    model = checkpoint.config
    weights = (2 * model.dim * model.dim + 2 * model.dim * model.kv_dim
               + (3 if model.activation == "silu_gated" else 2) * model.dim * model.hidden_dim)
    return {"layers": model.n_layers * weights, "logits": model.vocab_size * model.dim,
            "per_context": 2 * model.n_layers * model.dim}


def compile(model: Model, config: Config | str = DEFAULT_PROFILE,
            calibration: str | None = None, sampling: Sequence[str] = ()) -> Program:
    """Compile a model for a machine.

    Parameters
    ----------
    config : Config or str
        The machine, or the name of its profile.
    calibration : str or None
        Text that the activation scales are taken from; None: text sampled from the model.
    sampling : sequence of str
        ``top-k``, ``top-p`` or both. Each makes every generate step longer, so that a program has
        only those that are to be used; k and p themselves are chosen later.

    Raises
    ------
    MetronomeError
        If the model does not fit; the message says what is short and which profile has more.
    """
    config = profile(config) if isinstance(config, str) else config
    unknown = [stage for stage in sampling if stage not in STAGES]
    if unknown:
        raise MetronomeError(f"unknown sampling {unknown[0]!r}; there are {', '.join(STAGES)}")
    compiled = compile_model(model.checkpoint, config, _calibration_tokens(model, calibration),
                             bos=_first_token(model),
                             sampling=tuple(stage for stage in STAGES if stage in sampling))
    compiled.image.meta["macs"] = _work(model.checkpoint)
    compiled.image.extra["tokenizer"] = np.frombuffer(model.tokenizer.to_bytes(), np.uint8)
    return Program(compiled.image, model.tokenizer, compiled)


def _calibration_tokens(model: Model, text: str | None) -> np.ndarray | None:
    """A text cut into sequences [sequences, length] of one length, BOS first."""
    if text is None:
        return None
    tokens = model.tokenizer.encode(text, bos=False)
    length = min(model.checkpoint.config.seq_len, CALIBRATION_LENGTH, len(tokens) + 1) - 1
    if length < 1:
        raise MetronomeError("the calibration text has no token")
    rows = min(len(tokens) // length, CALIBRATION_SEQUENCES)
    cut = np.array(tokens[:rows * length]).reshape(rows, length)
    return np.insert(cut, 0, _first_token(model), axis=1)


def _first_token(model: Model) -> int:
    """What calibration text begins with: BOS, else the token between texts, else token 0."""
    tokenizer = model.tokenizer
    return next(token for token in (tokenizer.bos_id, tokenizer.stop_id, 0) if token is not None)


def needed_sampling(temperature: float, top_k: int, top_p: float) -> tuple:
    """What `compile` must be told for these settings to be usable."""
    try:
        return Selection(temperature, top_k, top_p).stages
    except ValueError as error:
        raise MetronomeError(str(error)) from None


def load_program(path: str) -> Program:
    """Read a compiled model from an image file.

    Raises
    ------
    MetronomeError, arch.image.ImageError
        If the file cannot be read, is no image, or holds no model.
    """
    image = load_image(path)
    if "tokenizer" not in image.extra or "macs" not in image.meta:
        raise MetronomeError(f"{path}: holds a program but no model; use metronome run")
    if not _known_sampling(image):
        raise MetronomeError(f"{path}: is malformed: nothing is known of its sampling settings")
    tokenizer = unpack_tokenizer(image.extra["tokenizer"].tobytes(), image.meta["vocabulary"])
    return Program(image, tokenizer)


def _known_sampling(image: Image) -> bool:
    """Whether what an image says of its stages makes sense: a run writes these constants."""
    if "sampling" not in image.meta:
        return True
    try:
        stages, words = image.meta["sampling"]["stages"], image.meta["sampling"]["words"]
        Selection().rows(words, image.config.lanes)
        return all(stage in STAGES for stage in stages) and all(
            isinstance(at, int) and 0 <= at < len(image.constants) for at in words.values())
    except (KeyError, TypeError, AttributeError):
        return False


def is_image(head: bytes) -> bool:
    """Whether a file that begins with these bytes is an image."""
    return head.startswith(image_format.MAGIC)


def load_image(path: str) -> Image:
    """Read an image file, whatever it holds."""
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise MetronomeError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return image_format.from_bytes(data, profile(image_format.profile_of(data)))
    except image_format.ImageError as error:
        raise MetronomeError(f"{path}: {error}") from None
