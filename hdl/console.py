"""Between serial line and chip: loads the model at power-up, and speaks with people.

At power-up the frames of `arch.flash` go to the chip as if a host had sent them. From then on the
line is a plain terminal: typed characters become tokens of the prompt, Enter or the button starts a
story, which is text. At power-up one starts by itself. A key or the button ends a story.

A host says by its first frame that it is one: no text contains `SYNC_REQUEST`. From then on every byte passes between line and chip; the button loads the flash again.
With no model in the flash the line belongs to the host from the start.
"""
from amaranth import Array, Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from arch import flash
from arch.config import Config
from arch.hostmap import (ABORT, CLEAR, NO_TOKEN, RUN, SYNC_REQUEST, EventFlag, Register, Space,
                          Status)
from hdl.console_link import FrameReader, WordWriter
from hdl.flash import ADDRESS_BITS, FlashReader

ENTER, BACKSPACE, DELETE = 0x0D, 0x08, 0x7F
#: What is said besides text: over a character, and after a story.
ERASE, PAUSE = b"\x08 \x08", b"\r\n\r\n"
#: Cycles that the last answers may take as the flash is read, and behind a host.
ANSWER_CYCLES = 1 << 16
#: What is written: a token of a prompt, what begins a story, what ends one.
STORE, START, STOP = range(3)
#: What is written to begin a story; the prompt and two words of the seed are not constant.
_SEQUENCE = (Register.PROMPT, Register.SEED0, Register.SEED1, Register.COMMAND, Register.COMMAND)


class Console(wiring.Component):
    """See above.

    Parameters
    ----------
    config : Config

    Members
    -------
    line_rx, line_tx : bytes from and to the serial line.
    chip_rx, chip_tx : bytes to and from the chip.
    button : active high, without bounces.
    speaking : a model was loaded, and the line is a terminal.
    failed : a model is in the flash, but the chip did not take it.
    flash_select, flash_clock, flash_out, flash_in : pins of the flash.
    """

    def __init__(self, *, config: Config):
        self._config = config
        byte = stream.Signature(8)
        super().__init__({
            "line_rx": In(byte), "line_tx": Out(byte), "chip_rx": Out(byte), "chip_tx": In(byte),
            "button": In(1), "speaking": Out(1), "failed": Out(1), "flash_select": Out(1),
            "flash_clock": Out(1), "flash_out": Out(1), "flash_in": In(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.flash = self._flash = reader = FlashReader()
        m.submodules.writer = self._writer = WordWriter()
        m.submodules.frames = self._frames = FrameReader()
        m.d.comb += [self.flash_select.eq(reader.select), self.flash_clock.eq(reader.clock),
                     self.flash_out.eq(reader.out), reader.in_.eq(self.flash_in)]
        # The button counts as it is pressed, until it is heard.
        before, self._pressed = Signal(), Signal(name="pressed")
        m.d.sync += before.eq(self.button)
        with m.If(self.button & ~before):
            m.d.sync += self._pressed.eq(1)
        self._time = Signal(32, name="time")
        m.d.sync += self._time.eq(self._time + 1)
        # Tokens of the prompt, the token that begins a text included.
        self._count = Signal(range(self._config.context + 1), init=1, name="count")
        self._token, self._char = Signal(16, name="token"), Signal(8, name="char")
        # Cycles left to wait for what is on its way; that there are none, a cycle late.
        self._since, self._waited = (Signal(range(ANSWER_CYCLES + 1), name="since"),
                                     Signal(name="waited"))
        m.d.sync += self._waited.eq(self._since == 0)
        self._running, self._step = Signal(name="running"), Signal(3, name="step")
        # A story is told; nothing of it is told any more; its seed.
        self._telling, self._quiet = Signal(name="telling"), Signal(name="quiet")
        self._seed = Signal(32, name="seed")
        self._write = Signal(2, name="write")
        self._word(m)
        frames = self._frames
        with m.If(frames.valid & frames.take & frames.is_event
                  & ((frames.code & EventFlag.LAST) != 0)):
            m.d.sync += self._running.eq(0)
        with m.FSM(name="console"):
            self._boot(m)
            self._host(m)
            self._listen(m)
            self._tell(m)
            self._send(m)
        return m

    def _read(self, m, address):
        """Read the flash from an address behind that of the model on."""
        offset = Const(flash.IMAGE_OFFSET >> flash.OFFSET_BITS, ADDRESS_BITS - flash.OFFSET_BITS)
        m.d.comb += [self._flash.read.eq(1), self._flash.address.eq(
            Cat((address | Const(0, flash.OFFSET_BITS))[:flash.OFFSET_BITS], offset))]

    def _boot(self, m):
        """Header of the flash, then its frames; every one must be answered OK."""
        flash_bytes, frames = self._flash.o, self._frames
        at, size, left = Signal(4), Signal(flash.OFFSET_BITS), Signal(16)
        # Bytes are left, and answers: told a cycle late, which is long before the next one comes.
        good, more, awaited = Signal(), Signal(), Signal()
        m.d.sync += [more.eq(size != 0), awaited.eq(left != 0)]
        with m.State("HEADER"):
            self._read(m, Const(0))
            m.d.comb += flash_bytes.ready.eq(1)
            m.d.sync += [self.speaking.eq(0), self.failed.eq(0), self._pressed.eq(0),
                         self._since.eq(ANSWER_CYCLES), self._waited.eq(0)]
            with m.If(flash_bytes.valid):
                m.d.sync += at.eq(at + 1)
                with m.Switch(at):
                    for number, byte in enumerate(flash.MAGIC):
                        with m.Case(number):
                            m.d.sync += good.eq((good | (number == 0))
                                                & (flash_bytes.payload == byte))
                    for number in range(3):
                        part = size[8 * number:8 * number + 8]
                        with m.Case(4 + number):
                            m.d.sync += part.eq(flash_bytes.payload)
                    for number in range(2):
                        with m.Case(8 + number):
                            m.d.sync += left[8 * number:8 * number + 8].eq(flash_bytes.payload)
                with m.If(at == flash.HEADER.size - 1):
                    m.d.sync += at.eq(0)
                    m.next = "MODEL"
                    with m.If(~good):
                        m.next = "HOST"
        with m.State("MODEL"):
            # The reader is between two commands for the first cycles, with nothing on offer.
            with m.If(more):
                m.d.comb += [self.chip_rx.valid.eq(flash_bytes.valid & at[0]),
                             self.chip_rx.payload.eq(flash_bytes.payload),
                             flash_bytes.ready.eq(self.chip_rx.ready & at[0])]
                with m.If(at[0]):
                    self._read(m, Const(flash.FRAMES))
                m.d.sync += at.eq(1)
                with m.If(flash_bytes.valid & flash_bytes.ready):
                    m.d.sync += size.eq(size - 1)
            with m.Else():
                m.d.sync += self._since.eq(self._since - 1)
            connect(m, flipped(self.chip_tx), frames.i)
            m.d.comb += frames.take.eq(1)
            with m.If(frames.valid & ~frames.is_event):
                m.d.sync += left.eq(left - 1)
                with m.If(frames.code != Status.OK):
                    m.d.sync += self.failed.eq(1)
            with m.If(self.failed | self._waited):
                m.d.sync += [self.failed.eq(1), at.eq(0)]
                m.next = "HOST"
            with m.Elif(~more & ~awaited):
                m.d.sync += [self.speaking.eq(1), self._count.eq(1), at.eq(0)]
                m.d.comb += self._writer.restart.eq(1)
                m.next = "START"
        with m.State("AGAIN"):
            # What a host has left on its way, and the answers to it, is none of the console's.
            m.d.comb += [self.line_rx.ready.eq(1), self.chip_tx.ready.eq(1)]
            m.d.sync += self._since.eq(self._since - 1)
            with m.If(self._waited):
                m.next = "HEADER"

    def _host(self, m):
        """The line and the chip, as if there was nothing between them."""
        with m.State("SYNC"):
            # The byte that has been taken from the line already.
            m.d.comb += [self.chip_rx.valid.eq(1), self.chip_rx.payload.eq(SYNC_REQUEST)]
            with m.If(self.chip_rx.ready):
                m.next = "HOST"
        with m.State("HOST"):
            m.d.sync += self.speaking.eq(0)
            for source, target in ((self.line_rx, self.chip_rx), (self.chip_tx, self.line_tx)):
                m.d.comb += [target.valid.eq(source.valid), target.payload.eq(source.payload),
                             source.ready.eq(target.ready)]
            m.d.sync += [self._since.eq(ANSWER_CYCLES), self._waited.eq(0)]
            with m.If(self._pressed):
                m.next = "AGAIN"

    def _listen(self, m):
        """Wait for a key or the button; take a prompt."""
        line, count = self.line_rx, self._count
        full = count == self._config.context - 1
        key, byte, at = line.payload, self._flash.o, Signal()
        with m.State("LISTEN"):
            m.d.comb += line.ready.eq(~self._pressed)
            m.d.sync += [self._char.eq(key), at.eq(0)]
            with m.If(self._pressed):
                m.d.sync += [self._pressed.eq(0), count.eq(1)]
                m.next = "START"
            with m.Elif(line.valid):
                m.next = "KEY"
                with m.If(key == ENTER):
                    m.next = "START"
                with m.Elif((key == BACKSPACE) | (key == DELETE)):
                    with m.If(count == 1):
                        m.next = "LISTEN"
                    with m.Else():
                        m.d.sync += [count.eq(count - 1), self._step.eq(0)]
                        m.next = "SAY"
                with m.Elif(key == SYNC_REQUEST):
                    m.next = "SYNC"
        with m.State("KEY"):
            # Two bytes of the table.
            self._read(m, flash.BYTE_TABLE | self._char << 1)
            m.d.comb += byte.ready.eq(1)
            with m.If(byte.valid):
                m.d.sync += [self._token.eq(Cat(self._token[8:], byte.payload)), at.eq(1)]
                with m.If(at):
                    m.next = "TYPED"
        with m.State("TYPED"):
            m.next = "LISTEN"
            with m.If((self._token != NO_TOKEN) & ~full):
                m.next = "STORE"
        with m.State("SAY"):
            m.d.comb += [line.ready.eq(0), self.line_tx.valid.eq(1), self.line_tx.payload.eq(
                Array([Const(byte, 8) for byte in ERASE + PAUSE])[self._step])]
            with m.If(self.line_tx.ready):
                m.d.sync += self._step.eq(self._step + 1)
                with m.If((self._step == len(ERASE) - 1)
                          | (self._step == len(ERASE + PAUSE) - 1)):
                    m.next = "LISTEN"

    def _tell(self, m):
        """The text of a token, and what is to come after it."""
        frames, byte, left = self._frames, self._flash.o, Signal(5)
        with m.State("EVENT"):
            # A story goes on until its last event, a key, or the button.
            connect(m, flipped(self.chip_tx), frames.i)
            with m.If(~self._running):
                m.d.sync += self._step.eq(len(ERASE))
                m.next = "SAY"
            with m.Elif(~self._quiet & (self.line_rx.valid | self._pressed)):
                m.d.sync += self._quiet.eq(1)
                m.next = "STOP"
            with m.Elif(frames.valid):
                m.d.comb += frames.take.eq(1)
                m.d.sync += self._token.eq(frames.token)
                with m.If(frames.is_event & ((frames.code & EventFlag.SAMPLED) != 0)
                          & ~self._quiet):
                    m.next = "TEXT"
        with m.State("TEXT"):
            self._read(m, flash.TEXTS | self._token << 4)
            m.d.comb += [self.line_tx.valid.eq(byte.valid & (left != 0)),
                         self.line_tx.payload.eq(byte.payload),
                         byte.ready.eq(self.line_tx.ready | (left == 0))]
            with m.If(byte.valid & byte.ready):
                m.d.sync += left.eq(left - 1)
                with m.If(left == 0):
                    # The first byte says how many there are.
                    m.d.sync += left.eq(byte.payload)
                with m.If((left == 1) | (left == 0) & (byte.payload == 0)):
                    m.next = "LISTEN"
                    with m.If(self._telling):
                        m.next = "EVENT"

    def _word(self, m):
        """What is written, while it is written."""
        writer, frames, count = self._writer, self._frames, self._count
        m.d.comb += [writer.space.eq(Space.REGISTERS), writer.address.eq(Register.COMMAND),
                     writer.word.eq(ABORT)]
        with m.If(self._write == STORE):
            m.d.comb += [writer.space.eq(Space.TOKENS), writer.address.eq(count),
                         writer.word.eq(self._token)]
        with m.If(self._write == START):
            words = (count, self._seed[:16], self._seed[16:], Const(CLEAR), Const(RUN))
            m.d.comb += [writer.address.eq(Array(_SEQUENCE)[self._step]),
                         writer.word.eq(Array(words)[self._step])]

    def _send(self, m):
        """Write words: a token of the prompt, what begins a story, what ends one."""
        writer, frames, count = self._writer, self._frames, self._count
        for number, name in enumerate(("STORE", "START", "STOP")):
            with m.State(name):
                m.d.sync += [self._write.eq(number), self._step.eq(0),
                             self._telling.eq(number != STORE)]
                if number == START:
                    m.d.sync += [self._running.eq(1), self._quiet.eq(0),
                                 self._seed.eq(self._time)]
                m.d.comb += writer.start.eq(1)
                m.next = "WRITE"
        with m.State("WRITE"):
            m.d.comb += [self.chip_rx.valid.eq(writer.o.valid),
                         self.chip_rx.payload.eq(writer.o.payload),
                         writer.o.ready.eq(self.chip_rx.ready)]
            with m.If(writer.done):
                m.next = "ANSWER"
            # Events that come in the meantime must not block the answer.
            connect(m, flipped(self.chip_tx), frames.i)
        with m.State("ANSWER"):
            connect(m, flipped(self.chip_tx), frames.i)
            m.d.comb += frames.take.eq(1)
            with m.If(frames.valid & ~frames.is_event):
                with m.Switch(self._write):
                    with m.Case(STORE):
                        m.d.sync += count.eq(count + 1)
                        m.next = "TEXT"
                    with m.Case(START):
                        m.d.sync += [self._step.eq(self._step + 1), count.eq(1)]
                        m.next = "MORE"
                    with m.Case(STOP):
                        m.next = "EVENT"
        with m.State("MORE"):
            m.d.comb += writer.start.eq(1)
            m.next = "WRITE"
            with m.If(self._step == len(_SEQUENCE)):
                m.d.comb += writer.start.eq(0)
                m.next = "EVENT"
