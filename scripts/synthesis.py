"""Yosys and nextpnr for ECP5: cells, memories and timing of the machine or of one slice.

Ref: the flow of the open ECP5 tools, synth_ecp5 and nextpnr-ecp5.
"""
import collections
import json
import pathlib
import re
import statistics

from arch.config import Config, profile
from arch.queues import QUEUES
from compiler.errors import MetronomeError
from scripts import floorplan, output_registers
from sim import toolchain

TOP = "top"
DEVICE = ("--85k", "--package", "CABGA381", "--speed", "6")
#: The clock that placement aims at, in MHz.
TARGET_MHZ = 100
#: LUT sites of the cells that occupy some.
LUT_SITES = {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 4}
RAM_CELLS = ("DP16KD", "PDPW16KD", "TRELLIS_DPR16X4")
_SYNTHESISE = """\
read_rtlil {top}.il
chformal -remove
delete */t:$print
hierarchy -top {top}
tee -q -o declared.txt dump m:*
# Yosys 0.70 fails in ABC9 on some hierarchies when public wire names stay; cells keep theirs.
rename -hide w:*
# Delay in ps that ABC9 may leave, of which a wire takes as much as it does when placed, on average:
# with more room it builds chains of LUTs, with less it duplicates logic.
scratchpad -set abc9.D 10000
# As by default, but with more cuts of a node (8 by default) and rounds of area recovery: 3 % less.
scratchpad -set abc9.script "{abc9}"
synth_ecp5 -top {top} -json {netlist}
"""
_ABC9 = ("+&scorr; &sweep; &dc2; &dch -f; &ps; "
         "&if -C 32 -F 5 -A 5 -W 1000 {D} {R} -v; &mfs")
_DECLARED = re.compile(r"memory width (\d+) size (\d+) (\S+)")


def units() -> dict:
    """What can be synthesised alone: name to a function of config and, by keyword, ``vendor``.

    ``chip`` is the whole machine, ``icu_<queue>`` the first queue of each instruction format.
    """
    from hdl.chip import Chip
    from hdl.const import ConstBank
    from hdl.host import HostPort
    from hdl.icu import InstructionQueue
    from hdl.mem import Mem
    from hdl.mxm import Mxm
    from hdl.perm import Perm
    from hdl.reduce import Red
    from hdl.sampler import Sampler
    from hdl.sequencer import Sequencer
    from hdl.vxm import Vxm

    def slices(component, **options):
        return lambda config, vendor=True: component(config=config, vendor=vendor, **options)

    def control(component, **options):
        return lambda config, vendor=True: component(config=config, **options)
    # The queues of links are reserved: no machine has them.
    present = profile("ecp5_85k").queues
    formats = {QUEUES[name].unit: name for name in reversed(present)}
    return {
        "chip": slices(Chip), "mxm": slices(Mxm), "vxm": slices(Vxm), "perm": slices(Perm),
        "red": slices(Red), "sample": slices(Sampler), "mem": slices(Mem),
        "const": slices(ConstBank), "host": control(HostPort), "sequencer": control(Sequencer),
        **{f"icu_{name}": slices(InstructionQueue, queue=name)
           for name in present if name in formats.values()}}


def unit_of(name: str):
    """The function of `units` for a unit.

    Raises
    ------
    MetronomeError
        If there is none of this name.
    """
    known = units()
    if name not in known:
        raise MetronomeError(f"unknown unit {name!r}; there are {', '.join(known)}")
    return known[name]


def lut4_equivalent(cells: dict) -> int:
    """LUT4 + 2 CCU2C + 4 TRELLIS_DPR16X4: the LUT sites of a netlist.

    A carry cell takes both LUTs of half a slice; a distributed RAM of 16 x 4 takes the four LUTs
    that hold its bits. That is how nextpnr packs them into TRELLIS_COMB.
    """
    return sum(sites * cells.get(kind, 0) for kind, sites in LUT_SITES.items())


def script(top: str, netlist: str) -> str:
    """What Yosys does with ``top``.il."""
    return _SYNTHESISE.format(top=top, netlist=netlist, abc9=_ABC9)


def synthesise(config: Config, unit: str, folder: pathlib.Path) -> dict:
    """Synthesise a unit in ``folder``; the netlist names the sites of `scripts.floorplan`.

    Returns
    -------
    dict
        ``cells`` by type, their `lut4_equivalent`, the fate of ``memories``, and ``rtl_sha256``:
        digests (`hdl.verilog.digest`) of the unit as simulated and as synthesised.

    Raises
    ------
    MetronomeError
        If the unit does not exist or Yosys fails.
    """
    from hdl.verilog import digest
    component = unit_of(unit)
    digests = {name: digest(component(config, vendor=vendor))
               for name, vendor in (("simulated", False), ("synthesised", True))}
    map_to_cells(config, unit, folder)
    floorplan.apply(folder / "netlist.json", TOP)
    netlist = json.loads((folder / "netlist.json").read_text())
    cells = netlist["modules"][TOP]["cells"]
    declared = declared_memories((folder / "declared.txt").read_text())
    counts = dict(sorted(collections.Counter(
        cell["type"] for cell in cells.values() if cell["type"] != "$scopeinfo").items()))
    return {"cells": counts, "lut4_equivalent": lut4_equivalent(counts),
            "memories": memory_cells(declared, cells), "rtl_sha256": digests}


def map_to_cells(config: Config, unit: str, folder: pathlib.Path) -> None:
    """Let Yosys make ``netlist.json`` of a unit in ``folder``, with ``declared.txt`` and a log.

    Raises
    ------
    MetronomeError
        If the unit does not exist or Yosys fails.
    """
    from amaranth.back import rtlil
    text = rtlil.convert(unit_of(unit)(config), name=TOP, emit_src=False)
    (folder / f"{TOP}.il").write_text(text)
    (folder / "synth.ys").write_text(script(TOP, "netlist.json"))
    run_yosys(folder, "-l", "yosys.log", "synth.ys")
    output_registers.absorb(folder / "netlist.json", TOP)


def run_yosys(folder: pathlib.Path, *arguments) -> None:
    """Run Yosys in ``folder``.

    Raises
    ------
    MetronomeError
        With its complaint, if it fails.
    """
    done = toolchain.yosys().run("-q", *arguments, cwd=folder)
    if done.returncode:
        complaint = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
        raise MetronomeError(f"Yosys failed: {(complaint or ['no message'])[0]}")


def declared_memories(dump: str) -> dict:
    """Memories of a design before mapping, ``{path: (width, depth)}``, from Yosys's dump."""
    found, module = {}, ""
    for line in dump.splitlines():
        words = line.split()
        if words[:1] == ["module"]:
            module = words[1].lstrip("\\")
        match = _DECLARED.search(line)
        if match:
            path = module.split(".")[1:] + [match[3].lstrip("\\")]
            found[".".join(path)] = (int(match[1]), int(match[2]))
    return found


def memory_cells(declared: dict, cells: dict) -> dict:
    """Declared memories with the cells that each became, by the names Yosys gives the cells.

    A memory without RAM cells became flip-flops and logic. Block RAM that the hardware instantiates
    itself counts as a memory named after its place.
    """
    found = {name: {"width": width, "depth": depth, "cells": {}}
             for name, (width, depth) in declared.items()}
    for cell, content in cells.items():
        kind = content["type"]
        if kind not in RAM_CELLS:
            continue
        name = cell.lstrip("\\")
        owner = next((memory for memory in _prefixes(name) if memory in found), None)
        if owner is None:
            owner = name.rpartition(".")[0]
            found.setdefault(owner, {"width": None, "depth": None, "cells": {}})
        counts = found[owner]["cells"]
        counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(found.items()))


def _prefixes(name: str):
    """Dotted prefixes of a cell's name, longest first."""
    parts = re.split(r"[.\[]", name)
    joined = name
    for _ in parts:
        joined = re.sub(r"[.\[][^.\[]*$", "", joined)
        yield joined


def place(folder: pathlib.Path, seed: int, whole: bool) -> dict:
    """Place and route the netlist in ``folder``; returns fmax in MHz by clock and utilisation.

    Raises
    ------
    MetronomeError
        If the design does not fit or cannot be routed.
    """
    report = folder / f"report-{seed}.json"
    context = () if whole else ("--out-of-context",)
    done = toolchain.nextpnr().run(*DEVICE, *context, "--freq", TARGET_MHZ, "--seed", seed,
                                   "--json", "netlist.json", "--report", report.name,
                                   "--timing-allow-fail", "-q", cwd=folder)
    if done.returncode or not report.exists():
        complaint = [line for line in done.stderr.splitlines() if "ERROR" in line]
        raise MetronomeError(f"nextpnr failed: {(complaint or ['no message'])[0]}")
    content = json.loads(report.read_text())
    return {"fmax": {clock: entry["achieved"] for clock, entry in content["fmax"].items()},
            "utilization": content.get("utilization", {})}


def spread(values: list) -> dict:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
