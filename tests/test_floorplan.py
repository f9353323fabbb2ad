"""Sites of the MXM on the FPGA: one each, block RAMs beside their multipliers."""
import json
import re

from arch.config import profile
from scripts import floorplan

FLAGSHIP, PER_SLICE = profile("ecp5_85k"), ("dsp_A", "dsp_B", "alu")


def names(prefix="", blocks=("block_0_0", "block_0_1", "block_1")):
    config = FLAGSHIP
    for tile in range(config.columns // config.tile_columns):
        for column in range(config.tile_columns):
            for pair in range(config.pairs):
                yield from (f"{prefix}tile_{tile}.bank_{column}_{pair}.{part}" for part in blocks)
                yield from (f"{prefix}tile_{tile}.product_{column}_{pair}.{part}"
                            for part in PER_SLICE)


def test_every_cell_has_a_site_of_its_own():
    found = floorplan.sites([*names("mxm."), "mxm.tile_0.bank_0_0.block_1_DOA7_LUT4_D", "vxm.dsp"])
    assert sorted(found) == sorted(names("mxm."))
    assert len(set(found.values())) == len(found) == 6 * 64


def test_the_strip_in_the_middle_is_free():
    columns = {int(re.match(r"X(\d+)/", site)[1]) for site in floorplan.sites(names()).values()}
    assert not columns & set(range(58, 69)) and max(columns) < 126


def test_a_bank_is_near_its_multipliers():
    found = floorplan.sites(names())
    place = {name: tuple(map(int, re.match(r"X(\d+)/Y(\d+)/", site).groups()))
             for name, site in found.items()}
    for name, (x, y) in place.items():
        if "block" in name:
            there = place[re.sub(r"bank_(\d_\d).*", r"product_\1.dsp_A", name)]
            assert abs(x - there[0]) <= 9 and abs(y - there[1]) <= 36, name


def test_a_row_pair_of_a_tile_is_in_one_row():
    rows = {}
    for name, site in floorplan.sites(names()).items():
        if match := re.match(r"tile_(\d)\.bank_\d_(\d)", name):
            rows.setdefault(match.groups(), set()).add(re.search("Y([0-9]+)", site)[1])
    assert len(rows) == 16 and all(len(row) == 1 for row in rows.values())


def test_another_size_is_left_alone():
    assert floorplan.sites(["tile_0.bank_0_0.block_0", "uart"]) == {}
    assert floorplan.sites(names(blocks=("block_0", "block_1", "block_2", "block_3"))) == {}


def test_the_netlist_gets_the_sites(tmp_path):
    path = tmp_path / "netlist.json"
    cells = {name: {"type": "X", "attributes": {"keep": 1}} for name in names()}
    path.write_text(json.dumps({"modules": {"top": {"cells": cells}}}))
    floorplan.apply(path, "top")
    written = json.loads(path.read_text())["modules"]["top"]["cells"]
    assert written["tile_0.product_0_0.alu"]["attributes"] == {"keep": 1, "BEL": "X56/Y10/ALU54_7"}
    assert all("BEL" in cell["attributes"] for cell in written.values())
