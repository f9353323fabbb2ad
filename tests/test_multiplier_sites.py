"""Multipliers take the sites near what they are connected to."""
import itertools
import random

from scripts import multiplier_sites
from scripts.floorplan import DSP_ROWS, STRIPS


def cell(kind, site, **wires):
    return {"type": kind, "attributes": {"NEXTPNR_BEL": site},
            "connections": {pin: [wire] for pin, wire in wires.items()}}


def test_sites_of_the_part():
    """Four multipliers of each of the 3 x 13 pairs of slices: 156, as the data sheet says."""
    assert len(set(multiplier_sites.SITES)) == 156
    assert f"X{STRIPS[0]}/Y{DSP_ROWS[0]}/MULT18_0" in multiplier_sites.SITES


def test_two_that_stand_at_each_others_cells():
    here, there = "X58/Y34/MULT18_0", "X115/Y10/MULT18_1"
    cells = {"a": cell("MULT18X18D", here, A0=1), "b": cell("MULT18X18D", there, A0=2),
             "near_a": cell("TRELLIS_COMB", "X113/Y11/SLICEA.K0", F=1),
             "near_b": cell("TRELLIS_COMB", "X59/Y33/SLICEA.K0", F=2)}
    # All other sites are taken by what stays.
    cells |= {f"fixed_{site}": cell("MULT18X18D", site) for site in multiplier_sites.SITES
              if site not in (here, there)}
    fixed = [name for name in cells if name.startswith("fixed")]
    assert multiplier_sites.improve(cells, fixed) == {"a": (55 + 23, 3), "b": (56 + 23, 2)}
    assert [cells[name]["attributes"]["NEXTPNR_BEL"] for name in "ab"] == [there, here]
    assert all(cells[name]["attributes"]["NEXTPNR_BEL"] == name[6:] for name in fixed)


def test_as_good_as_any_exchange():
    """No exchange of two, and no move, makes the sum of the cubes smaller; wide nets do not count."""
    rng = random.Random(3)
    sites = rng.sample(multiplier_sites.SITES, 9)
    cells, at = {}, {}
    for number, site in enumerate(sites[:6]):
        at[f"m{number}"] = [(rng.randrange(1, 125), rng.randrange(2, 94)) for _ in range(4)]
        cells[f"m{number}"] = cell("MULT18X18D", site, W=99, **{
            f"A{k}": 100 * number + k for k in range(4)})
        cells |= {f"c{number}_{k}": cell("TRELLIS_COMB", f"X{x}/Y{y}/SLICEA.K0", F=100 * number + k)
                  for k, (x, y) in enumerate(at[f"m{number}"])}
    cells |= {f"w{k}": cell("TRELLIS_FF", "X2/Y2/SLICEA.FF0", Q=99) for k in range(30)}
    cells |= {f"fixed{k}": cell("MULT18X18D", site) for k, site in enumerate(
        site for site in multiplier_sites.SITES if site not in sites)}
    fixed = {name for name in cells if name.startswith("fixed")}

    def total(chosen):
        out = 0
        for name, site in chosen.items():
            x, y = (sum(place) / 4 for place in zip(*at[name]))
            across, up = (int(part[1:]) for part in site.split("/")[:2])
            out += (abs(across - x) + abs(up - y)) ** 3
        return out
    first = total({name: cells[name]["attributes"]["NEXTPNR_BEL"] for name in at})
    multiplier_sites.improve(cells, fixed)
    found = {name: cells[name]["attributes"]["NEXTPNR_BEL"] for name in at}
    assert set(found.values()) <= set(sites) and len(set(found.values())) == 6
    assert total(found) < first
    for one, other in itertools.combinations(found, 2):
        assert total(found | {one: found[other], other: found[one]}) >= total(found) - 1e-6
    for name, site in itertools.product(found, set(sites) - set(found.values())):
        assert total(found | {name: site}) >= total(found) - 1e-6
