"""Place and route with the real nextpnr: what the router may swap, and slow nets routed again."""
import json
import re

import pytest

from scripts import pnr
from sim import toolchain

#: Distributed RAM, carry chains and plain logic; as few cells as show what is swapped.
_DESIGN = """
module top(input clk, input [7:0] a, input [7:0] b, input we, output reg [7:0] q, output reg [7:0] s);
  (* ram_style = "distributed" *) reg [7:0] words [0:63];
  reg [5:0] at; reg [7:0] x, y; reg w;
  always @(posedge clk) begin
    x <= a; y <= b; w <= we; at <= x[5:0] ^ {y[3:0], y[7:6]};
    if (w) words[y[5:0]] <= x;
    q <= words[at] ^ (x | y & {8{w}});
    s <= s + (x & y) + {x[3:0], y[7:4]};
  end
endmodule
"""
DEVICE = ("--25k", "--package", "CABGA381", "--lpf-allow-unconstrained")
#: MHz that the design reaches easily, and that no design reaches.
EASY, FAR = 50_000_000, 2_000_000_000
_INPUT = re.compile(r"(X\d+/Y\d+)/0_0_([A-D])(\d)->0_0_([A-D])\d_SLICE")


@pytest.fixture(scope="module")
def netlist(tmp_path_factory):
    reason = toolchain.missing(toolchain.yosys, toolchain.nextpnr)
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("netlist")
    (folder / "top.v").write_text(_DESIGN)
    done = toolchain.yosys().run(
        "-q", "-p", "read_verilog top.v; synth_ecp5 -top top -json netlist.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return (folder / "netlist.json").read_text()


def run(folder, netlist, clock_hz):
    """Place and route with the device options above; the report, what is routed, what is told."""
    (folder / "netlist.json").write_text(netlist)
    (folder / pnr.CONSTRAINTS).write_text("")
    told = []
    report = pnr.Run(folder, "top", DEVICE, clock_hz, told.append)("netlist.json", 1)
    routed = json.loads((folder / "routed.json").read_text())["modules"]["top"]
    return report, routed, [line.split(",")[0] for line in told]


@pytest.fixture(scope="module")
def easy(netlist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("easy")
    return folder, *run(folder, netlist, EASY)


def inputs(top):
    """By kind of LUT: the inputs as they are wired, ``AB`` if the wire of A goes into B."""
    kinds = {cell["attributes"]["NEXTPNR_BEL"]: cell["parameters"].get("MODE", "LOGIC")
             for cell in top["cells"].values() if cell["type"] == "TRELLIS_COMB"}
    found = {}
    for net in top["netnames"].values():
        for tile, wire, lut, pin in _INPUT.findall(net["attributes"].get("ROUTING", "")):
            kind = kinds.get(f"{tile}/SLICE{'ABCD'[int(lut) // 2]}.K{int(lut) % 2}")
            found.setdefault(kind, []).append(wire + pin)
    return found


@pytest.mark.slow
def test_only_what_may_be_swapped_is(easy):
    """Addresses of RAM as they are, inputs of carry cells within their pairs, others at will."""
    _, report, top, told = easy
    found = inputs(top)
    straight = {pin + pin for pin in "ABCD"}
    assert len(found["DPRAM"]) > 60 and {*found["DPRAM"], *found["RAMW_BLOCK"]} <= straight
    assert {*found["CCU2"]} <= straight | {"AB", "BA", "CD", "DC"}
    assert len({*found["LOGIC"]} - straight) > 4
    assert not pnr.swapped(top) and pnr.met(report) and told == ["placing", "routing"]


@pytest.mark.slow
def test_cells_stay_what_and_where_they_are(easy):
    """Packing a packed design again changes no cell."""
    folder, _, top, _ = easy
    placed = json.loads((folder / "placed.json").read_text())["modules"]["top"]["cells"]

    def seen(cell, site):
        used = {port for port, bits in cell["connections"].items() if bits}
        return cell["type"], cell["parameters"], used, cell["attributes"][site]
    assert {name: seen(cell, "BEL") for name, cell in placed.items()} == {
        name: seen(cell, "NEXTPNR_BEL") for name, cell in top["cells"].items()}
    assert len(placed) > 100


@pytest.mark.slow
def test_a_design_read_as_placed_is_routed_wrong(easy, tmp_path):
    """Why cells are held by constraints: without them nextpnr swaps inputs of RAM."""
    content = json.loads((easy[0] / "placed.json").read_text())
    for cell in content["modules"]["top"]["cells"].values():
        cell["attributes"]["NEXTPNR_BEL"] = cell["attributes"].pop("BEL")
    (tmp_path / "placed.json").write_text(json.dumps(content))
    done = toolchain.nextpnr().run(*DEVICE, "--json", "placed.json", "--no-pack", "--no-place",
                                   "--write", "wrong.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wrong = json.loads((tmp_path / "wrong.json").read_text())["modules"]["top"]
    counted = pnr.swapped(wrong)
    for kind in ("DPRAM", "RAMW_BLOCK"):
        expected = sum(pair[0] != pair[1] for pair in inputs(wrong)[kind])
        assert sum(n for (k, _), n in counted.items() if k == kind) == expected > 0


@pytest.mark.slow
def test_slow_nets_are_routed_again_for_some_time(netlist, tmp_path, monkeypatch):
    """What cannot be made faster stays as it was first routed, with its configuration."""
    monkeypatch.setattr(pnr, "REFINE_LIMIT", 5)
    report, _, told = run(tmp_path, netlist, FAR)
    assert told == ["placing", "routing", "routing again"] and not pnr.met(report)
    assert (tmp_path / pnr.CONFIG).stat().st_size > 0 and report["seconds"] >= 5
