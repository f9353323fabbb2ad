"""The hardware in the Verilator engine does what the machine model does: vectors, faults, programs.

Both are loaded with the same image; cycles, tokens, every vector written to MEM (with its cycle)
and the first fault must be the same.
"""
import numpy as np
import pytest

from arch.config import profile
from compiler.asm import assemble
from sim import engine as engines
from sim.random_program import random_program
from tests import vectors
from tests.test_programs import FOLDER

pytestmark = pytest.mark.slow
TINY = profile("tiny")
CONFIGS = {"tiny": TINY, "stages": TINY.replace(
    mem_stages=1, const_stages=1, mxm_stages=1, drain_stages=1, vxm_stages=1, perm_stages=1,
    reduce_stages=1)}


#: The tests whose programs are for the latencies of tiny.
ONLY_TINY = pytest.mark.parametrize("pair", ["tiny"], indirect=True)


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    """Machine model and hardware of the same machine."""
    reason = engines.engine_class("verilator").unavailable()
    if reason:
        pytest.skip(f"engine verilator cannot run here: {reason}")
    config = CONFIGS[request.param]
    with engines.create("machine", config) as model, engines.create("verilator", config) as rtl:
        yield model, rtl


def agree(pair, image, prompt, **options):
    """Run on both and compare everything; returns what the model gave."""
    results = []
    for engine in pair:
        engine.load(image)
        result = engine.run(prompt, trace=True, **options)
        log = result.writes.copy()
        log.sort(order=["step", "cycle", "bank"], kind="stable")
        results.append((result, log))
    (model, expected), (rtl, found) = results
    assert rtl.cycles == model.cycles and rtl.fault == model.fault
    assert len(found) == len(expected)
    different = np.flatnonzero(found != expected)
    assert not len(different), (f"write {different[0]}: {found[different[0]]}, expected "
                                f"{expected[different[0]]}")
    return model, rtl


@ONLY_TINY
def test_vectors(pair):
    for vector in vectors.load():
        vectors.check_engine(vector, pair[1])


@ONLY_TINY
def test_faults(pair):
    head, cases = vectors.load_faults()
    for case in cases:
        if case.hardware:
            pair[1].load(assemble(head + case.source))
            fault = pair[1].run([5], 1, vocabulary=256).fault
            assert fault is not None, case.name
            assert (fault.cause, fault.cycle, fault.queue) == (case.fault, case.cycle, case.queue), (
                case.name)


@ONLY_TINY
@pytest.mark.parametrize("name", ["gemm_hold", "mlp", "permute", "softmax"])
def test_programs(pair, name):
    agree(pair, assemble((FOLDER / f"{name}.asm").read_text()), [0, 0], steps=3, vocabulary=256)


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_random_programs(pair, first):
    for seed in range(first, first + 20):
        program = random_program(pair[1].config, seed)
        model, rtl = agree(pair, program.image, program.tokens, steps=program.steps,
                           first=program.first, seed=program.seed, vocabulary=program.vocabulary,
                           inverse_temperature=program.inverse_temperature)
        assert rtl.tokens == model.tokens, seed
