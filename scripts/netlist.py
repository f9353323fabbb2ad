"""Netlists against the RTL that they come from: ``python -m scripts.netlist [--check] [unit ...]``.

A netlist is what ``metronome synth`` hands to placement, of cells of the ECP5. For each slice of
profile ``tiny`` it is run beside its RTL on the same random inputs, between which `sim.stimulus`
sets it to work. Every output is compared on every cycle, and must move. ``--check`` does so for all
slices and writes the figures into docs/verification.md.
"""
import argparse
import datetime
import hashlib
import pathlib
import re
import sys
import tempfile
import time

from arch.config import Config, profile
from arch.isa import unit_of
from compiler.errors import MetronomeError
from scripts import synthesis
from scripts.pages import ROOT, filled, table
from sim import rtl, stimulus, toolchain
from sim.netlist import CELLS
from sim.pair import Comparison, Pairs

#: What writes the netlist that nextpnr would place, as Verilog. Where cells lie does not matter.
#: Short names are quicker to compile; wires of single bits depend on themselves nowhere.
_WRITE = ("read_json netlist.json; rename -hide w:* c:*; splitnets; "
          "rename -enumerate -pattern _%_; write_verilog -noattr -norename netlist.v")
_RTL = "metronome_rtl"
_CELL = re.compile(r"^  [A-Z]\w+ (?:#\(|_)", re.MULTILINE)
#: Units compared by ``--check``, and how long.
SLICES = ("mxm", "vxm", "perm", "red", "sample", "mem", "const", "host", "sequencer", "icu_mxm",
          "icu_drain", "icu_kv", "icu_vxm", "icu_perm", "icu_red", "icu_const", "icu_sample",
          "icu_r0", "icu_w0")
CYCLES = 100_000
#: Outputs that never move: PERM answers what the host reads of MEM and constants.
_STILL = {"mem": ("host__r_data",), "const": ("host__r_data",)}
#: And in queues whose format has no outer count.
_ONE_LEVEL = ("issue__i", "issue__i_first", "issue__i_last")
#: What a block RAM reads of a word that is being written. Programs never ask for it; random inputs
#: do, and the RTL reads the old word.
_MET = re.compile(r" \^ \{36\{\|met_[ab]\}\}")
PAGE = ROOT / "docs" / "verification.md"


def netlist(config: Config, unit: str = "chip") -> str:
    """Verilog of the netlist of a unit (`scripts.synthesis.units`), from the cache or made.

    The top module is `scripts.synthesis.TOP`.

    Raises
    ------
    MetronomeError
        If the unit does not exist or Yosys fails.
    """
    flow = synthesis.script(synthesis.TOP, "netlist.json") + _WRITE
    digest = hashlib.sha256(f"{rtl.source_digest(config)}\0{flow}".encode()).hexdigest()[:24]

    def make():
        print(f"synthesising {unit} of profile {config.name}, once", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="metronome-netlist-") as name:
            folder = pathlib.Path(name)
            synthesis.map_to_cells(config, unit, folder)
            synthesis.run_yosys(folder, "-p", _WRITE)
            return (folder / "netlist.v").read_text()
    home = toolchain.cache_folder() / "netlists"
    return toolchain.kept_text(home / f"{config.name}-{unit}-{digest}.v", make)


def cell_count(verilog: str) -> int:
    """Cells of a netlist."""
    return len(_CELL.findall(verilog))


def still_outputs(unit: str) -> tuple:
    """Outputs of a unit that never move."""
    queue = unit.removeprefix("icu_")
    if queue != unit and not unit_of(queue).field("n2"):
        return _ONE_LEVEL
    return _STILL.get(unit, ())


def rtl_of(config: Config, unit: str) -> str:
    """Verilog of a unit as the simulators run it; the top module is `_RTL`."""
    from hdl.verilog import component_verilog
    return component_verilog(synthesis.unit_of(unit)(config, vendor=False), _RTL)


def beside_rtl(config: Config, sides: dict, cycles: int) -> Comparison:
    """Run RTL and netlists side by side.

    Parameters
    ----------
    sides : dict of str to (str, str, str)
        A name to a unit, its RTL (`rtl_of`) and its netlist (`netlist`).
    """
    cells, count = _MET.subn("", CELLS.read_text())
    assert count == 2
    texts, pairs, orders = [cells], {}, {}
    for name, (unit, right, gates) in sides.items():
        pairs[name] = f"rtl_{name}", f"gates_{name}"
        texts += [right.replace(_RTL, pairs[name][0]),
                  gates.replace(f"module {synthesis.TOP}(", f"module {pairs[name][1]}(")]
        orders[name] = stimulus.orders(unit, config, cycles)
    label = f"the netlist of {', '.join(sides)} of profile {config.name} beside its RTL"
    return Pairs(label, "\n".join(texts), pairs).run(cycles, orders=orders)


def complaints(found: Comparison, units: dict) -> list:
    """What is wrong, in words: outputs that differ, and outputs that did not show that they agree.

    ``units``: the unit of each pair.
    """
    still = {f"{name}.{output}" for name, unit in units.items() for output in still_outputs(unit)}
    return ([f"{output} differs from cycle {cycle} on" for output, cycle in found.different.items()]
            + [f"{output} never moved" for output in found.quiet if output not in still]
            + [f"{output} moved, but is said not to" for output in found.moved if output in still])


def compare(unit: str) -> tuple:
    """A row of the table for one slice of `tiny`, and whether it passed."""
    config, began = profile("tiny"), time.perf_counter()
    gates = netlist(config, unit)
    found = beside_rtl(config, {unit: (unit, rtl_of(config, unit), gates)}, CYCLES)
    wrong = complaints(found, {unit: unit})
    print("\n".join(wrong), end="\n" if wrong else "")
    row = [unit, f"{cell_count(gates):,}", f"{CYCLES:,}",
           f"{len(found.moved)} of {len(found.moved) + len(found.quiet)}",
           f"{time.perf_counter() - began:.0f} s"]
    return row, not wrong


def check(units: list) -> tuple:
    """Text of the figures, and whether all passed."""
    rows, passed = [], True
    for unit in units:
        row, fine = compare(unit)
        rows.append(row)
        passed &= fine
    head = ["slice", "cells", "cycles", "outputs that moved", "took"]
    return (f"Compared on {datetime.date.today()}; netlists and builds came from the cache where it "
            f"had them.\n\n{table(head, rows)}"), passed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.netlist", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="all slices; write the page")
    parser.add_argument("units", nargs="*", help="slices to compare; default: all")
    options = parser.parse_args()
    try:
        text, passed = check(SLICES if options.check else options.units or SLICES)
    except MetronomeError as error:
        print(f"scripts.netlist: {error}", file=sys.stderr)
        return 2
    print(text)
    if options.check and passed:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(filled(page, {"scripts/netlist.py": lambda: {"slices": text}}, "measured"),
                        encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
