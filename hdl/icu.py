"""Instruction queue: fetches a program, follows its loops, and issues each operation on its cycle.

Three stages. F reads two neighbouring words, so that a LOOP behind an operation is seen with it and
costs no cycle. P substitutes delay parameters and counts and resolves the loop. E counts cycles and
repeats (`hdl.repeat`); its registers are the issue port.

Ref: Abts et al., "Think Fast: A Tensor Streaming Processor (TSP)", ISCA 2020, section III.
"""
from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from arch.config import Config
from arch.hostmap import PROGRAM_CHUNKS, PROGRAM_PC_BITS, Space, power_of_two
from arch.isa import (COUNT_BITS, COUNT_REGISTERS, END_ALWAYS, END_IF_PROMPT, PARAM_BITS, WAIT_BITS,
                      Control, Index, layout, reserved_fields, unit_of, word_bits)
from arch.queues import QUEUES
from arch.timing import FIRST_ISSUE, LOOP_WAIT_MIN
from hdl.bus import BusSignature, bits_of
from hdl.choose import choose
from hdl.repeat import Repeater, payload, prepared_layout
from hdl.signatures import FaultSignature, IssueSignature

#: Program counter: wide enough that a jump before word 0 lands behind every program.
PC_BITS = 10
CHUNK_BITS = bits_of(PROGRAM_CHUNKS)
_PC_END = CHUNK_BITS + PROGRAM_PC_BITS
assert FIRST_ISSUE == LOOP_WAIT_MIN == 4, "the check of a short wait below looks at bits 2 and up"


class InstructionQueue(wiring.Component):
    """One in-order instruction queue with its program and delay-parameter memories.

    An instruction is in F on cycle c, in P on c + 1, and can issue on c + 3. Cycle 0 of a step
    follows the cycle of ``restart``, on which word 0 is in F. Words behind each other follow each
    other at one per cycle, a LOOP not counting; a jump costs one cycle.

    A queue stops, without ending, at UNDERRUN (an instruction that is not ready on its cycle, a
    count or a needed gap of 0) and at ENCODING (a reserved opcode or index, a parameter column that
    does not exist, a LOOP behind no operation, a pc outside of the program memory). The event is on
    the scheduled cycle, where an ENCODING with a wait of 0, or of no such column, waits 1 cycle.

    Parameters
    ----------
    config : Config
    queue : str
        Its name; gives the format, the depth of the program and the host addresses.

    Members
    -------
    restart : the next cycle is cycle 0 of a step. Whatever was under way is forgotten.
    stop : nothing issues from the next cycle on, until ``restart``.
    row, counts, prompt, position, token : of the step, from its cycle 0 on.
    issue : the operation issued on this cycle.
    ended : END has been executed, on this cycle or before.
    fault : ENCODING and UNDERRUN.
    host : PROGRAM and PARAMS of this queue, while no step runs.
    """

    def __init__(self, *, config: Config, queue: str):
        self._config, self._queue, self._unit = config, QUEUES[queue], unit_of(queue)
        self._layout = layout(self._unit, config)
        self._depth = config.depth_of(queue)
        self._width = word_bits(self._unit, config)
        self._fetched = data.StructLayout({
            "word": self._width, "behind": self._width, "has_loop": 1, "loop_pc": PC_BITS,
            "beyond": 1})
        super().__init__({
            "restart": In(1), "stop": In(1),
            "row": In(max(1, bits_of(config.param_rows))),
            "counts": In(data.ArrayLayout(COUNT_BITS, COUNT_REGISTERS)),
            "prompt": In(1), "position": In(config.position_bits), "token": In(config.token_bits),
            "issue": Out(IssueSignature(self._unit.name, config)),
            "ended": Out(1), "fault": Out(FaultSignature()), "host": In(BusSignature())})

    def _field(self, word, name: str, default: int = 0):
        """A field of a word, or its constant where the format has none."""
        if name not in self._layout:
            return Const(default)
        offset, width, is_signed = self._layout[name]
        value = word[offset:offset + width]
        return value.as_signed() if is_signed else value

    def elaborate(self, platform):
        m = Module()
        m.submodules.repeat = repeat = Repeater(unit=self._unit.name, config=self._config)
        connect(m, flipped(self.issue), repeat.issue)
        connect(m, flipped(self.fault), repeat.fault)
        m.d.comb += [repeat.restart.eq(self.restart), repeat.stop.eq(self.stop),
                     self.ended.eq(repeat.ended)]

        # Valid in F's and P's registers; moves: the instruction in F's registers goes on.
        f_valid, p_valid, running = Signal(), Signal(), Signal()
        moves, jump, halts = Signal(), Signal(), Signal()
        target, pc = Signal(PC_BITS), Signal(PC_BITS)
        fetched = Signal(self._fetched, reset_less=True)
        here, found = self._fetch(m, pc)
        ready = ~p_valid | repeat.take
        with m.If(self.restart | ~f_valid | ready):
            m.d.sync += [fetched.eq(found), f_valid.eq(running),
                         pc.eq(here + Mux(found.has_loop, 2, 1))]
        with m.If(jump & ~self.restart):
            # The word that is being read stands behind the loop: drop it.
            m.d.sync += [f_valid.eq(0), pc.eq(target)]

        prepared = Signal(prepared_layout(self._unit.name, self._config), reset_less=True)
        resolved = Signal.like(prepared, name="resolved")
        m.d.comb += [moves.eq(f_valid & ready), repeat.next.eq(prepared),
                     repeat.next_valid.eq(p_valid), halts.eq(resolved.ends | resolved.bad)]
        self._prepare(m, fetched, resolved, moves, jump, target)
        with m.If(ready):
            m.d.sync += [p_valid.eq(f_valid), prepared.eq(resolved)]
        with m.If(moves & halts):
            m.d.sync += [running.eq(0), f_valid.eq(0)]
        with m.If(repeat.halt | self.stop):
            m.d.sync += [running.eq(0), f_valid.eq(0), p_valid.eq(0)]
        with m.If(self.restart):
            m.d.sync += [running.eq(1), f_valid.eq(1), p_valid.eq(0)]
        self._answer(m, pc, found.word)
        return m

    # F: the program memory, even and odd words apart.

    def _fetch(self, m, pc):
        """Read the word at pc and the one behind it."""
        chunks = -(-self._width // 16)
        here, after = Signal(PC_BITS), Signal(PC_BITS)
        m.d.comb += [here.eq(Mux(self.restart, 0, pc)), after.eq(here + 1)]
        reads = []
        for bank, address in enumerate((after[1:], here[1:])):
            store = memory.Memory(shape=16 * chunks, depth=-(-self._depth // 2), init=[])
            m.submodules[f"program{bank}"] = store
            read = store.read_port(domain="comb")
            m.d.comb += read.addr.eq(address)
            reads.append(read.data[:self._width])
            self._program_write(m, store.write_port(granularity=16), bank, chunks)
        even, odd = reads
        found = Signal(self._fetched)
        m.d.comb += [
            found.word.eq(Mux(here[0], odd, even)), found.behind.eq(Mux(here[0], even, odd)),
            found.has_loop.eq((self._field(found.behind, "op") == Control.LOOP)
                              & (after < self._depth)),
            found.loop_pc.eq(after), found.beyond.eq(here >= self._depth)]
        return here, found

    def _program_write(self, m, port, bank, chunks):
        """Every chunk is written by itself: nothing is read before the last one is there."""
        host = self.host
        chunk, pc = host.address[:CHUNK_BITS], host.address[CHUNK_BITS:_PC_END]
        m.d.comb += [port.addr.eq(pc[1:]), port.data.eq(host.w_data.replicate(chunks))]
        with m.If(host.w_en & self._in_program & (pc[0] == bank) & (pc < self._depth)):
            m.d.comb += port.en.eq((1 << chunk)[:chunks])

    @property
    def _in_program(self):
        """The access of the host is to this program."""
        return (self.host.space == Space.PROGRAM) & (self.host.address[_PC_END:] == self._queue.id)

    def _answer(self, m, pc, word):
        """The host: request on cycle 0, read on cycle 1, answer on cycle 2.

        A program is read through pc, which no step needs between runs.
        """
        host = self.host
        wrote, in_program, in_params = Signal(), Signal(), Signal()
        with m.If(host.r_en & self._in_program):
            m.d.sync += pc.eq(host.address[CHUNK_BITS:_PC_END])
        m.d.sync += [
            wrote.eq(host.w_en & (self._in_program | self._in_params)),
            in_program.eq(host.r_en & self._in_program), in_params.eq(host.r_en & self._in_params),
            host.ack.eq(wrote | in_program | in_params), host.r_data.eq(0)]
        with m.If(in_program):
            parts = [word[16 * chunk:16 * chunk + 16] for chunk in range(-(-self._width // 16))]
            # Chunks beyond the word, and words beyond the program memory, read as 0.
            parts += [Const(0, 16)] * ((1 << CHUNK_BITS) - len(parts))
            with m.If(host.address[CHUNK_BITS:_PC_END] < self._depth):
                m.d.sync += host.r_data.eq(choose(parts, host.address[:CHUNK_BITS]))
        with m.If(in_params):
            m.d.sync += host.r_data.eq(self._param)
        m.d.comb += self._param_by_host.eq(in_params)

    # P: substitution and loops.

    @property
    def _column_bits(self) -> int:
        return bits_of(power_of_two(self._config.param_columns))

    @property
    def _in_params(self):
        """The access of the host is to these parameters."""
        bits = self._column_bits + bits_of(self._config.param_rows)
        return (self.host.space == Space.PARAMS) & (self.host.address[bits:] == self._queue.id)

    def _parameter(self, m, column):
        """The delay parameter in ``column`` of the row of the step."""
        columns, rows = self._column_bits, bits_of(self._config.param_rows)
        store = memory.Memory(shape=PARAM_BITS, depth=self._config.param_rows << columns, init=[])
        m.submodules.params = store
        read, write = store.read_port(domain="comb"), store.write_port()
        self._param, self._param_by_host = read.data, Signal(name="param_by_host")
        m.d.comb += [
            read.addr.eq(Mux(self._param_by_host, self.host.address[:columns + rows],
                             Cat(column[:columns], self.row[:rows]))),
            write.addr.eq(self.host.address[:columns + rows]), write.data.eq(self.host.w_data),
            write.en.eq(self.host.w_en & self._in_params)]
        return read.data

    def _prepare(self, m, fetched, resolved, moves, jump, target):
        """Resolve the instruction in F's registers."""
        f, word = self._field, fetched.word
        op = Mux(fetched.beyond, 0, f(word, "op"))
        is_end, is_nop = op == Control.END, op == Control.NOP
        executes = ~is_end & ~is_nop
        n1, n2, zero = self._counts(m, word, "op")
        known = is_nop
        for unit_op in self._unit.ops:
            known |= op == unit_op.code
        if "d2" not in self._layout:
            # Without outer repeats n2 is the length of a loop body, and 1 elsewhere.
            known &= is_nop | (n2 == 1)
            n2 = Const(1, COUNT_BITS)
        if "address" in self._layout and "index" in self._layout:
            known &= is_nop | (f(word, "index") <= max(Index))
        for name in reserved_fields(self._unit):
            known &= is_nop | (f(word, name) == 0)
        known |= is_end & ~f(word, "n1_param") & ((f(word, "n1") == END_ALWAYS)
                                                  | (f(word, "n1") == END_IF_PROMPT))
        gap = (n1 > 1) & (f(word, "d1", 1) == 0) | (n2 > 1) & (f(word, "d2", 1) == 0)

        # What the last LOOP leaves behind: its wait for the next instruction, or its bad count.
        after_loop, no_rounds, first = Signal(), Signal(), Signal()
        loop_wait, loop_param = Signal(WAIT_BITS, reset_less=True), Signal(reset_less=True)
        raw, wait = Signal(WAIT_BITS), Signal(WAIT_BITS)
        by_param = Mux(after_loop, loop_param, f(word, "wait_param") & ~fetched.beyond)
        no_column = by_param & (raw >= self._config.param_columns)
        short = (first | after_loop) & (wait[2:] == 0)
        m.d.comb += [
            raw.eq(Mux(after_loop, loop_wait, Mux(fetched.beyond, 0, f(word, "wait")))),
            wait.eq(Mux(by_param, self._parameter(m, raw), raw)),
            resolved.bad_encoding.eq((~known | no_column) & ~no_rounds),
            resolved.bad.eq(~known | no_column | no_rounds | short | executes & (zero | gap)),
            resolved.wait.eq(Mux(resolved.bad_encoding & ((wait == 0) | no_column), 1, wait)),
            resolved.issues.eq(executes & ~resolved.bad),
            resolved.ends.eq(is_end & ~resolved.bad & ((f(word, "n1") == END_ALWAYS)
                                                       | self.prompt)),
            resolved.n1_less.eq(n1 - 1), resolved.n2_less.eq(n2 - 1),
            resolved.n1_one.eq(~resolved.issues | (n1 == 1)),
            resolved.n2_one.eq(~resolved.issues | (n2 == 1))]
        for name in ("d1", "d2", "s1", "s2", *payload(self._unit.name, self._config)):
            if name in self._layout:
                m.d.comb += resolved[name].eq(f(word, name))

        with m.If(moves):
            m.d.sync += [first.eq(0), after_loop.eq(0), no_rounds.eq(0)]
        taken = moves & fetched.has_loop & ~resolved.ends & ~resolved.bad
        base, zero = self._loop(m, fetched, taken, jump, target)
        with m.If(taken):
            m.d.sync += [after_loop.eq(jump | zero), no_rounds.eq(zero),
                         loop_wait.eq(f(fetched.behind, "wait")),
                         loop_param.eq(f(fetched.behind, "wait_param"))]
        with m.If(self.restart):
            m.d.sync += [first.eq(1), after_loop.eq(0), no_rounds.eq(0)]
        if "address" in self._layout:
            m.d.comb += [resolved.address.eq(f(word, "address") + base),
                         resolved.index.eq(self._index(word))]

    def _counts(self, m, word, prefix):
        """n1 and n2 of a word with count registers substituted, and whether one is 0."""
        resolved = []
        for name in ("n1", "n2"):
            value, field = Signal(COUNT_BITS, name=f"{prefix}_{name}"), self._field(word, name, 1)
            m.d.comb += value.eq(Mux(self._field(word, f"{name}_param"), self.counts[field[:2]],
                                     field))
            resolved.append(value)
        return (*resolved, (resolved[0] == 0) | (resolved[1] == 0))

    def _loop(self, m, fetched, taken, jump, target):
        """The LOOP behind the instruction that moves on: its rounds, its base, its jump."""
        rounds, body, zero = self._counts(m, fetched.behind, "loop")
        done = Signal(COUNT_BITS)
        m.d.comb += [target.eq(fetched.loop_pc - body),
                     jump.eq(taken & ~zero & (rounds != done + 1))]
        with m.If(taken):
            m.d.sync += done.eq(Mux(jump, done + 1, 0))
        with m.If(self.restart):
            m.d.sync += done.eq(0)
        if "address" not in self._layout:
            return Const(0), zero
        base = Signal(signed(len(self.issue.address)))
        with m.If(taken):
            m.d.sync += base.eq(Mux(jump, base + self._field(fetched.behind, "s2"), 0))
        with m.If(self.restart):
            m.d.sync += base.eq(0)
        return base, zero

    def _index(self, word):
        """The run-time value that an instruction adds to its address."""
        if "index" not in self._layout:
            return Const(0)
        index = self._field(word, "index")
        value = Mux(index == Index.POSITION, self.position,
                    Mux(index == Index.TOKEN, self.token, 0))
        return value >> self._field(word, "index_shift")
