"""Instruction queue: fetches a program, follows its loops, and issues each operation on its cycle.

Three stages. F reads the program (`hdl.program`). P substitutes delay parameters and counts, checks
the instruction and resolves loops; a LOOP ends there. E counts cycles and repeats (`hdl.repeat`).
F and P stand still while the instruction behind P is not taken.

Ref: Abts et al., "Think Fast: A Tensor Streaming Processor (TSP)", ISCA 2020, section III.
"""
from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from arch.config import Config
from arch.hostmap import PROGRAM_PC_BITS, Space
from arch.isa import (COUNT_BITS, COUNT_REGISTERS, END_ALWAYS, END_IF_PROMPT, PARAM_BITS, WAIT_BITS,
                      Control, Index, layout, reserved_fields, unit_of, word_bits)
from arch.queues import QUEUES, queue_ids
from arch.timing import FIRST_ISSUE, LOOP_WAIT_MIN
from hdl.bus import BusSignature, bits_of
from hdl.choose import choose
from hdl.params import ParamLoadSignature, column_bits
from hdl.program import CHUNK_BITS, ProgramStore
from hdl.repeat import Repeater, payload, prepared_layout
from hdl.signatures import FaultSignature, IssueSignature

assert FIRST_ISSUE == LOOP_WAIT_MIN == 4, "the check of a short wait below looks at bits 2 and up"


class InstructionQueue(wiring.Component):
    """One in-order instruction queue with its program and the delay parameters of two rows.

    Word 0 is read on cycle 0 of a step, in P on cycle 1, at hand on cycle 3 and can issue on
    cycle 4. Words behind each other follow at one per cycle. A LOOP that is at hand of P on cycle t
    has its next instruction at hand of the last stage on cycle t + 5, whether it jumps or not.

    A queue stops, without ending, at UNDERRUN (a wait that is too short, a count or a needed gap of
    0) and at ENCODING (a reserved opcode or index, a parameter column that does not exist, a pc
    outside of the program). The event is on the scheduled cycle; a wait that is too short counts as
    the shortest legal one, and a wait that is no parameter as 0.

    Parameters
    ----------
    config : Config
    queue : str
        Its name; gives the format, the depth of the program and the host addresses.

    Members
    -------
    restart : the next cycle is cycle 0 of a step. Whatever was under way is forgotten.
    stop : nothing issues from the next cycle on, until ``restart``.
    half, counts, prompt, position, token : of the step, from its cycle 0 on. ``half`` says where
        the delay parameters of the row are.
    load : delay parameters.
    issue : the operation issued on this cycle.
    ended : END has been executed, on this cycle or before.
    fault : ENCODING and UNDERRUN.
    host : PROGRAM of this queue, while no step runs.
    """

    def __init__(self, *, config: Config, queue: str):
        self._config, self._queue, self._unit = config, QUEUES[queue], unit_of(queue)
        self._layout = layout(self._unit, config)
        self._width = word_bits(self._unit, config)
        super().__init__({
            "restart": In(1), "stop": In(1), "half": In(1),
            "counts": In(data.ArrayLayout(COUNT_BITS, COUNT_REGISTERS)),
            "prompt": In(1), "position": In(config.position_bits), "token": In(config.token_bits),
            "load": In(ParamLoadSignature(config)),
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
        m.submodules.program = store = ProgramStore(width=self._width,
                                                    depth=self._config.depth_of(self._queue.name))
        connect(m, flipped(self.issue), repeat.issue)
        connect(m, flipped(self.fault), repeat.fault)
        m.d.comb += [repeat.restart.eq(self.restart), repeat.stop.eq(self.stop),
                     self.ended.eq(repeat.ended)]

        # F holds an instruction; P's registers hold one, or a LOOP; F and P go on.
        f_valid, p_valid, p_loop = Signal(), Signal(), Signal()
        go, jump = Signal(), Signal()
        prepared = Signal(self._prepared(), reset_less=True)
        resolved = Signal.like(prepared, name="resolved")
        self._base = Signal(signed(len(self.issue.address)) if "address" in self._layout else 1)
        is_loop, bad_loop = self._prepare(m, store.word, resolved)
        self._wait(m, store.word, resolved, prepared, go, f_valid, p_loop, jump, is_loop)
        self._loop(m, prepared, p_loop, jump)
        m.d.comb += [go.eq(~p_valid | repeat.take), repeat.next_valid.eq(p_valid),
                     repeat.next.bad.eq(prepared.bad | prepared.short | prepared.no_column),
                     repeat.next.bad_encoding.eq(prepared.bad_encoding | prepared.no_column)]
        m.d.comb += [repeat.next[name].eq(prepared[name]) for name in repeat.next.shape().members
                     if name not in ("bad", "bad_encoding")]
        with m.If(go):
            m.d.sync += [prepared[name].eq(resolved[name]) for name in resolved.shape().members
                         if name not in self._OF_WAIT]
            m.d.sync += [p_valid.eq(f_valid & (~is_loop | bad_loop)),
                         p_loop.eq(f_valid & is_loop & ~bad_loop),
                         f_valid.eq(~(f_valid & is_loop) & ~jump)]
        with m.If(self.restart):
            m.d.sync += [f_valid.eq(0), p_valid.eq(0), p_loop.eq(0)]
        m.d.comb += [store.hold.eq(f_valid & is_loop),
                     store.jump.eq(jump), store.body.eq(prepared.n2)]
        self._answer(m, store, go)
        return m

    #: Of an instruction prepared, what follows from its wait.
    _OF_WAIT = ("wait", "short", "no_column")

    def _prepared(self) -> data.StructLayout:
        """What P keeps: also the length of a loop body in ``n2``, and what is wrong with a wait."""
        members = dict(prepared_layout(self._unit.name, self._config).members)
        return data.StructLayout(members | {"n2": COUNT_BITS, "short": 1, "no_column": 1})

    # P: substitution, checks and loops.

    def _prepare(self, m, word, resolved):
        """Resolve the instruction in F; returns whether it is a LOOP, and one with a fault."""
        f, op = self._field, self._field(word, "op")
        is_end, is_nop, is_loop = (op == control for control in
                                   (Control.END, Control.NOP, Control.LOOP))
        executes = Cat(op == known.code for known in self._unit.ops).any()
        (n1, no_n1), (n2, no_n2) = (self._count(m, word, name) for name in ("n1", "n2"))
        encoding = (executes | is_loop) & (no_n1 | no_n2)
        if "d2" not in self._layout:
            # Without outer repeats n2 is the length of a loop body, and 1 elsewhere.
            encoding |= executes & (n2 != 1)
        if "address" in self._layout and "index" in self._layout:
            encoding |= executes & (f(word, "index") > max(Index))
        for name in reserved_fields(self._unit):
            encoding |= executes & f(word, name).any()
        always, if_prompt = (f(word, "n1") == kind for kind in (END_ALWAYS, END_IF_PROMPT))
        encoding |= is_end & (f(word, "n1_param") | ~always & ~if_prompt)
        encoding |= ~(executes | is_end | is_nop | is_loop)
        n1_more, n2_more = n1[1:].any(), n2[1:].any()
        zero = ~n1_more & ~n1[0] | ~n2_more & ~n2[0]
        gap = n1_more & (f(word, "d1", 1) == 0) | n2_more & (f(word, "d2", 1) == 0)
        m.d.comb += [
            resolved.bad_encoding.eq(encoding),
            resolved.bad.eq(encoding | (executes | is_loop) & zero | executes & gap),
            resolved.executes.eq(executes), resolved.ends.eq(is_end & (always | self.prompt)),
            resolved.n1.eq(n1), resolved.n2.eq(n2), resolved.n1_one.eq(~executes | ~n1_more)]
        if "d2" in self._layout:
            m.d.comb += resolved.n2_one.eq(~executes | ~n2_more)
        for name in ("d1", "d2", "s1", "s2", *payload(self._unit.name, self._config)):
            if name in self._layout:
                m.d.comb += resolved[name].eq(f(word, name))
        if "address" in self._layout and "index" in self._layout:
            m.d.comb += resolved["index"].eq(self._index(word))
        return is_loop, encoding | zero | resolved.no_column

    def _count(self, m, word, name: str):
        """n1 or n2 of a word with its count register substituted; whether there is none such."""
        field = self._field(word, name, 1)
        if f"{name}_param" not in self._layout:
            return field, Const(0)
        by_register, value = self._field(word, f"{name}_param"), Signal(COUNT_BITS, name=name)
        m.d.comb += value.eq(Mux(by_register, choose(self.counts, field[:2]), field))
        return value, by_register & field[2:].any()

    def _wait(self, m, word, resolved, prepared, go, f_valid, p_loop, jump, is_loop):
        """The wait with its parameter substituted. Behind a jump that of the LOOP stays."""
        keep, fresh = Signal(), Signal()
        bits, wait = column_bits(self._config), Signal(WAIT_BITS)
        raw, by_param = self._field(word, "wait"), self._field(word, "wait_param")
        store = memory.Memory(shape=PARAM_BITS, depth=2 << bits, init=[])
        m.submodules.params = store
        read, write, load = store.read_port(domain="comb"), store.write_port(), self.load
        early = fresh | is_loop
        m.d.comb += [
            read.addr.eq(Cat(raw[:bits], self.half)),
            write.addr.eq(Cat(load.column, load.half)), write.data.eq(load.value),
            write.en.eq(load.queue[self._queue.id]),
            resolved.no_column.eq(by_param & (raw >= self._config.param_columns)),
            wait.eq(Mux(by_param, Mux(resolved.no_column, 0, read.data), raw)),
            # The first issue of a step, and the first one behind a LOOP, need some cycles.
            resolved.short.eq(~wait[2:].any() & (early | ~wait[:2].any())),
            resolved.wait.eq(Cat(Mux(resolved.short, ~early, wait[0]),
                                 wait[1] & ~resolved.short,
                                 Mux(resolved.short, early, wait[2]), wait[3:]))]
        with m.If(go & ~p_loop & ~keep):
            m.d.sync += [prepared[name].eq(resolved[name]) for name in self._OF_WAIT]
        with m.If(go & f_valid):
            m.d.sync += [keep.eq(0), fresh.eq(0)]
        with m.If(jump):
            m.d.sync += keep.eq(1)
        with m.If(p_loop | self.restart):
            m.d.sync += fresh.eq(1)
        with m.If(self.restart):
            m.d.sync += keep.eq(0)
        if "address" in self._layout:
            m.d.comb += resolved.address.eq(self._field(word, "address") + self._base)

    def _loop(self, m, prepared, p_loop, jump):
        """The LOOP in P's registers: its rounds, counted from 1, its base, its jump."""
        number = Signal(COUNT_BITS, init=1)
        m.d.comb += jump.eq(p_loop & (prepared.n1 != number))
        with m.If(jump):
            m.d.sync += number.eq(number + 1)
        with m.If(p_loop & ~jump | self.restart):
            m.d.sync += number.eq(1)
        if "address" in self._layout:
            with m.If(jump):
                m.d.sync += self._base.eq(self._base + prepared.s2)
            with m.If(p_loop & ~jump | self.restart):
                m.d.sync += self._base.eq(0)

    def _index(self, word):
        """The run-time value that an instruction adds to its address."""
        index = self._field(word, "index")
        value = Mux(index == Index.POSITION, self.position,
                    Mux(index == Index.TOKEN, self.token, 0))
        return value >> self._field(word, "index_shift")

    # The host.

    def _answer(self, m, store, go):
        """Request on cycle 0, counter at 0 on cycle 1, at the address on cycle 2, word on cycle 3,
        answer on cycle 4. The counter serves no step between runs.
        """
        host = self.host
        mine = Signal()
        wrote, asked = Signal(), Signal(4)
        m.d.comb += [
            mine.eq((host.space == Space.PROGRAM)
                    & (host.address[CHUNK_BITS + PROGRAM_PC_BITS:][:bits_of(queue_ids(self._config))] == self._queue.id)),
            store.w_en.eq(host.w_en & mine), store.w_chunk.eq(host.address[:CHUNK_BITS]),
            store.address.eq(host.address[CHUNK_BITS:]), store.w_data.eq(host.w_data),
            store.restart.eq(self.restart | host.r_en & mine), store.seek.eq(asked[0]),
            store.advance.eq(go | asked[0] | asked[1])]
        m.d.sync += [wrote.eq(host.w_en & mine), asked.eq(Cat(host.r_en & mine, asked)),
                     host.ack.eq(wrote | asked[2]), host.r_data.eq(0)]
        parts = [store.word[16 * chunk:16 * chunk + 16] for chunk in range(-(-self._width // 16))]
        # Chunks beyond the word read as 0.
        parts += [Const(0, 16)] * ((1 << CHUNK_BITS) - len(parts))
        with m.If(asked[2]):
            m.d.sync += host.r_data.eq(choose(parts, host.address[:CHUNK_BITS]))
