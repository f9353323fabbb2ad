"""Ends of carry chains: only what nothing reads, or what the first half makes by itself, goes."""
import copy
import json

from scripts.carry_ends import trim, trim_cells

DIRECTIONS = {port: "output" if port in ("COUT", "S0") else "input"
              for port in ("A0", "B0", "C0", "D0", "CIN", "COUT", "S0", "A", "Z")}


def cell(kind="CCU2C", init=0x96AA, **ports):
    """A cell with its ports, each a net by number or a level."""
    connections = {port: [net] for port, net in ports.items()}
    return {"type": kind, "parameters": {"INIT0": f"{init:016b}"}, "connections": connections,
            "port_directions": {port: DIRECTIONS[port] for port in ports}}


def chain(**first):
    """Two cells, the first of which makes its carry of net 2; nothing reads that of the second."""
    ports = {"A0": 2, "B0": "0", "C0": "0", "D0": "1", "CIN": "0", "COUT": 3, "S0": 4} | first
    return {"first": cell(init=0x00AA, **ports),
            "second": cell(A0=5, B0=6, C0="0", D0="1", CIN=3, COUT=7, S0=8)}


def test_both_ends():
    cells = chain()
    assert trim_cells(cells) == 2
    assert cells["first"]["connections"] == {"A0": [2], "B0": ["0"], "C0": ["0"], "D0": ["1"],
                                             "CIN": ["x"], "COUT": [3], "S0": [4]}
    assert cells["second"]["connections"]["CIN"] == [3]
    assert cells["second"]["connections"]["COUT"] == ["x"]
    assert trim_cells(cells) == 0


def test_an_end_goes_once():
    cells = chain(CIN=11)
    assert trim_cells(cells) == 1
    assert trim_cells(cells) == 0


def test_what_counts_stays():
    """A carry that is read, a carry into a half that adds, and cells of other kinds."""
    kept = chain(B0="1") | {"reader": cell("LUT4", A=7, Z=9)}
    kept["other"] = cell("LUT4", A0=2, B0="0", C0="0", D0="1", CIN="0", COUT=30)
    for changes in ({"B0": 10}, {"D0": "0"}, {"CIN": 11}):
        cells = kept | chain(**changes)
        before = copy.deepcopy(cells)
        assert trim_cells(cells) == 0 and cells == before, changes
    adds = {"first": cell(init=0x96AA, A0=2, B0="0", C0="0", D0="1", CIN="0", COUT=3, S0=4),
            "reader": cell("LUT4", A=3, Z=9)}
    assert trim_cells(adds) == 0


def test_in_place(tmp_path):
    path = tmp_path / "netlist.json"
    path.write_text(json.dumps({"modules": {"top": {"cells": chain()}, "other": {"cells": {}}}}))
    assert trim(path, "top") == 2
    cells = json.loads(path.read_text())["modules"]["top"]["cells"]
    assert cells["first"]["connections"]["CIN"] == ["x"]
