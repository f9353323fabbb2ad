"""Multipliers that the floor plan leaves to nextpnr take each other's sites after they are placed.

nextpnr gives the last of them what is left, which may be half a chip away from the cells that they
are connected to. The cells stay where they are: whoever gains most by another site, free or not,
gets it.
"""
import collections
import re

from scripts.floorplan import DSP_CELLS, DSP_ROWS, STRIPS

SITES = tuple(f"X{x + offset}/Y{y}/{cell}" for x in STRIPS for y in DSP_ROWS for half in DSP_CELLS
              for part, (offset, cell) in half.items() if part != "alu")
IDENTITY = repr((SITES, "cube"))
#: A net of more ends is not one of a multiplier's own.
_OWN_ENDS = 20


def _place(site: str) -> tuple:
    return tuple(map(int, re.match(r"X(\d+)/Y(\d+)/", site).groups()))


def _centre(name: str, cells: dict, ends: dict) -> tuple:
    """The mean place of the cells that a multiplier is connected to."""
    others = [_place(cells[other]["attributes"]["NEXTPNR_BEL"])
              for bits in cells[name]["connections"].values() if bits
              and len(ends[bits[0]]) <= _OWN_ENDS for other in ends[bits[0]] if other != name]
    return tuple(sum(each) / len(others) for each in zip(*others)) if others else ()


def improve(cells: dict, fixed) -> dict:
    """Exchange sites in the cells of a design that nextpnr has placed.

    Parameters
    ----------
    cells : dict
        Of the JSON that nextpnr writes; ``NEXTPNR_BEL`` of multipliers changes.
    fixed : collection of str
        Multipliers that stay.

    Returns
    -------
    dict of str to (float, float)
        By multiplier: distance to what it is connected to, before and after, in tiles.
    """
    movable = [name for name, cell in cells.items()
               if cell["type"] == "MULT18X18D" and name not in fixed]
    ends = collections.defaultdict(list)
    for name, cell in cells.items():
        for bits in cell["connections"].values():
            if bits:
                ends[bits[0]].append(name)
    centres = {name: _centre(name, cells, ends) for name in movable}
    movable = [name for name in movable if centres[name]]
    at = {name: cells[name]["attributes"]["NEXTPNR_BEL"] for name in movable}
    taken = {cell["attributes"]["NEXTPNR_BEL"] for name, cell in cells.items() if name not in at
             and "NEXTPNR_BEL" in cell["attributes"]}
    free = [site for site in SITES if site not in taken]

    def distance(name, site):
        return sum(abs(a - b) for a, b in zip(centres[name], _place(site)))

    def cost(name, site):
        # The slowest counts: one far site is worse than several near ones.
        return distance(name, site) ** 3 if name else 0
    before, changed = dict(at), True
    while changed:
        changed = False
        for name in movable:
            owners = {site: owner for owner, site in at.items()}
            now = at[name]
            site = min(free, key=lambda site: cost(name, site) + cost(owners.get(site), now)
                       - cost(owners.get(site), site))
            owner = owners.get(site)
            gain = cost(name, now) + cost(owner, site) - cost(name, site) - cost(owner, now)
            if owner != name and gain > 1e-6:
                at[name], changed = site, True
                if owner:
                    at[owner] = now
    for name, site in at.items():
        cells[name]["attributes"]["NEXTPNR_BEL"] = site
    return {name: (distance(name, before[name]), distance(name, at[name])) for name in movable}
