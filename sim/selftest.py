"""Self-test of a machine behind its host port: identity, memories, a model, cycles, faults.

The same checks for a board and for a virtual one: an engine with an open port is all they need.
Expected cycles come from the image; expected tokens from the numpy reference, or from the machine
model where there is only an image.
"""
import contextlib
import dataclasses
import time
from collections.abc import Callable

import numpy as np

from arch.faults import Fault
from arch.hostmap import (IDENTITY_MAGIC, NO_TOKEN, PROTOCOL_VERSION, ROW_GENERATE, Register,
                          Space)
from arch.image import Image
from arch.isa import Instruction, encode
from arch.timing import FIRST_ISSUE
from compiler.checkpoint import ModelConfig
from compiler.errors import MetronomeError
from sim import hostlink
from sim.engine import create
from sim.host_engine import HostEngine, ParityError
from sim.reference_engine import run_reference
from sim.virtual_board import VirtualBoard

#: Memories that keep every word that the host writes: all 16 bits, of TOKENS those of a token.
MARCHED = (Space.MEM, Space.CONSTANTS, Space.TOKENS, Space.WEIGHTS)
#: Steps that the model of a self-test runs.
STEPS = 8
#: A model for machines that the built-in one does not fit; seeded, so always the same.
SMALL = ModelConfig(dim=32, hidden_dim=44, n_layers=2, n_heads=8, n_kv_heads=4, vocab_size=43,
                    seq_len=32, tied=True)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One check: its name, what went wrong (None: nothing), seconds taken."""
    name: str
    failure: str | None
    seconds: float


class Failed(Exception):
    """A check found something wrong; the message says what."""


def need(condition: bool, message: str) -> None:
    if not condition:
        raise Failed(message)


def identity(engine: HostEngine) -> None:
    """Magic, protocol version and the digest of the profile."""
    magic, protocol = engine.read_space(Space.REGISTERS, Register.MAGIC, 2)
    need(magic == IDENTITY_MAGIC, f"the identity register holds {magic:#06x}, "
         f"not {IDENTITY_MAGIC:#06x}")
    need(protocol == PROTOCOL_VERSION, f"the board speaks protocol {protocol}, this driver "
         f"{PROTOCOL_VERSION}")
    digest = engine.read_space(Space.REGISTERS, Register.DIGEST0, 4).astype("<u2").tobytes()
    need(digest == engine.config.digest(), f"the board is not profile {engine.config.name!r} as it "
         "is now: build and flash its bitstream again")


def march(engine: HostEngine, space: Space) -> None:
    """Every word of a memory takes and keeps a value that depends on its address, and its inverse.

    All words are written before any is read, so that two addresses of one word are found. All 16
    bits are written; those that the memory does not have must read as 0.
    """
    count = hostlink.space_words(engine.config, space)
    bits = engine.config.token_bits if space == Space.TOKENS else 16
    address = np.arange(count, dtype=np.uint64)
    # Odd: as many words behind each other as there are values differ from each other.
    value = (address * 0x9E37 ^ address >> bits ^ 0x5A5A).astype(np.uint16)
    for written in (value, ~value):
        engine.write_space(space, 0, written)
        pattern, parity = written & (1 << bits) - 1, None
        try:
            found = engine.read_space(space, 0, count)
        except ParityError as error:
            found, parity = error.words, error
        wrong = np.flatnonzero(found != pattern)
        if len(wrong):
            first = int(wrong[0])
            raise Failed(f"{len(wrong)} of {count} words of {space.name} differ, first at "
                         f"{first}: wrote {int(pattern[first]):#06x}, read "
                         f"{int(found[first]):#06x}")
        need(parity is None, str(parity))


def time_base(engine: HostEngine) -> None:
    """The free-running counter moves on."""
    first, second = (engine.read_space(Space.REGISTERS, Register.TIME0, 4).tolist()
                     for _ in range(2))
    need(second[::-1] > first[::-1], f"the time base went from {first} to {second}")


def load(engine: HostEngine, image: Image) -> None:
    """Load an image and read every word of it back."""
    engine.load(image, backdoor=False)
    for space, address, words in hostlink.image_blocks(image):
        found = engine.read_space(space, address, len(words))
        wrong = np.flatnonzero(found != words)
        if len(wrong):
            raise Failed(f"{len(wrong)} words of {space.name} came back different, first at "
                         f"{address + int(wrong[0])}")


def generate(engine: HostEngine, prompt: list, expected: list, predicted: list,
             **settings) -> None:
    """The expected tokens, in the cycles of the image, twice."""
    for time_ in ("first", "second"):
        result = engine.run(prompt, len(predicted), **settings)
        need(result.fault is None, f"{time_} run: {result.fault}")
        need(result.tokens == expected, f"{time_} run: tokens {result.tokens}, expected {expected}")
        need(result.reported == predicted, f"{time_} run: cycles {result.reported}, predicted "
             f"{predicted}")


def fault(engine: HostEngine) -> None:
    """A program that reads beyond a memory stops with the right cause, queue and cycle."""
    config = engine.config
    end = Instruction("END", {"wait": FIRST_ISSUE})
    beyond = Instruction("READ", {"wait": FIRST_ISSUE + 3, "s1": -1, "n1": 2})
    program = {queue: [encode(queue, end, config)] for queue in config.queues}
    program["const"].insert(0, encode("const", beyond, config))
    image = Image(config, program, {}, np.array([[0, 0, 0, 0, 60, 60]]),
                  np.zeros((0, config.lanes), int), np.zeros((0, config.lanes), np.int16),
                  np.zeros((0, config.rows, config.columns), np.int8))
    engine.load(image, backdoor=False)
    found = engine.run([0], 1, vocabulary=2).fault
    need(found is not None, "no fault was told of an address below 0")
    need((found.cause, found.queue, found.cycle) == (Fault.ADDRESS, "const", FIRST_ISSUE + 4),
         f"an address below 0 on cycle {FIRST_ISSUE + 4} of const was told as {found}")


def run(engine: HostEngine, image: Image, prompt: list, expected: list, predicted: list,
        progress: Callable[[Outcome], None] = lambda outcome: None, **settings) -> list:
    """All checks; each goes on where the one before has failed, but for a dead port.

    Parameters
    ----------
    prompt : list of int
        Tokens to begin with.
    expected : list of int
        Tokens to be sampled. ``predicted``: cycles of every step.
    settings : further arguments of `sim.engine.Engine.run`.

    Returns
    -------
    list of Outcome
    """
    checks = {"identity": lambda: identity(engine), "time base": lambda: time_base(engine)}
    checks |= {f"march {space.name}": lambda space=space: march(engine, space)
               for space in MARCHED}
    checks |= {"fault": lambda: fault(engine), "load": lambda: load(engine, image),
               "generate": lambda: generate(engine, prompt, expected, predicted, **settings),
               "scrub": engine.scrub}
    outcomes = []
    for name, check in checks.items():
        began, failure = time.perf_counter(), None
        try:
            check()
        except (Failed, MetronomeError) as error:
            failure = str(error)
        outcomes.append(Outcome(name, failure, time.perf_counter() - began))
        progress(outcomes[-1])
        if name == "identity" and failure:
            break
    return outcomes


def run_model(image: Image, compiled, port: str | None, on_check, notify) -> list:
    """All checks with a model on the board at ``port``, or on a virtual one (None).

    Parameters
    ----------
    image : Image
    compiled : `compiler.pipeline.Compiled` or None
        What the image was made from, if that is known.
    """
    steps = min(STEPS, image.meta["context"])
    settings = {"seed": 0, "inverse_temperature": 0, "stop": NO_TOKEN,
                "vocabulary": image.meta["vocabulary"]}
    if compiled is None:
        with create("machine", image.config) as model:
            model.load(image)
            expected = model.run([1], steps, **settings)
    else:
        expected = run_reference(compiled, [1], steps, **settings)
    predicted = [int(image.rows[at // image.config.columns, ROW_GENERATE]) for at in range(steps)]
    with contextlib.ExitStack() as stack:
        if port is None:
            port = stack.enter_context(virtual_board(image.config, notify)).port
            notify(f"the virtual board is on {port}")
        board = stack.enter_context(create("board", image.config, port=port))
        return run(board, image, [1], expected.tokens, predicted, on_check, **settings)


def virtual_board(config, notify) -> VirtualBoard:
    """A virtual board that can run here.

    Raises
    ------
    MetronomeError
        If a tool is missing.
    """
    reason = VirtualBoard.unavailable()
    if reason:
        raise MetronomeError(f"there can be no virtual board here: {reason}")
    return VirtualBoard(config, notify)
