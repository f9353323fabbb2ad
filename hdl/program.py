"""Memories of an instruction queue: its program and its delay parameters, with the host's access."""
from amaranth import Cat, Mux, Signal
from amaranth.lib import data, memory

from arch.config import Config
from arch.hostmap import PROGRAM_CHUNKS, Space, power_of_two
from arch.isa import PARAM_BITS, Control, layout, unit_of, word_bits
from arch.queues import Queue
from hdl.bus import bits_of
from hdl.choose import choose

#: Program counter: wide enough that a jump before word 0 lands behind every program.
PC_BITS = 10
_CHUNK_BITS = bits_of(PROGRAM_CHUNKS)


def fetched_layout(width: int) -> data.StructLayout:
    """Two neighbouring words: the second counts if it ``has_loop``, is a LOOP; ``loop_pc`` is its
    place. ``beyond``: the first is outside of the program, and so anything."""
    return data.StructLayout({"word": width, "behind": width, "has_loop": 1, "loop_pc": PC_BITS,
                              "beyond": 1})


class ProgramStore:
    """Even and odd words of the program in two memories, ``program0`` and ``program1``, so that two
    neighbours are read at once; and ``params``, the delay parameters by row and column.

    Belongs to one module. The host reads a program by a jump, which disturbs nothing between runs.

    Parameters
    ----------
    m : Module
        Gets the memories.
    config : Config
    queue : Queue
    host : interface of `hdl.bus.BusSignature`

    Attributes
    ----------
    depth : int
        Words of the program.
    found : `fetched_layout`
        What stands at the program counter on this cycle.
    jumps : Signal
        A jump is being taken; ``found`` is to be dropped.
    """

    def __init__(self, m, config: Config, queue: Queue, host):
        self._module, self._config, self._host = m, config, host
        self._unit = unit_of(queue.name)
        self._chunks = -(-word_bits(self._unit, config) // 16)
        self._columns = bits_of(power_of_two(config.param_columns))
        self._rows = bits_of(config.param_rows)
        self.depth = config.depth_of(queue.name)
        below = self._columns + self._rows
        self._in_program, self._in_params = Signal(name="in_program"), Signal(name="in_params")
        self._asked_params = Signal(name="asked_params")
        m.d.comb += [
            self._in_program.eq((host.space == Space.PROGRAM) & (host.address[12:] == queue.id)),
            self._in_params.eq((host.space == Space.PARAMS) & (host.address[below:] == queue.id))]
        self._params = self._parameters(m, below)
        # The counter, and half of what follows it: the address of the even word.
        self._pc, self._even = Signal(PC_BITS, name="pc"), Signal(PC_BITS - 1, name="even")
        self.jumps, self._target = Signal(name="jumps"), Signal(PC_BITS, name="target")
        self._fetch(m, [self._bank(m, bank) for bank in range(2)])
        self._answer(m)

    def _bank(self, m, bank):
        """One half of the program: its read port. Every chunk is written by itself."""
        host = self._host
        store = memory.Memory(shape=16 * self._chunks, depth=-(-self.depth // 2), init=[])
        m.submodules[f"program{bank}"] = store
        read, write = store.read_port(domain="comb"), store.write_port(granularity=16)
        chunk, pc = host.address[:_CHUNK_BITS], host.address[_CHUNK_BITS:12]
        m.d.comb += [write.addr.eq(pc[1:]), write.data.eq(host.w_data.replicate(self._chunks))]
        with m.If(host.w_en & self._in_program & (pc[0] == bank) & (pc < self.depth)):
            m.d.comb += write.en.eq((1 << chunk)[:self._chunks])
        return read

    def _parameters(self, m, address_bits):
        """The memory of delay parameters: its read port."""
        host = self._host
        store = memory.Memory(shape=PARAM_BITS, depth=self._config.param_rows << self._columns,
                              init=[])
        m.submodules.params = store
        read, write = store.read_port(domain="comb"), store.write_port()
        m.d.comb += [write.addr.eq(host.address[:address_bits]), write.data.eq(host.w_data),
                     write.en.eq(host.w_en & self._in_params)]
        return read

    def _fetch(self, m, reads):
        """Read both memories, put the words in order, and find the LOOP before that is done."""
        even, odd = reads
        width, pc = word_bits(self._unit, self._config), self._pc
        self.found = found = Signal(fetched_layout(width), name="found")
        offset, bits, _ = layout(self._unit, self._config)["op"]
        loops = [read.data[offset:offset + bits] == Control.LOOP for read in reads]
        m.d.comb += [
            even.addr.eq(self._even), odd.addr.eq(pc[1:]),
            found.word.eq(Mux(pc[0], odd.data, even.data)),
            found.behind.eq(Mux(pc[0], even.data, odd.data)),
            found.has_loop.eq(Mux(pc[0], *loops) & (pc < self.depth - 1)),
            found.loop_pc.eq(pc + 1), found.beyond.eq(pc >= self.depth)]

    def control(self, *, advance, jump, target, restart):
        """Go on to the next word, past a LOOP, on ``advance``; to ``target`` on the cycle after
        ``jump``; to word 0 at once on ``restart``."""
        m, pc, odd = self._module, self._pc, self._pc[0]
        half = pc[1:]
        one, two = Signal(PC_BITS - 1, name="half_1"), Signal(PC_BITS - 1, name="half_2")
        m.d.comb += [one.eq(half + 1), two.eq(half + 2)]
        with m.If(self.jumps):
            m.d.sync += [pc.eq(self._target), self._even.eq((self._target + 1)[1:])]
        with m.Elif(advance):
            m.d.sync += [
                pc.eq(Mux(self.found.has_loop, Cat(odd, one), Cat(~odd, Mux(odd, one, half)))),
                self._even.eq(Mux(self.found.has_loop & odd, two, one))]
        with m.If(jump):
            m.d.sync += [self.jumps.eq(1), self._target.eq(target)]
        with m.If(restart):
            m.d.sync += [self.jumps.eq(0), pc.eq(0), self._even.eq(0)]

    def parameter(self, column, row):
        """The delay parameter in a column of a row; for the host between runs."""
        self._module.d.comb += self._params.addr.eq(
            Mux(self._asked_params, self._host.address[:self._columns + self._rows],
                Cat(column[:self._columns], row[:self._rows])))
        return self._params.data

    def _answer(self, m):
        """The host: a write is answered two cycles after the request, a read three.

        Parameters are read on cycle 1; a program, after the jump, on cycle 2.
        """
        host, wrote, asked_program, jumped = self._host, Signal(), Signal(), Signal()
        param, found_param = Signal(PARAM_BITS, reset_less=True), Signal()
        m.d.sync += [
            self.jumps.eq(0), wrote.eq(host.w_en & (self._in_program | self._in_params)),
            self._asked_params.eq(host.r_en & self._in_params),
            found_param.eq(self._asked_params), param.eq(self._params.data),
            jumped.eq(host.r_en & self._in_program), asked_program.eq(jumped),
            host.ack.eq(wrote | asked_program | found_param), host.r_data.eq(0)]
        with m.If(host.r_en & self._in_program):
            m.d.sync += [self.jumps.eq(1), self._target.eq(host.address[_CHUNK_BITS:12])]
        with m.If(asked_program):
            # Chunks behind the word read as any of it.
            parts = [self.found.word[16 * chunk:16 * chunk + 16] for chunk in range(self._chunks)]
            m.d.sync += host.r_data.eq(choose(parts, host.address[:_CHUNK_BITS]))
        with m.If(found_param):
            m.d.sync += host.r_data.eq(param)
