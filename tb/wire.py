"""The host's side of the byte stream, and the far side of the bus, for the bench of the host port.

Frames are put together and taken apart with `struct` and `zlib`, as `arch.hostmap` words them.
"""
import dataclasses
import struct
import zlib

from arch.hostmap import Command, Status
from tb.checker import Mismatch
from tb.monitors import number

SYNC_REQUEST, SYNC_REPLY, SYNC_EVENT = 0xF5, 0x6D, 0x65


def with_crc(data: bytes) -> bytes:
    return data + struct.pack("<I", zlib.crc32(data))


def stuffed(data) -> bytes:
    """Bytes behind the sync byte as they go over the line."""
    return b"".join(bytes([0xF6, byte ^ 0x20]) if byte in (0xF5, 0xF6) else bytes([byte])
                    for byte in data)


def request(command, tag, space, address, count) -> bytes:
    head = with_crc(struct.pack("<BBBBIH", SYNC_REQUEST, command, tag, space, address, count))
    return head[:1] + stuffed(head[1:])


def payload(words) -> bytes:
    return with_crc(struct.pack(f"<{len(words)}H", *words))


def reply(status, tag, space, address, count, words=None) -> bytes:
    head = with_crc(struct.pack("<BBBBIH", SYNC_REPLY, status, tag, space, address, count))
    return head + (b"" if words is None else payload(words))


def event(flags, position, token, cycles) -> bytes:
    return with_crc(struct.pack("<BBHHI", SYNC_EVENT, flags, position, token, cycles))


class Sender:
    """Sends items over a stream with valid and ready; an item stays until it is taken.

    Parameters
    ----------
    pace : callable
        Whether the next item may be offered on this cycle.
    """

    def __init__(self, handles, pace=lambda: True):
        self._payload, self._valid, self._ready = handles
        self._pace, self.queue, self._offered = pace, [], False
        self.taken = 0

    def drive(self, cycle: int) -> None:
        if not self._offered:
            self._offered = bool(self.queue) and self._pace()
            self._valid.value = int(self._offered)
            if self._offered:
                self._payload.value = self.queue[0]

    def settle(self, cycle: int) -> None:
        if self._offered and number(self._ready, cycle):
            self.queue.pop(0)
            self.taken += 1
            self._offered = False


class Receiver:
    """Takes bytes from a stream; once offered, a byte must stay until it is taken."""

    def __init__(self, handles, pace=lambda: True):
        self._payload, self._valid, self._ready = handles
        self._pace, self.data, self._waiting = pace, bytearray(), None
        self._open = False

    def drive(self, cycle: int) -> None:
        self._open = self._pace()
        self._ready.value = int(self._open)

    def settle(self, cycle: int) -> None:
        byte = number(self._payload, cycle) if number(self._valid, cycle) else None
        if self._waiting is not None and byte != self._waiting:
            raise Mismatch(f"cycle {cycle}: byte {self._waiting:#x} was withdrawn")
        self._waiting = None if self._open else byte
        if self._open and byte is not None:
            self.data.append(byte)


@dataclasses.dataclass
class Access:
    """One request on the bus."""
    cycle: int
    space: int
    address: int
    word: int | None


class BusDevice:
    """Answers on the bus from a dict of words; one access at a time, held to its answer.

    Members
    -------
    words : dict of (space, address) to word; others read 0.
    silent : addresses that never answer.
    accesses : list of Access, in order.
    """

    def __init__(self, bench, latency):
        self._bench, self._latency = bench, latency
        self._port = {name: bench.port(f"bus__{name}")
                      for name in ("space", "address", "w_en", "r_en", "w_data", "r_data", "ack")}
        self.words, self.silent, self.accesses = {}, set(), []
        self._until, self._held = -1, None
        bench.driver.set(0, self._port["ack"], 0)
        bench.driver.set(0, self._port["r_data"], 0)

    def sample(self, cycle: int) -> None:
        w_en, r_en = number(self._port["w_en"], cycle), number(self._port["r_en"], cycle)
        if not w_en and not r_en:
            if cycle <= self._until and self._address(cycle) != self._held:
                raise Mismatch(f"cycle {cycle}: the access changes before its answer")
            return
        if w_en and r_en or cycle <= self._until:
            raise Mismatch(f"cycle {cycle}: two accesses at a time")
        space, address = self._held = self._address(cycle)
        word = number(self._port["w_data"], cycle) if w_en else None
        self.accesses.append(Access(cycle, space, address, word))
        if (space, address) in self.silent:
            self._until = cycle
            return
        self._until = cycle + self._latency()
        if w_en:
            self.words[space, address] = word
        else:
            self._bench.driver.pulse(self._until, self._port["r_data"],
                                     self.words.get((space, address), 0), 0)
        self._bench.driver.pulse(self._until, self._port["ack"], 1, 0)

    def _address(self, cycle) -> tuple:
        return number(self._port["space"], cycle), number(self._port["address"], cycle)


def status_of(damaged: bool, in_range: bool, busy: bool, behind: int = 1) -> Status:
    """Of a WRITE whose tag is ``behind`` more than that of the last one; a READ has no payload."""
    if not in_range:
        return Status.RANGE
    if busy:
        return Status.BUSY
    if behind not in (0, 1):
        return Status.ORDER
    return Status.CRC if damaged else Status.OK


