"""Where the block RAM and the multipliers of the MXM stand on an LFE5U-85F.

The MXM takes 192 of 208 block RAMs and 64 of 78 DSP slices, in rows all over the chip. nextpnr
spreads them without regard for which belong together, so that words cross the chip between a bank
and its multipliers. The chip repeats 13 times along x: 16 block RAMs in four rows and 6 DSP slices
in three. Three such strips make a tile: a row of them has the 12 block RAMs of one row pair, four
columns of three, and so activations and addresses go along x, partial sums along y. The strip in
the middle is left to the other units, which so keep together; activations enter the tiles beside
it.
"""
import itertools
import json
import pathlib
import re

#: x of the strips, y of the rows of block RAMs (four sites each) and of DSP slices (two each).
STRIPS = (4, 13, 22, 31, 40, 49, 58, 69, 78, 87, 96, 105, 114)
RAM_ROWS, DSP_ROWS = (22, 46, 70, 82), (10, 34, 58)
#: The strips of each tile, the one that activations enter first; its columns have the same order.
TILES = ((5, 4, 3), (2, 1, 0), (7, 8, 9), (10, 11, 12))
#: By row pair: the row of its block RAMs, and by column the DSP slice: its row, and its place among
#: the six of the three strips.
PAIRS = ((0, ((0, 0), (0, 2), (0, 3), (0, 5))), (1, ((1, 0), (1, 2), (1, 3), (1, 5))),
         (2, ((2, 1), (1, 1), (1, 4), (2, 4))), (3, ((2, 0), (2, 2), (2, 3), (2, 5))))
#: Block RAMs of a bank; of a row in a strip; DSP slices of a row in a strip.
BANK_RAMS, STRIP_RAMS, STRIP_SLICES = 3, 4, 2
_RAM_X = (0, 2, 4, 6)
#: Option of nextpnr for the FPGA that the sites are of, and what tells floor plans apart.
DEVICE = "--85k"
IDENTITY = repr((STRIPS, RAM_ROWS, DSP_ROWS, TILES, PAIRS))
#: x of the cells of a slice, and their names: two multipliers and what adds their products.
DSP_CELLS = {"dsp_A": (0, "MULT18_0"), "dsp_B": (1, "MULT18_1"), "alu": (3, "ALU54_3")}, {
    "dsp_A": (4, "MULT18_4"), "dsp_B": (5, "MULT18_5"), "alu": (7, "ALU54_7")}
_BANK = re.compile(r"(?:.*\.)?tile_(\d+)\.bank_(\d+)_(\d+)\.(block_\d+(?:_\d+)?)$")
_PRODUCT = re.compile(r"(?:.*\.)?tile_(\d+)\.product_(\d+)_(\d+)\.(dsp_A|dsp_B|alu)$")


def _along(strips: tuple, number: int, in_strip: int) -> tuple:
    """Strip, and number in it, of one of the equal sites of a row, counted in the order of strips."""
    strip, place = divmod(number, in_strip)
    return strips[strip], place if strips[0] < strips[-1] else in_strip - 1 - place


def sites(names) -> dict:
    """Sites of the cells of the MXM among ``names``; none at all if it has another size."""
    banks, products = {}, {}
    for name in names:
        if match := _BANK.match(name):
            banks.setdefault(tuple(map(int, match.groups()[:3])), []).append((match[4], name))
        elif match := _PRODUCT.match(name):
            products.setdefault(tuple(map(int, match.groups()[:3])), []).append((match[4], name))
    columns = len(PAIRS[0][1])
    size = itertools.product(range(len(TILES)), range(columns), range(len(PAIRS)))
    if not (banks.keys() == products.keys() == set(size)
            and all(len(blocks) <= BANK_RAMS for blocks in banks.values())):
        return {}
    found = {}
    for (tile, column, pair), blocks in banks.items():
        strips, (ram_row, slices) = TILES[tile], PAIRS[pair]
        dsp_row, number = slices[column]
        strip, half = _along(strips, number, STRIP_SLICES)
        for part, name in products[tile, column, pair]:
            offset, cell = DSP_CELLS[half][part]
            found[name] = f"X{STRIPS[strip] + offset}/Y{DSP_ROWS[dsp_row]}/{cell}"
        for number, (_, name) in enumerate(sorted(blocks), BANK_RAMS * column):
            strip, ram = _along(strips, number, STRIP_RAMS)
            found[name] = f"X{STRIPS[strip] + _RAM_X[ram]}/Y{RAM_ROWS[ram_row]}/EBR{ram}"
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
