"""Registers of block RAM: only plain flip-flops that are all that reads a block move into it."""
import copy
import json

import pytest

from scripts.output_registers import absorb, absorb_cells

CLOCK, OTHER_CLOCK = 2, 3


def block(clocks=(CLOCK, CLOCK), **changes):
    """A block RAM whose words of two bits are nets 10 and 11."""
    connections = {"CLKA": [clocks[0]], "CLKB": [clocks[1]], "RSTA": ["0"], "RSTB": ["0"],
                   "OCEA": ["0"], "OCEB": ["1"], "DOA0": [10], "DOB0": [11], "DOB1": [12]}
    connections |= {port: [net] for port, net in changes.items()}
    return {"type": "DP16KD", "parameters": {"REGMODE_A": "NOREG", "REGMODE_B": "NOREG"},
            "connections": connections, "port_directions": {
                port: "output" if port.startswith("DO") else "input" for port in connections}}


def register(d, q, parameters=(), **changes):
    """A flip-flop as Yosys writes it; a string of digits ends with a space."""
    connections = {"CLK": [CLOCK], "LSR": ["0"], "DI": [d], "Q": [q]}
    connections |= {port: [net] for port, net in changes.items()}
    return {"type": "TRELLIS_FF", "parameters": {"CEMUX": "1 ", "CLKMUX": "CLK", "LSRMUX": "LSR",
                                                 "GSR": "DISABLED", "REGSET": "RESET",
                                                 **dict(parameters)},
            "connections": connections, "port_directions": {
                port: "output" if port == "Q" else "input" for port in connections}}


def design(**cells):
    """A block, of which nothing reads the third bit, the registers behind it, and their reader."""
    return {"block": block(), "low": register(10, 20), "high": register(11, 21),
            "reader": register(21, 30)} | cells


@pytest.mark.parametrize("clocks", [(CLOCK, CLOCK), ("0", CLOCK)])
def test_registers_move(clocks):
    cells = design(block=block(clocks))
    assert absorb_cells(cells) == 2
    assert cells.keys() == {"block", "reader"}
    assert cells["block"]["parameters"] == {"REGMODE_A": "OUTREG", "REGMODE_B": "OUTREG"}
    assert cells["block"]["connections"] == {
        "CLKA": [CLOCK], "CLKB": [CLOCK], "RSTA": ["0"], "RSTB": ["0"], "OCEA": ["1"],
        "OCEB": ["1"], "DOA0": [20], "DOB0": [21], "DOB1": [12]}
    assert cells["reader"] == register(21, 30)
    # They are not taken for those of the block again.
    assert absorb_cells(cells) == 0


@pytest.mark.parametrize("changes", [
    {"high": register(11, 21, {"CEMUX": "CE"}, CE=5)},
    {"high": register(11, 21, LSR=5)},
    {"high": register(11, 21, {"LSRMUX": "INV"})},
    {"high": register(11, 21, {"REGSET": "SET"})},
    {"high": register(11, 21, {"CLKMUX": "INV"})},
    {"high": register(11, 21, CLK=OTHER_CLOCK)},
    {"high": register(5, 21, CE=11)},
    {"second": register(11, 22)},
    {"second": register(5, 22, LSR=12)},
    {"block": block(RSTB=5)},
    {"block": block((OTHER_CLOCK, CLOCK))},
], ids=["enable", "reset", "inverted reset", "set", "falling edge", "clock", "no data", "two readers",
        "third bit", "reset of the block", "two clocks"])
def test_a_block_with_another_reader_stays(changes):
    cells = design(**changes)
    before = copy.deepcopy(cells)
    assert absorb_cells(cells) == 0 and cells == before


def test_a_port_of_the_design_is_a_reader():
    assert absorb_cells(design(), {11}) == 0
    assert absorb_cells(design(), {12}) == 0
    assert absorb_cells(design(), {30}) == 2


@pytest.mark.parametrize("shown, moved", [(30, 2), (12, 0)])
def test_in_place(tmp_path, shown, moved):
    path = tmp_path / "netlist.json"
    path.write_text(json.dumps({"modules": {
        "top": {"cells": design(), "ports": {"o": {"bits": [shown]}}}, "other": {"cells": {}}}}))
    assert absorb(path, "top") == moved
    cells = json.loads(path.read_text())["modules"]["top"]["cells"]
    assert cells.keys() == design().keys() - ({"low", "high"} if moved else set())
