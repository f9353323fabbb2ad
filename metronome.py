"""Metronome in a few calls: load a model, compile it, run it on an engine.

>>> import metronome
>>> program = metronome.compile(metronome.load_model(), "ecp5_85k")
>>> with metronome.Session(program, engine="verilator") as session:
...     print(session.generate("ROMEO:", tokens=100).text)

What these calls return shows itself in a notebook: a model its sizes, a program its cycles by
position, a generation its text. The command line uses nothing but this module.
"""
from __future__ import annotations

import codecs
import math
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from arch import image as image_format
from arch.config import Config, profile
from arch.hostmap import NO_TOKEN, ROW_GENERATE, ROW_PROMPT
from arch.image import Image
from arch.numerics import LOGIT_FRACTION, inverse_temperature
from arch.selection import STAGES, Selection
from compiler import export as formats
from compiler.asm import assemble
from compiler.checkpoint import Checkpoint, random_checkpoint
from compiler.disasm import disassemble
from compiler.errors import MetronomeError
from compiler.files import in_one_piece
from compiler.load import AnyTokenizer, load_files, unpack_tokenizer
from compiler.pipeline import Compiled, compile_model
from compiler.stop import stop_token
from sim import engine as engines, notebook, toolchain
from sim.evaluation import mean_nats, windows
from sim.float_model import FloatModel
from sim.inventory import inventory
from sim.programs import ImageRun, run_image
from sim.quality import compare, table as quality_table
from sim.reference import Reference
from sim.reference_engine import first_difference, run_reference

__all__ = ["Model", "Program", "Session", "Generation", "Evaluation", "MetronomeError",
           "load_model", "compile", "load_program", "generate", "evaluate", "quality_table",
           "export", "FORMATS",
           "needed_sampling", "stop_token", "FaultError", "DEFAULT_PROFILE", "DEFAULT_ENGINE",
           # Programs that are no model.
           "Image", "ImageRun", "assemble", "disassemble", "load_image", "run_image",
           "is_image", "check_engine", "steps_that_fit", "reference_logits",
           # The machine itself.
           "Config", "profile", "inventory", "verilog", "selftest"]

MODELS = pathlib.Path(__file__).with_name("models")
BUILT_IN, BUILT_IN_TOKENIZER = "shakespeare.bin", "shakespeare_tokenizer.bin"
DEFAULT_PROFILE, DEFAULT_ENGINE = "ecp5_85k", "verilator"
#: What `export` writes.
FORMATS = formats.FORMATS
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

    def report(self) -> dict:
        """Memory used, cycles and utilisation by position: what ``metronome compile`` tells.

        Raises
        ------
        MetronomeError
            If the program was read from an image.
        """
        return _compiled(self, "a report").report()

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

    def _repr_html_(self) -> str:
        steps = max(len(self.cycles), 1)
        return notebook.passage("", self.text) + notebook.table(f"{len(self.tokens)} tokens", {
            "engine": self.engine, "profile": self.profile,
            "cycles a step": f"{sum(self.cycles) / steps:.0f}, predicted "
                             f"{sum(self.predicted) / steps:.0f}",
            "multipliers busy": f"{100 * self.utilisation:.1f} % of {self.macs_per_cycle}",
            "stopped by": self.fault or self.difference or "nothing"})


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
        ``reference``, ``machine``, ``verilator``, ``icarus``, ``pysim`` or ``board``.
    trace : str or None
        Path of a wave file (engine verilator).
    backdoor : bool
        Load the memories directly instead of through the host port.
    notify : callable or None
        Told in words about long work, such as the first build of a simulation.
    port : str or None
        Serial port (engine board).
    """

    def __init__(self, program: Program, engine: str = DEFAULT_ENGINE, trace: str | None = None,
                 backdoor: bool = True, notify: Callable[[str], None] | None = None,
                 port: str | None = None):
        self.program, self.engine_name = program, engine
        options = {}
        if engine == "verilator":
            options = {"waves": trace} | ({"notify": notify} if notify else {})
        elif engine == "board":
            options = {"port": port}
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


# Measuring and exporting.

@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    Members
    -------
    tokens : int
        How many were scored.
    nats_per_token, perplexity : float
        Mean negative log-likelihood, and e to that power.
    engine : str
        ``float`` or ``reference``.
    context : int
        Tokens per window.
    quality : dict or None
        With a report: what `sim.quality.compare` gives; `quality_table` makes text of it.
    """
    tokens: int
    nats_per_token: float
    perplexity: float
    engine: str
    context: int
    quality: dict | None = None

    def _repr_html_(self) -> str:
        return notebook.table(f"{self.tokens} tokens, engine {self.engine}", {
            "nats per token": f"{self.nats_per_token:.4f}",
            "perplexity": f"{self.perplexity:.2f}", "context": self.context})


def evaluate(model: Model, text: str, engine: str = "reference",
             config: Config | str = DEFAULT_PROFILE, *, context: int | None = None,
             limit: int | None = None, calibration: str | None = None, report: bool = False,
             progress: Callable[[int, int], None] | None = None) -> Evaluation:
    """Measure a model on a text, in windows that do not overlap.

    Parameters
    ----------
    engine : str
        ``reference`` (quantised, as the machine computes) or ``float``.
    config : Config or str
        The machine, or the name of its profile; also bounds the windows of engine float, so that
        the figures of both compare.
    context : int or None
        Tokens per window; None: as many as machine and model hold.
    limit : int or None
        Score only so many tokens.
    calibration : str or None
        As in `compile`; must not be the text.
    report : bool
        Also compare every vector of every layer with float (engine reference).
    progress : callable or None
        Told after every window how many tokens it scored, and how many there are in all.

    Raises
    ------
    MetronomeError
        If nothing can be scored or the context is too long.
    """
    config = profile(config) if isinstance(config, str) else config
    longest = model.checkpoint.config.seq_len
    usual = min(config.context, longest)
    if engine == "float":
        if report:
            raise MetronomeError("a report compares engine reference with float: evaluate that")
        score = FloatModel(model.checkpoint).logits
    else:
        program = compile(model, config, calibration)
        longest, logits = usual, reference_logits(program)
        score = lambda ids: logits(ids) / 2**LOGIT_FRACTION  # noqa: E731
    context = context or usual
    if context > longest:
        raise MetronomeError(f"the context must be at most {longest}, not {context}")
    parts = windows(model.tokenizer.encode(text, bos=False), context, model.tokenizer.bos_id,
                    limit)
    total = sum(map(len, parts)) - len(parts)
    if not total:
        raise MetronomeError("the text has no token to score")
    tell = progress and (lambda done: progress(done, total))
    try:
        if report:
            with np.errstate(over="ignore", invalid="ignore"):  # as in mean_nats
                found = compare(model.checkpoint, program.compiled.model, config, parts, tell)
            return Evaluation(found["tokens"], found["nats"], math.exp(found["nats"]), engine,
                              context, found)
        mean, count = mean_nats(score, parts, tell)
    except ValueError as error:
        raise MetronomeError(f"{model.name}: {error}: its weights are too large") from None
    return Evaluation(count, mean, math.exp(mean), engine, context)


def export(model: Model, path: str, form: str) -> list[str]:
    """Write a model and its tokenizer in another format; returns the paths written.

    Parameters
    ----------
    form : str
        One of `FORMATS`.

    Raises
    ------
    MetronomeError
        If the format cannot hold the model, or a file cannot be written.
    """
    return [str(written) for written in
            formats.export(path, model.checkpoint, model.tokenizer, form)]


def verilog(config: Config | str = DEFAULT_PROFILE,
            notify: Callable[[str], None] = lambda text: None):
    """The machine as one Verilog file: an object with ``verilog`` (the text) and ``top``.

    Raises
    ------
    MetronomeError
        If Amaranth or Yosys is not installed.
    """
    reason = toolchain.missing(toolchain.amaranth, toolchain.yosys)
    if reason:
        raise MetronomeError(reason)
    from sim import rtl
    return rtl.generate(profile(config) if isinstance(config, str) else config, notify)


def write_file(path: str, data: bytes) -> None:
    """Write a whole file, or none.

    Raises
    ------
    MetronomeError
        If it cannot be written.
    """
    in_one_piece(path, lambda file: file.write(data))


def selftest(port: str | None = None, *, config: Config | str = DEFAULT_PROFILE,
             program: Program | None = None, on_check: Callable = lambda outcome: None,
             notify: Callable[[str], None] = lambda text: None) -> list:
    """Check a board: identity, memories, a model, every cycle.

    Parameters
    ----------
    port : str or None
        Serial port; None for a virtual board.
    config : Config or str
        The machine on the board.
    program : Program or None
        What runs on it; by default the built-in model, or a small random one where it does not fit.
    on_check : callable
        Called with the outcome of each check: ``name``, ``failure`` (None: none), ``seconds``.
    notify : callable
        Told in words about long work.

    Returns
    -------
    list of outcomes

    Raises
    ------
    MetronomeError
        If the port cannot be opened, or there can be no virtual board here.
    """
    from sim import selftest as checks
    config = profile(config) if isinstance(config, str) else config
    if program is None and config.context >= 256:
        program = compile(load_model(), config)
    if program is not None:
        image, compiled = program.image, program.compiled
    else:
        compiled = compile_model(random_checkpoint(checks.SMALL, 1), config)
        image = compiled.image
    return checks.run_model(image, compiled, port, on_check, notify)
