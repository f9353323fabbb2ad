"""What was in the hardware before a run does not matter: registers, memories, runs, faults, aborts.

Every run is compared with the machine model, which starts from nothing: tokens, cycles, logits and
every vector written to MEM.
"""
import copy
import dataclasses

import numpy as np
import pytest

from arch.faults import Fault
from arch.hostmap import ABORT, RUN, EventFlag, Register, Space
from compiler.asm import assemble
from sim import engine as engines
from sim import rtl as rtl_files
from sim.engine import EngineError
from sim.random_program import random_program
from tests.conftest import TINY as MODEL
from tests.rtl import TINY, agree, available, same_run

pytestmark = pytest.mark.slow
PROMPT, STEPS = [1, 5, 9], 10
SAMPLING = {"seed": 3, "inverse_temperature": 4096, "vocabulary": MODEL.vocab_size}
#: The vector of constant 0 is taken a cycle too late.
ILLEGAL = """
.profile tiny
.row * generate=60 prompt=60
.const 0 1
.queue const
    READ at=10
    END
.queue w2
    WRITE at=11+const_read x=CONST halves=3
    END
"""


@pytest.fixture(scope="module")
def expected(tiny):
    with engines.create("machine", TINY) as model:
        model.load(tiny.image)
        yield model.run(PROMPT, STEPS, trace=True, **SAMPLING)


def runs_the_same(engine, expected) -> None:
    same_run(engine.run(PROMPT, STEPS, trace=True, **SAMPLING), expected)


def read_anyhow(engine, space, count) -> np.ndarray:
    """Words whose parity may be wrong, which an engine would refuse to give."""
    engine._start()
    return engine._link.read(space, 0, count)


# Registers and memories at power-up.

def test_registers_and_memories_start_anyhow(tiny, expected):
    """Random bits before the reset, of 20 seeds, which differ: the vectors of MEM show it."""
    available("verilator")
    seen = set()
    for seed in range(20):
        with engines.create("verilator", TINY, random_state_seed=seed) as engine:
            seen.add(tuple(read_anyhow(engine, Space.MEM, 64).tolist()))
            engine.load(tiny.image)
            runs_the_same(engine, expected)
    # Verilator fills all words of a memory with the same bits; a write enable that starts set changes
    # a word before the reset.
    assert len(seen) == 20 and all(len(set(words)) >= TINY.lanes for words in seen)


# Memories before the load.

@pytest.fixture(scope="module")
def rtl():
    """One simulation for all tests below: they follow each other without a reset."""
    available("verilator")
    with engines.create("verilator", TINY) as engine:
        yield engine


def fill_with_garbage(engine, seed: int) -> None:
    """Random bits, with any parity, in all memories of vectors and weights; in the others what a
    random program leaves there."""
    rng = np.random.default_rng(seed)
    engine.load(random_program(TINY, seed).image)
    for name, words in engine._memories().items():
        bits = 18 * TINY.lanes if name.startswith("const") else 18
        if name.startswith("mem."):
            bits = TINY.lanes * (1 if ".checks" in name else 16)
        if not name.endswith((".data", ".memory")):
            continue
        used = words[:, :-(-bits // 8)]
        used[:] = rng.integers(0, 256, used.shape)
        used[:, -1] &= (1 << (bits - 1) % 8 + 1) - 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("backdoor", [True, False], ids=["backdoor", "host"])
def test_garbage_in_the_memories(tiny, expected, rtl, seed, backdoor):
    fill_with_garbage(rtl, seed)
    before = read_anyhow(rtl, Space.WEIGHTS, 512)
    assert len(set(before.tolist())) > 256
    rtl.load(tiny.image, backdoor=backdoor)
    runs_the_same(rtl, expected)


def test_garbage_that_is_read_is_a_fault(tiny, rtl):
    """The garbage above is such that a read of one word of it shows."""
    fill_with_garbage(rtl, 5)
    program = assemble(ILLEGAL.replace("11+", "10+").replace("READ at=10", "READ at=10 address=90"))
    program.constants = program.constants[:0]
    rtl.load(program)
    assert rtl.run([0], 1, vocabulary=2).fault.cause == Fault.PARITY


@pytest.mark.parametrize("value", [0, -127, 127])
def test_extreme_data(tiny, rtl, value):
    """All weights, the cache included, at the ends of their range: data cost no cycle."""
    image = copy.deepcopy(tiny.image)
    image.weights[:] = value
    with engines.create("machine", TINY) as model:
        found, _ = agree((model, rtl), image, PROMPT, steps=STEPS, **SAMPLING)
    assert found.fault is None
    assert found.cycles == [tiny.predicted(at, at + 1 < len(PROMPT)) for at in range(STEPS)]


# One run after the other.

def test_runs_back_to_back(tiny, expected, rtl):
    """Other prompts, lengths and temperatures in between; the cache keeps what they wrote."""
    rtl.load(tiny.image)
    for other in ([2], [7] * 20, PROMPT):
        runs_the_same(rtl, expected)
        rtl.run(other, 24, vocabulary=MODEL.vocab_size, seed=9, inverse_temperature=9000)
    runs_the_same(rtl, expected)


def test_after_a_fault(tiny, expected, rtl):
    for _ in range(2):
        rtl.load(assemble(ILLEGAL))
        assert rtl.run([0], 2, vocabulary=2).fault.cause == Fault.OPERAND
        rtl.load(tiny.image)
        runs_the_same(rtl, expected)


def test_after_a_fault_in_the_middle_of_a_step(tiny, expected, rtl):
    """A bit of the weights is wrong: the run stops with the array at work."""
    rtl.load(tiny.image)
    name = next(name for name in rtl._memories() if name.endswith("bank_1_1.memory"))
    rtl._memories()[name][:len(tiny.image.weights), 0] ^= 1
    assert rtl.run(PROMPT, STEPS, **SAMPLING).fault.cause == Fault.PARITY
    rtl.load(tiny.image)
    runs_the_same(rtl, expected)


def abort(engine, after: int) -> list:
    """Start a long run, abort it some cycles later; returns its events."""
    engine.write_space(Space.TOKENS, 0, [2])
    engine.write_space(Space.REGISTERS, Register.FIRST, [0, 1, TINY.context, MODEL.vocab_size])
    engine._link.events.clear()
    engine._start_counting(False)
    engine.write_space(Space.REGISTERS, Register.COMMAND, [RUN])
    engine.clock(after)
    engine.write_space(Space.REGISTERS, Register.COMMAND, [ABORT])
    return engine._collect(0, None)


@pytest.mark.parametrize("after", [1, 300, 1111])
def test_after_an_abort(tiny, expected, rtl, after):
    rtl.load(tiny.image)
    events = abort(rtl, after)
    # The step under way is finished, and the run says that it was the last.
    assert 1 <= len(events) < TINY.context and events[-1].flags & EventFlag.LAST
    assert not events[-1].flags & EventFlag.FAULT
    assert all(event.cycles == tiny.predicted(event.position) for event in events)
    runs_the_same(rtl, expected)


# Icarus knows unknown bits.

@pytest.fixture
def unknown(monkeypatch):
    """Make every bit unknown that neither the reset nor the image sets."""
    available("icarus")
    made = rtl_files.generate(TINY, print)
    bare = rtl_files.without_initial_values(made.verilog)
    # Every memory that is no table was filled with zeros.
    assert "initial for" not in bare and made.verilog.count("initial for") > 50
    monkeypatch.setattr(rtl_files, "generate",
                        lambda *args: dataclasses.replace(made, verilog=bare))


def test_no_unknown_bit_shows(tiny, unknown):
    """None reaches a token, a counter, the fault register or MEM."""
    with engines.create("icarus", TINY) as engine:
        engine.load(tiny.image)
        found = engine.run(PROMPT[:2], 3, trace=True, **SAMPLING)
        # The engine refuses an X on the byte stream: these are known, whatever they are.
        registers = engine.read_space(Space.REGISTERS, Register.STATUS, 12)
        tokens = engine.read_space(Space.TOKENS, 0, 3)
    with engines.create("machine", TINY) as model:
        model.load(tiny.image)
        same_run(found, model.run(PROMPT[:2], 3, trace=True, **SAMPLING))
    assert tokens.tolist() == [*PROMPT[:2], found.tokens[0]]
    assert registers[:2].tolist() == [0, 0]
    assert registers[Register.POSITION - Register.STATUS] == 2
    assert registers[Register.CYCLES0 - Register.STATUS] == found.cycles[-1]


def test_an_unknown_bit_is_noticed(unknown):
    """A word of MEM that nobody wrote, copied to another one."""
    image = assemble("""
        .profile tiny
        .row * generate=60 prompt=60
        .queue r0
            READ at=10 address=9
            END
        .queue vxm
            MAC at=10+mem_read a=M0
            END
        .queue w1
            WRITE at=10+mem_read+vxm x=VXM halves=3
            END
        """)
    with engines.create("icarus", TINY) as engine:
        engine.load(image)
        with pytest.raises(EngineError, match="an X is written to MEM bank 1, address 0"):
            engine.run([0], 1, vocabulary=2, trace=True)
