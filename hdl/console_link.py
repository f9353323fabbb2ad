"""A host on the chip's own board: writes single words by frames, and tells replies from events."""
from amaranth import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.crc.catalog import CRC32_ETHERNET
from amaranth.lib.wiring import In, Out

from arch.hostmap import (ESCAPE, ESCAPED, EVENT_BYTES, HEADER_BYTES, SYNC_EVENT, SYNC_REPLY,
                          SYNC_REQUEST, Command)

CRC_BYTES = 4
#: Header, its CRC, one word, its CRC.
FRAME_BYTES = HEADER_BYTES + CRC_BYTES + 2 + CRC_BYTES


class WordWriter(wiring.Component):
    """Frames that write one word each, with the tags 1, 2, ... from ``restart`` on.

    Members
    -------
    restart : the tag of the last write was 0.
    start : send a frame, whose ``space``, ``address`` and ``word`` stay until ``done``.
    o : its bytes.
    done : high on the cycle on which the last byte is taken.
    """

    def __init__(self):
        super().__init__({"restart": In(1), "start": In(1), "space": In(4), "address": In(16), "word": In(16),
                          "o": Out(stream.Signature(8)), "done": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.crc = crc = CRC32_ETHERNET(data_width=8).create()
        at, busy, sent = Signal(range(FRAME_BYTES)), Signal(), Signal()
        check, in_crc = Signal(32), Signal()
        # The byte that is sent has been chosen on the cycle before, in which none is on offer.
        tag, chosen, byte, there = Signal(8), Signal(8), Signal(8), Signal()
        # Of a byte that must not be sent as it is, the first of its two bytes has been sent.
        special, escaping = Signal(), Signal()
        payload = HEADER_BYTES + CRC_BYTES
        plain = Array([Const(SYNC_REQUEST, 8), Const(Command.WRITE, 8), tag, self.space,
                       self.address[:8], self.address[8:], Const(0, 8), Const(0, 8), Const(1, 8),
                       Const(0, 8)])
        m.d.comb += [
            in_crc.eq((at >= HEADER_BYTES) & (at < payload) | (at >= payload + 2)),
            self.o.valid.eq(there), sent.eq(there & self.o.ready & (~special | escaping)),
            self.o.payload.eq(Mux(escaping, byte ^ ESCAPED, Mux(special, ESCAPE, byte))),
            crc.data.eq(byte), crc.valid.eq(sent & ~in_crc),
            crc.start.eq(~busy | sent & (at == payload - 1)),
            self.done.eq(sent & (at == FRAME_BYTES - 1))]
        with m.If(in_crc):
            # A CRC is there one cycle after the last byte that it covers: as long as none is sent.
            first = (at == HEADER_BYTES) | (at == payload + 2)
            m.d.comb += chosen.eq(Mux(first, crc.crc[:8], check[:8]))
            with m.If(sent):
                m.d.sync += check.eq(Mux(first, crc.crc, check) >> 8)
        with m.Elif(at >= payload):
            m.d.comb += chosen.eq(Mux(at[0], self.word[8:], self.word[:8]))
        with m.Else():
            m.d.comb += chosen.eq(plain[at])
        m.d.sync += [byte.eq(chosen), there.eq(busy & ~sent), special.eq(
            (at != 0) & ((chosen == SYNC_REQUEST) | (chosen == ESCAPE)))]
        with m.If(self.start):
            m.d.sync += [busy.eq(1), at.eq(0), tag.eq(tag + 1)]
        with m.Elif(sent):
            m.d.sync += [at.eq(at + 1), busy.eq(at != FRAME_BYTES - 1)]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += escaping.eq(special & ~escaping)
        with m.If(self.restart):
            m.d.sync += tag.eq(0)
        return m


class FrameReader(wiring.Component):
    """What the chip sends, frame by frame; there are no words in it, for nothing is read.

    Members
    -------
    i : bytes from the chip.
    valid : a frame is complete; the next one waits until ``take``.
    is_event, code, token : an event, not a reply; its flags, or its status; its token.
    """

    def __init__(self):
        super().__init__({"i": In(stream.Signature(8)), "valid": Out(1), "take": In(1),
                          "is_event": Out(1), "code": Out(8), "token": Out(16)})

    def elaborate(self, platform):
        m = Module()
        assert HEADER_BYTES == EVENT_BYTES
        size = HEADER_BYTES + CRC_BYTES
        at = Signal(range(size + 1))
        byte = self.i.payload
        m.d.comb += [self.valid.eq(at == size), self.i.ready.eq(~self.valid)]
        with m.If(self.valid):
            with m.If(self.take):
                m.d.sync += at.eq(0)
        with m.Elif(self.i.valid):
            m.d.sync += at.eq(at + 1)
            with m.Switch(at):
                with m.Case(0):
                    m.d.sync += self.is_event.eq(byte == SYNC_EVENT)
                    with m.If((byte != SYNC_EVENT) & (byte != SYNC_REPLY)):
                        m.d.sync += at.eq(0)
                with m.Case(1):
                    m.d.sync += self.code.eq(byte)
                with m.Case(4, 5):
                    m.d.sync += self.token.eq(Cat(self.token[8:], byte))
        return m
