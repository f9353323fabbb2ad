"""A netlist of ECP5 cells as an engine: what synthesis made of the machine, in Verilator."""
import pathlib

from arch.config import Config
from sim.verilator import VerilatorEngine, port_header
from sim.verilator_build import Source

#: Models of the cells that a netlist consists of.
CELLS = pathlib.Path(__file__).with_name("ecp5_cells.v")
#: Its line that gives a register of a slice its first value.
_FIRST_VALUE = '    initial Q = REGSET == "SET";\n'


class NetlistEngine(VerilatorEngine):
    """The netlist of a machine, compiled to native code.

    Its memories are cells that nobody names: an image comes through the host port. Registers start
    from random bits of ``random_state_seed``, not from the values that the bitstream gives them.

    Parameters
    ----------
    config : Config
    verilog : str
        The netlist, whose top is the chip (`hdl.chip.Chip`).
    top : str
        Name of its top module.
    cells : str
        Verilog of the cells.
    random_state_seed, notify
        As `VerilatorEngine`.
    """
    name = "netlist"
    _quick = True

    def __init__(self, config: Config, *, verilog: str, top: str, cells: str = CELLS.read_text(),
                 random_state_seed: int = 0, **options):
        super().__init__(config, random_state_seed=random_state_seed, **options)
        assert cells.count(_FIRST_VALUE) == 1
        self._verilog, self._top = verilog + cells.replace(_FIRST_VALUE, ""), top

    def _source(self) -> Source:
        return Source(f"the netlist of profile {self.config.name}", self._top, self._verilog,
                      port_header(self.config), {})

    def load(self, image, backdoor: bool = False) -> None:
        """Load through the host port: a netlist has no back door."""
        super().load(image, backdoor=False)

    def _poke_image(self, image) -> None:
        raise AssertionError("a netlist has no back door")
