"""What synthesis makes of the machine: the chip runs tokens exactly, slices equal their RTL."""
import random
import re

import numpy as np
import pytest

from scripts import netlist, synthesis
from sim import engine as engines, toolchain
from sim.netlist import NetlistEngine
from sim.pair import Comparison
from sim.reference_engine import first_difference
from tests.conftest import TINY as MODEL
from tests.rtl import TINY, same_run

MISSING = toolchain.missing(toolchain.verilator, toolchain.compiler, toolchain.yosys)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=str(MISSING))]
_AND = re.compile(r"^  assign .* (&) .*;$", re.MULTILINE)
#: Slices that are quick to compare, and copies of one of them with a wrong line each.
SMALL, BROKEN, COPIES = ("const", "icu_sample"), "icu_sample", 3
PROMPT, STEPS = [1, 5, 9], 12
SAMPLING = {"seed": 3, "inverse_temperature": 4096, "vocabulary": MODEL.vocab_size}


def test_chip_runs_tokens_exactly(tiny):
    """Loaded through the host port, from random registers: tokens, cycles, logits and each vector
    written to MEM are those of the reference and of the machine model."""
    with engines.create("machine", TINY) as machine:
        machine.load(tiny.image)
        expected = machine.run(PROMPT, STEPS, trace=True, **SAMPLING)
    with NetlistEngine(TINY, verilog=netlist.netlist(TINY), top=synthesis.TOP,
                       random_state_seed=1) as engine:
        engine.load(tiny.image)
        found = engine.run(PROMPT, STEPS, trace=True, **SAMPLING)
    assert found.fault is None and len(found.tokens) == STEPS - len(PROMPT) + 1 >= 8
    assert first_difference(tiny, PROMPT, found, **SAMPLING) is None
    same_run(found, expected)
    for step, logits in expected.logits.items():
        np.testing.assert_array_equal(found.logits[step], logits)


def broken(text: str, number: int) -> str:
    """RTL with an AND that became an OR, in one of its lines."""
    found = list(_AND.finditer(text))[number]
    return f"{text[:found.start(1)]}|{text[found.end(1):]}"


@pytest.fixture(scope="module")
def compared():
    """Small slices beside their RTL, and beside copies of it with a wrong line each."""
    sides = {unit: (unit, netlist.rtl_of(TINY, unit), netlist.netlist(TINY, unit))
             for unit in SMALL}
    unit, right, gates = sides[BROKEN]
    lines = random.Random(1).sample(range(len(_AND.findall(right))), COPIES)
    sides |= {f"wrong_{number}": (unit, broken(right, line), gates)
              for number, line in enumerate(lines)}
    return netlist.beside_rtl(TINY, sides, 20_000)


def of(found, names):
    """The part of a comparison that is of these pairs."""
    def kept(outputs):
        return [output for output in outputs if output.partition(".")[0] in names]
    return Comparison({output: found.different[output] for output in kept(found.different)},
                      tuple(kept(found.moved)), tuple(kept(found.quiet)))


def test_slices_equal_their_rtl(compared):
    """``python -m scripts.netlist`` compares all of them."""
    found = of(compared, SMALL)
    assert {output.partition(".")[0] for output in found.moved} == set(SMALL)
    assert netlist.complaints(found, dict(zip(SMALL, SMALL))) == []


def test_a_wrong_line_is_found(compared):
    """In most lines: some hardly matter."""
    wrong = [f"wrong_{number}" for number in range(COPIES)]
    assert sum(bool(of(compared, [name]).different) for name in wrong) > COPIES / 2


def test_an_output_that_never_moves_is_told(compared):
    found = of(compared, SMALL)
    quiet = Comparison(found.different, found.moved[1:], (found.moved[0], *found.quiet))
    assert netlist.complaints(quiet, dict(zip(SMALL, SMALL))) == [f"{found.moved[0]} never moved"]
