"""Where the block RAM and the multipliers of the MXM stand on an LFE5U-85F.

The MXM takes 192 of 208 block RAMs and 64 of 78 DSP slices, in rows all over the chip. nextpnr
spreads them without regard for which belong together, so that words cross the chip between a bank
and its multipliers. The chip repeats 13 times along x: 16 block RAMs in four rows and 6 DSP slices
in three. Five banks of three block RAMs, each with the slice of its two multipliers, fit such a
strip. Columns go from left to right as they are numbered, row pairs next to each other. What stays
free (a slice and one block RAM in each strip) is for the other units.
"""
import json
import pathlib
import re

#: x of the strips, y of the rows of block RAMs (four sites each) and of DSP slices (two each).
STRIPS = (4, 13, 22, 31, 40, 49, 58, 69, 78, 87, 96, 105, 114)
RAM_ROWS, DSP_ROWS = (22, 46, 70, 82), (10, 34, 58)
#: Places of a strip: DSP slice as row and number, and the block RAMs as rows and numbers.
PLACES = (((0, 0), ((0, 0), (0, 1), (0, 2))), ((1, 0), ((0, 3), (1, 0), (1, 1))),
          ((1, 1), ((1, 2), (1, 3), (2, 3))), ((2, 0), ((2, 0), (2, 1), (2, 2))),
          ((2, 1), ((3, 0), (3, 1), (3, 2))))
_RAM_X = (0, 2, 4, 6)
#: Option of nextpnr for the FPGA that the sites are of, and what tells floor plans apart.
DEVICE, IDENTITY = "--85k", repr((STRIPS, RAM_ROWS, DSP_ROWS, PLACES))
#: x of the cells of a slice, and their names: two multipliers and what adds their products.
_DSP_CELLS = {"dsp_A": (0, "MULT18_0"), "dsp_B": (1, "MULT18_1"), "alu": (3, "ALU54_3")}, {
    "dsp_A": (4, "MULT18_4"), "dsp_B": (5, "MULT18_5"), "alu": (7, "ALU54_7")}
_BANK = re.compile(r"(?:.*\.)?tile_(\d+)\.bank_(\d+)_(\d+)\.(block_\d+(?:_\d+)?)$")
_PRODUCT = re.compile(r"(?:.*\.)?tile_(\d+)\.product_(\d+)_(\d+)\.(dsp_A|dsp_B|alu)$")


def sites(names) -> dict:
    """Sites of the cells of the MXM among ``names``; none at all if it has another size."""
    banks, products = {}, {}
    for name in names:
        if match := _BANK.match(name):
            banks.setdefault(tuple(map(int, match.groups()[:3])), []).append((match[4], name))
        elif match := _PRODUCT.match(name):
            products.setdefault(tuple(map(int, match.groups()[:3])), []).append((match[4], name))
    order = sorted(banks)
    fits = len(order) <= len(STRIPS) * len(PLACES) and order == sorted(products)
    if not order or not fits or any(len(blocks) > 3 for blocks in banks.values()):
        return {}
    found = {}
    for number, key in enumerate(order):
        strip, place = divmod(number, len(PLACES))
        x, ((row, half), rams) = STRIPS[strip], PLACES[place]
        for part, name in products[key]:
            offset, cell = _DSP_CELLS[half][part]
            found[name] = f"X{x + offset}/Y{DSP_ROWS[row]}/{cell}"
        for (ram_row, ram), (_, name) in zip(rams, sorted(banks[key])):
            found[name] = f"X{x + _RAM_X[ram]}/Y{RAM_ROWS[ram_row]}/EBR{ram}"
    return found


def apply(netlist: pathlib.Path, top: str) -> None:
    """Write the sites into a netlist of Yosys, in place."""
    content = json.loads(netlist.read_text())
    cells = content["modules"][top]["cells"]
    found = sites(cells)
    for name, site in found.items():
        cells[name]["attributes"]["BEL"] = site
    if found:
        netlist.write_text(json.dumps(content))
