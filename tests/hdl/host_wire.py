"""The host's side of the byte stream in Amaranth's simulator.

Frames are built and checked with `struct` and `zlib` here, not with the code of the host tools.
"""
import struct
import zlib

from arch.hostmap import Command, EventFlag, Status


def with_crc(data):
    return data + struct.pack("<I", zlib.crc32(data))


def header(command, tag, space, address, count):
    return struct.pack("<BBBBIH", 0xF5, command, tag, space, address, count)


def write_frame(tag, space, address, words):
    return (with_crc(header(Command.WRITE, tag, space, address, len(words)))
            + with_crc(struct.pack(f"<{len(words)}H", *words)))


def stuffed(frame):
    """A frame as it goes over the line."""
    return frame[:1] + frame[1:].replace(b"\xf6", b"\xf6\xd6").replace(b"\xf5", b"\xf6\xd5")


class Wire:
    """The byte stream of a component in the simulator."""

    def __init__(self, dut, ctx):
        self.dut, self.ctx, self.received, self.cycles = dut, ctx, bytearray(), 0
        self.written = 0  # tag of the last WRITE that was done
        ctx.set(dut.tx.ready, 1)

    async def tick(self):
        """One cycle; whatever is sent in it is kept."""
        if self.ctx.get(self.dut.tx.valid) and self.ctx.get(self.dut.tx.ready):
            self.received.append(self.ctx.get(self.dut.tx.payload))
        await self.ctx.tick()
        self.cycles += 1

    async def send(self, data):
        for byte in data:
            self.ctx.set(self.dut.rx.payload, byte)
            self.ctx.set(self.dut.rx.valid, 1)
            for _ in range(100):
                taken = self.ctx.get(self.dut.rx.ready)
                await self.tick()
                if taken:
                    break
            else:
                raise AssertionError("a byte is not taken")
        self.ctx.set(self.dut.rx.valid, 0)

    async def take(self, size, limit=2000):
        for _ in range(limit):
            if len(self.received) >= size:
                data = bytes(self.received[:size])
                del self.received[:size]
                return data
            await self.tick()
        raise AssertionError(f"{size} bytes expected, {bytes(self.received).hex()} received")

    async def reply(self, tag, space, address, count, status=Status.OK):
        """Take a reply; it must be intact and belong to the request."""
        assert await self.take(14) == with_crc(
            struct.pack("<BBBBIH", 0x6D, status, tag, space, address, count))

    async def write(self, space, address, words, status=Status.OK):
        tag = (self.written + 1) & 0xFF
        await self.send(stuffed(write_frame(tag, space, address, words)))
        await self.reply(tag, space, address, len(words), status)
        if status == Status.OK:
            self.written = tag

    async def read(self, space, address, count, tag=9):
        await self.send(stuffed(with_crc(header(Command.READ, tag, space, address, count))))
        await self.reply(tag, space, address, count)
        data = await self.take(2 * count + 4)
        assert with_crc(data[:-4]) == data
        return list(struct.unpack(f"<{count}H", data[:-4]))

    async def event(self, limit=2000):
        """Take an event: flags, position, token, cycles."""
        data = await self.take(14, limit)
        assert with_crc(data[:-4]) == data
        sync, flags, position, token, cycles = struct.unpack("<BBHHI", data[:-4])
        assert sync == 0x65
        return EventFlag(flags), position, token, cycles
