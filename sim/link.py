"""Requests over a byte stream that may lose, damage or invent bytes, and their answers.

Every request is sent again until its answer has come intact, a bounded number of times. Frames with
their CRCs, tags and repetitions are those of `arch.hostmap`: a damaged frame does nothing that is not
done again, and a repeated one nothing.
"""
from collections.abc import Callable

import numpy as np

from arch.hostmap import Command, Register, Space, Status
from sim import hostlink
from sim.engine import EngineError

#: Times that a request is sent.
ATTEMPTS = 5
#: Cycles that the host port may take for one byte, and besides for any request.
BYTE_CYCLES, SPARE_CYCLES = 64, 4096
#: Cycles of a CHECK for each word, at most: nobody may answer.
CHECK_CYCLES = 40
#: Bytes that may come before the answer: events that have piled up, noise.
STRANGE_BYTES = 1 << 14
#: Words of one CHECK at most: the header counts to 65535.
CHECK_WORDS = 0xFFFF


class Link:
    """The host's end.

    Parameters
    ----------
    name : str
        Of the engine, for messages.
    advance : callable
        ``advance(data, cycles, received)``: send bytes, wait until ``received`` bytes have come or
        ``cycles`` have passed, and return what came.

    Members
    -------
    events : list of `sim.hostlink.Event` that have come and have not been taken.
    repeated : requests that were sent again.
    """

    def __init__(self, name: str, advance: Callable):
        self._name, self._advance = name, advance
        self._parser = hostlink.Parser()
        self._written = self._asked = 0
        self.events, self.repeated = [], 0

    @property
    def skipped(self) -> int:
        """Bytes that came and were part of no intact frame."""
        return self._parser.skipped

    def open(self, tag: int) -> None:
        """Begin to count WRITEs from ``tag`` on."""
        self._written = tag & 0xFF
        self._request(Command.OPEN, self._written, Space.REGISTERS, 0, 0)

    def write(self, space: Space, address: int, words) -> None:
        """Write 16-bit words."""
        words = np.asarray(words)
        for start in range(0, len(words), hostlink.FRAME_WORDS):
            part = words[start:start + hostlink.FRAME_WORDS]
            tag = (self._written + 1) & 0xFF
            self._request(Command.WRITE, tag, space, address + start, len(part), part)
            self._written = tag

    def read(self, space: Space, address: int, count: int) -> np.ndarray:
        """Read 16-bit words."""
        parts = [np.zeros(0, np.uint16)]
        for start in range(0, count, hostlink.FRAME_WORDS):
            size = min(hostlink.FRAME_WORDS, count - start)
            parts.append(self._ask(Command.READ, space, address + start, size).words)
        return np.concatenate(parts)

    def registers(self, first: Register, count: int) -> list:
        """Registers, as a list of integers."""
        return self.read(Space.REGISTERS, int(first), count).tolist()

    def differ(self, space: Space, address: int, words: np.ndarray) -> bool:
        """Whether the device holds other words than these, by their CRC."""
        for start in range(0, len(words), CHECK_WORDS):
            part = words[start:start + CHECK_WORDS]
            wanted = hostlink.payload_crc(part)
            # The CRC itself may be damaged on its way: nothing covers it. So ask again.
            if not any(self._ask(Command.CHECK, space, address + start, len(part)).crc == wanted
                       for _ in range(2)):
                return True
        return False

    def touch(self, space: Space, address: int, count: int) -> None:
        """Have the device read words: wrong parity is a fault."""
        for start in range(0, count, CHECK_WORDS):
            self._ask(Command.CHECK, space, address + start, min(CHECK_WORDS, count - start))

    def wait(self, cycles: int) -> bool:
        """Wait for events; whether anything came within some cycles."""
        data = self._advance(b"", cycles, self._parser.needed)
        self._take(self._parser.feed(data) if data else self._parser.give_up(), None)
        return bool(data)

    def _ask(self, command: Command, space: Space, address: int, count: int) -> hostlink.Reply:
        self._asked = (self._asked + 1) & 0xFF
        return self._request(command, self._asked, space, address, count)

    def _request(self, command, tag, space, address, count, words=None) -> hostlink.Reply:
        """Send a request until it is answered intact, and OK."""
        frame = hostlink.request(command, tag, space, address, count, words)
        what = f"{command.name} of {count} words of {Space(space).name} from {address} on"
        self._parser.expect(tag, command)
        for attempt in range(ATTEMPTS):
            self.repeated += attempt > 0
            reply = self._exchange(frame, command, (tag, space, address, count))
            if reply is None or not reply.intact or reply.status == Status.CRC:
                continue
            if reply.status != Status.OK:
                raise EngineError(f"{self._name}: {what}: the device answers {reply.status.name}")
            return reply
        raise EngineError(f"{self._name}: no intact answer to {what}, sent {ATTEMPTS} times")

    def _exchange(self, frame, command, wanted) -> hostlink.Reply | None:
        """Send a frame once; its reply, or None if none has come in time."""
        count = wanted[-1]
        size = hostlink.reply_bytes(command, Status.OK, count)
        limit = BYTE_CYCLES * (len(frame) + size) + SPARE_CYCLES
        if command == Command.CHECK:
            limit += CHECK_CYCLES * count
        # The first frame to come may be an event, or a refusal: neither is shorter than this.
        asked, seen = hostlink.reply_bytes(Command.WRITE, Status.OK, 0), 0
        data = self._advance(frame, limit, asked)
        while seen < size + STRANGE_BYTES:
            seen += len(data)
            late = len(data) < asked
            found = self._parser.feed(data) + (self._parser.give_up() if late else [])
            reply = self._take(found, wanted)
            if reply is not None or late:
                return reply
            asked = self._parser.needed
            data = self._advance(b"", limit, asked)
        return None

    def _take(self, found: list, wanted) -> hostlink.Reply | None:
        """Keep events; the reply to what was asked, if it is there. Others are of old requests."""
        reply = None
        for frame in found:
            if isinstance(frame, hostlink.Event):
                self.events.append(frame)
            elif (frame.tag, frame.space, frame.address, frame.count) == wanted:
                reply = frame
        return reply
