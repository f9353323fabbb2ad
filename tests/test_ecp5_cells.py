"""Models of the ECP5 cells: proved equal to those that Yosys ships, or compared with others."""
import random
import re

import pytest
from amaranth import Module, Shape
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from hdl.cells import WeightBank
from hdl.dsp import Multiplier, ProductSum
from hdl.verilog import component_verilog
from scripts import synthesis
from sim import toolchain
from sim.netlist import CELLS
from sim.pair import Pairs
from tests.hdl import ecp5_models

needs_yosys = pytest.mark.skipif(bool(toolchain.missing(toolchain.yosys)),
                                 reason="yosys is not installed")
PAIRED = toolchain.missing(toolchain.verilator, toolchain.compiler, toolchain.yosys)
_PROOF = """\
read_verilog -D NO_INCLUDES -sv +/ecp5/cells_sim.v
read_verilog cells.v
hierarchy -top cells
proc
setattr -mod -unset lib_whitebox -unset whitebox *
flatten
memory_map
rename cells gold
design -stash gold
read_verilog -sv ecp5_cells.v
read_verilog cells.v
hierarchy -top cells
proc
flatten
memory_map
rename cells gate
design -stash gate
design -copy-from gold -as gold gold
design -copy-from gate -as gate gate
equiv_make gold gate equiv
hierarchy -top equiv
opt_clean
async2sync
equiv_simple -undef
equiv_induct
equiv_status -assert
"""


def every_cell(rng) -> str:
    """A module of cells of the logic slices: all settings, and random look-up tables."""
    cells = []

    def cell(kind, parameters, inputs, outputs):
        first = sum(count for count, _ in cells)
        ports = [f".{name}(i[{place}])" for name, place in inputs.items()]
        ports += [f".{name}(o[{first + place}])" for place, name in enumerate(outputs)]
        cells.append((len(outputs),
                      f"{kind} #({parameters}) cell_{len(cells)} ({', '.join(ports)});"))
    for init in [0, 0xFFFF, 0xAAAA, 0xCACA] + [rng.getrandbits(16) for _ in range(8)]:
        cell("LUT4", f".INIT(16'h{init:04x})", dict(zip("ABCD", range(4))), ["Z"])
    for _ in range(8):
        inits = ", ".join(f".INIT{half}(16'h{rng.getrandbits(16):04x}), .INJECT1_{half}(\"NO\")"
                          for half in range(2))
        operands = {f"{name}{half}": 4 * half + place
                    for half in range(2) for place, name in enumerate("ABCD")}
        cell("CCU2C", inits, operands | {"CIN": 8}, ["S0", "S1", "COUT"])
    cell("PFUMX", "", {"ALUT": 0, "BLUT": 1, "C0": 2}, ["Z"])
    cell("L6MUX21", "", {"D0": 0, "D1": 1, "SD": 2}, ["Z"])
    for enable in ("1", "CE", "INV"):
        for reset in ("LSR", "INV"):
            for value in ("RESET", "SET"):
                cell("TRELLIS_FF", f'.CEMUX("{enable}"), .LSRMUX("{reset}"), .REGSET("{value}"), '
                     '.CLKMUX("CLK"), .SRMODE("LSR_OVER_CE")',
                     {"CLK": 12, "LSR": 0, "CE": 1, "DI": 2}, ["Q"])
    count = sum(outputs for outputs, _ in cells)
    ram = (f"TRELLIS_DPR16X4 #(.INITVAL(64'h{rng.getrandbits(64):016x}), .WCKMUX(\"WCK\"), "
           f".WREMUX(\"WRE\")) ram (.DI(i[3:0]), .WAD(i[7:4]), .RAD(i[11:8]), .WRE(i[0]), "
           f".WCK(i[12]), .DO(o[{count + 3}:{count}]));")
    body = "\n".join(["  " + text for _, text in cells] + ["  " + ram])
    return f"module cells(input [12:0] i, output [{count + 3}:0] o);\n{body}\nendmodule\n"


def prove(folder, models: str) -> None:
    (folder / "ecp5_cells.v").write_text(models)
    (folder / "cells.v").write_text(every_cell(random.Random(1)))
    (folder / "proof.ys").write_text(_PROOF)
    synthesis.run_yosys(folder, "-l", "log", "proof.ys")


@pytest.mark.slow
@needs_yosys
def test_logic_cells_are_those_of_yosys(tmp_path):
    prove(tmp_path, CELLS.read_text())


@pytest.mark.slow
@needs_yosys
@pytest.mark.parametrize("right, wrong", [
    ("INIT[{D, C, B, A}]", "INIT[{D, C, A, B}]"),
    ("if (reset) Q <= REGSET", "if (reset & enable) Q <= REGSET")])
def test_the_proof_finds_a_wrong_cell(right, wrong, tmp_path):
    models = CELLS.read_text()
    assert models.count(right) == 1
    with pytest.raises(synthesis.MetronomeError, match="unproven"):
        prove(tmp_path, models.replace(right, wrong))


class Primitives(wiring.Component):
    """Block RAMs of both widths, a multiplier and sums, built of primitives."""

    def __init__(self):
        self._parts = {
            "narrow": WeightBank(depth=2048, vendor=True),
            "wide": WeightBank(depth=1024, vendor=True),
            "product": Multiplier(width_a=18, width_b=18, vendor=True),
            "sum": ProductSum(width_a=18, width_b=18, width_c=54, width_o=54, vendor=True),
            "short": ProductSum(width_a=10, width_b=8, width_c=20, width_o=20, vendor=True),
            "two": ProductSum(width_a=10, width_b=8, width_c=0, width_o=18, vendor=True)}
        super().__init__({f"{name}_{path[0]}": member for name, path, member, _ in self._members()})

    def _members(self):
        """Part, path, member and value of every port of a part that has any bits."""
        return [(name, *port) for name, part in self._parts.items()
                for port in part.signature.flatten(part) if Shape.cast(port[1].shape).width]

    def elaborate(self, platform):
        m = Module()
        for name, part in self._parts.items():
            m.submodules[name] = part
        for name, path, member, inner in self._members():
            outer = getattr(self, f"{name}_{path[0]}")
            source, sink = (outer, inner) if member.flow == In else (inner, outer)
            m.d.comb += sink.eq(source)
        return m


#: Settings of primitives, each changed in turn, and the outputs that must show it.
WRONG = {
    "product_early": (r'(REG_OUTPUT_CLK)\("CLK0"\)', r'\1("NONE")', {"product_p"}),
    "sum_early": (r'(REG_OUTPUT[01]_CLK)\("CLK0"\)', r'\1("NONE")', {"sum_o", "short_o", "two_o"}),
    "memory_early": (r'(REGMODE_A)\("OUTREG"\)', r'\1("NOREG")',
                     {"narrow_a_r_data", "wide_a_r_data"})}


@pytest.fixture(scope="module")
def found():
    """What was found for the models of `sim.netlist`, and for wrong settings."""
    if PAIRED:
        pytest.skip(PAIRED)
    with pytest.MonkeyPatch.context() as patch:
        ecp5_models.install(patch)
        texts = [component_verilog(Primitives(), "expected")]
    cells, pairs = component_verilog(Primitives(), "cells"), {"right": ("expected", "cells")}
    texts.append(cells)
    for name, (right, wrong, _) in WRONG.items():
        changed, count = re.subn(right, wrong, cells.replace("cells", name))
        assert count
        texts.append(changed)
        pairs[name] = ("expected", name)
    text = "\n".join([*texts, CELLS.read_text()])
    return Pairs("ECP5 primitives", text, pairs).run(100_000)


@pytest.mark.slow
def test_memories_and_multipliers_equal_other_models(found):
    assert not [name for name in found.different if name.startswith("right.")]
    assert not found.quiet


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_found(name, found):
    assert {output for output in found.different if output.startswith(f"{name}.")} == {
        f"{name}.{port}" for port in WRONG[name][2]}
