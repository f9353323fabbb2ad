"""Verilog to a shared library with Verilator and a C++ compiler, kept in the cache.

Pure in its inputs: the same Verilog, shim, flags, tools and processor give the same folder name,
and a folder appears there whole or not at all.
"""
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable

from compiler.errors import MetronomeError
from sim import toolchain

SHIM = pathlib.Path(__file__).with_name("shim.cpp")
LIBRARY = "machine.so"
#: One clock, no four-state values, nothing the simulation could print. Functions are short, for
#: the time of a C++ compiler grows faster than theirs; files are few, for each has to read the
#: headers.
VERILATE = ("--cc", "--prefix", "Vtop", "-O3", "--x-assign", "fast", "--no-assert", "--no-timing",
            "-Wno-fatal", "-Wno-lint", "-Wno-style", "--flatten",
            "--output-split", "40000", "--output-split-cfuncs", "1000")
COMPILE = ("-std=c++20", "-fPIC", "-O2", "-fno-strict-aliasing", "-w",
           "-DVM_SC=0", "-DVM_COVERAGE=0", "-DVM_TIMING=0")
#: Not worth the compiler's time: what runs once at the start, any build that writes waves, which
#: spends its time on the file, and what runs for seconds only.
COMPILE_SLOW = ("-O0",)
COMPILE_QUICK = ("-O1",)
#: Names that Verilator gives: the level of the clock that it saw last, the function that does all
#: of a rising edge, and its flag that there is one.
CLOCK_BEFORE = "__Vtrigprevexpr___TOP__clk__0"
EDGE, EDGE_FLAG = "Vtop___024root___eval_nba", "__VnbaTriggered"
_TRIGGER = re.compile(r"\b__Vtrigprevexpr\w+")
SUPPORT = ("verilated.cpp", "verilated_threads.cpp")


class BuildError(MetronomeError):
    """A tool refused its input: the message has its first complaint and where the rest is."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How to build.

    Members
    -------
    waves : str or None
        ``"fst"`` or ``"vcd"`` for a build that can write waves, slower than one that cannot.
    unique : bool
        Values without an initial one are chosen at run time, by seed; else they are constants.
    quick : bool
        Compiled faster, for what does not run long.
    """
    waves: str | None = None
    unique: bool = False
    quick: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """What is built.

    Members
    -------
    label : str
        For messages.
    top : str
        Name of the top module.
    verilog : str
    ports : str
        C++ macros that name the ports (ports.h of the shim).
    shim : path
        The C++ beside the model: its clock and its interface.
    memories : dict of str to tuple of str
        Name of a memory for the engine, to the instance names below the top and its own name.
    """
    label: str
    top: str
    verilog: str
    ports: str
    memories: dict
    shim: pathlib.Path = SHIM


def mangle(name: str) -> str:
    """What Verilator makes of one Verilog identifier."""
    return re.sub(r"[^A-Za-z0-9_]", lambda match: f"__0{ord(match[0]):02x}",
                  name.replace("__", "___05F"))


def build(source: Source, options: Options, notify: Callable[[str], None]) -> pathlib.Path:
    """Folder with the library of a machine, built if it is not in the cache.

    Parameters
    ----------
    notify : callable
        Told once, in words, before a build starts.

    Raises
    ------
    ToolMissing, BuildError
    """
    verilator, compiler = toolchain.verilator(), toolchain.compiler()
    flags = (VERILATE + ("--x-initial", "unique" if options.unique else "fast"), COMPILE,
             _native(compiler))
    levels = (COMPILE_SLOW, COMPILE_QUICK)
    parts = [source.verilog, source.top, source.ports, json.dumps(source.memories, sort_keys=True),
             source.shim.read_text(), repr((options, flags, levels)), verilator.version,
             compiler.version,
             " ".join(compiler.command), toolchain.cpu()]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    home = toolchain.cache_folder() / "verilator"
    home.mkdir(parents=True, exist_ok=True)
    folder = home / digest
    if (folder / LIBRARY).exists():
        return folder
    with toolchain.exclusive(home / f"{digest}.lock"):
        if not (folder / LIBRARY).exists():
            notify(f"building the simulation of {source.label} with Verilator and "
                   f"{compiler.name}, once; kept in {folder}")
            work = pathlib.Path(tempfile.mkdtemp(dir=home, prefix="building-"))
            try:
                _build_in(work, source, options, flags, verilator, compiler)
                shutil.rmtree(work / "obj")
                work.rename(folder)
            except BaseException:
                shutil.rmtree(work, ignore_errors=True)
                raise
    return folder


def _native(compiler: toolchain.Tool) -> tuple:
    """Flags for this processor; zig's default is this processor."""
    return () if compiler.name.startswith("zig") else ("-march=native",)


def _build_in(work, source, options, flags, verilator, compiler) -> None:
    verilate, compile_, native = flags
    (work / "machine.v").write_text(source.verilog)
    waves = (f"--trace-{options.waves}", "--trace-structs") if options.waves else ()
    made = verilator.run(*verilate, *waves, "--top-module", source.top, "--Mdir", "obj",
                         "machine.v", cwd=work)
    if made.returncode:
        raise BuildError(f"Verilator refused {source.label}: {_first_line(made.stderr)}")
    obj = work / "obj"
    header = (obj / "Vtop___024root.h").read_text()
    (obj / "ports.h").write_text(source.ports + _edge_macros(obj, header))
    (obj / "memories.h").write_text(_memory_table(header, source))
    shutil.copy(source.shim, obj / "shim.cpp")
    include = pathlib.Path(verilator.environment["VERILATOR_ROOT"]) / "include"
    support = [include / name for name in SUPPORT]
    defines = (f"-DVM_TRACE={int(bool(options.waves))}",)
    libraries = ()
    if options.waves:
        defines += (f"-DTRACE_{options.waves.upper()}", f"-DVM_TRACE_{options.waves.upper()}=1")
        support.append(include / f"verilated_{options.waves}_c.cpp")
        libraries = ("-lz", "-llz4") if options.waves == "fst" else ()
    common = (*compile_, *native, *defines, "-I", obj, "-I", include, "-I", include / "vltstd")

    def compile_one(path):
        level = COMPILE_QUICK if options.waves or options.quick else ()
        if "__Slow" in path.name or path.parent == include:
            level = COMPILE_SLOW
        done = compiler.run(*common, *level, "-c", path, "-o", obj / f"{path.stem}.o")
        if done.returncode:
            if "lz4.h" in done.stderr:
                raise BuildError("an .fst file needs the headers of LZ4 (system package "
                                 "liblz4-dev); name a .vcd file instead")
            raise BuildError(f"{compiler.name} refused {path.name} of {source.label}: "
                             f"{_first_line(done.stderr)}")

    paths = sorted(obj.glob("*.cpp"), key=lambda path: -path.stat().st_size) + support
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(compile_one, paths))
    linked = compiler.run("-shared", "-fPIC", *sorted(obj.glob("*.o")), *libraries, "-lpthread",
                          "-o", work / LIBRARY)
    if linked.returncode:
        raise BuildError(f"{compiler.name} could not link {source.label}: "
                         f"{_first_line(linked.stderr)}")


def _edge_macros(obj: pathlib.Path, header: str) -> str:
    """C++ macros for the direct way to clock the model.

    None if this Verilator names it otherwise, or where more than the clock sets something off.
    """
    defined = any(f"void {EDGE}(Vtop___024root* vlSelf) {{" in path.read_text()
                  for path in obj.glob("Vtop___024root*.cpp"))
    if not defined or EDGE_FLAG not in header or set(_TRIGGER.findall(header)) != {CLOCK_BEFORE}:
        return ""
    return (f"#define PORT_CLOCK_BEFORE {CLOCK_BEFORE}\n#define PORT_EDGE {EDGE}\n"
            f"#define PORT_EDGE_FLAG {EDGE_FLAG}\n")


def _first_line(text: str) -> str:
    """The first line that says what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()]
    return (telling or lines or ["no message"])[0]


def _memory_table(header: str, source: Source) -> str:
    """C++ that registers every memory of the map, found among the members of the model."""
    members = set(re.findall(r"^\s+VlUnpacked<.*> (\w+);", header, re.MULTILINE))
    lines = []
    for name, path in source.memories.items():
        member = "__DOT__".join(mangle(part) for part in [source.top, *path])
        if member not in members:
            raise BuildError(f"Verilator kept no memory {'.'.join(path)} ({name}) of {source.label}")
        lines.append(f'memories.push_back(memory("{name}", root->{member}));\n')
    return "".join(lines)
