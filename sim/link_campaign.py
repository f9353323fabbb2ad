"""Damaged frames among intact ones, against a machine in simulation: what it must and must not do.

Two campaigns: raw frames without any pause, whose every answer and effect is foretold; and the driver
over a line that damages both directions, cut off in the middle of frames and of runs.
"""
import collections
import dataclasses
import random
import re

import numpy as np

from arch.hostmap import (ESCAPE, ESCAPED, RUN, SYNC_REQUEST, Command, Register, Space, Status)
from sim import hostlink
from sim.engine import EngineError
from sim.hostlink import request

#: Where frames write and read: a space that the host alone changes.
SPACE = Space.MEM
SOME_CYCLES = 200_000
#: Share of the bursts on a bad line that are damaged.
RATE = 0.03


def _flipped(rng, frame):
    data = bytearray(frame)
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _dropped(rng, frame):
    at = rng.randrange(len(frame))
    return frame[:at] + frame[at + rng.randint(1, 3):]


def _doubled(rng, frame):
    at = rng.randrange(len(frame) - 1)
    return frame[:at + 1] + frame[at:]


def _inserted(rng, frame):
    at = rng.randrange(1, len(frame))
    return frame[:at] + rng.randbytes(rng.randint(1, 3)) + frame[at:]


def _cut(rng, frame):
    return frame[:rng.randrange(1, len(frame))]


def _tail(rng, frame):
    return frame[rng.randrange(1, len(frame)):]


def _noise(rng, frame):
    return rng.randbytes(rng.randint(1, 40))


def _spliced(rng, frame):
    return frame[:rng.randrange(1, len(frame))] + frame[rng.randrange(1, len(frame)):]


DAMAGE = {"bits flipped": _flipped, "bytes dropped": _dropped, "byte doubled": _doubled,
          "bytes inserted": _inserted, "cut short": _cut, "beginning lost": _tail,
          "noise": _noise, "torn and joined": _spliced}


def _plain(data: bytes) -> list:
    """What a receiver makes of bytes: the requests that they contain, without escapes."""
    found, escape = [], 0
    for byte in data:
        if byte == SYNC_REQUEST:
            found.append(bytearray())
        elif byte == ESCAPE:
            escape = ESCAPED
            continue
        elif found:
            found[-1].append(byte ^ escape)
        escape = 0
    return found


def _complete(part: bytes) -> bool:
    """Whether a request of `_plain`, a WRITE, is there as a whole, with right CRCs."""
    part = bytes([SYNC_REQUEST]) + part
    head, payload = part[:10], part[14:]
    size = 2 * int.from_bytes(head[8:], "little")
    return (hostlink.with_crc(head) == part[:14] and len(payload) >= size + 4
            and hostlink.with_crc(payload[:size]) == payload[:size + 4])


class RawCampaign:
    """Frames straight onto the byte stream of an engine.

    Parameters
    ----------
    engine : `sim.host_engine.HostEngine`
        Connected.
    seed : int
    """

    def __init__(self, engine, seed: int):
        self._engine, self._rng = engine, random.Random(seed)
        self._parser = hostlink.Parser()
        self._size = hostlink.space_words(engine.config, SPACE)
        self._words = [0] * self._size       # what memory must hold; None: not known
        self._tag, self._old = 100, []
        self.counts, self.answers = collections.Counter(), collections.Counter()

    def run(self, intact: int, damaged: int) -> None:
        """Send that many frames in random order, then compare all of the memory.

        Raises
        ------
        EngineError
            If anything is other than it must be.
        """
        engine = self._engine
        engine._link.open(self._tag)
        for start in range(0, self._size, 1024):
            engine._link.write(SPACE, start, [0] * min(1024, self._size - start))
        self._tag = engine._link._written
        kinds = [True] * intact + [False] * damaged
        self._rng.shuffle(kinds)
        data, wanted = b"", []
        for kind in kinds:
            frame, reply = self._intact() if kind else (self._damaged(data), None)
            data += frame
            if reply:
                wanted.append(reply)
                self._expect(data, wanted)
                data, wanted = b"", []
        self._expect(data, [])
        engine._link.open(self._tag)
        self._need(not engine._link.registers(Register.STATUS, 1)[0], "a run was started")
        found = engine._link.read(SPACE, 0, self._size)
        wrong = [at for at, word in enumerate(self._words) if word not in (None, found[at])]
        self._need(not wrong, f"{len(wrong)} words of memory changed, first {wrong[:1]}")

    def _need(self, condition, message):
        if not condition:
            raise EngineError(message)

    def _place(self) -> tuple:
        count = self._rng.choice([1, 1, 2, 3, 8, 20])
        return self._rng.randrange(self._size - count), count

    def _intact(self) -> tuple:
        """A frame, and the reply to it."""
        address, count = self._place()
        command = self._rng.choice([Command.WRITE, Command.WRITE, Command.READ, Command.CHECK])
        if command != Command.WRITE:
            tag = self._rng.randrange(256)
            known = self._words[address:address + count]
            self._parser.expect(tag, command)
            return request(command, tag, SPACE, address, count), (
                command, tag, address, count, known)
        self._tag = tag = (self._tag + 1) & 0xFF
        words = [self._rng.choice([self._rng.randrange(1 << 16), 0xF5F6, 0xF6F5])
                 for _ in range(count)]
        self._words[address:address + count] = words
        frame = request(command, tag, SPACE, address, count, words)
        self._old = [*self._old[-50:], frame]
        self._parser.expect(tag, command)
        return frame, (command, tag, address, count, words)

    def _damaged(self, before: bytes) -> bytes:
        """Bytes that contain no frame that may have an effect, but for words of a torn WRITE.

        Not even together with what was sent before.
        """
        rng, tag = self._rng, (self._tag + 1) & 0xFF
        self._parser.expect(tag, Command.WRITE)
        kind = rng.choice([*DAMAGE, "replayed", "absurd length", "run"])
        self.counts[kind] += 1
        address, count = self._place()
        words = [rng.randrange(1 << 16) for _ in range(count)]
        if kind == "replayed" and len(self._old) > 1:
            # Not the last one: that would be answered OK, and not done again.
            return rng.choice(self._old[:-1])
        if kind == "absurd length":
            # A right header, and less behind it than it says, or nothing.
            size = rng.choice([0xFFFF, self._size - address, count + 1])
            frame = request(Command.WRITE, tag, SPACE, address, size, words)
            self._forget(address, size)
            return frame[:-rng.randint(0, 4) or None]
        if kind == "run":
            frame = request(Command.WRITE, tag, Space.REGISTERS, Register.COMMAND, 1, [RUN])
        else:
            frame = request(Command.WRITE, tag, SPACE, address, count, words)
        damage, whole = DAMAGE.get(kind, _flipped), bytes(_plain(frame)[0])
        while True:
            data = damage(rng, frame)
            if not any(part.startswith(whole) or _complete(part) and part[1] == tag
                       for part in map(bytes, _plain(before + data))):
                break
        if count > 1 and kind != "run":
            self._forget(address, count)
        return data

    def _forget(self, address, count):
        end = min(self._size, address + count)
        self._words[address:end] = [None] * (end - address)

    def _expect(self, data: bytes, wanted: list) -> None:
        """Send bytes; the answers to intact frames must be there, and none that is OK besides."""
        received = self._engine._advance(data, 200 * len(data) + SOME_CYCLES, 0)
        frames = self._parser.feed(received)
        missing = list(wanted)
        while frames or missing:
            for frame in frames:
                self._need(isinstance(frame, hostlink.Reply), f"an event came: {frame}")
                self.answers[frame.status.name] += 1
                if frame.status == Status.OK:
                    self._need(missing, f"a damaged frame was accepted: {frame}")
                    self._answers(frame, *missing.pop(0))
            asked = self._parser.needed
            received = self._engine._advance(b"", SOME_CYCLES, asked) if missing else b""
            frames = self._parser.feed(received)
            self._need(len(received) >= asked or not missing,
                       f"an intact frame was not answered: {missing}")

    def _answers(self, frame, command, tag, address, count, words):
        self._need((frame.tag, frame.space, frame.address, frame.count) ==
                   (tag, SPACE, address, count) and frame.intact, f"{frame} answers {command} {tag} {address} {count}")
        self.counts["intact"] += 1
        if command == Command.READ:
            same = all(word in (None, found) for word, found in zip(words, frame.words.tolist()))
            self._need(same, f"read {frame.words}, not {words}")
        elif command == Command.CHECK and None not in words:
            self._need(frame.crc == hostlink.payload_crc(words), "a CHECK is wrong")


@dataclasses.dataclass
class Line:
    """What a bad line does to bytes: each damage with some probability per burst."""
    engine: object
    rng: random.Random
    rate: float
    damaged: int = 0

    def __post_init__(self):
        self._advance = self.engine._advance
        self.engine._advance = self.advance

    def advance(self, data: bytes, cycles: int, received: int) -> bytes:
        data = self._worse(data)
        got = self._worse(self._advance(data, cycles, received))
        return got

    def _worse(self, data: bytes) -> bytes:
        if not data or self.rng.random() >= self.rate:
            return data
        self.damaged += 1
        damage = self.rng.choice([_flipped, _dropped, _inserted, _noise, _cut])
        return damage(self.rng, data) if len(data) > 2 else b""

    def close(self):
        del self.engine._advance


def driver_campaign(engine, image, run, sessions: int, seed: int) -> dict:
    """Sessions of the driver over a bad line; each loads, runs and reads back, some are cut off.

    Parameters
    ----------
    run : callable
        ``run(engine)`` gives what a run gives; it must always be the same, or an `EngineError`.

    Returns
    -------
    dict
        How many sessions ended how, requests repeated, bursts damaged.
    """
    rng, wanted = random.Random(seed), None
    counts = collections.Counter()
    engine.load(image, backdoor=False)
    wanted = run(engine)
    for session in range(sessions):
        line = Line(engine, rng, RATE)
        engine._first_tag = rng.randrange(256)
        try:
            engine.connect()
            engine.load(image, backdoor=False)
            found = run(engine)
            if found != wanted:
                raise AssertionError(f"session {session}: {found} instead of {wanted}")
            counts["right"] += 1
        except EngineError as error:
            counts["refused: " + re.sub(r"\b\d+\b", "n", str(error))] += 1
        finally:
            counts["bursts damaged"] += line.damaged
            counts["requests repeated"] += engine._link.repeated
            line.close()
        # The driver is killed: in the middle of a frame, or of a run.
        if session % 2:
            engine._link.write(Space.REGISTERS, Register.COMMAND, [RUN])
        frame = request(Command.WRITE, rng.randrange(256), Space.WEIGHTS, 0, 64,
                        np.arange(64))
        engine._advance(frame[:rng.randrange(1, len(frame))], SOME_CYCLES, 0)
        engine.connect()
        engine.load(image, backdoor=False)
        if run(engine) != wanted:
            raise AssertionError(f"session {session}: the link is not usable afterwards")
    return dict(counts)
