"""Every reserved encoding is a fault: checker, machine model and hardware, on the same cycle.

The cases come from the table of formats: opcodes, the streams of each operand, the numbers of each
enumeration, registers and columns that do not exist. A field that no rule here knows fails a test.
"""
import pytest

from arch import isa
from arch.config import profile
from arch.faults import Fault, ScheduleError
from arch.image import Image
from arch.isa import COUNT_REGISTERS, END_ALWAYS, Control, Index, Instruction, Order, encode
from arch.queues import QUEUES, Stream
from arch.timing import FIRST_ISSUE, timing
from sim import engine as engines
from sim.checker import check_schedule
from tests.empty_image import empty_image
from tests.rtl import available

TINY = profile("tiny")
#: The instruction in question issues on cycle AT of a step of LENGTH cycles.
AT, LENGTH = 60, 120
#: Streams that carry a value on all cycles around AT.
STEADY = (Stream.CONST, Stream.VXM)
#: Numbers that mean something, of the fields that hold an enumeration.
ENUMERATIONS = {"index": Index, "order": Order}
#: Fields of which every number means something, given their range (0 is refused in some).
FREE = {"wait_param", "wait", "n1_param", "n1", "d1", "n2_param", "n2", "d2", "address", "s1", "s2",
        "index_shift", "start", "half0", "shift", "accumulator", "pre", "post", "b_float", "wide",
        "mask", "pattern", "halves"}
QUEUE_OF = {QUEUES[name].unit: name for name in reversed(TINY.queues)}


def operands_of(unit, op):
    """Operand fields that an operation takes; READ_OUT writes nothing and takes none."""
    return () if op == "READ_OUT" else isa.operands(unit)


def sound(unit, op) -> dict:
    """Fields of a legal instruction whose operands come from `STEADY`; NONE where allowed."""
    fields = {"wait": AT}
    for field in operands_of(unit, op):
        sources = isa.sources_of(field, TINY)
        fields[field.name] = next(int(stream) for stream in (Stream.NONE, *STEADY)
                                  if stream in sources)
    return fields


def patched(word: int, unit, **fields) -> int:
    """A word with some fields replaced by raw numbers."""
    layout = isa.layout(unit, TINY)
    for name, value in fields.items():
        offset, width, _ = layout[name]
        assert 0 <= value < 1 << width
        word = word & ~((1 << width) - 1 << offset) | value << offset
    return word


def instruction(unit, name, /, **raw) -> int:
    """The word of a legal instruction, with some fields replaced by raw numbers."""
    fields = {"wait": AT} if name in Control.__members__ else sound(unit, name)
    return patched(encode(QUEUE_OF[unit.name], Instruction(name, fields), TINY), unit, **raw)


def image_of(unit, *words) -> Image:
    """A program with the words, in the first queue of their format, and steady streams around."""
    queue, read = QUEUE_OF[unit.name], timing(TINY).const_read
    end = Instruction("END", {"n1": END_ALWAYS, "wait": FIRST_ISSUE})
    program = {name: [encode(name, end, TINY)] for name in TINY.queues}
    steady = {"const": Instruction("READ", {"wait": FIRST_ISSUE, "n1": 90}),
              "vxm": Instruction("MAC", {"wait": FIRST_ISSUE + read, "n1": 80,
                                         "a": int(Stream.CONST)})}
    if queue == "const":
        steady = {}
    for name, producer in steady.items():
        program[name].insert(0, encode(name, producer, TINY))
    program[queue] = [*words, encode(queue, end, TINY)]
    return empty_image(TINY, program, LENGTH)


def reserved_opcodes(unit) -> list:
    known = {*Control, *(op.code for op in unit.ops)}
    return [(f"opcode {code}", instruction(unit, unit.ops[0].name, op=code))
            for code in range(1 << isa.OP_BITS) if code not in known]


def reserved_sources(unit) -> list:
    return [(f"{op.name} {field.name}={number}",
             instruction(unit, op.name, **{field.name: number}))
            for op in unit.ops for field in operands_of(unit, op.name)
            for number in range(1 << field.bits(TINY))
            if number not in isa.sources_of(field, TINY)]


def reserved_fields(unit) -> list:
    """Fields of machines to come, which must be 0."""
    return [(f"{op.name} {name}={number}", instruction(unit, op.name, **{name: number}))
            for op in unit.ops for name in isa.reserved_fields(unit)
            for number in range(1, 1 << unit.field(name).bits(TINY))]


def reserved_numbers(unit) -> list:
    """Enumerations, count registers, parameter columns, and what END and flat formats allow."""
    cases, first = [], unit.ops[0].name
    for op in unit.ops:
        for name, kind in ENUMERATIONS.items():
            if unit.field(name):
                cases += [(f"{op.name} {name}={number}",
                           instruction(unit, op.name, **{name: number}))
                          for number in range(1 << unit.field(name).bits(TINY))
                          if number not in set(kind)]
    for name in ("n1", "n2"):
        if unit.field(f"{name}_param"):
            cases += [(f"{name}=#{number}",
                       instruction(unit, first, **{f"{name}_param": 1, name: number}))
                      for number in (COUNT_REGISTERS, COUNT_REGISTERS + 3, 128, 511)]
    cases.append(("LOOP n1=#6", instruction(unit, "NOP", wait=AT // 2),
                  instruction(unit, "LOOP", n1=6, n1_param=1, d1=1, wait=AT // 2)))
    cases += [(f"END n1={number}", instruction(unit, "END", n1=number))
              for number in (0, 3, 4, 511)]
    cases += [(f"END n1=#{number}", instruction(unit, "END", n1_param=1, n1=number))
              for number in (END_ALWAYS, 0)]
    return cases


def reserved(unit) -> list:
    """``(name, word, ...)`` of all reserved encodings, which the queue meets on cycle AT."""
    return (reserved_opcodes(unit) + reserved_sources(unit) + reserved_fields(unit)
            + reserved_numbers(unit))


@pytest.fixture(scope="module")
def model():
    with engines.create("machine", TINY) as engine:
        yield engine


@pytest.fixture(scope="module")
def rtl():
    available("verilator")
    with engines.create("verilator", TINY) as engine:
        yield engine


def fault_of(engine, image):
    engine.load(image)
    fault = engine.run([0], 1, vocabulary=2).fault
    return fault and (fault.cause, fault.queue, fault.cycle)


#: The formats that the machine has queues for.
UNITS = pytest.mark.parametrize("unit", [isa.UNITS[name] for name in QUEUE_OF],
                                ids=lambda unit: unit.name)


@UNITS
def test_every_field_is_known_here(unit):
    for field in unit.fields:
        if field.name not in FREE | {"op"} | set(ENUMERATIONS):
            assert field.sources or field.reserved, (
                f"no rule for the reserved numbers of {unit.name}.{field.name}")
    assert len(reserved(unit)) >= 16 - 3 - len(unit.ops)


@UNITS
def test_models_refuse_reserved_encodings(unit, model):
    for name, *words in reserved(unit):
        image, expected = image_of(unit, *words), (Fault.ENCODING, QUEUE_OF[unit.name], AT)
        with pytest.raises(ScheduleError) as caught:
            check_schedule(image)
        error = caught.value
        assert (error.fault, error.queue, error.cycle) == expected, name
        assert fault_of(model, image) == expected, name


@pytest.mark.slow
@UNITS
def test_hardware_refuses_reserved_encodings(unit, rtl):
    for name, *words in reserved(unit):
        found = fault_of(rtl, image_of(unit, *words))
        assert found == (Fault.ENCODING, QUEUE_OF[unit.name], AT), name


@pytest.mark.slow
@UNITS
def test_hardware_knows_the_others(unit, rtl):
    """Every operation; every stream of every operand, which carries a value or is missed."""
    queue = QUEUE_OF[unit.name]
    for op in unit.ops:
        assert fault_of(rtl, image_of(unit, instruction(unit, op.name))) is None, op.name
        for field in operands_of(unit, op.name):
            for stream in isa.sources_of(field, TINY):
                word = instruction(unit, op.name, **{field.name: int(stream)})
                found = fault_of(rtl, image_of(unit, word))
                # The operation itself makes the stream that it takes from later.
                carries = stream in (Stream.NONE, *STEADY) and (unit.name, stream) != (
                    "vxm", Stream.VXM)
                missed = AT + (timing(TINY).sample_skew if unit.name == "sample" else 0)
                assert found == (None if carries else (Fault.OPERAND, queue, missed)), (
                    op.name, field.name, stream)


@pytest.mark.slow
@UNITS
def test_parameter_columns_that_do_not_exist(unit, model, rtl):
    """With no wait to go by, the fault is on the first cycle that is possible."""
    for column in (TINY.param_columns, 1023):
        word = instruction(unit, unit.ops[0].name, wait_param=1, wait=column)
        image = image_of(unit, word)
        expected = (Fault.ENCODING, QUEUE_OF[unit.name], FIRST_ISSUE)
        assert [fault_of(engine, image) for engine in (model, rtl)] == [expected] * 2, column
