"""Verilog of the netlist that ``metronome synth`` hands to placement, for simulation."""
import hashlib
import pathlib
import sys
import tempfile

from arch.config import Config
from scripts import synthesis
from sim import rtl, toolchain

#: What writes the netlist that nextpnr would place, as Verilog. Where cells lie does not matter. Short
#: names are quicker to compile; wires of single bits depend on themselves nowhere.
_WRITE = ("read_json netlist.json; rename -hide w:* c:*; splitnets; rename -enumerate -pattern _%_; "
          "write_verilog -noattr -norename netlist.v")


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
