"""Rows of LUTs that nothing is placed in, on an LFE5U-85F: room for wires.

The placer that moves all cells at once packs them to 70 per cent of the sites, however much of the
chip is free. So close together, distributed RAM and multipliers want more wires than there are. LUTs
that stand for nothing take some rows while everything else is placed, and go before it is routed:
the wires of these rows then serve the rows beside them. Whole rows, because carry chains run along
them; flip-flops may stand there.
"""
import json
import pathlib

#: y of the rows, and x of their tiles; towards the edges there is room anyway.
ROWS, COLUMNS = (20, 29, 38, 47, 55, 64, 73, 81), range(24, 105)
#: Tells sets of rows apart.
IDENTITY = repr((ROWS, COLUMNS))
_LUTS = tuple(f"SLICE{letter}.K{number}" for letter in "ABCD" for number in (0, 1))
_NAME = "keepout_"


def sites() -> list:
    """All that are kept free, by nextpnr's names."""
    return [f"X{x}/Y{y}/{lut}" for y in ROWS for x in COLUMNS for lut in _LUTS]


def add(netlist: pathlib.Path, top: str) -> None:
    """Put a LUT without wires at each of the sites into a netlist of Yosys, in place."""
    content = json.loads(netlist.read_text())
    content["modules"][top]["cells"] |= {f"{_NAME}{number}": {
        "hide_name": 0, "type": "LUT4", "parameters": {"INIT": "0" * 16},
        "attributes": {"BEL": site, "keep": 1},
        "port_directions": {**dict.fromkeys("ABCD", "input"), "Z": "output"},
        "connections": {pin: [] for pin in "ABCDZ"}} for number, site in enumerate(sites())}
    netlist.write_text(json.dumps(content))


def remove(cells: dict) -> None:
    """Take them out of the cells of a design that nextpnr has placed."""
    for name in [name for name in cells if name.startswith(_NAME)]:
        del cells[name]
