"""Metronome in a few calls: load a model, compile it, run it on an engine.

>>> import metronome
>>> program = metronome.compile(metronome.load_model(), "ecp5_85k")
>>> with metronome.Session(program, engine="verilator") as session:
...     print(session.generate("ROMEO:", tokens=100).text)
"""
from __future__ import annotations

import codecs
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from arch import image as image_format
from arch.config import Config, profile
from arch.hostmap import NO_TOKEN, ROW_GENERATE, ROW_PROMPT
from arch.image import Image
from arch.numerics import inverse_temperature
from arch.selection import STAGES, Selection
from compiler.checkpoint import Checkpoint
from compiler.errors import MetronomeError
from compiler.load import AnyTokenizer, load_files, unpack_tokenizer
from compiler.pipeline import Compiled, compile_model
from compiler.stop import stop_token
from sim import engine as engines
from sim.reference import Reference
from sim.reference_engine import first_difference, run_reference

__all__ = ["Model", "Program", "Session", "Generation", "MetronomeError", "load_model", "compile",
           "load_program", "generate", "needed_sampling", "FaultError", "DEFAULT_PROFILE",
           "DEFAULT_ENGINE"]

MODELS = pathlib.Path(__file__).with_name("models")
BUILT_IN, BUILT_IN_TOKENIZER = "shakespeare.bin", "shakespeare_tokenizer.bin"
DEFAULT_PROFILE, DEFAULT_ENGINE = "ecp5_85k", "verilator"
#: Most of a calibration text that is used.
CALIBRATION_SEQUENCES, CALIBRATION_LENGTH = 16, 256


class FaultError(Exception):
    """The machine stopped with a fault: the schedule it ran is illegal."""


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


def load_model(path: str | None = None, tokenizer: str | None = None) -> Model:
    """Load a model: the built-in one, a llama2.c ``.bin`` or a Hugging Face folder.

    Parameters
    ----------
    path : str or None
        None: the built-in model, which writes in the manner of Shakespeare.
    tokenizer : str or None
        A llama2.c tokenizer ``.bin`` or a ``tokenizer.json``; a ``.bin`` model of one's own needs
        it, a folder has its own.

    Raises
    ------
    MetronomeError
        If a file is missing or cannot be used.
    """
    if path is None:
        path = MODELS / BUILT_IN
        tokenizer = tokenizer or MODELS / BUILT_IN_TOKENIZER
    return Model(*load_files(path, tokenizer), str(path))


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
    if "sampling" in image.meta:
        found = image.meta["sampling"]
        words = Selection().rows(found["words"], image.config.lanes)
        if set(found["stages"]) - set(STAGES) or any(at not in range(len(image.constants))
                                                     for at in words):
            raise MetronomeError(f"{path}: is damaged: its sampling settings are not known")
    tokenizer = unpack_tokenizer(image.extra["tokenizer"].tobytes(), image.meta["vocabulary"])
    return Program(image, tokenizer)


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


# Running.

@dataclass
class Generation:
    """What a generation gave.

    Members
    -------
    text : str
        The tokens as text, without the prompt.
    prompt_tokens, tokens : list of int
    cycles : list of int
        Length of every step, prompt steps included, as the engine counts from barrier to barrier.
    predicted : list of int
        What the compiler said.
    engine, profile : str
    macs_per_cycle : int
    utilisation : float
        Useful multiplications over all that the machine could do in these cycles.
    seconds, simulated_hz : float
        Of the simulation, loading excluded.
    fault : str or None
        The fault that ended it.
    difference : str or None
        With a check: the first difference from the reference.
    """
    text: str
    prompt_tokens: list
    tokens: list
    cycles: list
    predicted: list
    engine: str
    profile: str
    macs_per_cycle: int
    utilisation: float
    seconds: float
    simulated_hz: float
    fault: str | None = None
    difference: str | None = None


def check_engine(name: str) -> None:
    """Raise a MetronomeError that says what is missing, unless the engine can run here."""
    if name == "reference":
        return
    reason = engines.engine_class(name).unavailable()
    if reason:
        raise MetronomeError(f"engine {name} cannot run here: {reason}")


def steps_that_fit(program: Program, prompt: Sequence[int], tokens: int | None) -> int:
    """How many tokens to generate after a prompt: those asked for, or as many as fit."""
    context = min(program.config.context, program.image.meta["context"])
    room = context - len(prompt) + 1
    if room < 1:
        raise MetronomeError(f"the prompt has {len(prompt)} tokens, the context holds {context}")
    if tokens is None:
        return room
    if not 1 <= tokens <= room:
        raise MetronomeError(f"{tokens} tokens do not fit: after a prompt of {len(prompt)} the "
                             f"context of {context} leaves room for {room}")
    return tokens


class Session:
    """A program loaded into an engine; use as a context manager.

    Parameters
    ----------
    program : Program
    engine : str
        ``reference``, ``machine``, ``verilator``, ``icarus`` or ``pysim``.
    trace : str or None
        Path of a wave file (engine verilator).
    backdoor : bool
        Load the memories directly instead of through the host port.
    notify : callable or None
        Told in words about long work, such as the first build of a simulation.
    """

    def __init__(self, program: Program, engine: str = DEFAULT_ENGINE, trace: str | None = None,
                 backdoor: bool = True, notify: Callable[[str], None] | None = None):
        self.program, self.engine_name = program, engine
        options = {}
        if engine == "verilator":
            options = {"waves": trace} | ({"notify": notify} if notify else {})
        self.engine = None
        if engine != "reference":
            self.engine = engines.create(engine, program.config, **options)
            self.engine.load(program.image, backdoor=backdoor)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the engine."""
        if self.engine is not None:
            self.engine.close()

    def generate(self, prompt: str | Sequence[int] = "", tokens: int | None = None, *,
                 temperature: float = 0.0, seed: int = 0, top_k: int = 0, top_p: float = 1.0,
                 stop: int | str | None = None, check: bool = False,
                 on_step: Callable[[bytes], None] | None = None,
                 on_text: Callable[[str], None] | None = None) -> Generation:
        """Generate tokens after a prompt; the model may stop earlier by itself.

        Parameters
        ----------
        prompt : str or list of int
        tokens : int or None
            None: as many as fit into the context.
        temperature : float
            0 for greedy, else 0.0625 to 100.
        seed : int
            Of the sampler, 64 bits.
        top_k : int
            Draw from the k most likely tokens and those equal to the last; 0: from all. The
            program must be compiled for it.
        top_p : float
            Draw from the least set of most likely tokens with more than this probability, of what
            top_k leaves; 1: from all. The program must be compiled for it.
        stop : int, str or None
            The token that ends the text, by number or, if it is one token, as text; "": none;
            None: the model's own.
        check : bool
            Also run the reference and compare every bit and cycle.
        on_step : callable or None
            Called after every step with the bytes of text that it added (none in prompt steps).
        on_text : callable or None
            Called with text as it comes, in whole characters.
        """
        program = self.program
        ids = program.encode(prompt) if isinstance(prompt, str) else list(prompt)
        count = steps_that_fit(program, ids, tokens)
        chosen = program.selection(temperature, top_k, top_p)
        vocabulary = program.image.meta["vocabulary"]
        end = stop_token(program.tokenizer, vocabulary, stop)
        pieces = _Pieces(program.tokenizer, ids, on_step, on_text)
        settings = {"seed": seed, "inverse_temperature": inverse_temperature(temperature),
                    "stop": NO_TOKEN if end is None else end, "vocabulary": vocabulary}
        chosen = chosen if program.sampling else None
        if chosen:
            settings["inverse_temperature"] = chosen.register
        steps = len(ids) - 1 + count
        if self.engine is None:
            result = run_reference(_compiled(program, "engine reference"), ids, steps,
                                   progress=pieces, selection=chosen, **settings)
        else:
            if check:
                _compiled(program, "a check")
            if chosen:
                words = program.image.meta["sampling"]["words"]
                for address, lanes in chosen.rows(words, program.config.lanes).items():
                    self.engine.write_constant(address, lanes)
            result = self.engine.run(ids, steps, progress=pieces, trace=check, **settings)
        pieces.end()
        generation = self._generation(ids, result)
        if check and self.engine is not None and result.fault is None:
            generation.difference = first_difference(program.compiled, ids, result,
                                                     selection=chosen, **settings)
        return generation

    def _generation(self, ids: list, result: engines.RunResult) -> Generation:
        program, given = self.program, len(ids)
        steps = range(len(result.cycles))
        predicted = [program.predicted(at, at + 1 < given) for at in steps]
        useful = sum(program.useful_macs(at, at + 1 < given) for at in steps)
        total = sum(result.cycles) * program.config.macs_per_cycle
        text = program.tokenizer.decode([*ids, *result.tokens])
        prompt = program.tokenizer.decode(ids)
        return Generation(text[len(prompt):], ids, result.tokens, result.cycles, predicted,
                          self.engine_name, program.config.name, program.config.macs_per_cycle,
                          useful / total if total else 0.0, result.seconds, result.simulated_hz,
                          str(result.fault) if result.fault else None)


def _compiled(program: Program, what: str) -> Compiled:
    """What the compiler knows of a program, needed for ``what``."""
    if program.compiled is None:
        raise MetronomeError(f"{what} needs the model, not only its image: "
                             "give --model instead of --image")
    return program.compiled


def reference_logits(program: Program) -> Callable:
    """A function from tokens [T] to the reference's logits [T, vocab], in `LOGIT_FRACTION`."""
    compiled = _compiled(program, "the reference")

    def logits(ids) -> np.ndarray:
        return Reference(compiled.model, compiled.config).logits(ids)
    return logits


class _Pieces:
    """Turns the steps of a run into text for listeners: bytes as they are, and whole characters."""

    def __init__(self, tokenizer: AnyTokenizer, prompt: list, on_step: Callable | None,
                 on_text: Callable | None):
        self._stream, self._on_step, self._on_text = tokenizer.stream(prompt), on_step, on_text
        # A character may take the bytes of several tokens.
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def __call__(self, position: int, token: int | None, cycles: int) -> None:
        if self._on_step is None and self._on_text is None:
            return
        piece = b"" if token is None else self._stream(token)
        if self._on_step is not None:
            self._on_step(piece)
        self._say(self._decode(piece))

    def end(self) -> None:
        """No more steps: say what is left of a character without its end."""
        self._say(self._decode(b"", True))

    def _say(self, text: str) -> None:
        if text and self._on_text is not None:
            self._on_text(text)


def generate(prompt: str = "", tokens: int | None = None, *, model: Model | None = None,
             config: Config | str = DEFAULT_PROFILE, engine: str = DEFAULT_ENGINE,
             temperature: float = 0.0, seed: int = 0, top_k: int = 0, top_p: float = 1.0,
             stop: int | str | None = None) -> Generation:
    """Everything in one call: load, compile, run."""
    program = compile(model or load_model(), config,
                      sampling=needed_sampling(temperature, top_k, top_p))
    with Session(program, engine) as session:
        return session.generate(prompt, tokens, temperature=temperature, seed=seed, top_k=top_k,
                                top_p=top_p, stop=stop)


def needed_sampling(temperature: float, top_k: int, top_p: float) -> tuple:
    """What `compile` must be told for these settings to be usable."""
    try:
        return Selection(temperature, top_k, top_p).stages
    except ValueError as error:
        raise MetronomeError(str(error)) from None
