"""What synthesis makes of the machine: the netlist of the chip runs tokens exactly."""
import numpy as np
import pytest

from scripts import netlist, synthesis
from sim import engine as engines, toolchain
from sim.netlist import NetlistEngine
from sim.reference_engine import first_difference
from tests.conftest import TINY as MODEL
from tests.rtl import TINY, same_run

MISSING = toolchain.missing(toolchain.verilator, toolchain.compiler, toolchain.yosys)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=str(MISSING))]
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
