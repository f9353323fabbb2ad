"""Frames of the host link against hand-made bytes, and against damage."""
import zlib

import numpy as np
import pytest

from arch.config import profile
from arch.hostmap import Command, EventFlag, Space, Status, weight_address
from arch.image import Image
from sim.hostlink import (Event, Parser, Reply, image_blocks, read_request, reply_bytes,
                          write_request)


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
    head = bytes([0x4D, 1, 9, 7, 0x78, 0x56, 0x34, 0x12, 2, 0])
    payload = bytes([0x02, 0x01, 0xFF, 0xFF])
    assert write_request(9, Space.WEIGHTS, 0x12345678, [0x0102, -1]) == (
        head + crc(head) + payload + crc(payload))


def test_read_request_bytes():
    head = bytes([0x4D, 2, 255, 0, 16, 0, 0, 0, 0x00, 0x10])
    assert read_request(255, Space.REGISTERS, 16, 4096) == head + crc(head)


def test_reply_length():
    assert reply_bytes(Command.WRITE, Status.OK, 5) == 14
    assert reply_bytes(Command.READ, Status.OK, 5) == 28
    assert reply_bytes(Command.READ, Status.BUSY, 5) == 14


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_parser_takes_any_slices(size):
    data = (event() + reply(count=2, payload=b"\x01\x02\x03\x04") + event(6, 4, 0, 9)
            + reply(status=1, tag=8))
    parser, found = Parser(), []
    parser.expect_read(7)
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
    parser.expect_read(7)
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
    parser.expect_read(7)
    (found,) = parser.feed(bytes(data))
    assert not found.intact


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
