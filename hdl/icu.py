"""Instruction queue: fetches a program, follows its loops, and issues each operation on its cycle.

Four stages. F reads two neighbouring words, so that a LOOP behind an operation is seen with it and
costs no cycle. P looks up delay parameters, counts and the run-time index. Q puts the instruction
together and resolves the loop. E counts cycles and repeats (`hdl.repeat`); its registers are the
issue port. F, P and Q stand still while the instruction behind Q is not taken.

Ref: Abts et al., "Think Fast: A Tensor Streaming Processor (TSP)", ISCA 2020, section III.
"""
from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from arch.config import Config
from arch.isa import (COUNT_BITS, COUNT_REGISTERS, END_ALWAYS, END_IF_PROMPT, WAIT_BITS, Control,
                      Index, layout, unit_of, word_bits)
from arch.queues import QUEUES
from arch.timing import FIRST_ISSUE, LOOP_WAIT_MIN
from hdl.bus import BusSignature, bits_of
from hdl.program import PC_BITS, ProgramStore, fetched_layout
from hdl.repeat import Repeater, payload, prepared_layout
from hdl.signatures import FaultSignature, IssueSignature

assert FIRST_ISSUE == LOOP_WAIT_MIN == 4, "the check of a short wait below looks at bits 2 and up"


class InstructionQueue(wiring.Component):
    """One in-order instruction queue with its program and delay-parameter memories.

    An instruction that is in F on cycle c can issue on c + 4; on cycle 0 of a step, which follows
    ``restart``, that is word 0. Words behind each other follow each other at one per cycle, a LOOP
    not counting; a jump costs three cycles.

    A queue stops, without ending, at UNDERRUN (an instruction that is not ready on its cycle, a
    count or a needed gap of 0) and at ENCODING (a reserved opcode or index, a parameter column that
    does not exist, a LOOP behind no operation, a pc outside of the program memory). The event is on
    the scheduled cycle, where an ENCODING with a wait of 0, or of no such column, waits 1 cycle;
    only those of waits below 3 behind a barrier or a jump may be told up to three cycles late.

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
        self._width = word_bits(self._unit, config)
        self._has_outer, self._has_address = "d2" in self._layout, "address" in self._layout
        self._adds_index = self._has_address and "index" in self._layout
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
        store = ProgramStore(m, self._config, self._queue, self.host)

        # Registers behind F, P and Q, and whether they hold an instruction.
        fetched = Signal(fetched_layout(self._width), reset_less=True)
        looked = Signal(self._looked_layout(), reset_less=True)
        prepared = Signal(prepared_layout(self._unit.name, self._config), reset_less=True)
        f_valid, p_valid, q_valid = Signal(), Signal(), Signal()
        go, jump = Signal(), Signal()
        m.d.comb += [go.eq(~q_valid | repeat.take), repeat.next.eq(prepared),
                     repeat.next_valid.eq(q_valid)]
        with m.If(go):
            m.d.sync += [fetched.eq(store.found), f_valid.eq(1), p_valid.eq(f_valid),
                         q_valid.eq(p_valid)]
        self._look_up(m, store, fetched, looked, go & f_valid, jump, go)
        target = self._put_together(m, looked, prepared, go, go & p_valid, jump)

        # A jump is decided on one cycle and taken on the next. What F and P work on stands behind
        # the loop: drop it.
        with m.If(jump):
            m.d.sync += p_valid.eq(0)
        with m.If(jump | store.jumps):
            m.d.sync += f_valid.eq(0)
        with m.If(self.restart):
            m.d.sync += [f_valid.eq(0), p_valid.eq(0), q_valid.eq(0)]
        store.control(advance=go, jump=jump, target=target, restart=self.restart)
        return m

    # P: everything that has to be looked up.

    def _looked_layout(self) -> data.StructLayout:
        """What Q needs of an instruction.

        ``fresh``: first behind a barrier or a jump; ``no_rounds``: stands for a LOOP with a bad
        count; ``loops``: a LOOP follows, with fields ``loop_*`` and the pc behind it.
        """
        members = {
            "raw": WAIT_BITS, "by_param": 1, "param": WAIT_BITS, "no_column": 1, "fresh": 1,
            "no_rounds": 1, "is_end": 1, "executes": 1, "known": 1, "ends": 1, "n1": COUNT_BITS,
            "loops": 1, "loop_pc": PC_BITS, "loop_wait": WAIT_BITS, "loop_param": 1,
            "loop_n1": COUNT_BITS, "loop_n2": COUNT_BITS}
        if self._has_outer:
            members["n2"] = COUNT_BITS
        names = ["d1", "s1", *(("d2", "s2") if self._has_outer else ()),
                 *payload(self._unit.name, self._config)]
        for name in (*names, *(("address",) if self._has_address else ())):
            if name in self._layout:
                _, width, is_signed = self._layout[name]
                members[name] = signed(width) if is_signed else width
        if self._has_address:
            members["loop_s2"] = signed(self._layout["s2"][1])
        if self._adds_index:
            members["index"] = len(self.issue.address)
        return data.StructLayout(members)

    def _look_up(self, m, store, fetched, looked, moves, jump, go):
        """Parameter, counts, index, and what kind of instruction it is."""
        f, word = self._field, fetched.word
        now = Signal.like(looked, name="look")
        with m.If(go):
            m.d.sync += looked.eq(now)

        # After a jump the wait is that of the LOOP.
        first, after_loop, no_rounds = Signal(), Signal(), Signal()
        loop_wait, loop_param = Signal(WAIT_BITS, reset_less=True), Signal(reset_less=True)
        with m.If(moves):
            m.d.sync += [first.eq(0), after_loop.eq(0)]
        with m.If(jump):
            m.d.sync += [after_loop.eq(1), no_rounds.eq(self._bad_rounds(looked)),
                         loop_wait.eq(looked.loop_wait), loop_param.eq(looked.loop_param)]
        with m.If(self.restart):
            m.d.sync += [first.eq(1), after_loop.eq(0)]
        own = Mux(fetched.beyond, 0, Cat(f(word, "wait"), f(word, "wait_param")))
        m.d.comb += [
            Cat(now.raw, now.by_param).eq(Mux(after_loop, Cat(loop_wait, loop_param), own)),
            now.param.eq(store.parameter(now.raw, self.row)),
            now.no_column.eq(now.by_param & (now.raw >= self._config.param_columns)),
            now.fresh.eq(first | after_loop), now.no_rounds.eq(after_loop & no_rounds)]

        op = Mux(fetched.beyond, 0, f(word, "op"))
        n1, is_nop, codes = f(word, "n1"), op == Control.NOP, [o.code for o in self._unit.ops]
        end_known = ~f(word, "n1_param") & ((n1 == END_ALWAYS) | (n1 == END_IF_PROMPT))
        known = Cat(op == code for code in codes).any()
        if not self._has_outer:
            # Without outer repeats n2 is the length of a loop body, and 1 elsewhere.
            known &= f(word, "n2") == 1
        if self._adds_index:
            known &= f(word, "index") <= max(Index)
        m.d.comb += [
            now.is_end.eq(op == Control.END), now.executes.eq(~now.is_end & ~is_nop),
            now.known.eq(is_nop | now.is_end & end_known | known),
            now.ends.eq(now.is_end & ((n1 == END_ALWAYS) | self.prompt)),
            now.loops.eq(fetched.has_loop), now.loop_pc.eq(fetched.loop_pc),
            now.loop_wait.eq(f(fetched.behind, "wait")),
            now.loop_param.eq(f(fetched.behind, "wait_param"))]
        for name, source, field in (("n1", word, "n1"), ("n2", word, "n2"),
                                    ("loop_n1", fetched.behind, "n1"),
                                    ("loop_n2", fetched.behind, "n2")):
            if name in looked.shape().members:
                value = f(source, field)
                m.d.comb += now[name].eq(Mux(f(source, f"{field}_param"), self.counts[value[:2]],
                                             value))
        for name in ("d1", "d2", "s1", "s2", "address", *payload(self._unit.name, self._config)):
            if name in looked.shape().members:
                m.d.comb += now[name].eq(f(word, name))
        if self._has_address:
            m.d.comb += now.loop_s2.eq(f(fetched.behind, "s2"))
        if self._adds_index:
            m.d.comb += now["index"].eq(self._index(word))

    def _index(self, word):
        """The run-time value that an instruction adds to its address."""
        index = self._field(word, "index")
        value = Mux(index == Index.POSITION, self.position,
                    Mux(index == Index.TOKEN, self.token, 0))
        return value >> self._field(word, "index_shift")

    # Q: the whole instruction, and the loop behind it.

    def _bad_rounds(self, looked):
        """A count of the LOOP is 0."""
        return (looked.loop_n1 == 0) | (looked.loop_n2 == 0)

    def _put_together(self, m, looked, prepared, go, moves, jump):
        """Check the instruction, add the base, and decide where to go on: returns the target."""
        now = Signal.like(prepared, name="ready")
        with m.If(go):
            m.d.sync += prepared.eq(now)
        wait, n1 = Signal(WAIT_BITS), looked.n1
        zero, gap = n1 == 0, (n1 > 1) & (looked.d1 == 0)
        if self._has_outer:
            zero, gap = zero | (looked.n2 == 0), gap | (looked.n2 > 1) & (looked.d2 == 0)
            m.d.comb += [now.n2_less.eq(looked.n2 - 1),
                         now.n2_one.eq(~now.issues | (looked.n2 == 1))]
        reserved = ~looked.known | looked.no_column
        short = looked.fresh & (wait[2:] == 0)
        m.d.comb += [
            wait.eq(Mux(looked.by_param, looked.param, looked.raw)),
            now.bad_encoding.eq(reserved & ~looked.no_rounds),
            now.bad.eq(reserved | looked.no_rounds | short | looked.executes & (zero | gap)),
            now.wait.eq(Mux(now.bad_encoding & ((wait == 0) | looked.no_column), 1, wait)),
            now.issues.eq(looked.executes & ~now.bad), now.ends.eq(looked.ends & ~now.bad),
            now.n1_less.eq(n1 - 1), now.n1_one.eq(~now.issues | (n1 == 1))]
        for name in ("d1", "d2", "s1", "s2", *payload(self._unit.name, self._config)):
            if name in looked.shape().members:
                m.d.comb += now[name].eq(looked[name])

        # Rounds count from 1. A LOOP with a bad count jumps, too: what comes then is the fault.
        number, loops = Signal(COUNT_BITS), moves & looked.loops
        m.d.comb += jump.eq(loops & ((looked.loop_n1 != number) | self._bad_rounds(looked)))
        with m.If(loops):
            m.d.sync += number.eq(Mux(jump, number + 1, 1))
        with m.If(self.restart):
            m.d.sync += number.eq(1)
        if self._has_address:
            base = Signal(signed(len(self.issue.address)))
            with m.If(loops):
                m.d.sync += base.eq(Mux(jump, base + looked.loop_s2, 0))
            with m.If(self.restart):
                m.d.sync += base.eq(0)
            m.d.comb += [now.address.eq(looked.address + base),
                         now["index"].eq(looked["index"] if self._adds_index else 0)]
        return looked.loop_pc - looked.loop_n2
