"""A program loaded into an engine, and what it generates there."""
from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from arch.hostmap import NO_TOKEN
from arch.numerics import inverse_temperature
from compiler import notebook
from compiler.errors import MetronomeError
from compiler.load import AnyTokenizer
from compiler.program import Program
from compiler.stop import stop_token
from sim import engine as engines
from sim.reference import Reference
from sim.reference_engine import first_difference, run_reference

__all__ = ["Session", "Generation", "DEFAULT_ENGINE", "check_engine", "steps_that_fit",
           "reference_logits"]

DEFAULT_ENGINE = "verilator"


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
            result = run_reference(program.known("engine reference"), ids, steps,
                                   progress=pieces, selection=chosen, **settings)
        else:
            if check:
                program.known("a check")
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


def reference_logits(program: Program) -> Callable:
    """A function from tokens [T] to the reference's logits [T, vocab], in `LOGIT_FRACTION`."""
    compiled = program.known("the reference")

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
