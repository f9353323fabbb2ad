"""Output registers of block RAM that Yosys leaves in the fabric.

A word leaves a DP16KD 5.8 ns after the clock, or 0.9 ns after it where the register that the block
has for it is used (nextpnr, speed grade 6). Yosys never uses it. Where all that reads a block are
plain flip-flops of its clock, the block takes their place.
"""
import json
import pathlib

#: What a flip-flop must be set to, for the register of the block to do the same.
_PLAIN = {"CEMUX": "1", "REGSET": "RESET", "CLKMUX": "CLK"}
_NEVER = ["0"]


def absorb(netlist: pathlib.Path, top: str) -> int:
    """Move flip-flops of a netlist of Yosys into its block RAM, in place; returns how many."""
    content = json.loads(netlist.read_text())
    module = content["modules"][top]
    kept = {bit for port in module.get("ports", {}).values() for bit in port["bits"]}
    moved = absorb_cells(module["cells"], kept)
    netlist.write_text(json.dumps(content))
    return moved


def absorb_cells(cells: dict, kept: set = frozenset()) -> int:
    """As `absorb`, for the cells of a module; ``kept``: nets that its ports show."""
    readers = {}
    for name, cell in cells.items():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] != "output":
                for bit in bits:
                    readers.setdefault(bit, []).append((name, port))
    moved = 0
    for block in [cell for cell in cells.values() if cell["type"] == "DP16KD"]:
        found = _registers(block, cells, readers, kept)
        for port, name in found.items():
            block["connections"][port] = cells.pop(name)["connections"]["Q"]
        if found:
            block["parameters"] |= {"REGMODE_A": "OUTREG", "REGMODE_B": "OUTREG"}
            # A word of 36 bits leaves through both sides. A memory that is never written has no
            # clock on the side that writes.
            clock = next(filter(_is_clock, (block["connections"][f"CLK{side}"] for side in "BA")))
            block["connections"] |= {"OCEA": ["1"], "OCEB": ["1"], "CLKA": clock, "CLKB": clock}
        moved += len(found)
    return moved


def _registers(block, cells, readers, kept) -> dict:
    """The flip-flop behind every output port of a block that is read; none if one is not plain."""
    ports, found = block["connections"], {}
    clocks = {ports[f"CLK{side}"][0] for side in "AB" if _is_clock(ports[f"CLK{side}"])}
    if (any(block["parameters"].get(f"REGMODE_{side}", "NOREG") != "NOREG"
            or ports.get(f"RST{side}", _NEVER) != _NEVER for side in "AB") or len(clocks) != 1):
        return {}
    for port, bits in ports.items():
        if block["port_directions"][port] != "output" or bits[0] not in readers.keys() | kept:
            continue
        (name, at), *others = readers.get(bits[0], [(None, None)])
        if others or bits[0] in kept or at != "DI" or not _plain(cells[name], clocks):
            return {}
        found[port] = name
    return found


def _is_clock(bits) -> bool:
    return isinstance(bits[0], int)


def _plain(register, clocks) -> bool:
    """Whether it takes its input on every edge of the block's clock, and starts as 0."""
    ports, parameters = register["connections"], register["parameters"]
    return (register["type"] == "TRELLIS_FF" and ports["CLK"][0] in clocks
            and ports.get("LSR", _NEVER) == _NEVER and parameters.get("LSRMUX", "LSR") == "LSR"
            # Yosys ends a string of digits with a space.
            and all(parameters.get(name, value).strip() == value
                    for name, value in _PLAIN.items()))
