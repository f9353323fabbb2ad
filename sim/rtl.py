"""The machine's Verilog for the simulators: made once, kept in the cache, its memories found.

Amaranth names every module by its path below the top, so the text alone tells where each memory
lies: ``module \\metronome_tiny.mxm.tile_0 (...)`` holds the memories of the instance ``mxm.tile_0``.
"""
import dataclasses
import hashlib
import pathlib
import re

import numpy as np

from arch.config import Config
from arch.image import Image
from arch.isa import IsaError, decode
from arch.queues import Stream
from sim import toolchain

ROOT = pathlib.Path(__file__).parents[1]
_MODULE = re.compile(r"^module (\\\S+|\w+)", re.MULTILINE)
_MEMORY = re.compile(r"^  reg (?:signed )?(?:\[(\d+):0\] )?(\\\S+|\w+) +\[(\d+):0\];", re.MULTILINE)
_REGISTER = re.compile(r"^(\s*(?:output )?reg (?:signed )?(?:\[\d+:0\] )?(?:\\\S+ |\w+)) = "
                       r"\d+'[hbd][0-9a-f]+;", re.MULTILINE)
#: The loop that fills a memory with zeros, two lines.
_CLEARING = re.compile(r"^  initial for \(clear_\d+ = .*\n.* = 0;\n", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Rtl:
    """A machine as text.

    Members
    -------
    top : str
        Name of the top module.
    verilog : str
    memories : dict of str to tuple of str
        Dotted path of every memory below the top, and the same as a tuple of names.
    """
    top: str
    verilog: str
    memories: dict


def generate(config: Config, notify) -> Rtl:
    """Verilog of the machine that ``config`` describes.

    Parameters
    ----------
    notify : callable
        Told in words when the text is made and not found in the cache.
    """
    def make():
        from hdl.verilog import to_verilog  # needs Amaranth; the cache does not
        return to_verilog(config)
    top = f"metronome_{config.name}"
    text = _cached(top, source_digest(config), make,
                   lambda: notify(f"writing the Verilog of profile {config.name}"))
    return Rtl(top, text, memories_of(text, top))


def generate_board(config: Config, clock_hz: float, baud: float, notify) -> Rtl:
    """Verilog of a board (`hdl.board`) with the machine that ``config`` describes."""
    def make():
        from hdl.verilog import board_verilog
        return board_verilog(config, clock_hz, baud)
    top = f"metronome_board_{config.name}"
    text = _cached(f"{top}-{clock_hz:.0f}-{baud:.0f}", source_digest(config), make,
                   lambda: notify(f"writing the Verilog of the board of profile {config.name}"))
    return Rtl(top, text, {})


def _cached(name: str, digest: str, make, notify) -> str:
    """A text from the cache, made if it is not there."""
    def told():
        notify()
        return make()
    return toolchain.kept_text(toolchain.cache_folder() / "verilog" / f"{name}-{digest}.v", told)


def source_digest(config: Config) -> str:
    """Hash of everything that the Verilog follows from."""
    found = hashlib.sha256(config.digest())
    for folder in ("arch", "hdl"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    for tool in (toolchain.amaranth(), toolchain.yosys()):
        found.update(f"{tool.name} {tool.version}\0".encode())
    return found.hexdigest()[:24]


def memories_of(verilog: str, top: str) -> dict:
    """Paths of all memories of a design, without tables of constants: `Rtl.memories`."""
    found = {}
    starts = [(match.start(), match[1].lstrip("\\")) for match in _MODULE.finditer(verilog)]
    ends = [start for start, _ in starts[1:]] + [len(verilog)]
    for (start, module), end in zip(starts, ends):
        path = tuple(module.split("."))
        if path[0] != top:
            continue
        for match in _MEMORY.finditer(verilog, start, end):
            name = match[2].lstrip("\\")
            if name.startswith("$"):  # a table that Yosys made of a case
                continue
            found[".".join([*path[1:], name])] = (*path[1:], name)
    return found


def without_initial_values(verilog: str) -> str:
    """The same design with no initial value in any register or memory.

    What the reset does not set, and what is not loaded, is then whatever the simulator chooses.
    """
    return _CLEARING.sub("", _REGISTER.sub(r"\1;", verilog))


def lanes_of(value: int, lanes: int) -> np.ndarray:
    """The int16 lanes of a packed vector, lane 0 lowest."""
    return np.frombuffer(value.to_bytes(2 * lanes, "little"), "<i2")


def place_writes(writes: np.ndarray, barriers: np.ndarray) -> np.ndarray:
    """Turn cycles of a run into steps and cycles of issue in the step; clear what was not written.

    Parameters
    ----------
    writes : structured array of `sim.engine.write_log_type`
        ``cycle`` counts from where ``barriers`` count, ``step`` is not set.
    barriers : int array
        The cycle before the first step, and the last cycle of every step.
    """
    placed = writes.copy()
    # The hardware writes on the cycle behind the issue.
    issued = writes["cycle"] - 1
    step = np.searchsorted(barriers, issued, side="left") - 1
    placed["step"], placed["cycle"] = step, issued - np.asarray(barriers)[step] - 1
    half = writes["lanes"].shape[1] // 2
    for number in range(2):
        unwritten = writes["halves"] >> number & 1 == 0
        placed["lanes"][unwritten, number * half:(number + 1) * half] = 0
    return placed


def logits_log_type(config: Config) -> np.dtype:
    """One vector that the sampler took: cycle, counted as in a write log, and int16 lanes."""
    return np.dtype([("cycle", "<u4"), ("lanes", "<i2", (config.lanes,))])


def place_logits(vectors: np.ndarray, barriers: np.ndarray) -> dict:
    """Logits by step: the vectors of each step, one after the other.

    Parameters
    ----------
    vectors : structured array of `logits_log_type`
    barriers : int array
        As in `place_writes`.
    """
    steps = np.searchsorted(barriers, vectors["cycle"], side="left") - 1
    return {int(step): vectors["lanes"][steps == step].ravel() for step in np.unique(steps)}


def shows_logits(image: Image) -> bool:
    """Whether all that the sampler takes comes over stream VXM, which the simulations watch."""
    sources = {instruction["x"] for instruction in decoded(image, "sample")
               if instruction.op == "ARGMAX"}
    return sources == {Stream.VXM}


def decoded(image: Image, queue: str) -> list:
    """The instructions of a queue, none where a word is no instruction."""
    try:
        return [decode(queue, word, image.config) for word in image.program.get(queue, ())]
    except IsaError:
        return []
