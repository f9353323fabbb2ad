"""Program memory of an instruction queue, the counter that walks it, and the host's way to it."""
from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from arch.hostmap import PROGRAM_CHUNKS, PROGRAM_PC_BITS, Space
from arch.isa import unit_of, word_bits
from arch.queues import QUEUES, queue_ids
from hdl.bus import BusSignature, bits_of
from hdl.cells import shared_copies
from hdl.choose import choose
from hdl.logic_cells import add

#: Words of one bank: the depth of a distributed RAM cell.
BANK_WORDS = 16
CHUNK_BITS = bits_of(PROGRAM_CHUNKS)
#: Queues that share the registers of what comes from far away for all of them.
QUEUES_A_COPY = 4


class ProgramSignature(wiring.Signature):
    """The host's access to one program, while no step runs.

    Members
    -------
    park, rewind : the counter is beyond the memory, or at the first word of the bank of ``address``,
        on the next cycle.
    w_en, address, w_chunk, w_data : write 16 bits of the word at ``address``.
    word : what the queue has fetched; 0 beyond the memory.
    """

    def __init__(self, width: int):
        super().__init__({"park": Out(1), "rewind": Out(1), "w_en": Out(1),
                          "address": Out(PROGRAM_PC_BITS), "w_chunk": Out(CHUNK_BITS),
                          "w_data": Out(16), "word": In(width)})


class ProgramStore(wiring.Component):
    """Words of a program, read one behind the other.

    The word that the counter names on cycle t is on ``host.word`` on cycle t + 1 if the store
    advances on cycle t, and stays there until it advances again. Every bank of 16 words has its own
    registers, which are 0 where the word is not in the bank: joining banks takes one OR. So words
    beyond the memory read as 0. The counter does not come back from there by itself.

    Parameters
    ----------
    width, depth : int
        Bits of a word, and words.
    body_bits : int
        Bits of ``body``.
    vendor : bool
        Build the counter of carry cells.

    Members
    -------
    restart : the counter is 0 on the next cycle.
    advance : next word, unless ``hold``.
    jump : go back by ``body`` + 1 instead, for a LOOP whose pc is one less than the counter.
    host : its access, and the word.
    """

    def __init__(self, *, width: int, depth: int, body_bits: int,
                 vendor: bool = False):
        self._width, self._depth, self._vendor = width, depth, vendor
        super().__init__({
            "restart": In(1), "advance": In(1), "hold": In(1), "jump": In(1),
            "body": In(body_bits), "host": In(ProgramSignature(width))})

    def elaborate(self, platform):
        m = Module()
        host, count = self.host, -(-self._depth // BANK_WORDS)
        pc = self._counter(m, bits_of(count * BANK_WORDS))
        chunks = -(-self._width // 16)
        bank_of = host.address[bits_of(BANK_WORDS):]
        # The last bank may be a part of one.
        in_range = Const(1) if self._depth % BANK_WORDS == 0 else host.address < self._depth
        parts = []
        for number in range(count):
            bank = memory.Memory(shape=16 * chunks, depth=BANK_WORDS, init=[])
            m.submodules[f"bank{number}"] = bank
            read, write = bank.read_port(domain="comb"), bank.write_port(granularity=16)
            here = pc[bits_of(BANK_WORDS):] == number
            part = Signal(self._width, name=f"part{number}", reset_less=True)
            m.d.comb += [read.addr.eq(pc), write.addr.eq(host.address),
                         write.data.eq(host.w_data.replicate(chunks))]
            # Every chunk is written by itself: nothing is read before the last one is there.
            with m.If(host.w_en & in_range & (bank_of == number)):
                m.d.comb += write.en.eq((1 << host.w_chunk)[:chunks])
            with m.If(self.advance):
                m.d.sync += part.eq(Mux(here, read.data[:self._width], 0))
            parts.append(part)
        word = parts[0]
        for part in parts[1:]:
            word = word | part
        m.d.comb += host.word.eq(word)
        return m

    def _counter(self, m, bits: int):
        """The program counter: one adder; its top bit is set beyond the memory."""
        pc, low, high = Signal(bits + 1), self.body[:bits], self.body[bits:]
        # Whether it advances comes late: it enables the counter, and is not in the sum.
        target = add(m, bits + 1, lambda a, b, c, d: (a, ~b & c), a=pc, b=Cat(low, 0),
                     c=self.jump, carry=~self.hold & ~self.jump, vendor=self._vendor)
        # A jump to before word 0 has borrowed from the top bit, or is far too long.
        with m.If(self.advance):
            m.d.sync += pc.eq(Cat(target[:-1], Mux(
                self.jump, target[-1] | high.any(), target[-1] | pc[-1])))
        with m.If(self.host.park):
            m.d.sync += pc[-1].eq(1)
        with m.If(self.host.rewind):
            low = bits_of(BANK_WORDS)
            m.d.sync += pc.eq(self.host.address[low:bits] << low)
            m.d.sync += pc[-1].eq(self.host.address[bits:].any())
        with m.If(self.restart):
            m.d.sync += pc.eq(0)
        return pc


class ProgramPort(wiring.Component):
    """The host's way to the programs: one read-back for all of them.

    A read parks all counters, so that the words of all queues are 0, rewinds that of one queue to
    the bank and waits until it comes by the word: the answer of word n is there n mod 16 + 5 cycles
    after the request, well before the host port gives up (`hdl.host.ANSWER_LIMIT`).

    Parameters
    ----------
    config : Config
    queues : tuple of str
        Names of the queues that have a port here.
    vendor : bool
        Keep apart what is for different groups of queues.

    Members
    -------
    host : PROGRAM of the queues.
    <queue> : for the queue of that name, which must walk on while no step runs.
    """

    def __init__(self, *, config: Config, queues: tuple, vendor: bool = False):
        self._queues, self._vendor = queues, vendor
        self._id_bits = bits_of(queue_ids(config))
        self._widths = {name: word_bits(unit_of(name), config) for name in queues}
        super().__init__({"host": In(BusSignature()), **{
            name: Out(ProgramSignature(width)) for name, width in self._widths.items()}})

    def elaborate(self, platform):
        m = Module()
        host = self.host
        chunk, pc, number = (host.address[:CHUNK_BITS], host.address[CHUNK_BITS:][:PROGRAM_PC_BITS],
                             host.address[CHUNK_BITS + PROGRAM_PC_BITS:][:self._id_bits])
        mine = {name: number == QUEUES[name].id for name in self._queues}
        ours = host.space == Space.PROGRAM
        here = ours & Cat(mine.values()).any()
        # Cycle 0: the request. 1: the write, or the rewind, by registers of each queue. From 2 on:
        # the counter walks. Two cycles behind the word's number it is out of its bank, one later
        # collected, then the answer.
        reads, wrote = host.r_en & here, Signal()
        rewind, walking, found, collected = (Signal(name=name) for name in (
            "rewind", "walking", "found", "collected"))
        left = Signal(bits_of(BANK_WORDS), reset_less=True)
        width = max(self._widths.values())
        word, joined = Signal(width, reset_less=True), Const(0, width)
        near = shared_copies(m, Cat(chunk, host.w_data), self._queues, QUEUES_A_COPY, "written",
                             self._vendor)
        for name in self._queues:
            port = getattr(self, name)
            joined = joined | port.word
            m.d.comb += [port.park.eq(host.r_en & ours), port.address.eq(pc),
                         Cat(port.w_chunk, port.w_data).eq(near[name])]
            m.d.sync += [port.rewind.eq(host.r_en & ours & mine[name]),
                         port.w_en.eq(host.w_en & ours & mine[name])]
        m.d.sync += [rewind.eq(reads), found.eq(walking & (left == 0)), collected.eq(found),
                     word.eq(joined), left.eq(left - 1), wrote.eq(host.w_en & here),
                     walking.eq(rewind | walking & (left != 0)),
                     host.ack.eq(wrote | collected), host.r_data.eq(0)]
        with m.If(rewind):
            m.d.sync += left.eq(pc)
        parts = [word[16 * part:16 * part + 16] for part in range(-(-width // 16))]
        # Chunks beyond the word read as 0.
        parts += [Const(0, 16)] * ((1 << CHUNK_BITS) - len(parts))
        with m.If(collected):
            m.d.sync += host.r_data.eq(choose(parts, chunk))
        return m
