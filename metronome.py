"""Metronome in a few calls: load a model, compile it, run it on an engine.

>>> import metronome
>>> program = metronome.compile(metronome.load_model(), "ecp5_85k")
>>> with metronome.Session(program, engine="verilator") as session:
...     print(session.generate("ROMEO:", tokens=100).text)

What these calls return shows itself in a notebook: a model its sizes, a program its cycles by
position, a generation its text. The command line uses nothing but this module.
"""
from __future__ import annotations

from collections.abc import Callable

from arch.boards import BOARDS, BoardSpec, board
from arch.config import Config, profile
from arch.image import Image
from compiler import export as formats
from compiler.asm import assemble
from compiler.checkpoint import random_checkpoint
from compiler.disasm import disassemble
from compiler.errors import MetronomeError
from compiler.files import in_one_piece
from compiler.model import (BUILT_IN, BUILT_IN_OF, BUILT_IN_TOKENIZER, MODELS, Model,
                            load_model)
from compiler.pipeline import compile_model
from compiler.program import (DEFAULT_PROFILE, Program, compile, is_image, load_image, load_program,
                              needed_sampling)
from compiler.stop import stop_token
from sim import toolchain
from sim.evaluation import Evaluation, evaluate
from sim.inventory import inventory
from sim.programs import ImageRun, run_image
from sim.quality import table as quality_table
from sim.session import (DEFAULT_ENGINE, Generation, Session, check_engine, reference_logits,
                         steps_that_fit)

__all__ = ["Model", "Program", "Session", "Generation", "Evaluation", "MetronomeError",
           "load_model", "compile", "load_program", "generate", "evaluate", "quality_table",
           "export", "FORMATS",
           "needed_sampling", "stop_token", "DEFAULT_PROFILE", "DEFAULT_ENGINE",
           # Programs that are no model.
           "Image", "ImageRun", "assemble", "disassemble", "load_image", "run_image",
           "is_image", "check_engine", "steps_that_fit", "reference_logits",
           # The machine itself.
           "Config", "profile", "BOARDS", "BoardSpec", "board", "inventory", "verilog", "selftest"]

#: What `export` writes.
FORMATS = formats.FORMATS


def generate(prompt: str = "", tokens: int | None = None, *, model: Model | None = None,
             config: Config | str = DEFAULT_PROFILE, engine: str = DEFAULT_ENGINE,
             temperature: float = 0.0, seed: int = 0, top_k: int = 0, top_p: float = 1.0,
             stop: int | str | None = None) -> Generation:
    """Everything in one call: load, compile, run."""
    name = config if isinstance(config, str) else config.name
    program = compile(model or load_model(profile=name), config,
                      sampling=needed_sampling(temperature, top_k, top_p))
    with Session(program, engine) as session:
        return session.generate(prompt, tokens, temperature=temperature, seed=seed, top_k=top_k,
                                top_p=top_p, stop=stop)


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
    if program is None and (config.context >= 256 or config.name in BUILT_IN_OF):
        program = compile(load_model(profile=config.name), config)
    if program is not None:
        image, compiled = program.image, program.compiled
    else:
        compiled = compile_model(random_checkpoint(checks.SMALL, 1), config)
        image = compiled.image
    return checks.run_model(image, compiled, port, on_check, notify)
