"""A flipped bit in a memory is PARITY where it is read: machine model and RTL, the same cycle.

The checker sees no data; a damaged word that is not read is no fault anywhere.
"""
import pytest

from arch.faults import Fault
from arch.hostmap import Space, constant_address, mem_address, weight_address
from arch.timing import timing
from compiler.asm import assemble
from sim import engine as engines
from sim.machine_engine import MachineEngine
from tests.rtl import TINY, available

#: Rows 0 and 1 write words 5 and 6 of bank 1, and word 5 alone; both read word 6, constant 3, a
#: weight word by the array and one by a read-out, each on a cycle of its own.
PROGRAM = """
.profile tiny
.row 0 counts=2 generate=200 prompt=200
.row 1 counts=1 generate=200 prompt=200
.const 3 1 2 3 4 5 6 7 8
.weights 9 """ + " ".join(["7"] * 64) + """
.queue const
    READ at=10 n1=2 address=3
    READ at=60 address=3
    READ at=80-const_read address=3
    END
.queue w1
    WRITE at=10+const_read n1=#0 s1=1 address=5 x=CONST halves=3
    END
.queue r1
    READ at=40 address=6
    END
.queue mxm
    MATMUL at=80 address=9 start=1 x0=CONST x1=CONST
    END
.queue kv
    READ_OUT at=120 address=10
    END
"""
TOKEN = 11


def flip(engine, space, address, bit):
    """Flip a stored bit, or tell the machine model that it is flipped."""
    if isinstance(engine, MachineEngine):
        engine._machine.damage(space, address)
        return
    if space == Space.WEIGHTS:
        word, rest = divmod(address, TINY.columns * TINY.pairs)
        column, pair = divmod(rest, TINY.pairs)
        tile, place = divmod(column, TINY.tile_columns)
        name, at = f"mxm.tile_{tile}.bank_{place}_{pair}.memory", bit
    elif space == Space.CONSTANTS:
        word, lane = divmod(address, TINY.lanes)
        name, at = "const.data", 18 * lane + bit
    else:
        # The parity of a bank of MEM, bit 16 of a lane, has an array of its own.
        (bank, word), lane = divmod(address // TINY.lanes, TINY.mem_depth), address % TINY.lanes
        part, at = ("checks", lane) if bit == 16 else ("data", 16 * lane + bit)
        name = f"mem.bank{bank}.{part}"
    memories = engine._memories()
    name = next(known for known in memories if known.startswith(name))
    memories[name][word, at // 8] ^= 1 << at % 8


T = timing(TINY)
#: The cycle behind that of the stream.
MEM, CONST = ("r1", 40 + T.mem_read + 1), ("const", 10 + T.const_read + 1)
#: When the multipliers of the first row pair and tile get their weights, and two cycles more.
ARRAY = 80 + T.weight_read + 2 + 2
#: Space, address, bit of the 18, of MEM of the 17, and the read that meets it, its queue and its
#: cycle; None where nothing reads it.
CASES = {
    "mem": (Space.MEM, mem_address(TINY, 1, 6, 0), 3, MEM),
    "mem parity of the last lane": (Space.MEM, mem_address(TINY, 1, 6, 7), 16, MEM),
    "mem not read": (Space.MEM, mem_address(TINY, 1, 7, 0), 0, None),
    "mem of another bank": (Space.MEM, mem_address(TINY, 2, 6, 0), 0, None),
    "const": (Space.CONSTANTS, constant_address(TINY, 3, 5), 8, CONST),
    "const not read": (Space.CONSTANTS, constant_address(TINY, 4, 5), 8, None),
    "matmul": (Space.WEIGHTS, weight_address(TINY, 9, 0, 0), 0, ("mxm", ARRAY)),
    "matmul, second row pair": (Space.WEIGHTS, weight_address(TINY, 9, 1, 1), 9,
                                ("mxm", ARRAY + 1)),
    "matmul, second tile": (Space.WEIGHTS, weight_address(TINY, 9, 6, 1), 17, ("mxm", ARRAY + 2)),
    "read-out": (Space.WEIGHTS, weight_address(TINY, 10, TOKEN % 8, 1), 4,
                 ("kv", 120 + T.read_out)),
    "another column": (Space.WEIGHTS, weight_address(TINY, 10, 2, 1), 4, None),
}


def fault_of(engine, case):
    """Run position 0, damage the word, run position 8."""
    space, address, bit, _ = case
    engine.load(assemble(PROGRAM))
    tokens = [TOKEN] * 9
    assert engine.run(tokens, 1, vocabulary=16).fault is None
    flip(engine, space, address, bit)
    fault = engine.run(tokens, 1, first=8, vocabulary=16).fault
    return fault and (fault.cause, fault.queue, fault.cycle, fault.position)


def wanted(case):
    return case[3] and (Fault.PARITY, *case[3], 8)


@pytest.fixture(scope="module")
def model():
    with engines.create("machine", TINY) as engine:
        yield engine


@pytest.fixture(scope="module")
def rtl():
    available("verilator")
    with engines.create("verilator", TINY) as engine:
        yield engine


@pytest.mark.parametrize("name", CASES)
def test_model(model, name):
    assert fault_of(model, CASES[name]) == wanted(CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_hardware(rtl, name):
    assert fault_of(rtl, CASES[name]) == wanted(CASES[name])


def test_what_has_no_parity(model):
    model.load(assemble(PROGRAM))
    with pytest.raises(ValueError, match="words of PATTERNS have no parity"):
        model._machine.damage(Space.PATTERNS, 0)
