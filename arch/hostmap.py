"""What the host sees: address spaces, registers and frames of the byte stream.

Every space is an array of 16-bit words. Frames carry a CRC-32 (the Ethernet one) over everything
before it, lowest byte first, all numbers little-endian.

Request: ``SYNC_REQUEST, command, tag, space, address (4 bytes), count (2 bytes), CRC of these 10
bytes (4 bytes)``, then, for WRITE, ``count`` words and a CRC of them (4 bytes). Behind the sync
byte, SYNC_REQUEST and ESCAPE themselves are sent as ESCAPE and the byte XOR ESCAPED (`escaped`);
CRCs are those of the bytes before that. So a sync byte always begins a request, and whatever was
begun before it is dropped: no time limit is needed for a request that stays incomplete, and
damage of one never costs the next. Neither byte occurs in UTF-8, nor does a disturbed line
make them of silence.

Reply: ``SYNC_REPLY, status, tag, space, address (4), count (2), CRC (4)``, then, for a READ that
succeeded, ``count`` words and a CRC of them; for a CHECK only the CRC that the READ would have had.
A request with a wrong header CRC is not answered. Between replies the device sends one event per
step: ``SYNC_EVENT, flags, position (2), token (2), cycles (4), CRC (4)``. What the device sends
is not escaped: the host can keep it and look for the next frame behind one that is damaged.

A WRITE is done once: its tag must be that of the last WRITE done plus 1 (modulo 256), which OPEN
sets. One with the tag of the last WRITE is a repetition, answered OK and not done again; any other
is answered ORDER. A WRITE of one word is done when its CRC was right. One of more words is done as
they come, and answered CRC, or not at all, if it was damaged: its words are then undefined, and it
must be sent again, with the same tag. COMMAND can only be written as one word.

The upper four bits of the space byte are the number of a device, for frames that pass through one
chip on the way to another. A chip without links is device 0, and answers RANGE for any other.
"""
import enum

from arch.config import Config

PROTOCOL_VERSION = 2
SYNC_REQUEST, SYNC_REPLY, SYNC_EVENT = 0xF5, 0x6D, 0x65
ESCAPE, ESCAPED = 0xF6, 0x20
HEADER_BYTES, EVENT_BYTES = 10, 10
IDENTITY_MAGIC = 0x4D45


class Command(enum.IntEnum):
    """Members: WRITE; READ; CHECK: the CRC of what a READ would give; OPEN: take the tag of this
    frame for that of the last WRITE (space, address and count are 0)."""
    WRITE = 1
    READ = 2
    CHECK = 3
    OPEN = 4


class Status(enum.IntEnum):
    """Members: OK; BUSY: SRAM access while a step runs; RANGE: no such command, space or address;
    CRC: the payload was damaged, send it again; ORDER: the tag of a WRITE is not the next one."""
    OK = 0
    BUSY = 1
    RANGE = 2
    CRC = 3
    ORDER = 4


class EventFlag(enum.IntFlag):
    """Bits of an event: a token was sampled; the run ends here; it ends by a fault."""
    SAMPLED = 1
    LAST = 2
    FAULT = 4


class Space(enum.IntEnum):
    """Address spaces; ``*_address`` below give their word order.

    Of a word of TOKENS the lowest ``Config.token_bits`` bits are kept; above them it reads as 0.
    """
    REGISTERS = 0
    PROGRAM = 1
    PARAMS = 2
    ROWS = 3
    PATTERNS = 4
    CONSTANTS = 5
    MEM = 6
    WEIGHTS = 7
    TOKENS = 8


class Register(enum.IntEnum):
    """Word addresses of `Space.REGISTERS`. Those up to SEED3 are written and read, the others read.

    COMMAND: writing RUN starts at FIRST; ABORT stops at the next barrier; CLEAR clears the fault.
    FIRST: position of the first step. PROMPT: tokens 0 .. PROMPT-1 of the token memory are given;
    the step at position p is a prompt step when p + 1 < PROMPT, else its token is sampled, stored
    at p + 1 and sent. LIMIT: the run ends before position LIMIT. STOP: ends the run when sampled
    (0xFFFF: none). TEMPERATURE: inverse temperature, 0 for greedy. SEED0 to SEED3: lowest first.
    STATUS: bit 0 running, bit 1 fault. FAULT_CAUSE, FAULT_QUEUE: first fault and the id of its
    queue (0xFF: none in particular); FAULT_CYCLE0/1: its cycle in the step. POSITION: of the
    current or last step. CYCLES0/1: length of the last step. TIME0 to TIME3: free-running cycles.
    MAGIC, PROTOCOL: `IDENTITY_MAGIC` and `PROTOCOL_VERSION`. DIGEST0 to DIGEST3: `Config.digest`.
    BUILD0 to BUILD3: of a board the number that the first 16 hexadecimal digits of the SHA-256 of
    its chip's RTL write, lowest bits first; 0 where nobody told the chip.
    """
    COMMAND = 0
    FIRST = 1
    PROMPT = 2
    LIMIT = 3
    VOCABULARY = 4
    STOP = 5
    TEMPERATURE = 6
    SEED0 = 7
    SEED1 = 8
    SEED2 = 9
    SEED3 = 10
    STATUS = 16
    FAULT_CAUSE = 17
    FAULT_QUEUE = 18
    FAULT_CYCLE0 = 19
    FAULT_CYCLE1 = 20
    POSITION = 21
    CYCLES0 = 22
    CYCLES1 = 23
    TIME0 = 24
    TIME1 = 25
    TIME2 = 26
    TIME3 = 27
    MAGIC = 32
    PROTOCOL = 33
    DIGEST0 = 34
    DIGEST1 = 35
    DIGEST2 = 36
    DIGEST3 = 37
    BUILD0 = 38
    BUILD1 = 39
    BUILD2 = 40
    BUILD3 = 41


RUN, ABORT, CLEAR = 1, 2, 4
NO_TOKEN = 0xFFFF
PROGRAM_CHUNKS = 16
#: Bits of a program counter in a host address; the queue id stands above.
PROGRAM_PC_BITS = 9
ROW_WORDS = 8
#: Fields of a row: four count registers, then the cycles of a generate and of a prompt step.
ROW_COUNTS, ROW_GENERATE, ROW_PROMPT = (0, 1, 2, 3), 4, 5
PATTERN_ZERO = 0x8000


def escaped(frame: bytes) -> bytes:
    """A request as it goes over the line: no sync byte but the first."""
    body = frame[1:].replace(bytes([ESCAPE]), bytes([ESCAPE, ESCAPE ^ ESCAPED]))
    return frame[:1] + body.replace(bytes([SYNC_REQUEST]), bytes([ESCAPE, SYNC_REQUEST ^ ESCAPED]))


def power_of_two(value: int) -> int:
    """The least power of two that is at least ``value``."""
    return 1 << max(0, value - 1).bit_length()


def program_address(queue_id: int, pc: int, chunk: int) -> int:
    """Sixteen bits of an instruction word; writing its last chunk stores the whole word."""
    return (queue_id << PROGRAM_PC_BITS | pc) * PROGRAM_CHUNKS + chunk


def param_address(config: Config, queue_id: int, row: int, column: int) -> int:
    rows, columns = power_of_two(config.param_rows), power_of_two(config.param_columns)
    return (queue_id * rows + row) * columns + column


def row_address(row: int, field: int) -> int:
    return row * ROW_WORDS + field


def pattern_address(config: Config, pattern: int, lane: int) -> int:
    """Source lane, with `PATTERN_ZERO` set where the result is 0."""
    return pattern * config.lanes + lane


def constant_address(config: Config, word: int, lane: int) -> int:
    return word * config.lanes + lane


def mem_address(config: Config, bank: int, word: int, lane: int) -> int:
    return (bank * power_of_two(config.mem_depth) + word) * config.lanes + lane


def weight_address(config: Config, word: int, column: int, pair: int) -> int:
    """Low byte: row ``2 * pair``; high byte: row ``2 * pair + 1``."""
    return (word * config.columns + column) * config.pairs + pair
