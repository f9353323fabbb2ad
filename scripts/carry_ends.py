"""Ends of carry chains that need no cells of their own.

nextpnr leads a carry into a chain, and out of it, through a cell of its own each, two places of
TRELLIS_COMB, wherever the netlist names it. Yosys names the carry out of every chain, whether
anything reads it or not, and a constant into every chain, also where the first half makes the carry
by itself.
"""
import json
import pathlib

#: INIT of a half that gives its input A as the carry, whatever comes in (`hdl.logic_cells`), while
#: the other inputs are these.
_MAKES_CARRY, _OTHERS = 0x00AA, {"B0": "0", "C0": "0", "D0": "1"}


def trim(netlist: pathlib.Path, top: str) -> int:
    """Take the unneeded ends out of a netlist of Yosys, in place; returns how many."""
    content = json.loads(netlist.read_text())
    cells = content["modules"][top]["cells"]
    removed = trim_cells(cells)
    netlist.write_text(json.dumps(content))
    return removed


def trim_cells(cells: dict) -> int:
    """As `trim`, for the cells of a module."""
    read = {bit for cell in cells.values() for port, bits in cell["connections"].items()
            if cell["port_directions"][port] != "output" for bit in bits}
    removed = 0
    for cell in cells.values():
        if cell["type"] != "CCU2C":
            continue
        ports = cell["connections"]
        if ports["COUT"] != ["x"] and ports["COUT"][0] not in read:
            ports["COUT"] = ["x"]
            removed += 1
        if (ports["CIN"][0] in ("0", "1")
                and int(cell["parameters"]["INIT0"], 2) == _MAKES_CARRY
                and all(ports[port] == [level] for port, level in _OTHERS.items())):
            ports["CIN"] = ["x"]
            removed += 1
    return removed
