"""Frames of the host link against hand-made bytes, and against damage."""
import zlib

import numpy as np
import pytest

from arch.config import profile
from arch.hostmap import Command, EventFlag, Space, Status, weight_address
from arch.image import Image
from sim.hostlink import (Event, Parser, Reply, image_blocks, payload_crc, read_request,
                          reply_bytes, request, write_request)


def crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


def reply(status=0, tag=7, space=6, address=0x01020304, count=0, payload=None) -> bytes:
    head = bytes([0x6D, status, tag, space, 4, 3, 2, 1, count & 255, count >> 8])
    return head + crc(head) + (b"" if payload is None else payload + crc(payload))


def event(flags=1, position=3, token=300, cycles=70000) -> bytes:
    head = (bytes([0x65, flags]) + position.to_bytes(2, "little") + token.to_bytes(2, "little")
            + cycles.to_bytes(4, "little"))
    return head + crc(head)


def test_write_request_bytes():
    head = bytes([0xF5, 1, 9, 7, 0x78, 0x56, 0x34, 0x12, 2, 0])
    payload = bytes([0x02, 0x01, 0xFF, 0xFF])
    assert write_request(9, Space.WEIGHTS, 0x12345678, [0x0102, -1]) == (
        head + crc(head) + payload + crc(payload))


def test_read_request_bytes():
    head = bytes([0xF5, 2, 255, 0, 16, 0, 0, 0, 0x00, 0x10])
    assert read_request(255, Space.REGISTERS, 16, 4096) == head + crc(head)


def test_sync_and_escape_are_escaped():
    head = bytes([0xF5, 1, 0xF5, 8, 0xF6, 0, 0, 0, 2, 0])
    plain = head + crc(head) + (payload := b"\xf5\xf6\xd5\xd6") + crc(payload)
    frame = write_request(0xF5, Space.TOKENS, 0xF6, [0xF6F5, 0xD6D5])
    assert frame.count(0xF5) == 1 and frame[0] == 0xF5
    assert frame[1:].replace(b"\xf6\xd5", b"\xf5").replace(b"\xf6\xd6", b"\xf6") == plain[1:]
    assert frame[1:3] + frame[4:7] == bytes([1, 0xF6, 8, 0xF6, 0xD6])


def test_open_and_check_requests():
    head = bytes([0xF5, 4, 200, 0, 0, 0, 0, 0, 0, 0])
    assert request(Command.OPEN, 200) == head + crc(head)
    head = bytes([0xF5, 3, 1, 6, 16, 0, 0, 0, 0xFF, 0xFF])
    assert request(Command.CHECK, 1, Space.MEM, 16, 0xFFFF) == head + crc(head)
    assert payload_crc([0x0102, -1]).to_bytes(4, "little") == crc(bytes([2, 1, 255, 255]))


def test_reply_length():
    assert reply_bytes(Command.WRITE, Status.OK, 5) == 14
    assert reply_bytes(Command.READ, Status.OK, 5) == 28
    assert reply_bytes(Command.READ, Status.BUSY, 5) == 14
    assert reply_bytes(Command.CHECK, Status.OK, 5) == 18
    assert reply_bytes(Command.OPEN, Status.OK, 0) == 14


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_parser_takes_any_slices(size):
    data = (event() + reply(count=2, payload=b"\x01\x02\x03\x04") + event(6, 4, 0, 9)
            + reply(status=1, tag=8))
    parser, found = Parser(), []
    parser.expect(7, Command.READ)
    for at in range(0, len(data), size):
        found += parser.feed(data[at:at + size])
    first, second, third, fourth = found
    assert first == Event(EventFlag.SAMPLED, 3, 300, 70000)
    assert (second.status, second.tag, second.space, second.address) == (0, 7, 6, 0x01020304)
    assert second.words.tolist() == [0x0201, 0x0403] and second.intact
    assert third == Event(EventFlag.LAST | EventFlag.FAULT, 4, 0, 9)
    assert fourth.status == Status.BUSY and fourth.words.size == 0
    assert parser.skipped == 0


def test_needed_bytes_complete_a_frame():
    data = reply(count=3, payload=b"\x01\x02\x03\x04\x05\x06") + event()
    parser, at, found = Parser(), 0, []
    parser.expect(7, Command.READ)
    while at < len(data):
        size = parser.needed
        found += parser.feed(data[at:at + size])
        at += size
    assert at == len(data)
    assert [type(frame) for frame in found] == [Reply, Event]


@pytest.mark.parametrize("at", range(14))
def test_damaged_header_is_skipped(at):
    data = bytearray(event())
    data[at] ^= 0x10
    parser = Parser()
    assert parser.feed(bytes(data) + event(1, 5)) == [Event(EventFlag.SAMPLED, 5, 300, 70000)]
    assert parser.skipped == 14


def test_damaged_payload_is_told():
    data = bytearray(reply(count=1, payload=b"\x01\x02"))
    data[14] ^= 1
    parser = Parser()
    parser.expect(7, Command.READ)
    (found,) = parser.feed(bytes(data))
    assert not found.intact


def test_reply_to_a_check():
    parser = Parser()
    parser.expect(7, Command.CHECK)
    (found,) = parser.feed(reply(count=1000) + b"\x78\x56\x34\x12")
    assert (found.crc, found.count, found.words.size, found.intact) == (0x12345678, 1000, 0, True)


@pytest.mark.parametrize("lost", range(14, 22))
def test_a_lost_byte_hides_no_frame(lost):
    """Of a payload that is too short, the events and the reply behind it are found."""
    data = reply(count=2, payload=b"\x01\x02\x03\x04")
    parser = Parser()
    parser.expect(7, Command.READ)
    found = parser.feed(data[:lost] + data[lost + 1:] + event() + data + event(1, 4))
    assert [type(frame) for frame in found] == [Reply, Event, Reply, Event]
    assert [frame.intact for frame in found[::2]] == [False, True]


def test_giving_up_finds_what_an_incomplete_frame_holds():
    parser = Parser()
    parser.expect(7, Command.READ)
    assert not parser.feed(reply(count=1000) + event(1, 5) + event(1, 6)[:9])
    assert [frame.position for frame in parser.give_up()] == [5]
    assert parser.feed(event(1, 7))[0].position == 7


def test_image_blocks_place_every_byte():
    config = profile("tiny")
    generator = np.random.default_rng(1)
    weights = generator.integers(-128, 128, (5, config.rows, config.columns)).astype(np.int8)
    params = {"vxm": generator.integers(0, 1024, (config.param_rows, 3))}
    patterns = np.array([[1, -1, 0, 2, 7, 6, 5, 4]])
    constants = np.array([[-1, 2, 3, 4, 5, 6, 7, -32768]], np.int16)
    rows = np.arange(config.param_rows * 6).reshape(-1, 6)
    word = 0x123456789ABCDEF0123
    image = Image(config, {"vxm": [5, word]}, params, rows, patterns, constants, weights)
    memory = {}
    for space, address, words in image_blocks(image):
        assert words.dtype == np.uint16
        memory |= {(space, address + offset): int(value) for offset, value in enumerate(words)}
    # Queue 3 (vxm), instruction 1: chunk addresses as the docstring of the map says.
    chunks = [memory[Space.PROGRAM, (3 * 512 + 1) * 16 + chunk] for chunk in range(5)]
    assert sum(chunk << 16 * index for index, chunk in enumerate(chunks)) == word
    # Parameters: 4 rows of 16 columns a queue.
    assert memory[Space.PARAMS, (3 * 4 + 2) * 16 + 1] == params["vxm"][2, 1]
    assert memory[Space.ROWS, 3 * 8 + 5] == 3 * 6 + 5
    assert [memory[Space.PATTERNS, lane] for lane in range(8)] == [1, 0x8000, 0, 2, 7, 6, 5, 4]
    assert memory[Space.CONSTANTS, 0] == 0xFFFF and memory[Space.CONSTANTS, 7] == 0x8000
    for word_, row, column in [(0, 0, 0), (4, 3, 7), (2, 1, 5), (3, 2, 6)]:
        value = memory[Space.WEIGHTS, weight_address(config, word_, column, row // 2)]
        assert (value >> 8 * (row % 2)) & 255 == int(weights[word_, row, column]) & 255
