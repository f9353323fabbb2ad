"""The Verilog of the bench top and its builds for both simulators, kept in the cache.

A build is named by the hash of everything that it follows from: Verilog, tools, options.
"""
import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import sys
import tempfile
import unittest.mock

import cocotb_tools.config
from cocotb_tools.runner import get_results, get_runner

from sim import rtl, toolchain
from tb import top

SIMULATORS = ("icarus", "verilator")
TIMESCALE = ("1ns", "1ps")
#: Registers without an initial value start at random in Verilator, as X in Icarus.
BUILD_ARGS = {
    "icarus": (),
    "verilator": ("--no-public-flat-rw", "--x-assign", "unique", "--x-initial", "unique",
                  "--no-assert", "-Wno-fatal", "-Wno-lint", "-Wno-style",
                  "--output-split", "40000", "--output-split-cfuncs", "1000")}
#: The model is compiled for a short build: a bench spends its time in Python.
MAKEFLAGS = "CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O1 -j2"
LIMIT_SECONDS = 300
PLUSARGS = {"icarus": (), "verilator": ("+verilator+rand+reset+2", "+verilator+seed+20")}
_PORT = re.compile(r"^  (?:input|output) (?:\[\d+:0\] )?(\w+);", re.MULTILINE)


def unavailable(simulator: str) -> str | None:
    """What is missing for the benches in a simulator, None if nothing is."""
    needed = {"icarus": (toolchain.icarus,), "verilator": (toolchain.verilator,)}[simulator]
    reason = toolchain.missing(*needed, toolchain.amaranth, toolchain.yosys)
    if reason is None and simulator == "verilator":
        # The driver of the wheel and cocotb's makefile.
        for name in ("perl", "make", "g++"):
            if shutil.which(name) is None:
                return f"{name} is not installed; cocotb needs it for Verilator"
    return reason


def _kept(kind: str, parts: list, suffix: str, make) -> pathlib.Path:
    """Folder of the cache for ``parts``; ``make(folder)`` fills it if it is not there."""
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    home = toolchain.cache_folder() / "cocotb"
    home.mkdir(parents=True, exist_ok=True)
    folder = home / f"{kind}-{digest}"
    # One process builds; the others wait and find the result.
    with open(home / f"{kind}-{digest}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / suffix).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
    return folder


def _sources() -> list:
    """Text of every file that the Verilog follows from, and the tools that make it."""
    paths = sorted(path for folder in ("arch", "hdl") for path in (rtl.ROOT / folder).rglob("*.py"))
    paths += [rtl.ROOT / "sim" / "rtl.py", rtl.ROOT / "tb" / "top.py"]
    tools = [f"{tool.name} {tool.version}" for tool in (toolchain.amaranth(), toolchain.yosys())]
    return [f"{path.relative_to(rtl.ROOT)}\0{path.read_text()}" for path in paths] + tools


def verilog() -> pathlib.Path:
    """The Verilog of `tb.top`, beside a control file that makes its ports accessible."""
    def make(folder):
        text = top.to_verilog()
        head = text[text.index(f"module {top.TOP}("):]
        ports = _PORT.findall(head[:head.index("endmodule")])
        (folder / "ports.vlt").write_text("`verilator_config\n" + "".join(
            f'public_flat_rw -module "{top.TOP}" -var "{port}"\n' for port in ports))
        (folder / "top.v").write_text(text)
    return _kept("verilog", _sources(), "top.v", make)


@contextlib.contextmanager
def _environment(simulator: str):
    """What the tools of the wheel need; cocotb's runner passes its own environment on."""
    # A simulation that never ends is ended here, cocotb's own limit is in simulated time.
    changes = {"SIM_CMD_PREFIX": f"timeout {LIMIT_SECONDS}"} if shutil.which("timeout") else {}
    if simulator == "verilator":
        root = toolchain.verilator().environment["VERILATOR_ROOT"]
        changes |= {"VERILATOR_ROOT": root, "MAKEFLAGS": MAKEFLAGS,
                    "PATH": os.pathsep.join((f"{root}/bin", os.environ["PATH"]))}
    with unittest.mock.patch.dict(os.environ, changes):
        yield


def build(simulator: str) -> pathlib.Path:
    """Folder of the build for a simulator, made if it is not in the cache.

    Raises
    ------
    ToolMissing
    """
    source = verilog()
    tool = toolchain.verilator() if simulator == "verilator" else toolchain.icarus()[0]
    parts = [(source / "top.v").read_text(), tool.version, cocotb_tools.config.libs_dir.as_posix(),
             sys.version, toolchain.cpu(), repr((BUILD_ARGS[simulator], MAKEFLAGS, TIMESCALE))]

    def make(folder):
        sources = [source / "top.v"]
        if simulator == "verilator":
            sources.insert(0, source / "ports.vlt")
        with _environment(simulator):
            get_runner(simulator).build(
                sources=sources, hdl_toplevel=top.TOP, build_dir=folder, always=True,
                timescale=TIMESCALE, build_args=list(BUILD_ARGS[simulator]),
                log_file=folder / "build.log")
        (folder / "complete").touch()
    return _kept(simulator, parts, "complete", make)


def run(simulator: str, module: str) -> tuple:
    """Run a bench module of `tb`.

    Returns
    -------
    (count, failed) : tests of the module, and how many of them failed; (0, 0) if the simulation
        did not get to its end.
    log : str
    """
    folder = build(simulator)
    with tempfile.TemporaryDirectory(prefix="metronome-bench-") as work, _environment(simulator):
        results, log = pathlib.Path(work, "results.xml"), pathlib.Path(work, "log")
        # The runner exits when it runs under pytest and a test failed: the results tell all.
        with contextlib.suppress(SystemExit, RuntimeError):
            get_runner(simulator).test(
                test_module=f"tb.{module}", hdl_toplevel=top.TOP, hdl_toplevel_lang="verilog",
                build_dir=folder, test_dir=work, results_xml=str(results), timescale=TIMESCALE,
                seed=1, plusargs=list(PLUSARGS[simulator]), log_file=log,
                extra_env={"PYTHONWARNINGS": "error::DeprecationWarning",
                           "COCOTB_ANSI_OUTPUT": "0"})
        text = log.read_text() if log.exists() else "the simulator did not start"
        return get_results(results) if results.exists() else (0, 0), text
