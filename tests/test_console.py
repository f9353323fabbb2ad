"""A board with a model in its flash: it speaks by itself, over a plain serial line."""
import os
import select
import struct
import time
import tty

import pytest

from arch import flash
from arch.config import profile
from arch.hostmap import NO_TOKEN, Register, Space
from compiler.program import Program
from compiler.tokenizer import Tokenizer
from sim import engine
from sim.flash_image import flash_image, token_texts
from sim.hostlink import read_request
from sim.virtual_board import VirtualBoard

TINY = profile("tiny")
#: A vocabulary for the model `tiny`: one token of two letters, one new line, a letter for each other.
PIECES = [b"<unk>", b"<s>", b"</s>", b"\n", b" ", b"th", *(bytes([65 + n]) for n in range(37))]
PAUSE = b"\r\n\r\n"


@pytest.fixture(scope="module")
def program(tiny):
    return Program(tiny.image, Tokenizer(PIECES, [0.0] * len(PIECES)), tiny)


class Terminal:
    """The far end of the serial line, read with a time limit."""

    def __init__(self, port: str):
        self._file = os.open(port, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._file)

    def close(self):
        os.close(self._file)

    def type(self, keys: bytes) -> None:
        os.write(self._file, keys)

    def until(self, end: bytes, seconds: float = 300) -> bytes:
        """Everything up to the first ``end``."""
        got, limit = b"", time.monotonic() + seconds
        while end not in got:
            assert time.monotonic() < limit, f"{end!r} did not come in {got!r}"
            if select.select([self._file], [], [], 0.1)[0]:
                got += os.read(self._file, 1)
        return got

    def silent(self, seconds: float) -> bool:
        return not select.select([self._file], [], [], seconds)[0]


def board(content: bytes) -> VirtualBoard:
    reason = VirtualBoard.unavailable()
    if reason:
        pytest.skip(reason)
    return VirtualBoard(TINY, flash=content)


def story(program, prompt: list) -> bytes:
    """What the machine model writes behind a prompt."""
    with engine.create("machine", TINY) as model:
        model.load(program.image)
        end = program.tokenizer.stop_id
        tokens = model.run(prompt, program.image.meta["context"],
                           vocabulary=program.image.meta["vocabulary"],
                           stop=NO_TOKEN if end is None else end).tokens
    texts = token_texts(program.tokenizer, len(PIECES))
    return b"".join(texts[token] for token in tokens)


def test_what_lies_where(program):
    """The header, the table of bytes and the texts, as `arch.flash` says."""
    content = flash_image(program)
    magic, size, count = struct.unpack_from("<4sIH", content)
    assert magic == b"MTN1" and len(content) == flash.FRAMES + size
    frames = content[flash.FRAMES:]
    assert frames.count(b"\xF5") == count and frames[:2] == b"\xF5\x04"
    table = struct.unpack_from("<256H", content, flash.BYTE_TABLE)
    assert table[ord("A")] == 6 and table[ord("\n")] == 3 and table[ord("~")] == NO_TOKEN
    assert [content[flash.TEXTS + 16 * token:][:4] for token in (1, 3, 5, 6)] == [
        b"\0\xFF\xFF\xFF", b"\2\r\n\xFF", b"\2th\xFF", b"\1A\xFF\xFF"]


def test_too_many_tokens():
    with pytest.raises(flash.FlashError, match="room for 1024 tokens, not 1025"):
        flash.contents([], {}, [b""] * 1025)


@pytest.mark.slow
def test_it_speaks_and_listens(program):
    """Power-up, the button, a prompt with a mistake, then a host, then the button again."""
    alone, behind = story(program, [1]), story(program, [1, 6, 7, 3, 8])
    assert len(alone) > 3 and alone != behind
    with board(flash_image(program)) as virtual:
        terminal = Terminal(virtual.port)
        assert terminal.until(PAUSE) == alone + PAUSE
        assert virtual.lamps["speaking"] and not virtual.lamps["fault"]
        virtual.press(True)
        assert terminal.until(PAUSE) == alone + PAUSE
        virtual.press(False)
        # `~` is no token; the third letter is taken back.
        terminal.type(b"A~BX\x7F\nC")
        assert terminal.until(b"C") == b"ABX\x08 \x08\r\nC"
        terminal.type(b"\r")
        assert terminal.until(PAUSE) == behind + PAUSE
        # What was typed belongs to that story alone.
        terminal.type(b"\r")
        assert terminal.until(PAUSE) == alone + PAUSE
        terminal.close()
        with engine.create("board", TINY, port=virtual.port) as host:
            build = host.read_space(Space.REGISTERS, Register.BUILD0, 4)
            assert not virtual.lamps["speaking"]
            host.load(program.image)
            run = host.run([1], 4, vocabulary=len(PIECES))
            assert run.reported == [program.predicted(at, False) for at in range(4)]
        from hdl.verilog import build_number
        assert int.from_bytes(build.astype("<u2").tobytes(), "little") == build_number(TINY) != 0
        # The host has gone in the middle of requests; what comes of them is in no one's way.
        virtual.press(False)
        terminal = Terminal(virtual.port)
        terminal.type(5 * read_request(9, Space.REGISTERS, 0, 40))
        virtual.press(True)
        assert terminal.until(PAUSE).endswith(alone + PAUSE)
        assert virtual.lamps["speaking"]
        terminal.close()


@pytest.mark.slow
def test_a_damaged_flash_is_told(program):
    """One bit of a frame: the lamp says so, nothing is spoken, and a host is served."""
    content = bytearray(flash_image(program))
    content[flash.FRAMES + 200] ^= 1
    with board(bytes(content)) as virtual:
        limit = time.monotonic() + 300
        while not virtual.lamps["fault"]:
            assert time.monotonic() < limit
            time.sleep(0.05)
        terminal = Terminal(virtual.port)
        terminal.type(b"A\r")
        assert terminal.silent(0.5) and not virtual.lamps["speaking"]
        terminal.close()
        with engine.create("board", TINY, port=virtual.port) as host:
            assert host.read_space(Space.REGISTERS, Register.MAGIC, 1).tolist() == [0x4D45]
