"""The host's side of the byte stream: requests to bytes, bytes to replies and events.

Pure functions and one small state machine; whatever moves the bytes (a simulator, a serial port)
stands elsewhere. Frame formats and address maps are those of `arch.hostmap`.
"""
import dataclasses
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from arch.config import Config
from arch.hostmap import (EVENT_BYTES, HEADER_BYTES, PATTERN_ZERO, PROGRAM_CHUNKS, ROW_WORDS,
                          SYNC_EVENT, SYNC_REPLY, SYNC_REQUEST, Command, EventFlag, Space, Status,
                          escaped, param_address, power_of_two, program_address)
from arch.image import Image
from arch.queues import QUEUES

CRC_BYTES = 4
#: Words in one frame at most: short enough that a damaged one is cheap to send again.
FRAME_WORDS = 4096
_REQUEST = struct.Struct("<BBBBIH")
_EVENT = struct.Struct("<BBHHI")


def with_crc(data: bytes) -> bytes:
    """The bytes and their CRC-32."""
    return data + struct.pack("<I", zlib.crc32(data))


def request(command: int, tag: int, space: int = 0, address: int = 0, count: int = 0,
            words=None) -> bytes:
    """A frame as it goes over the line; ``words`` are those of a WRITE, 16 bits each."""
    frame = with_crc(_REQUEST.pack(SYNC_REQUEST, command, tag, space, address, count))
    if words is not None:
        frame += with_crc(np.asarray(words).astype("<u2").tobytes())
    return escaped(frame)


def write_request(tag: int, space: int, address: int, words) -> bytes:
    """A frame that writes 16-bit words to consecutive addresses of a space."""
    return request(Command.WRITE, tag, space, address, len(words), words)


def read_request(tag: int, space: int, address: int, count: int) -> bytes:
    """A frame that asks for ``count`` words of a space."""
    return request(Command.READ, tag, space, address, count)


def payload_crc(words) -> int:
    """What a CHECK of these words is answered."""
    return zlib.crc32(np.asarray(words).astype("<u2").tobytes())


def payload_bytes(command: int, status: int, count: int) -> int:
    """Bytes behind the header of a reply."""
    if status != Status.OK:
        return 0
    return {Command.READ: 2 * count + CRC_BYTES, Command.CHECK: CRC_BYTES}.get(command, 0)


def reply_bytes(command: int, status: int, count: int) -> int:
    """Length of the reply to a request."""
    return HEADER_BYTES + CRC_BYTES + payload_bytes(command, status, count)


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the device answered; ``words`` is empty unless a READ succeeded.

    ``intact`` is False where the payload does not match its CRC. ``crc`` is that of the payload,
    0 where there is none.
    """
    status: Status
    tag: int
    space: int
    address: int
    count: int
    words: np.ndarray
    crc: int = 0
    intact: bool = True


@dataclasses.dataclass(frozen=True)
class Event:
    """One step as the device tells it: its position, token, and length in cycles."""
    flags: EventFlag
    position: int
    token: int
    cycles: int


class Parser:
    """Splits what the device sends into replies and events.

    Bytes that belong to no intact frame are skipped, up to the next one that is, and counted in
    ``skipped``. Nothing that is damaged hides what comes behind it.
    """

    def __init__(self):
        self._data = bytearray()
        self._commands = {}
        self.skipped = 0

    def expect(self, tag: int, command: int) -> None:
        """Tell the command of the request that has this tag."""
        self._commands[tag] = command

    @property
    def needed(self) -> int:
        """Bytes, 1 or more, without which no further frame can be complete."""
        data = self._data
        if not data or data[0] not in (SYNC_REPLY, SYNC_EVENT):
            return 1
        size = (HEADER_BYTES if data[0] == SYNC_REPLY else EVENT_BYTES) + CRC_BYTES
        if len(data) >= size and data[0] == SYNC_REPLY:
            size += self._payload(*_REQUEST.unpack_from(data))
        return max(1, size - len(data))

    def _payload(self, _sync, status, tag, _space, _address, count) -> int:
        """Bytes behind the header of a reply."""
        return payload_bytes(self._commands.get(tag, Command.WRITE), status, count)

    def feed(self, data: bytes) -> list:
        """Take bytes; return the `Reply` and `Event` objects that they complete, in order."""
        self._data += data
        found = []
        while self._data:
            frame = self._next()
            if frame is None:
                break
            if frame is not False:
                found.append(frame)
        return found

    def give_up(self) -> list:
        """Wait no longer for the rest of a frame; return the frames that its bytes contain."""
        found = []
        while self._data:
            self._skip()
            found += self.feed(b"")
        return found

    def _skip(self, count: int = 1) -> bool:
        """Drop bytes: they are no frame, or its header."""
        del self._data[:count]
        self.skipped += count
        return False

    def _next(self):
        """The first frame, None when more bytes are needed, False after a skip."""
        data = self._data
        if data[0] not in (SYNC_REPLY, SYNC_EVENT):
            return self._skip()
        size = HEADER_BYTES if data[0] == SYNC_REPLY else EVENT_BYTES
        if len(data) < size + CRC_BYTES:
            return None
        if not _intact(data, 0, size):
            return self._skip()
        if data[0] == SYNC_EVENT:
            _, flags, position, token, cycles = _EVENT.unpack_from(data)
            del data[:size + CRC_BYTES]
            return Event(EventFlag(flags), position, token, cycles)
        _, status, tag, space, address, count = head = _REQUEST.unpack_from(data)
        start, length = size + CRC_BYTES, self._payload(*head)
        if len(data) < start + length:
            return None
        end = start + max(0, length - CRC_BYTES)
        words = np.frombuffer(bytes(data[start:end]), "<u2")
        crc = int.from_bytes(data[end:start + length], "little")
        # A CHECK has no payload that its CRC could be compared with.
        intact = end == start or _intact(data, start, end - start)
        if intact:
            del data[:start + length]
        else:
            # The length of what came is not known: another frame may begin anywhere in it.
            self._skip(start)
        return Reply(Status(status), tag, space, address, count, words, crc, intact)


def _intact(data: bytes, start: int, size: int) -> bool:
    """Whether ``size`` bytes at ``start`` are followed by their CRC."""
    end = start + size
    return zlib.crc32(bytes(data[start:end])) == int.from_bytes(data[end:end + CRC_BYTES], "little")


# Images as words of the address spaces.

def image_blocks(image: Image) -> Iterator[tuple]:
    """Everything to load, as ``(space, address, uint16 words)`` with consecutive addresses."""
    config = image.config
    for queue, words in image.program.items():
        yield (Space.PROGRAM, program_address(QUEUES[queue].id, 0, 0),
               np.array([_chunks(word) for word in words], np.uint16).ravel())
    columns = power_of_two(config.param_columns)
    for queue, table in image.params.items():
        padded = np.zeros((len(table), columns), np.uint16)
        padded[:, :table.shape[1]] = table
        if padded.size:
            yield Space.PARAMS, param_address(config, QUEUES[queue].id, 0, 0), padded.ravel()
    rows = np.zeros((len(image.rows), ROW_WORDS), np.uint16)
    rows[:, :image.rows.shape[1]] = image.rows
    yield Space.ROWS, 0, rows.ravel()
    patterns = np.where(image.patterns < 0, PATTERN_ZERO, image.patterns).astype(np.uint16)
    yield Space.PATTERNS, 0, patterns.ravel()
    yield Space.CONSTANTS, 0, image.constants.astype(np.int16).view(np.uint16).ravel()
    yield Space.WEIGHTS, 0, weight_words(image.weights)


def _chunks(word: int) -> list:
    """All chunks of an instruction word, lowest first; those beyond its format are 0."""
    return [word >> 16 * chunk & 0xFFFF for chunk in range(PROGRAM_CHUNKS)]


def weight_words(weights: np.ndarray) -> np.ndarray:
    """Weights [words, rows, columns] in the order of `arch.hostmap.weight_address`."""
    words, rows, columns = weights.shape
    bytes_ = np.ascontiguousarray(weights.transpose(0, 2, 1)).view(np.uint8)
    pairs = bytes_.reshape(words, columns, rows // 2, 2)
    return (pairs[..., 0].astype(np.uint16) | pairs[..., 1].astype(np.uint16) << 8).ravel()


def space_words(config: Config, space: Space) -> int:
    """Addresses of a space that hold something, from 0 (gaps of unused queues included)."""
    return {
        Space.PARAMS: param_address(config, len(QUEUES), 0, 0),
        Space.ROWS: config.param_rows * ROW_WORDS,
        Space.PATTERNS: config.patterns * config.lanes,
        Space.CONSTANTS: config.const_depth * config.lanes,
        Space.MEM: config.mem_banks * power_of_two(config.mem_depth) * config.lanes,
        Space.WEIGHTS: config.weight_depth * config.columns * config.pairs,
        Space.TOKENS: config.context,
    }[space]
