"""The hardware in the Verilator engine does what the machine model does: vectors, faults, programs.

Both are loaded with the same image; cycles, tokens, every vector written to MEM (with its cycle)
and the first fault must be the same.
"""
import pytest

from compiler.asm import assemble
from sim import engine as engines
from sim.random_program import random_program
from tests import vectors
from tests.rtl import CONFIGS, TINY, agree, available, pair_of
from tests.test_programs import FOLDER

pytestmark = pytest.mark.slow
PROGRAMS = pytest.mark.parametrize("name", ["gemm_hold", "mlp", "permute", "softmax"])
#: The tests whose programs are for the latencies of tiny.
ONLY_TINY = pytest.mark.parametrize("pair", ["tiny"], indirect=True)


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    """Machine model and Verilated hardware of the same machine."""
    yield from pair_of(CONFIGS[request.param])


@pytest.fixture(scope="module", params=["icarus", "pysim"])
def slow_pair(request):
    """Machine model and hardware in a slow simulator."""
    available(request.param)
    with engines.create("machine", TINY) as model, engines.create(request.param, TINY) as rtl:
        yield model, rtl


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
@PROGRAMS
def test_programs(pair, name):
    agree(pair, assemble((FOLDER / f"{name}.asm").read_text()), [0, 0], steps=3, vocabulary=256)


@PROGRAMS
def test_programs_in_slow_simulators(slow_pair, name):
    model, _ = agree(slow_pair, assemble((FOLDER / f"{name}.asm").read_text()), [0], steps=1,
                     vocabulary=256)
    assert model.fault is None and len(model.writes)


def check_random(pair, seed):
    program = random_program(pair[1].config, seed)
    model, _ = agree(pair, program.image, program.tokens, steps=program.steps,
                     first=program.first, seed=program.seed, vocabulary=program.vocabulary,
                     inverse_temperature=program.inverse_temperature)
    assert model.fault is None and len(model.cycles) == program.steps, seed


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_random_programs(pair, first):
    """Of both machines together 200 programs."""
    for seed in range(first, first + 20):
        check_random(pair, seed)


@pytest.mark.parametrize("seed", range(3))
def test_random_programs_in_slow_simulators(slow_pair, seed):
    check_random(slow_pair, seed)
