"""Sites that are kept free while cells are placed: where they are, and that they go again."""
import json
import re

from scripts import floorplan, keepouts


def test_whole_rows_of_slices():
    """Eight LUTs a tile, one tile beside the other, in rows that have neither RAM nor multipliers."""
    found = [re.fullmatch(r"X(\d+)/Y(\d+)/SLICE([A-D]).K([01])", site) for site in keepouts.sites()]
    tiles = {(int(site[1]), int(site[2])) for site in found}
    assert len(set(keepouts.sites())) == len(found) == 8 * len(tiles)
    rows = {y for _, y in tiles}
    assert not rows & {*floorplan.RAM_ROWS, *floorplan.DSP_ROWS}
    for row in rows:
        columns = sorted(x for x, y in tiles if y == row)
        assert columns == list(range(columns[0], columns[-1] + 1)) and 2 <= columns[0] < columns[-1] < 125


def test_they_come_and_go(tmp_path):
    path = tmp_path / "netlist.json"
    others = {"keeper": {"type": "TRELLIS_FF"}, "x.keepout_1": {"type": "LUT4"}}
    path.write_text(json.dumps({"modules": {"top": {"cells": others}, "other": {"cells": {}}}}))
    keepouts.add(path, "top")
    modules = json.loads(path.read_text())["modules"]
    cells = modules.pop("top")["cells"]
    assert modules == {"other": {"cells": {}}}
    added = {name: cell for name, cell in cells.items() if name not in others}
    assert {cell["attributes"]["BEL"] for cell in added.values()} == set(keepouts.sites())
    assert all(cell["type"] == "LUT4" and not any(cell["connections"].values())
               for cell in added.values())
    assert len(added) == len(keepouts.sites())
    keepouts.remove(cells)
    assert cells == others
