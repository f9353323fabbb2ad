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
from arch.isa import (COUNT_REGISTERS, END_ALWAYS, END_IF_PROMPT, PARAM_BITS,
                      Control, Index, layout, reserved_fields, unit_of, word_bits)
from arch.queues import QUEUES
from arch.timing import FIRST_ISSUE, LOOP_WAIT_MIN
from hdl.choose import choose
from hdl.params import ParamLoadSignature, column_bits
from hdl.program import ProgramSignature, ProgramStore
from hdl.repeat import Repeater, payload, prepared_layout
from hdl.signatures import FaultSignature, IssueSignature

assert FIRST_ISSUE == LOOP_WAIT_MIN == 4, "the check of a short wait below looks at bits 2 and up"


class InstructionQueue(wiring.Component):
    """One in-order instruction queue with its program and the delay parameters of two rows.

    All its cycles are one ahead of those of the step that it is part of: what it issues on cycle t
    of its own is issued on cycle t of the step (`hdl.signatures.IssueSignature`).

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
        Its name; gives the format and the depth of the program.
    vendor : bool
        Build counters and multiplexers from ECP5 cells.

    Members
    -------
    restart : the next cycle is cycle 0 of a step. Whatever was under way is forgotten.
    stop : nothing issues from the next cycle on, until ``restart``.
    half, counts, prompt, position, token : of the step, from cycle 1 on. ``half`` says where the
        delay parameters of the row are.
    load : delay parameters.
    issue : the operation of this cycle.
    ended : END has been executed, on this cycle or before.
    fault : ENCODING and UNDERRUN.
    idle : no step runs: fetching goes on, to the end of the memory and for the host.
    program : the host's access.
    """

    def __init__(self, *, config: Config, queue: str, vendor: bool = False):
        self._vendor = vendor
        self._config, self._queue, self._unit = config, QUEUES[queue], unit_of(queue)
        self._layout = layout(self._unit, config)
        self._width = word_bits(self._unit, config)
        super().__init__({
            "restart": In(1), "stop": In(1), "idle": In(1), "half": In(1),
            "counts": In(data.ArrayLayout(config.count_bits, COUNT_REGISTERS)),
            "prompt": In(1), "position": In(config.position_bits), "token": In(config.token_bits),
            "load": In(ParamLoadSignature(config)),
            "issue": Out(IssueSignature(self._unit.name, config)),
            "ended": Out(1), "fault": Out(FaultSignature()),
            "program": In(ProgramSignature(self._width))})

    def _field(self, word, name: str, default: int = 0):
        """A field of a word, or its constant where the format has none."""
        if name not in self._layout:
            return Const(default)
        offset, width, is_signed = self._layout[name]
        value = word[offset:offset + width]
        return value.as_signed() if is_signed else value

    def elaborate(self, platform):
        m = Module()
        m.submodules.repeat = repeat = Repeater(unit=self._unit.name, config=self._config,
                                                  vendor=self._vendor)
        m.submodules.program = store = ProgramStore(width=self._width,
                                                    depth=self._config.depth_of(self._queue.name),
                                                    body_bits=self._config.gap_bits,
                                                    vendor=self._vendor)
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
        word = store.host.word
        is_loop, bad_loop = self._prepare(m, word, resolved)
        self._wait(m, word, resolved, prepared, go, f_valid, p_loop, jump, is_loop)
        self._loop(m, prepared, p_loop, jump)
        m.d.comb += [go.eq(~p_valid | repeat.take), repeat.next_valid.eq(p_valid),
                     repeat.next.bad.eq(prepared.bad | prepared.short | prepared.no_column),
                     repeat.next.bad_encoding.eq(prepared.bad_encoding | prepared.no_column)]
        if "address" in self._layout:
            m.d.comb += repeat.base.eq(self._base)
        m.d.comb += [repeat.next[name].eq(prepared[name]) for name in repeat.next.shape().members
                     if name not in ("bad", "bad_encoding")]
        with m.If(go):
            m.d.sync += [prepared[name].eq(resolved[name]) for name in resolved.shape().members
                         if name not in self._OF_WAIT]
            m.d.sync += [p_valid.eq(f_valid & (~is_loop | bad_loop)),
                         p_loop.eq(f_valid & is_loop & ~bad_loop),
                         f_valid.eq(~(f_valid & is_loop) & ~jump)]
        with m.If(self.restart | self.idle):
            m.d.sync += [f_valid.eq(0), p_valid.eq(0), p_loop.eq(0)]
        connect(m, flipped(self.program), store.host)
        m.d.comb += [store.restart.eq(self.restart), store.advance.eq(go),
                     store.hold.eq(f_valid & is_loop), store.jump.eq(jump),
                     store.body.eq(prepared.d1)]
        return m

    #: Of an instruction prepared, what follows from its wait.
    _OF_WAIT = ("wait", "short", "no_column")

    def _prepared(self) -> data.StructLayout:
        """What P keeps: also what is wrong with a wait."""
        members = dict(prepared_layout(self._unit.name, self._config).members)
        return data.StructLayout(members | {"short": 1, "no_column": 1})

    # P: substitution, checks and loops.

    def _prepare(self, m, word, resolved):
        """Resolve the instruction in F; returns whether it is a LOOP, and one with a fault."""
        f, op = self._field, self._field(word, "op")
        is_end, is_nop, is_loop = (op == control for control in
                                   (Control.END, Control.NOP, Control.LOOP))
        executes = Cat(op == known.code for known in self._unit.ops).any()
        (n1, no_n1), (n2, no_n2) = (self._count(m, word, name) for name in ("n1", "n2"))
        encoding = (executes | is_loop) & no_n1 | executes & no_n2
        if "address" in self._layout and "index" in self._layout:
            encoding |= executes & (f(word, "index") > max(Index))
        for name in reserved_fields(self._unit):
            encoding |= executes & f(word, name).any()
        always, if_prompt = (f(word, "n1") == kind for kind in (END_ALWAYS, END_IF_PROMPT))
        encoding |= is_end & (f(word, "n1_param") | ~always & ~if_prompt)
        encoding |= ~(executes | is_end | is_nop | is_loop)
        n1_more, n2_more = n1[1:].any(), n2[1:].any()
        no_inner, no_outer = f(word, "d1") == 0, f(word, "d2", 1) == 0
        empty = ~n1_more & ~n1[0] | is_loop & no_inner
        wrong = n1_more & no_inner | n2_more & no_outer | ~n2_more & ~n2[0]
        m.d.comb += [
            resolved.bad_encoding.eq(encoding),
            resolved.bad.eq(encoding | (executes | is_loop) & empty | executes & wrong),
            resolved.executes.eq(executes), resolved.ends.eq(is_end & (always | self.prompt)),
            resolved.n1.eq(n1), resolved.n1_one.eq(~executes | ~n1_more)]
        if "n2" in self._layout:
            m.d.comb += [resolved.n2.eq(n2), resolved.n2_one.eq(~executes | ~n2_more)]
        for name in ("d1", "d2", "s1", "s2", *payload(self._unit.name, self._config)):
            if name in self._layout:
                m.d.comb += resolved[name].eq(f(word, name))
        if "address" in self._layout:
            index = self._index(word) if "index" in self._layout else 0
            m.d.comb += resolved.address.eq(f(word, "address") + index)
        return is_loop, encoding | empty | resolved.no_column

    def _count(self, m, word, name: str):
        """n1 or n2 of a word with its count register substituted; whether there is none such."""
        if name not in self._layout:
            return Const(1), Const(0)
        field, by_register = self._field(word, name), self._field(word, f"{name}_param")
        value = Signal(self._config.count_bits, name=name)
        held = choose(list(self.counts), field[:2], m, self._vendor)
        m.d.comb += value.eq(Mux(by_register, held, field))
        return value, by_register & field[2:].any()

    def _wait(self, m, word, resolved, prepared, go, f_valid, p_loop, jump, is_loop):
        """The wait with its parameter substituted. Behind a jump that of the LOOP stays."""
        keep, fresh = Signal(), Signal()
        bits, load, no_column = column_bits(self._config), self.load, resolved.no_column
        raw, by_param = self._field(word, "wait"), self._field(word, "wait_param")
        params = []
        for half in range(2):
            store = memory.Memory(shape=PARAM_BITS, depth=1 << bits, init=[])
            m.submodules[f"params{half}"] = store
            read, write = store.read_port(domain="comb"), store.write_port()
            m.d.comb += [read.addr.eq(raw[:bits]), write.addr.eq(load.column),
                         write.data.eq(load.value),
                         write.en.eq(load.queue[self._queue.id] & (load.half == half))]
            params.append(read.data)
        beyond = (raw[bits:].any() if self._config.param_columns == 1 << bits
                  else raw >= self._config.param_columns)
        wait = choose([raw, params[0], raw, params[1]], Cat(by_param, self.half), m, self._vendor)
        early = fresh | is_loop
        m.d.comb += [
            no_column.eq(by_param & beyond),
            # The first issue of a step, and the first one behind a LOOP, need some cycles.
            resolved.short.eq(no_column | ~wait[2:].any() & (early | ~wait[:2].any())),
            resolved.wait.eq(Cat(Mux(resolved.short, ~early, wait[0]),
                                 wait[1] & ~resolved.short,
                                 Mux(resolved.short, early, wait[2]),
                                 Mux(no_column, 0, wait[3:])))]
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

    def _loop(self, m, prepared, p_loop, jump):
        """The LOOP in P's registers: its rounds, counted from 1, its base, its jump."""
        number = Signal(self._config.count_bits, init=1)
        m.d.comb += jump.eq(p_loop & (prepared.n1 != number))
        with m.If(jump):
            m.d.sync += number.eq(number + 1)
        with m.If(p_loop & ~jump | self.restart):
            m.d.sync += number.eq(1)
        if "address" in self._layout:
            with m.If(jump):
                m.d.sync += self._base.eq(self._base + prepared.s1)
            with m.If(p_loop & ~jump | self.restart):
                m.d.sync += self._base.eq(0)

    def _index(self, word):
        """The run-time value that an instruction adds to its address."""
        index = self._field(word, "index")
        value = Mux(index == Index.POSITION, self.position,
                    Mux(index == Index.TOKEN, self.token, 0))
        return value >> self._field(word, "index_shift")
