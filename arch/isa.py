"""The instruction set: one table of formats, opcodes and meanings for every queue.

An instruction word is a fixed list of fields per unit, lowest bits first. Every queue begins with
the same control fields; widths that depend on the machine are functions of `Config`. The assembler,
the image, the hardware decoders, the machine model and ``docs/isa.md`` read this table.

Issue rule. ``wait`` is the number of cycles (1 or more) from the last issue of the previous
instruction of the queue, or from cycle 0 of the step, to the first issue of this one. An
instruction with repeats issues ``n2`` times ``n1`` operations::

    for i in range(n2):          # i and j are the repeat indices that the unit sees
        for j in range(n1):      # d1 cycles between inner issues,
            issue(address + i*s2 + j*s1)      # d2 from the last inner one to the next round

Counts, strides and gaps that a format lacks are 1, 0 and 1: only units that walk two dimensions
have outer repeats.

Ref: Abts et al., "Think Fast: A Tensor Streaming Processor (TSP)", ISCA 2020, section III (NOP,
Repeat, deterministic issue); the field encoding is our own.
"""
import dataclasses
import enum
from collections.abc import Callable

from arch.config import Config
from arch.queues import QUEUES, STREAM_BITS, Queue, Stream


class IsaError(ValueError):
    """A field does not fit, an opcode does not exist, or a program breaks a rule of the format."""


class Control(enum.IntEnum):
    """Opcodes that every queue has. 0 is reserved, so that an unwritten word faults.

    Members
    -------
    NOP : issues nothing; its ``wait`` passes.
    LOOP : go back ``d1`` instructions ``n1 - 1`` times, adding ``s1`` to the base of the queue each
        time; then go on with base 0. ``wait`` separates the last issue of a round from the first
        issue of the next; the first instruction of the body uses its own ``wait`` only in the
        first round. After the last round the ``wait`` of the instruction behind counts as ever,
        but must be as long as that of a LOOP (`arch.timing.LOOP_WAIT_MIN`).
        Loops do not nest.
    END : the queue is done until the barrier. ``n1`` = 1: always; 2: in prompt steps only.
    """
    NOP = 1
    LOOP = 2
    END = 3


END_ALWAYS, END_IF_PROMPT = 1, 2
OP_BITS = 4


class Order(enum.IntEnum):
    """Which repeat index of a ``MATMUL`` walks the reduction (k), and when activations are taken.

    Members
    -------
    K_INNER : k = j, tile = i. A new vector is taken when the half wraps to 0, and at j = 0.
    K_OUTER : k = i, tile = j. The vector is taken at j = 0 when the half wraps to 0 or i = 0.
    HOLD : k = i, vector = j: one vector per issue, weights held while j runs (``s1`` = 0).
    """
    K_INNER = 0
    K_OUTER = 1
    HOLD = 2


class Index(enum.IntEnum):
    """Run-time value added to an address: nothing, the position, or the input token."""
    NONE = 0
    POSITION = 1
    TOKEN = 2


@dataclasses.dataclass(frozen=True)
class Field:
    """One bit field: its width for a `Config`, its sign, what it means and whether it may be 0.

    ``sources``: the streams that an operand field may name; empty for every other field.
    ``wide``: those of them whose lanes are taken with all 32 bits; of others the low 16 count.
    ``reserved``: the field is there for a machine to come and must be 0.
    """
    name: str
    bits: Callable[[Config], int]
    doc: str
    signed: bool = False
    minimum: int = 0
    sources: tuple = ()
    reserved: bool = False
    wide: tuple = ()


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation of a unit: opcode, one-line meaning, and the semantics in index form."""
    name: str
    code: int
    doc: str


@dataclasses.dataclass(frozen=True)
class Unit:
    """Instruction format of a unit: its operations and its fields, control fields included."""
    name: str
    doc: str
    ops: tuple
    fields: tuple

    def op(self, name: str) -> Op:
        for op in self.ops:
            if op.name == name:
                return op
        raise IsaError(f"{self.name} has no operation {name!r}; it has "
                       f"{', '.join(op.name for op in self.ops)}")

    def field(self, name: str) -> Field | None:
        return next((field for field in self.fields if field.name == name), None)


WAIT_BITS = 10
PARAM_BITS = WAIT_BITS
COUNT_REGISTERS = 4


def _const(bits: int) -> Callable[[Config], int]:
    return lambda config: bits


_CONTROL = (
    Field("op", _const(OP_BITS), "opcode; `Control` or one of the unit's"),
    Field("wait_param", _const(1), "1: `wait` is a column of the queue's delay parameters"),
    Field("wait", _const(WAIT_BITS), "cycles since the previous issue", minimum=0),
)
_N1 = (
    Field("n1_param", _const(1), "1: `n1` is the number of a count register of the row"),
    Field("n1", lambda config: config.count_bits, "inner count; rounds in LOOP"),
    Field("d1", lambda config: config.gap_bits, "cycles between inner issues; length of the body, in "
          "instructions, in LOOP"),
)
_N2 = (
    Field("n2_param", _const(1), "1: `n2` is the number of a count register of the row"),
    Field("n2", lambda config: config.count_bits, "outer count"),
    Field("d2", lambda config: config.gap_bits, "cycles from the last inner issue to the next round"),
)


def _address(bits: Callable[[Config], int], what: str, indexed: bool = False,
             outer: bool = False) -> tuple:
    stride = lambda config: bits(config) + 1  # noqa: E731 - one line says it best
    fields = (Field("address", bits, what),
              Field("s1", stride, "inner stride; step of the base in LOOP", signed=True))
    if outer:
        fields += (Field("s2", stride, "outer stride", signed=True),)
    if indexed:
        fields += (Field("index", _const(2), "`Index` added to the address, shifted right"),
                   Field("index_shift", _const(4), "right shift of the index"))
    return fields


def _source(name: str, doc: str, *sources: Stream, wide: tuple = ()) -> Field:
    return Field(name, _const(STREAM_BITS), doc, sources=sources, wide=wide)


def _reserved(name: str, bits: Callable[[Config], int], doc: str) -> Field:
    return Field(name, bits, f"reserved, 0: {doc}", reserved=True)


#: Or-ed into the position of the operation: the further tokens of a step that takes several.
_AHEAD = _reserved("ahead", lambda config: config.lane_bits, "or-ed into the position, for steps "
                   "that take several tokens")
_NIBBLE = _reserved("nibble", _const(2), "2, 3: the low or high four bits of every weight, "
                    "sign-extended")

# Wires from streams to operands. A full crossbar would cost more logic than the multipliers'
# adders: an operand has wires from where programs take it, everything else goes through the VXM.
_BANKS = (Stream.M0, Stream.M1, Stream.M2, Stream.M3)
_VECTORS = _BANKS + (Stream.CONST, Stream.VXM)


_WEIGHT = _address(lambda config: config.weight_address_bits, "word of the weight banks",
                   outer=True)
_WEIGHT_INDEXED = _address(lambda config: config.weight_address_bits, "word of the weight banks",
                           indexed=True)
_MEM = _address(lambda config: config.mem_address_bits, "word of the bank")
_MEM_OUTER = _address(lambda config: config.mem_address_bits, "word of the bank", outer=True)
_CONST_MEM = _address(lambda config: config.const_address_bits, "word of the constant SRAM",
                      indexed=True)

UNITS = {unit.name: unit for unit in (
    Unit("mxm", "Systolic matmul: accumulator columns += activations times weights.", (
        Op("MATMUL", 4, "acc[accumulator + tile][c] (+)= sum_r x_half(c)[half*rows + r] * "
           "W[address][r][c], with half = (half0 + k) mod groups"),
    ), _CONTROL + _N1 + _N2 + _WEIGHT + (
        Field("order", _const(2), "`Order` of the repeat indices"),
        Field("start", _const(1), "1: k = 0 overwrites the accumulator, 0: every step adds"),
        Field("half0", _const(2), "which `rows` lanes of the vector serve k = 0"),
        _source("x0", "activations of the columns of half 0", *_BANKS, Stream.CONST),
        _source("x1", "activations of the columns of half 1", *_BANKS, Stream.CONST),
        Field("shift", _const(4), "activations are shift-rounded right by this and saturated to "
              "activation_bits, symmetrically"),
        Field("accumulator", lambda config: config.accumulator_bits, "first accumulator"),
        _NIBBLE,
        _reserved("chain", _const(1), "1: k = 0 begins with the int32 lanes of stream `p`"),
        _reserved("p", _const(STREAM_BITS), "partial sums of another chip or array (`Stream`)"),
    )),
    Unit("drain", "Reads accumulators onto stream ACC.", (
        Op("DRAIN", 4, "ACC = acc[accumulator + j]"),
    ), _CONTROL + _N1 + (
        Field("accumulator", lambda config: config.accumulator_bits, "first accumulator"),
    )),
    Unit("kv", "Second port of the weight banks: run-time writes and read-out.", (
        Op("WRITE_K", 4, "W[address][r][position mod columns] = sat8(x[half*rows + r]), every row "
           "r, with half = (half0 + j) mod groups"),
        Op("WRITE_V", 5, "W[address][position mod rows][c] = sat8(x[c]), every column c"),
        Op("READ_OUT", 6, "collects W[address][r][c] as lane (j mod groups)*rows + r, with c = "
           "token mod columns, or position mod columns if half0 is odd; the last of a group puts "
           "the vector on ACC"),
    ), _CONTROL + _N1 + _WEIGHT_INDEXED + (
        Field("half0", _const(2), "which `rows` lanes j = 0 writes (WRITE_K); odd: the column is that of the "
              "position (READ_OUT)"),
        _source("x", "vector to write", Stream.VXM),
        _NIBBLE, _AHEAD,
    )),
    Unit("vxm", "Lane arithmetic: y = f(a, b, c) in every lane; see docs/numerics.md.", (
        Op("MAC", 4, "y = sat(rshift(a' * b, post) + c), a' = sat18(rshift(a, pre))"),
        Op("MAX", 5, "y = sat(max(rshift(a' * b, post), c))"),
        Op("EXP2", 6, "y = 127/128 * 2**(29 - post) * 2**(min(a - c, 0) / 256)"),
        Op("SILU", 7, "y = silu(a), both with 11 fraction bits"),
        Op("GELU", 8, "y = gelu(a), both with 11 fraction bits"),
    ), _CONTROL + _N1 + (
        _source("a", "first operand; ACC is int32, NONE is 0", Stream.NONE, *_VECTORS, Stream.ACC,
                Stream.PERM, wide=(Stream.ACC,)),
        _source("b", "multiplier; NONE is 1", Stream.NONE, *_BANKS, Stream.CONST),
        _source("c", "addend; NONE is 0", Stream.NONE, *_BANKS, Stream.CONST),
        Field("pre", _const(4), "right shift of a before the multiplier"),
        Field("post", _const(5), "right shift of the product"),
        Field("b_float", _const(1), "1: b is a 12-bit mantissa and a 4-bit right shift"),
        Field("wide", _const(1), "1: saturate to int32 instead of int16"),
        Field("mask", _const(1), "1: at j = n1-1, lanes beyond position mod lanes give -32768, "
              "or 0 in EXP2"),
        _AHEAD,
    )),
    Unit("perm", "Moves values between lanes by a table of patterns.", (
        Op("PERM", 4, "y[l] = x[(pattern[l] ^ ((index value << index_shift) mod lanes))], "
           "or 0 where the pattern says so"),
    ), _CONTROL + _N1 + (
        _source("x", "vector to permute", *_VECTORS, Stream.PERM),
        Field("pattern", lambda config: config.pattern_bits, "entry of the pattern table"),
        Field("index", _const(2), "`Index` exclusive-ored into the lane numbers"),
        Field("index_shift", _const(4), "left shift of the index"),
        _AHEAD,
    )),
    Unit("red", "Reduces lanes and vectors to one value, on every lane of stream RED.", (
        Op("SUM", 4, "y = sat16(rshift(sum of all lanes of all issues, post))"),
        Op("MAX", 5, "y = max over all lanes of all issues, of whose 32 bits the low 16 count"),
        Op("RECIP", 6, "y = float12(1 / sum), exponent less post"),
        Op("RSQRT", 7, "y = float12(1 / sqrt(sum)), exponent less post"),
    ), _CONTROL + _N1 + (
        _source("x", "vectors to reduce, int32 lanes", Stream.VXM, wide=(Stream.VXM,)),
        Field("post", _const(6), "right shift (SUM), or bias of the exponent (RECIP, RSQRT)"),
    )),
    Unit("const", "Reads constants onto stream CONST.", (
        Op("READ", 4, "CONST = constants[address + (index value >> index_shift)]"),
    ), _CONTROL + _N1 + _CONST_MEM + (_AHEAD,)),
    Unit("sample", "Picks the next token from logits, 8 fraction bits.", (
        Op("ARGMAX", 4, "token = argmax of logit * inverse temperature + Gumbel noise over all "
           "lanes of all issues; vector j holds tokens j*lanes ..."),
    ), _CONTROL + _N1 + (
        _source("x", "logits", Stream.VXM),
        _reserved("more", _const(1), "1: the search and the numbering of tokens go on"),
        _reserved("sequence", _const(1), "whose token it picks, in steps of two sequences"),
    )),
    Unit("mem_read", "Read port of a MEM bank.", (
        Op("READ", 4, "M<bank> = mem[address]"),
    ), _CONTROL + _N1 + _N2 + _MEM_OUTER),
    Unit("mem_write", "Write port of a MEM bank. Banks that write on the same cycle write the same "
         "stream; or RED, those of odd number.", (
        Op("WRITE", 4, "mem[address] = x (low 16 bits of each lane), in the chosen halves"),
    ), _CONTROL + _N1 + _MEM + (
        _source("x", "vector to write", Stream.CONST, Stream.VXM, Stream.PERM, Stream.RED),
        Field("halves", _const(2), "bit h: write the lanes of half h"),
    )),
    Unit("send", "Puts vectors onto a chip-to-chip link. Reserved: no machine has links yet.", (
        Op("SEND", 4, "link <- the int32 lanes of x"),
    ), _CONTROL + _N1 + (
        _source("x", "vector to send", Stream.ACC, Stream.VXM, wide=(Stream.ACC, Stream.VXM)),
        Field("link", _const(1), "number of the link"),
    )),
    Unit("receive", "Takes vectors from a chip-to-chip link. Reserved: no machine has links yet.", (
        Op("RECEIVE", 4, "LINK<link> = the vector that arrives on this cycle"),
        Op("DESKEW", 5, "waits for the time base of the other chip, at the barrier only"),
    ), _CONTROL + _N1 + (
        Field("link", _const(1), "number of the link"),
    )),
)}


def unit_of(queue: str) -> Unit:
    """Format of the queue called ``queue``."""
    if queue not in QUEUES:
        raise IsaError(f"there is no queue {queue!r}; there are {', '.join(QUEUES)}")
    return UNITS[QUEUES[queue].unit]


def word_bits(unit: Unit, config: Config) -> int:
    """Bits of one instruction word of ``unit``."""
    return sum(field.bits(config) for field in unit.fields)


def layout(unit: Unit, config: Config) -> dict:
    """Field name to ``(offset, width, signed)``, lowest bits first."""
    offset, fields = 0, {}
    for field in unit.fields:
        width = field.bits(config)
        fields[field.name] = (offset, width, field.signed)
        offset += width
    return fields


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction: opcode name and field values; fields left out are 0 (gaps and counts 1)."""
    op: str
    fields: dict

    def __getitem__(self, name):
        return self.fields.get(name, DEFAULTS.get(name, 0))


#: Values of the fields that an instruction does not name.
DEFAULTS = {"n1": 1, "n2": 1, "d1": 1, "d2": 1, "wait": 1}


def op_code(unit: Unit, name: str) -> int:
    if name in Control.__members__:
        return int(Control[name])
    return unit.op(name).code


def encode(queue: str, instruction: Instruction, config: Config) -> int:
    """The instruction word; every field is checked against its range.

    Raises
    ------
    IsaError
        For an unknown operation or field, or a value that does not fit.
    """
    unit = unit_of(queue)
    fields = layout(unit, config)
    unknown = set(instruction.fields) - set(fields)
    if unknown:
        raise IsaError(f"{queue}: {instruction.op} has no field {sorted(unknown)[0]!r}")
    word = op_code(unit, instruction.op)
    for name, (offset, width, signed) in fields.items():
        if name == "op":
            continue
        value = int(instruction[name])
        low, high = (-(1 << width - 1), (1 << width - 1) - 1) if signed else (0, (1 << width) - 1)
        if not low <= value <= high:
            raise IsaError(f"{queue}: {instruction.op}: {name} must be {low} to {high}, "
                           f"not {value}")
        if value and unit.field(name).reserved:
            raise IsaError(f"{queue}: {instruction.op}: {name} is reserved and must be 0, not "
                           f"{value}")
        if name in ("n1", "n2", "d1", "d2") and value == 0 and not instruction[f"{name}_param"]:
            raise IsaError(f"{queue}: {instruction.op}: {name} must be at least 1, not 0")
        if name == "wait" and value == 0 and not instruction["wait_param"]:
            raise IsaError(f"{queue}: {instruction.op}: wait must be at least 1, not 0")
        word |= (value & (1 << width) - 1) << offset
    return word


def decode(queue: str, word: int, config: Config) -> Instruction:
    """Inverse of `encode`: every field of the format is named.

    Raises
    ------
    IsaError
        If the opcode is reserved.
    """
    unit = unit_of(queue)
    values = {}
    for name, (offset, width, signed) in layout(unit, config).items():
        value = word >> offset & (1 << width) - 1
        if signed and value >> width - 1:
            value -= 1 << width
        values[name] = value
    code = values.pop("op")
    for name, control in Control.__members__.items():
        if control == code:
            return Instruction(name, values)
    for op in unit.ops:
        if op.code == code:
            return Instruction(op.name, values)
    raise IsaError(f"{queue}: opcode {code} is reserved")


def sources_of(field: Field, config: Config) -> tuple:
    """The streams of this machine that an operand field may name, in order of their numbers."""
    return tuple(sorted(stream for stream in field.sources
                        if not Stream.M0 + config.mem_banks <= stream <= Stream.M3))


def operands(unit: Unit) -> tuple:
    """The operand fields of a format."""
    return tuple(field for field in unit.fields if field.sources)


def reserved_fields(unit: Unit) -> tuple:
    """Names of the fields of a format that must be 0 in the unit's own operations."""
    return tuple(field.name for field in unit.fields if field.reserved)


def queue_of(name: str) -> Queue:
    return QUEUES[name]
