"""Host port: frames of `arch.hostmap` on a byte stream, to accesses of the internal bus and back."""
from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.crc.catalog import CRC32_ETHERNET
from amaranth.lib.wiring import In, Out

from arch.config import Config
from arch.hostmap import (ESCAPE, ESCAPED, EVENT_BYTES, HEADER_BYTES, ROW_WORDS, SYNC_EVENT,
                          SYNC_REPLY, SYNC_REQUEST, Command, Register, Space, Status,
                          param_address, power_of_two, program_address)
from arch.queues import QUEUES
from hdl.bus import ADDRESS_BITS, BusSignature
from hdl.sequencer import event_layout

CRC_BYTES = 4
FRAME_BITS = 8 * HEADER_BYTES
#: Cycles after which an access that nobody answers counts as done; a read gives 0. The slowest
#: answer is that of word 15 of a program: 20 cycles (`hdl.program.ProgramPort`), and three registers
#: on the way (`hdl.bus.BusTap`, and that of all answers).
ANSWER_LIMIT = 31
#: Bits that tell the registers apart.
REGISTER_BITS = 6
#: Byte offsets in a frame: sync, command or status, tag, space, address, count.
_COMMAND, _TAG, _SPACE, _ADDRESS, _COUNT = 1, 2, 3, 4, 8


def space_words(config: Config) -> dict:
    """Words of every address space, gaps of queues and banks that do not exist included."""
    queues = max(QUEUES[name].id for name in config.queues) + 1
    return {
        Space.REGISTERS: max(Register) + 1,
        Space.PROGRAM: program_address(queues, 0, 0),
        Space.PARAMS: param_address(config, queues, 0, 0),
        Space.ROWS: config.param_rows * ROW_WORDS,
        Space.PATTERNS: config.patterns * config.lanes,
        Space.CONSTANTS: config.const_depth * config.lanes,
        Space.MEM: config.mem_banks * power_of_two(config.mem_depth) * config.lanes,
        Space.WEIGHTS: config.weight_depth * config.columns * config.pairs,
        Space.TOKENS: config.context,
    }


class HostPort(wiring.Component):
    """Serves one request after the other, and sends events between the replies.

    A WRITE takes four cycles per word if the bus answers within two cycles, one more for each
    further one; a CHECK six.

    Parameters
    ----------
    config : Config

    Members
    -------
    rx, tx : bytes from and to the host.
    bus : everything that can be accessed.
    busy : a step runs; only REGISTERS can be accessed.
    event : steps, as `hdl.sequencer.event_layout`.
    """

    def __init__(self, *, config: Config):
        self._config = config
        super().__init__({
            "rx": In(stream.Signature(8)), "tx": Out(stream.Signature(8)),
            "bus": Out(BusSignature()), "busy": In(1),
            "event": In(stream.Signature(event_layout(config)))})

    def elaborate(self, platform):
        m = Module()
        bus = self.bus
        # The request being served, and the handshake between its receiver and its sender.
        self._request = Signal(FRAME_BITS, name="request")
        self._status = Signal(range(max(Status) + 1), name="status")
        self._reply, self._replied = Signal(name="reply"), Signal(name="replied")
        self._address = Signal(ADDRESS_BITS, name="address")
        # Words left; that there are none, or one, told a cycle late: nobody asks sooner.
        self._left = Signal(16, name="left")
        self._none_left, self._one_left = Signal(name="none_left"), Signal(name="one_left")
        m.d.sync += [self._none_left.eq(self._left == 0), self._one_left.eq(self._left == 1)]

        # One access at a time, held until it is answered or given up. Answers come from all over the
        # chip, and late: what follows from them does so on the cycle after.
        self._pending, waited = Signal(name="pending"), Signal(range(ANSWER_LIMIT + 1))
        answered, given_up = Signal(), Signal()
        self._answer = Signal(16, name="answer")
        m.d.sync += [self._answer.eq(bus.r_data), given_up.eq(
            self._pending & ~answered & (waited == ANSWER_LIMIT - 1))]
        m.d.comb += [answered.eq(bus.ack | given_up),
                     bus.space.eq(self._request[8 * _SPACE:]), bus.address.eq(self._address)]
        m.d.sync += [waited.eq(Mux(self._pending & ~answered, waited + 1, 0)),
                     bus.w_en.eq(0), bus.r_en.eq(0), self._replied.eq(0)]
        with m.If(self._pending & answered):
            m.d.sync += [self._pending.eq(0), self._address.eq(self._address + 1)]
        self._receive(m)
        self._send(m)
        return m

    def _receive(self, m):
        """Take a header, check it, take the words of a WRITE, and have the reply sent."""
        bus, request, status = self.bus, self._request, self._status
        # What a byte is has been found out when it is acted upon. Two places: that one is taken does
        # not reach whoever has the next one before the cycle after.
        layout = data.StructLayout({"byte": 8, "sync": 1, "escape": 1})
        rx, byte = stream.Signature(layout).create(), self.rx.payload
        coming = Cat(byte, byte == SYNC_REQUEST, byte == ESCAPE)
        waiting, behind = Signal(), Signal(layout.size)
        m.d.comb += self.rx.ready.eq(~waiting)
        with m.If(rx.ready | ~rx.valid):
            m.d.sync += [waiting.eq(0), rx.valid.eq(waiting | self.rx.valid),
                         rx.payload.eq(Mux(waiting, behind, coming))]
        with m.Elif(self.rx.valid & ~waiting):
            m.d.sync += [waiting.eq(1), behind.eq(coming)]
        m.submodules.rx_crc = crc = CRC32_ETHERNET(data_width=8).create()
        self._open = Signal(name="open")
        begins, taken, byte = self._unescape(m, rx)
        count = Signal(range(HEADER_BYTES + CRC_BYTES + 1))
        low = Signal(8, reset_less=True)
        # Whether a CRC was right is told one cycle late, too.
        matched = Signal()
        m.d.sync += matched.eq(crc.match_detected)
        m.d.comb += [crc.data.eq(byte), crc.valid.eq(begins | taken), crc.start.eq(begins)]
        # The tag of the last WRITE done; whether this one is to be done; whether it is one word.
        last, acts, one = Signal(8), Signal(), Signal()
        measured = self._measure(m, last)

        def unless_begun():
            """Whatever is being received: a sync byte begins the next request."""
            with m.If(begins):
                m.d.sync += count.eq(1)
                m.next = "HEADER"
        with m.FSM(name="receive"):
            with m.State("SYNC"):
                m.d.comb += self._open.eq(1)
                unless_begun()
            with m.State("HEADER"):
                # An access of the request before holds on to its space until it is answered.
                m.d.comb += self._open.eq(~self._pending)
                with m.If(taken):
                    m.d.sync += count.eq(count + 1)
                    with m.If(count < HEADER_BYTES):
                        # Bytes enter at the top; after the last one byte k is in its place.
                        m.d.sync += request.eq(Cat(request[8:], byte))
                    with m.If(count == HEADER_BYTES + CRC_BYTES - 1):
                        m.next = "SUMMED"
                unless_begun()
            with m.State("SUMMED"):
                m.next = "CHECK"
            with m.State("CHECK"):
                m.d.comb += crc.start.eq(1)
                m.next = "SYNC"
                with m.If(matched):
                    m.d.sync += [self._address.eq(request[8 * _ADDRESS:]),
                                 self._left.eq(request[8 * _COUNT:])]
                    m.next = "MEASURE"
            with m.State("MEASURE"):
                m.next = "COMPARE"
            with m.State("COMPARE"):
                m.next = "JUDGE"
            with m.State("JUDGE"):
                m.d.sync += [count.eq(0), one.eq(self._one_left)]
                self._judge(m, *measured, last, acts)
                m.next = "REPLY"
                with m.If(request[8 * _COMMAND:][:8] == Command.WRITE):
                    m.next = "LOW"
                    with m.If(self._none_left):
                        m.next = "TRAILER"
            with m.State("LOW"):
                m.d.comb += self._open.eq(1)
                with m.If(taken):
                    m.d.sync += low.eq(byte)
                    m.next = "HIGH"
                unless_begun()
            with m.State("HIGH"):
                m.d.comb += self._open.eq(~self._pending)
                with m.If(taken):
                    m.d.sync += [bus.w_data.eq(Cat(low, byte)), self._left.eq(self._left - 1)]
                    with m.If(acts & ~one):
                        m.d.sync += [bus.w_en.eq(1), self._pending.eq(1)]
                    m.next = "LOW"
                    with m.If(self._one_left):
                        m.next = "TRAILER"
                unless_begun()
            with m.State("TRAILER"):
                m.d.comb += self._open.eq(1)
                with m.If(taken):
                    m.d.sync += count.eq(count + 1)
                    with m.If(count == CRC_BYTES - 1):
                        m.next = "SUMMED_ALL"
                unless_begun()
            with m.State("SUMMED_ALL"):
                m.next = "VERIFY"
            with m.State("VERIFY"):
                with m.If(~self._pending):
                    m.next = "REPLY"
                    with m.If((status == Status.OK) & ~matched):
                        m.d.sync += status.eq(Status.CRC)
                    with m.Elif(acts):
                        # Done, and not again; one word is written now, and waited for.
                        m.d.sync += [last.eq(request[8 * _TAG:]), acts.eq(0)]
                        with m.If(one):
                            m.d.sync += [bus.w_en.eq(1), self._pending.eq(1)]
                            m.next = "VERIFY"
            with m.State("REPLY"):
                m.d.comb += self._reply.eq(1)
                with m.If(self._replied):
                    m.next = "SYNC"

    def _unescape(self, m, rx):
        """Take bytes where the receiver is ``open``; the cycle after, whether it was one that begins a
        request, whether it is one of it, and which. None is taken on that cycle: the receiver acts."""
        now, acting = rx.valid & rx.ready, Signal()
        sync, escape = rx.payload.sync, rx.payload.escape
        escaped, begins, taken = Signal(), Signal(name="begins"), Signal(name="taken")
        byte = Signal(8, name="byte", reset_less=True)
        with m.If(now):
            m.d.sync += escaped.eq(escape)
        m.d.comb += rx.ready.eq(self._open & ~acting)
        m.d.sync += [acting.eq(now), begins.eq(now & sync), taken.eq(now & ~sync & ~escape),
                     byte.eq(rx.payload.byte ^ Mux(escaped & ~sync, ESCAPED, 0))]
        return begins, taken, byte

    def _measure(self, m, last):
        """Two cycles after the address: whether the request is none; whether its tag is the next
        one, and the last one."""
        request = self._request
        command, tag, space = (request[8 * place:][:8] for place in (_COMMAND, _TAG, _SPACE))
        limit, end, room = (Signal(ADDRESS_BITS + 2, name=name, reset_less=True)
                            for name in ("limit", "end", "room"))
        m.d.sync += [limit.eq(0), end.eq(self._address + self._left)]
        # A subtraction, not a comparison: it goes into carry cells.
        m.d.comb += room.eq(limit - end)
        with m.Switch(space):
            for number, words in space_words(self._config).items():
                with m.Case(int(number)):
                    m.d.sync += limit.eq(words)
        # COMMAND acts when its CRC was right: it must be a word of its own.
        streamed = (command == Command.WRITE) & (space == Space.REGISTERS) & ~self._one_left & (
            self._address[:REGISTER_BITS] == Register.COMMAND)
        behind = Signal(8)
        wrong, follows, repeats = Signal(), Signal(), Signal()
        m.d.comb += behind.eq(tag - last)
        m.d.sync += [
            wrong.eq((command < Command.WRITE) | (command > Command.OPEN) | streamed
                     | request[8 * _ADDRESS + ADDRESS_BITS:8 * _COUNT].any()
                     | room[-1]),
            follows.eq(behind == 1), repeats.eq(behind == 0)]
        return wrong, follows, repeats

    def _judge(self, m, wrong, follows, repeats, last, acts):
        """The status of a request with a right header, and whether a WRITE is to be done."""
        request, status = self._request, self._status
        command, tag, space = (request[8 * place:][:8] for place in (_COMMAND, _TAG, _SPACE))
        m.d.sync += [status.eq(Status.OK), acts.eq(0)]
        with m.If(wrong):
            m.d.sync += status.eq(Status.RANGE)
        with m.Elif(self.busy & (space != Space.REGISTERS)):
            m.d.sync += status.eq(Status.BUSY)
        with m.Elif(command == Command.OPEN):
            m.d.sync += last.eq(tag)
        with m.Elif(command == Command.WRITE):
            m.d.sync += acts.eq(follows)
            with m.If(~follows & ~repeats):
                m.d.sync += status.eq(Status.ORDER)

    def _send(self, m):
        """Send a reply, the words of a READ behind it, or an event."""
        tx, bus, request = self.tx, self.bus, self._request
        m.submodules.tx_crc = crc = CRC32_ETHERNET(data_width=8).create()
        frame, left, is_event = Signal(FRAME_BITS), Signal(range(HEADER_BYTES + 1)), Signal()
        reads, in_words = Signal(), Signal()
        # Of the words of a CHECK, only the CRC is sent.
        command, sent, quiet = request[8 * _COMMAND:][:8], Signal(), Signal()
        m.d.comb += [tx.payload.eq(frame[:8]), crc.data.eq(tx.payload),
                     sent.eq(tx.valid & tx.ready)]
        assert EVENT_BYTES == HEADER_BYTES
        event = self.event.payload
        reply_frame = Cat(Const(SYNC_REPLY, 8), self._status, Const(0, 5),
                          request[8 * _TAG:])
        event_frame = Cat(Const(SYNC_EVENT, 8), event.flags, Const(0, 5),
                          Cat(event.position, Const(0, 16))[:16],
                          Cat(event.token, Const(0, 16))[:16], event.cycles, Const(0, 16))
        assert len(reply_frame) == len(event_frame) == FRAME_BITS
        with m.FSM(name="send"):
            with m.State("IDLE"):
                m.d.comb += crc.start.eq(1)
                m.d.sync += [left.eq(HEADER_BYTES), in_words.eq(0), quiet.eq(0), reads.eq(
                    ((command == Command.READ) | (command == Command.CHECK))
                    & (self._status == Status.OK))]
                with m.If(self.event.valid):
                    m.d.comb += self.event.ready.eq(1)
                    m.d.sync += [frame.eq(event_frame), is_event.eq(1)]
                    m.next = "BYTES"
                with m.Elif(self._reply & ~self._replied):
                    m.d.sync += [frame.eq(reply_frame), is_event.eq(0)]
                    m.next = "BYTES"
            with m.State("BYTES"):
                m.d.comb += [tx.valid.eq(~quiet), crc.valid.eq(sent | quiet)]
                with m.If(sent | quiet):
                    m.d.sync += [frame.eq(frame[8:]), left.eq(left - 1)]
                    with m.If(left == 1):
                        m.next = "CRC"
                        with m.If(in_words & ~self._none_left):
                            m.next = "FETCH"
            with m.State("FETCH"):
                m.d.sync += [bus.r_en.eq(1), self._pending.eq(1)]
                m.next = "WAIT"
            with m.State("WAIT"):
                with m.If(~self._pending):
                    m.d.sync += [frame.eq(self._answer), left.eq(2), self._left.eq(self._left - 1)]
                    m.next = "BYTES"
            with m.State("CRC"):
                m.d.sync += [frame.eq(crc.crc), left.eq(CRC_BYTES)]
                m.next = "TRAILER"
            with m.State("TRAILER"):
                m.d.comb += tx.valid.eq(1)
                with m.If(sent):
                    m.d.sync += [frame.eq(frame[8:]), left.eq(left - 1)]
                    with m.If(left == 1):
                        m.next = "IDLE"
                        with m.If(~is_event & reads & ~in_words):
                            m.next = "WORDS"
                        with m.Elif(~is_event):
                            m.d.sync += self._replied.eq(1)
            with m.State("WORDS"):
                m.d.comb += crc.start.eq(1)
                m.d.sync += [in_words.eq(1), quiet.eq(command == Command.CHECK)]
                m.next = "CRC"
                with m.If(~self._none_left):
                    m.next = "FETCH"
