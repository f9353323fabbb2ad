"""Bitstreams: Yosys, nextpnr over several seeds, ecppack; every step kept by what it follows from.

Ref: the flow of the open ECP5 tools (Project Trellis); pins and clocks from amaranth-boards.
"""
import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Callable

from arch.boards import BoardSpec
from arch.hostmap import PROTOCOL_VERSION
from compiler.errors import MetronomeError
from scripts import carry_ends, floorplan, keepouts, output_registers, pnr, synthesis
from sim import toolchain

TOP = "top"
NETLIST = "netlist.json"
_SOURCE = re.compile(r"^ *attribute \\src .*\n", re.MULTILINE)


class TimingError(Exception):
    """No seed met the clock; ``report`` has the figures."""

    def __init__(self, message: str, report: dict):
        super().__init__(message)
        self.report = report


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a bitstream follows from.

    Members
    -------
    spec : BoardSpec
    rtl_sha256 : str
        Of the chip (`hdl.verilog.digest`); a board shows its first 16 digits to the host.
    rtlil, constraints, script : str
        The design with its pins, the .lpf file, what Yosys does.
    tools : dict of str to str
        Versions.
    """
    spec: BoardSpec
    rtl_sha256: str
    rtlil: str
    constraints: str
    script: str
    tools: dict

    @property
    def identity(self) -> str:
        """Hash of the design, its constraints and sites, and the tools."""
        parts = [self.rtlil, self.constraints, self.script, " ".join(self.spec.device),
                 pnr.IDENTITY, json.dumps(self.tools, sort_keys=True)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def plan(spec: BoardSpec) -> Plan:
    """Elaborate the design of a board."""
    import amaranth_boards.ulx3s
    from hdl.ulx3s import Ulx3s
    from hdl.verilog import build_number
    number = build_number(spec.config)
    platform = getattr(amaranth_boards.ulx3s, spec.platform)()
    made = platform.build(Ulx3s(spec, number), name=TOP, do_build=False)
    tools = {tool.name: tool.version for tool in (toolchain.amaranth(), toolchain.boards(),
                                                  toolchain.yosys(), toolchain.nextpnr())}
    # Where a line of Python stands is no part of the design.
    return Plan(spec, f"{number:016x}", _SOURCE.sub("", _text(made.files[f"{TOP}.il"])),
                _text(made.files[f"{TOP}.lpf"]), synthesis.script(TOP, NETLIST), tools)


def _text(content) -> str:
    return content.decode() if isinstance(content, bytes) else content


def build(made: Plan, seeds: int, notify: Callable[[str], None]) -> tuple:
    """A bitstream and its report, from the cache where they are in it.

    Seeds 1 to ``seeds`` are placed; the fastest becomes the bitstream.

    Returns
    -------
    (path, dict)

    Raises
    ------
    MetronomeError
        If a tool fails, or the design does not fit.
    TimingError
        If no seed is fast enough.
    """
    folder = toolchain.cache_folder() / "bitstream" / made.identity
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / NETLIST).exists():
        notify(f"synthesising {made.spec.name}, some minutes; kept in {folder}")
        _synthesise(made, folder)
    placed = {}
    for seed in range(1, seeds + 1):
        kept = folder / f"seed-{seed}.json"
        if not kept.exists():
            _place(made, folder, seed, notify)
        placed[seed] = json.loads(kept.read_text())
        speed = clock_of(placed[seed])
        notify(f"seed {seed} of {seeds}: {speed['achieved']:.1f} MHz, "
               f"{speed['constraint']:.1f} wanted")
    report = _report(made, folder, placed)
    if not report["timing_met"]:
        raise TimingError(f"timing failed: {report['fmax_mhz']['max']:.1f} MHz at best, "
                          f"{made.spec.clock_hz / 1e6:.1f} wanted", report)
    bit = folder / f"seed-{report['seed']}.bit"
    if not bit.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            pnr.checked(toolchain.ecppack().run("--compress", "--input",
                                             f"../seed-{report['seed']}.config", "--bit", "top.bit",
                                             cwd=work), "ecppack")
            os.replace(pathlib.Path(work) / "top.bit", bit)
    return bit, report


def kept(made: Plan) -> pathlib.Path | None:
    """The fastest bitstream of a plan that has been built before."""
    folder = toolchain.cache_folder() / "bitstream" / made.identity
    return max(folder.glob("seed-*.bit"), default=None, key=lambda bit: clock_of(
        json.loads(bit.with_suffix(".json").read_text()))["achieved"])


def _synthesise(made: Plan, folder: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = pathlib.Path(name)
        (work / f"{TOP}.il").write_text(made.rtlil)
        (work / "synth.ys").write_text(made.script)
        pnr.checked(toolchain.yosys().run("-q", "-l", "yosys.log", "synth.ys", cwd=work), "Yosys")
        output_registers.absorb(work / NETLIST, TOP)
        carry_ends.trim(work / NETLIST, TOP)
        if floorplan.DEVICE in made.spec.device:
            floorplan.apply(work / NETLIST, TOP)
            keepouts.add(work / NETLIST, TOP)
        os.replace(work / NETLIST, folder / NETLIST)


def _place(made: Plan, folder: pathlib.Path, seed: int, notify: Callable[[str], None]) -> None:
    """Place and route with one seed; leaves its report, and before it its configuration."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = pathlib.Path(name)
        (work / pnr.CONSTRAINTS).write_text(made.constraints)
        os.link(folder / NETLIST, work / NETLIST)
        run = pnr.Run(work, TOP, made.spec.device, made.spec.clock_hz,
                      lambda phase: notify(f"seed {seed}: {phase}"))
        (work / "kept.json").write_text(json.dumps(run(NETLIST, seed)))
        os.replace(work / pnr.CONFIG, folder / f"seed-{seed}.config")
        os.replace(work / "kept.json", folder / f"seed-{seed}.json")


def clock_of(report: dict) -> dict:
    """What nextpnr says of the machine's clock, the slower of those that are asked most: MHz achieved
    and wanted."""
    return max(report["fmax"].values(), key=lambda entry: (entry["constraint"], -entry["achieved"]))


def _report(made: Plan, folder: pathlib.Path, placed: dict) -> dict:
    speeds = {seed: round(clock_of(report)["achieved"], 2) for seed, report in placed.items()}
    best = max(speeds, key=speeds.get)
    met = [seed for seed, report in placed.items() if pnr.met(report)]
    return {
        "board": made.spec.name, "profile": made.spec.profile, "part": made.spec.part,
        "identity": made.identity, "rtl": made.rtl_sha256, "protocol": PROTOCOL_VERSION,
        "config": made.spec.config.digest().hex(), "tools": made.tools,
        "clock_mhz": made.spec.clock_hz / 1e6, "baud": made.spec.baud,
        "fmax_mhz": synthesis.spread(list(speeds.values())), "seeds": speeds,
        "timing_met": best in met, "seeds_met": met, "seed": best,
        "seconds": {seed: report["seconds"] for seed, report in placed.items()},
        "resources": resources(placed[best]), "critical_path": critical_path(placed[best])}


def resources(report: dict) -> dict:
    """Used and available cells of the kinds that are used, and per cent."""
    return {kind: {"used": count["used"], "available": count["available"],
                   "percent": round(100 * count["used"] / count["available"], 1)}
            for kind, count in sorted(report["utilization"].items()) if count["used"]}


def module_of(cell: str) -> str:
    """The module that a cell belongs to, by the name that Yosys gave it: ``board.chip.vxm``."""
    parts = [part for part in re.sub(r"\$flatten|\\", "", cell).split(".")]
    kept = []
    for part in parts[:-1]:
        if "$" in part:
            break
        kept.append(part)
    return ".".join(kept) or TOP


def critical_path(report: dict) -> dict | None:
    """The slowest path within the machine's clock, as modules of ours.

    Returns
    -------
    dict
        ``from`` and ``to`` (modules), ``through`` (modules in their order), nanoseconds of logic,
        routing and in all; None if there is no such path.
    """
    paths = [path for path in report.get("critical_paths", ())
             if path["from"] == path["to"] and "async" not in path["from"]]
    if not paths:
        return None
    path = max(paths, key=lambda each: sum(step["delay"] for step in each["path"]))["path"]
    spent = collections.Counter()
    through = []
    for step in path:
        spent["routing" if step["type"] == "routing" else "logic"] += step["delay"]
        for end in (step["from"], step["to"]):
            module = module_of(end["cell"])
            if not through or through[-1] != module:
                through.append(module)
    return {"from": through[0], "to": through[-1], "through": through,
            "logic_ns": round(spent["logic"], 2), "routing_ns": round(spent["routing"], 2),
            "total_ns": round(sum(spent.values()), 2),
            "first_cell": path[0]["from"]["cell"], "last_cell": path[-1]["to"]["cell"]}
