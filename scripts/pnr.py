"""Place and route: nextpnr, called several times for one design.

The first call places it. Then rows that were kept free are freed, and multipliers move to what they
are connected to; a second call routes it. If that is too slow, a third call routes the slow nets
again.

Between two calls cells stay where they are as constraints do it, and are packed again. Were they
just read as placed, nextpnr would not know yet what a cell is as it decides which inputs of its LUT
the router may swap: it would swap the address bits of distributed RAM, and inputs of carry cells.
`swapped` finds that.
"""
import collections
import json
import os
import pathlib
import re
import subprocess
import threading
import time
from collections.abc import Callable

from compiler.errors import MetronomeError
from scripts import floorplan, keepouts, multiplier_sites
from sim import toolchain

CONFIG, CONSTRAINTS = "top.config", "pins.lpf"
_PLACED, _ROUTED, _AGAIN, _REPORT = "placed.json", "routed.json", "again.config", "report.json"
#: The placer that moves all cells at once makes wires a sixth shorter than the other.
PLACE = ("--placer", "static")
#: Router 1 takes longer than router 2. At first timing drives nothing: that is faster, and ends
#: better. Then only nets of paths that are too slow are routed again, and what is in their way;
#: wires in use are dear from the start, so that the rest stays as it is (docs/hardware_ci.md).
ROUTE = {"router": "router2", "placer": "sa", "timing_driven": f"{0:032b}"}
REFINE = ROUTE | {"timing_driven": f"{1:032b}", "router/tmg_ripup": f"{1:032b}",
                  "router2/initCurrCongWeight": "60.0", "router2/currCongWeightMult": "4.0"}
#: Slow nets are routed for a clock this much faster: the last analysis knows more than the router.
REFINE_MARGIN = 1.02
#: Seconds for routing slow nets again: nextpnr goes on while there are any.
REFINE_LIMIT = 900
IDENTITY = json.dumps([PLACE, ROUTE, REFINE, REFINE_MARGIN, floorplan.IDENTITY, keepouts.IDENTITY,
                       multiplier_sites.IDENTITY])
#: What nextpnr says as it begins a part of its work, and how we call that.
_PHASES = {"Running Static placer": "placing", "Running router2": "routing"}
_INPUT = re.compile(r"(X\d+/Y\d+)/0_0_([A-D])(\d)->0_0_([A-D])\d_SLICE")
#: Kinds of a LUT, and the inputs that may take each other's place; plain ones have no kind.
_SWAPS = {"DPRAM": (), "RAMW_BLOCK": (), "CCU2": ("AB", "BA", "CD", "DC")}
#: What it says as it stops by itself before the limit, as it does where rounds are short.
_GIVES_UP = "ERROR: giving up"


class Unfinished(Exception):
    """Some nets are too slow however they are routed."""


class Run:
    """Place and route of one netlist with one seed.

    Parameters
    ----------
    work : pathlib.Path
        A folder with the netlist and `CONSTRAINTS`; gets `CONFIG`.
    top : str
        Name of the top module.
    device : sequence of str
        Options of nextpnr that name the part.
    clock_hz : int
        Asked for everywhere: between two calls the clock that follows from a PLL is lost.
    notify : callable
        Hears of the parts of the work as they begin.
    """

    def __init__(self, work: pathlib.Path, top: str, device: tuple, clock_hz: int,
                 notify: Callable[[str], None]):
        self._work, self._top, self._device, self._clock_hz = work, top, device, clock_hz
        self._began, self._notify = time.monotonic(), notify

    def __call__(self, netlist: str, seed: int) -> dict:
        """nextpnr's report, with the seconds that all has taken.

        Raises
        ------
        MetronomeError
            If nextpnr fails, or routes what cannot work.
        """
        self._call("--seed", str(seed), "--json", netlist, "--no-route", "--write", _PLACED, *PLACE)
        self._prepare(_PLACED, ROUTE, 1, self._improve)
        report = self._route(_PLACED, CONFIG)
        if not met(report):
            report = self._refine() or report
        return report | {"seconds": round(time.monotonic() - self._began, 1)}

    def _improve(self, cells: dict) -> None:
        keepouts.remove(cells)
        if floorplan.DEVICE in self._device:
            multiplier_sites.improve(cells, floorplan.sites(cells))

    def _refine(self) -> dict | None:
        """Route what is too slow again; the report, or None if that does not end."""
        self._prepare(_ROUTED, REFINE, REFINE_MARGIN)
        try:
            report = self._route(_ROUTED, _AGAIN, REFINE_LIMIT)
        except Unfinished:
            return None
        os.replace(self._work / _AGAIN, self._work / CONFIG)
        return report

    def _route(self, source: str, config: str, limit: float | None = None) -> dict:
        self._call("--json", source, "--textcfg", config, "--report", _REPORT, "--write", _ROUTED,
                   limit=limit)
        if wrong := swapped(self._module(_ROUTED)[1]):
            raise MetronomeError(f"nextpnr has swapped inputs of memory or carry cells, "
                                 f"{wrong.total()} in all: another version of it may do better")
        report = json.loads((self._work / _REPORT).read_text())
        for clock in report["fmax"].values():
            clock["constraint"] = self._clock_hz / 1e6
        return report

    def _module(self, name: str) -> tuple:
        """A design that nextpnr has written, and its top module."""
        content = json.loads((self._work / name).read_text())
        return content, content["modules"][self._top]

    def _prepare(self, name: str, settings: dict, margin: float,
                 change: Callable[[dict], None] = lambda cells: None) -> None:
        content, top = self._module(name)
        change(top["cells"])
        hold(top, settings, margin * self._clock_hz)
        (self._work / name).write_text(json.dumps(content))

    def _call(self, *arguments: str, limit: float | None = None) -> None:
        """Run nextpnr.

        Raises
        ------
        MetronomeError
            If it fails.
        Unfinished
            If there is a limit and it takes longer, in seconds, or gives up.
        """
        tool = toolchain.nextpnr()
        command = [*tool.command, *self._device, "--lpf", CONSTRAINTS, "--timing-allow-fail",
                   *arguments]
        lines, expired = [], threading.Event()
        with subprocess.Popen(command, cwd=self._work, text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              env=os.environ | tool.environment) as running:
            def stop():
                expired.set()
                running.kill()
            watch = threading.Timer(limit or threading.TIMEOUT_MAX, stop)
            watch.daemon = True
            watch.start()
            for line in running.stderr:
                lines.append(line)
                for start, phase in _PHASES.items():
                    if line.startswith(f"Info: {start}"):
                        self._notify(f"{phase}{' again' if limit else ''}, "
                                     f"{time.monotonic() - self._began:.0f} s")
            watch.cancel()
        if limit and (expired.is_set() or any(line.startswith(_GIVES_UP) for line in lines)):
            raise Unfinished
        checked(subprocess.CompletedProcess(command, running.returncode, "", "".join(lines)),
                "nextpnr")


def checked(done: subprocess.CompletedProcess, tool: str) -> None:
    """Raise a `MetronomeError` with what a tool complained of, if it has failed."""
    if done.returncode:
        complaint = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
        raise MetronomeError(f"{tool} failed: {(complaint or ['no message'])[0]}")


def met(report: dict) -> bool:
    """Whether every clock of a report of nextpnr is as fast as was asked for."""
    return all(entry["achieved"] >= entry["constraint"] for entry in report["fmax"].values())


def hold(top: dict, settings: dict, clock_hz: float) -> None:
    """Hold all cells of a module that nextpnr has written where they are, and say how to route it.

    Settings in a design count for more than options.
    """
    for cell in top["cells"].values():
        attributes = cell["attributes"]
        attributes.pop("BEL_STRENGTH", None)
        if "NEXTPNR_BEL" in attributes:
            attributes["BEL"] = attributes.pop("NEXTPNR_BEL")
    top["settings"] |= settings | {"target_freq": f"{clock_hz:.6f}"}


def swapped(top: dict) -> collections.Counter:
    """Inputs of LUTs that the router has let take each other's place and must not, by kind and pair."""
    kinds = {cell["attributes"]["NEXTPNR_BEL"]: cell["parameters"].get("MODE")
             for cell in top["cells"].values() if cell["type"] == "TRELLIS_COMB"}
    found = collections.Counter()
    for net in top["netnames"].values():
        for tile, wire, lut, pin in _INPUT.findall(net["attributes"].get("ROUTING", "")):
            kind = kinds.get(f"{tile}/SLICE{'ABCD'[int(lut) // 2]}.K{int(lut) % 2}")
            if wire != pin and kind in _SWAPS and wire + pin not in _SWAPS[kind]:
                found[kind, wire + pin] += 1
    return found
