"""Program memory of an instruction queue, and the program counter that walks it."""
from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from arch.hostmap import PROGRAM_CHUNKS, PROGRAM_PC_BITS
from arch.isa import COUNT_BITS
from hdl.bus import bits_of

#: Words of one bank: the depth of a distributed RAM cell.
BANK_WORDS = 16
CHUNK_BITS = bits_of(PROGRAM_CHUNKS)


class ProgramStore(wiring.Component):
    """Words of a program, read one behind the other.

    The word that the counter names on cycle t is on ``word`` on cycle t + 1 if the store advances
    on cycle t, and stays there until it advances again. Every bank of 16 words has its own
    registers, which are 0 where the word is not in the bank: joining banks takes one OR. So words
    beyond the memory read as 0.

    Parameters
    ----------
    width, depth : int
        Bits of a word, and words.

    Members
    -------
    restart : the counter is 0 on the next cycle.
    advance : next word, unless ``hold``.
    jump : go back by ``body`` + 1 instead, for a LOOP whose pc is one less than the counter.
    word : see above.
    w_en, address, w_chunk, w_data : write 16 bits of the word at ``address``.
    seek : read the word at ``address``: high on one cycle, on which the counter is 0.
    """

    def __init__(self, *, width: int, depth: int):
        self._width, self._depth = width, depth
        super().__init__({
            "restart": In(1), "advance": In(1), "hold": In(1), "jump": In(1),
            "body": In(COUNT_BITS), "word": Out(width),
            "w_en": In(1), "address": In(PROGRAM_PC_BITS), "w_chunk": In(CHUNK_BITS),
            "w_data": In(16), "seek": In(1)})

    def elaborate(self, platform):
        m = Module()
        count = -(-self._depth // BANK_WORDS)
        pc = self._counter(m, bits_of(count * BANK_WORDS))
        chunks = -(-self._width // 16)
        in_range = self.address < self._depth
        parts = []
        for number in range(count):
            bank = memory.Memory(shape=16 * chunks, depth=BANK_WORDS, init=[])
            m.submodules[f"bank{number}"] = bank
            read, write = bank.read_port(domain="comb"), bank.write_port(granularity=16)
            here = pc[bits_of(BANK_WORDS):] == number
            part = Signal(self._width, name=f"part{number}", reset_less=True)
            m.d.comb += [read.addr.eq(pc), write.addr.eq(self.address),
                         write.data.eq(self.w_data.replicate(chunks))]
            # Every chunk is written by itself: nothing is read before the last one is there.
            with m.If(self.w_en & in_range & (self.address[bits_of(BANK_WORDS):] == number)):
                m.d.comb += write.en.eq((1 << self.w_chunk)[:chunks])
            with m.If(self.advance):
                m.d.sync += part.eq(Mux(here, read.data[:self._width], 0))
            parts.append(part)
        word = parts[0]
        for part in parts[1:]:
            word = word | part
        m.d.comb += self.word.eq(word)
        return m

    def _counter(self, m, bits: int):
        """The program counter: one adder; its top bit is set beyond the memory."""
        pc, target = Signal(bits + 1), Signal(bits + 1)
        low, high = self.body[:bits], self.body[bits:]
        step = Mux(self.jump, Cat(~low, 1), Mux(
            self.seek, Cat(self.address[:bits], self.address[bits:].any()), 0))
        # Whether it advances comes late: it enables the counter, and is not in the sum.
        one = ~self.hold & ~self.jump & ~self.seek
        m.d.comb += target.eq(pc + step + one)
        # A jump to before word 0 has borrowed from the top bit, or is far too long.
        with m.If(self.advance):
            m.d.sync += pc.eq(Cat(target[:-1], target[-1] | self.jump & high.any()))
        with m.If(self.restart):
            m.d.sync += pc.eq(0)
        return pc
