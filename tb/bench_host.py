"""Bench of the host port: frames of `arch.hostmap` against a model of host and bus."""
import struct

import cocotb
import numpy as np

from arch.hostmap import Command, EventFlag, Register, Space, Status
from hdl.host import ANSWER_LIMIT, space_words
from tb.bench import Bench, bench_test, bench_test_of
from tb.checker import Mismatch
from tb.top import CONFIG
from tb.wire import (BusDevice, Receiver, Sender, event, payload, reply, request, status_of,
                     stuffed)

SIZES = {Space(space): words for space, words in space_words(CONFIG).items()}
#: Cycles that anything may take.
PATIENCE = 3000


class HostBench(Bench):
    """The host port between a host and a bus.

    Parameters
    ----------
    seed : int or None
        Irregular paces and latencies, or the fastest ones.
    """

    def __init__(self, dut, seed=None):
        super().__init__(dut, "host")
        self.rng = np.random.default_rng(seed)
        pace = (lambda: True) if seed is None else lambda: bool(self.rng.random() < 0.6)
        self.rx = Sender(self._stream("rx"), pace)
        self.tx = Receiver(self._stream("tx"), pace)
        self.events = Sender(self._stream("event"))
        self.bus = BusDevice(self, lambda: 2 if seed is None else int(self.rng.integers(1, 6)))
        self.drivers += [self.rx, self.tx, self.events]
        self.handshakes += [self.rx, self.tx, self.events]
        self.monitors.append(self.bus)
        self.busy(False)
        self.written = 0  # tag of the last WRITE that was done

    def _stream(self, name):
        return tuple(self.port(f"{name}__{member}") for member in ("payload", "valid", "ready"))

    def busy(self, value):
        self.is_busy = value
        self.driver.set(self.cycle + 1, self.port("busy"), int(value))

    def send(self, data):
        self.rx.queue += list(data)

    def push_event(self, flags, position, token, cycles):
        """Have the sequencer offer an event; returns its frame."""
        low, word = 0, 0
        for value, bits in ((flags, 3), (position, CONFIG.position_bits),
                            (token, CONFIG.token_bits), (cycles, 16)):
            word |= int(value) << low
            low += bits
        self.events.queue.append(word)
        return event(flags, position, token, cycles)

    async def take(self, size):
        """The next bytes that the device sends."""
        for _ in range(PATIENCE):
            if len(self.tx.data) >= size:
                data = bytes(self.tx.data[:size])
                del self.tx.data[:size]
                return data
            await self.run(1)
        raise Mismatch(f"{size} bytes expected, got {bytes(self.tx.data).hex()}")

    async def expect(self, data):
        got = await self.take(len(data))
        if got != data:
            raise Mismatch(f"got {got.hex()}, not {data.hex()}")

    async def write(self, space, address, words, status=Status.OK):
        tag = (self.written + 1) & 0xFF
        self.send(request(Command.WRITE, tag, space, address, len(words))
                  + stuffed(payload(words)))
        await self.expect(reply(status, tag, space, address, len(words)))
        if status == Status.OK:
            self.written = tag

    async def read(self, space, address, words, tag=9):
        """Read; the answer must be ``words``."""
        self.send(request(Command.READ, tag, space, address, len(words)))
        await self.expect(reply(Status.OK, tag, space, address, len(words), words))

    async def finish(self, idle=80):
        """Nothing is left to send, and nothing comes any more."""
        await super().finish(idle)
        assert not self.rx.queue and not self.events.queue and not self.tx.data


@bench_test
async def quiet_after_reset(dut):
    bench = HostBench(dut)
    await bench.start()
    await bench.finish()
    assert not bench.bus.accesses


@bench_test
async def write_and_read(dut):
    """Words reach the bus in order, and are read back; five cycles per word of a WRITE."""
    bench = HostBench(dut)
    await bench.start()
    words = [0x1234, 0xFFFF, 0x4D4D, 0, 0x6D65]
    await bench.write(Space.CONSTANTS, 40, words)
    accesses = bench.bus.accesses
    assert [(at.space, at.address, at.word) for at in accesses] == [
        (Space.CONSTANTS, 40 + number, word) for number, word in enumerate(words)]
    apart = {after.cycle - before.cycle for before, after in zip(accesses, accesses[1:])}
    assert apart == {5}
    await bench.read(Space.CONSTANTS, 41, words[1:4])
    await bench.write(Space.ROWS, 0, [])
    await bench.read(Space.ROWS, 0, [])
    assert len(accesses) == len(words) + 3
    await bench.finish()


@bench_test
async def by_hand(dut):
    """A READ of the word at 32 of space 0, byte by byte: the CRCs are those of the standard."""
    bench = HostBench(dut)
    await bench.start()
    bench.bus.words[0, 32] = 0x4D45
    bench.send(bytes.fromhex("f5020100200000000100" "c43304e9"))
    await bench.expect(bytes.fromhex("6d000100200000000100" "5fd38e15" "454d" "9294bac4"))
    await bench.finish()


@bench_test
async def ranges(dut):
    """Every space to its last word, and one beyond; unknown spaces, commands and addresses."""
    bench = HostBench(dut)
    await bench.start()
    for space, size in SIZES.items():
        await bench.read(space, size - 1, [0])
        accesses = len(bench.bus.accesses)
        for address, count in ((size, 1), (size - 1, 2), (size, 0xFFFF), (1 << 24, 1),
                               (0xFFFFFFFF, 1)):
            bench.send(request(Command.READ, 3, space, address, count))
            await bench.expect(reply(Status.RANGE, 3, space, address, count))
        await bench.write(space, size - 1, [1, 2], status=Status.RANGE)
        # An empty access behind the last word is none.
        await bench.write(space, size, [])
        assert len(bench.bus.accesses) == accesses
    for space in (len(SIZES), 16, 17, 255):
        await bench.write(space, 0, [5], status=Status.RANGE)
    for command in (0, 5, 255):
        bench.send(request(command, 3, Space.ROWS, 0, 1))
        await bench.expect(reply(Status.RANGE, 3, Space.ROWS, 0, 1))
    await bench.finish()


@bench_test
async def busy(dut):
    """While a step runs only registers can be accessed; a refused WRITE is skipped."""
    bench = HostBench(dut)
    await bench.start()
    bench.busy(True)
    for space in set(Space) - {Space.REGISTERS}:
        await bench.write(space, 0, [0x4D4D] * 3, status=Status.BUSY)
        bench.send(request(Command.READ, 3, space, 0, 4))
        await bench.expect(reply(Status.BUSY, 3, space, 0, 4))
    assert not bench.bus.accesses
    await bench.write(Space.REGISTERS, Register.FIRST, [3])
    await bench.read(Space.REGISTERS, Register.FIRST, [3])
    bench.busy(False)
    await bench.write(Space.MEM, 0, [8])
    await bench.finish()


@bench_test
async def damage(dut):
    """Noise, a damaged header and a damaged payload; what follows is served."""
    bench = HostBench(dut)
    await bench.start()
    good = request(Command.WRITE, 1, Space.TOKENS, 1, 2) + payload([21, 22])
    bench.send(bytes(byte for byte in range(256) if byte != 0xF5))
    bench.send(good)
    await bench.expect(reply(Status.OK, 1, Space.TOKENS, 1, 2))
    good = request(Command.WRITE, 2, Space.TOKENS, 1, 2) + payload([23, 24])
    for place in range(1, 14):
        bad = bytearray(good[:14])
        bad[place] ^= 1 << place % 8
        bench.send(bad)
    await bench.run(13 * 16 + 40)
    assert not bench.tx.data and len(bench.bus.accesses) == 2
    for place in range(14, 22):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        bench.send(bad)
        await bench.expect(reply(Status.CRC, 2, Space.TOKENS, 1, 2))
        # What arrived has been written.
        written = [bench.bus.words[Space.TOKENS, 1 + place] for place in range(2)]
        assert written == list(struct.unpack("<2H", bad[14:18]))
    bench.send(good)
    await bench.expect(reply(Status.OK, 2, Space.TOKENS, 1, 2))
    await bench.finish()


@bench_test
async def sync(dut):
    """A frame that is cut anywhere does not cost the next one, even right behind an access."""
    bench = HostBench(dut)
    await bench.start()
    bench.bus.silent |= {(Space.TOKENS, 40)}
    for size in range(1, 24):
        cut = request(Command.WRITE, bench.written + 1, Space.TOKENS, 40, 3) + payload([1, 2, 3])
        bench.send(cut[:size])
        await bench.write(Space.TOKENS, 1, [size, 0xF5F6, 0xF6F5])
        await bench.read(Space.TOKENS, 1, [size, 0xF5F6, 0xF6F5])
    await bench.finish()


@bench_test_of(60_000)
async def once(dut):
    """A WRITE is done once, in the order of the tags; OPEN begins anew."""
    bench = HostBench(dut)
    await bench.start()
    for tag in range(1, 258):
        await bench.write(Space.TOKENS, 0, [tag, tag] if tag % 2 else [tag])
    accesses = len(bench.bus.accesses)
    tag = bench.written
    assert tag == 257 & 0xFF
    for behind in range(256):
        if behind == 1:
            continue
        here = (tag + behind) & 0xFF
        bench.send(request(Command.WRITE, here, Space.TOKENS, 0, 1) + payload([5]))
        status = Status.ORDER if behind else Status.OK
        await bench.expect(reply(status, here, Space.TOKENS, 0, 1))
    assert len(bench.bus.accesses) == accesses
    bench.send(request(Command.OPEN, 77, Space.REGISTERS, 0, 0))
    await bench.expect(reply(Status.OK, 77, Space.REGISTERS, 0, 0))
    bench.written = 77
    await bench.write(Space.TOKENS, 0, [6])
    assert len(bench.bus.accesses) == accesses + 1
    await bench.finish()


@bench_test
async def one_word(dut):
    """A word by itself is written when its CRC was right, COMMAND by no other frame."""
    bench = HostBench(dut)
    await bench.start()
    good = request(Command.WRITE, 1, Space.REGISTERS, 0, 1) + payload([1])
    for place in range(14, 20):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        bench.send(bad)
        await bench.expect(reply(Status.CRC, 1, Space.REGISTERS, 0, 1))
    await bench.write(Space.REGISTERS, 0, [1, 2], status=Status.RANGE)
    assert not bench.bus.accesses
    bench.send(good)
    await bench.expect(reply(Status.OK, 1, Space.REGISTERS, 0, 1))
    assert [(at.address, at.word) for at in bench.bus.accesses] == [(0, 1)]
    await bench.finish()


@bench_test
async def check(dut):
    """A CHECK reads what a READ reads, and sends nothing but its CRC."""
    bench = HostBench(dut)
    await bench.start()
    words = list(range(100, 140))
    await bench.write(Space.CONSTANTS, 7, words)
    accesses = len(bench.bus.accesses)
    for count in (40, 1, 0):
        bench.send(request(Command.CHECK, 3, Space.CONSTANTS, 7, count))
        await bench.expect(reply(Status.OK, 3, Space.CONSTANTS, 7, count)
                           + payload(words[:count])[-4:])
    assert len(bench.bus.accesses) == accesses + 41
    cycles = [at.cycle for at in bench.bus.accesses[accesses:accesses + 40]]
    assert {after - before for before, after in zip(cycles, cycles[1:])} == {7}
    bench.send(request(Command.CHECK, 3, Space.CONSTANTS, SIZES[Space.CONSTANTS], 1))
    await bench.expect(reply(Status.RANGE, 3, Space.CONSTANTS, SIZES[Space.CONSTANTS], 1))
    await bench.finish()


@bench_test
async def no_answer(dut):
    """An access that nobody answers is given up; a read gives 0."""
    bench = HostBench(dut)
    await bench.start()
    bench.bus.words.update({(Space.ROWS, address): 100 + address for address in range(4)})
    bench.bus.silent |= {(Space.ROWS, 1), (Space.ROWS, 2)}
    await bench.read(Space.ROWS, 0, [100, 0, 0, 103])
    await bench.write(Space.ROWS, 0, [1, 2, 3, 4])
    reads, writes = bench.bus.accesses[:4], bench.bus.accesses[4:]
    assert [at.address for at in writes] == [0, 1, 2, 3]
    for accesses in (reads, writes):
        for before, after in zip(accesses[1:], accesses[2:]):
            assert ANSWER_LIMIT < after.cycle - before.cycle < ANSWER_LIMIT + 10
    await bench.finish()


@bench_test
async def events(dut):
    """Events go before replies that have not begun, and never into one."""
    bench = HostBench(dut)
    await bench.start()
    first = [bench.push_event(flags, CONFIG.context - 1, CONFIG.vocab_max - 1, 0xFFFF)
             for flags in range(8)]
    await bench.expect(b"".join(first))
    bench.send(request(Command.READ, 1, Space.REGISTERS, 0, 4))
    await bench.take(3)
    late = bench.push_event(EventFlag.SAMPLED, 1, 2, 3)
    rest = reply(Status.OK, 1, Space.REGISTERS, 0, 4, [0] * 4)[3:]
    await bench.expect(rest + late)
    await bench.finish()


@bench_test
@cocotb.parametrize(seed=(1, 2))
async def random(dut, seed):
    """Requests behind each other with irregular paces on all sides, and events between replies."""
    bench, rng = HostBench(dut, seed), np.random.default_rng(seed)
    await bench.start()
    wanted, events_sent, words = [], [], {}
    for tag in range(60):
        bench.busy(bool(rng.random() < 0.2))
        space = Space(int(rng.integers(len(SIZES))))
        count = int(rng.integers(0, 7))
        address = int(rng.choice([0, 3, SIZES[space] - 6, SIZES[space] - 2]))
        address, in_range = max(address, 0), address + count <= SIZES[space]
        refused = bench.is_busy and space != Space.REGISTERS
        kind = rng.choice(["write", "read", "read", "damaged", "header", "cut"])
        if kind == "cut":
            frame = request(Command.READ, tag, space, address, count)
            bench.send(frame[:rng.integers(1, len(frame))])
        elif kind == "header":
            bad = bytearray(request(Command.READ, tag, space, address, count))
            bad[rng.integers(1, len(bad))] ^= 1 << rng.integers(8)
            bench.send(bad)
        elif kind == "read":
            status = status_of(False, in_range, refused)
            bench.send(request(Command.READ, tag, space, address, count))
            here = [words.get((space, address + place), 0) for place in range(count)]
            wanted.append(reply(status, tag, space, address, count,
                                here if status == Status.OK else None))
        else:
            data = bytearray(payload(rng.integers(1 << 16, size=count).tolist()))
            if kind == "damaged":
                data[rng.integers(len(data))] ^= 1 << rng.integers(8)
            behind = int(rng.choice([1, 1, 1, 0, 2, 255]))
            tag = (bench.written + behind) & 0xFF
            status = status_of(kind == "damaged", in_range, refused, behind)
            if space == Space.REGISTERS and address == 0 and count != 1:
                status = Status.RANGE
            bench.send(request(Command.WRITE, tag, space, address, count) + stuffed(data))
            if behind == 1 and (status == Status.OK or status == Status.CRC and count > 1):
                arrived = struct.unpack(f"<{count}H", data[:2 * count])
                words |= {(space, address + place): word for place, word in enumerate(arrived)}
            if behind == 1 and status == Status.OK:
                bench.written = tag
            wanted.append(reply(status, tag, space, address, count))
        if rng.random() < 0.3:
            events_sent.append(bench.push_event(*(int(rng.integers(limit)) for limit in (
                8, CONFIG.context, CONFIG.vocab_max, 1 << 16))))
        # The next request may come before this one is answered, if `busy` stays as it is.
        for _ in range(PATIENCE):
            if not bench.rx.queue:
                break
            await bench.run(1)
        await bench.run(60)
    await _drain(bench, wanted, events_sent)
    await bench.finish()
    assert {key: word for key, word in bench.bus.words.items() if word} == {
        key: word for key, word in words.items() if word}


async def _drain(bench, wanted, events_sent):
    """Take everything apart: replies in order, events in order, none inside of another."""
    while wanted or events_sent:
        head = await bench.take(14)
        if head[0] == event(0, 0, 0, 0)[0]:
            frame, rest = events_sent.pop(0), b""
        else:
            frame = wanted.pop(0)
            rest = await bench.take(len(frame) - 14)
        if head + rest != frame:
            raise Mismatch(f"got {(head + rest).hex()}, not {frame.hex()}")
