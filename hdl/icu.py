"""Instruction queue: fetches a program, follows its loops, and issues each operation on its cycle.

Three stages. F reads two neighbouring words, so that a LOOP behind an operation is seen with it and
costs no cycle. P substitutes delay parameters and counts and resolves the loop. E counts cycles and
repeats; its registers are the issue port.

Ref: Abts et al., "Think Fast: A Tensor Streaming Processor (TSP)", ISCA 2020, section III.
"""
from amaranth import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from arch.faults import Fault
from arch.hostmap import PROGRAM_CHUNKS, Space, power_of_two
from arch.isa import (COUNT_BITS, COUNT_REGISTERS, END_ALWAYS, END_IF_PROMPT, PARAM_BITS, WAIT_BITS,
                      Control, Index, layout, unit_of, word_bits)
from arch.queues import QUEUES
from arch.timing import FIRST_ISSUE, LOOP_WAIT_MIN
from hdl.bus import BusSignature, bits_of
from hdl.signatures import FaultSignature, IssueSignature, fault_bit

#: Program counter: wide enough that a jump before word 0 lands behind every program.
PC_BITS = 10
#: Counter of the cycles that an instruction is late; it stays at its end.
SINCE_BITS = 5
assert FIRST_ISSUE == LOOP_WAIT_MIN == 4, "the check of a short wait below looks at bits 2 and up"


class InstructionQueue(wiring.Component):
    """One in-order instruction queue with its program and delay-parameter memories.

    An instruction is in F on cycle c, in P on c + 1, and can issue on c + 3. Cycle 0 of a step
    follows the cycle of ``restart``, on which word 0 is in F.

    A queue stops, without ending, at UNDERRUN (an instruction that is not ready on its cycle, a
    count or a needed gap of 0; event on the scheduled cycle) and at ENCODING (a reserved opcode or
    index, a parameter column that does not exist, a LOOP that no operation precedes, a pc outside
    of the program memory; event on the scheduled cycle, a wait of 0 counting as 1).

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
        # Of the next instruction: valid in F or P, and whether the stage behind takes it.
        self._f_valid, self._f_take = Signal(name="f_valid"), Signal(name="f_take")
        self._p_valid, self._p_take = Signal(name="p_valid"), Signal(name="p_take")
        self._running, self._halt = Signal(name="running"), Signal(name="halt")
        self._jump, self._target = Signal(name="jump"), Signal(PC_BITS, name="target")
        primary, second, loop_pc, has_loop, beyond = self._fetch(m)
        p = self._prepare(m, primary, second, loop_pc, has_loop, beyond)
        self._repeat(m, p)
        with m.If(self._halt | self.stop):
            m.d.sync += [self._running.eq(0), self._f_valid.eq(0), self._p_valid.eq(0)]
        with m.If(self.restart):
            m.d.sync += [self._running.eq(1), self._f_valid.eq(1), self._p_valid.eq(0)]
        return m

    # F: the program memory, even and odd words apart.

    def _fetch(self, m):
        """Read the word at pc and the one behind it; registers hold them in stage P."""
        width = word_bits(self._unit, self._config)
        chunks = -(-width // 16)
        half = -(-self._depth // 2)
        pc, here, after = Signal(PC_BITS), Signal(PC_BITS), Signal(PC_BITS)
        m.d.comb += [here.eq(Mux(self.restart, 0, pc)), after.eq(here + 1)]
        reads = []
        for bank, address in enumerate((after[1:], here[1:])):
            store = memory.Memory(shape=16 * chunks, depth=half, init=[])
            m.submodules[f"program{bank}"] = store
            read = store.read_port(domain="comb")
            m.d.comb += read.addr.eq(address)
            reads.append(read.data)
            self._program_write(m, store.write_port(granularity=16), bank, chunks)
        word, behind = Signal(width), Signal(width)
        beyond, loops = Signal(), Signal()
        m.d.comb += [
            beyond.eq(here >= self._depth),
            word.eq(Mux(here[0], reads[1], reads[0])),
            behind.eq(Mux(here[0], reads[0], reads[1])),
            loops.eq((self._field(behind, "op") == Control.LOOP) & (after < self._depth))]
        primary, second = Signal(width, reset_less=True), Signal(width, reset_less=True)
        loop_pc, has_loop = Signal(PC_BITS, reset_less=True), Signal(reset_less=True)
        f_beyond = Signal(reset_less=True)
        with m.If(self.restart | ~self._f_valid | self._f_take):
            m.d.sync += [primary.eq(word), second.eq(behind), loop_pc.eq(after),
                         has_loop.eq(loops), f_beyond.eq(beyond),
                         self._f_valid.eq(self._running),
                         pc.eq(Mux(loops, here + 2, after))]
        with m.If(self._jump & ~self.restart):
            # The word that F reads now is behind the loop: drop it.
            m.d.sync += [self._f_valid.eq(0), pc.eq(self._target)]
        self._host_side(m, pc, word, chunks)
        return primary, second, loop_pc, has_loop, f_beyond

    def _program_write(self, m, port, bank, chunks):
        """Every chunk is written by itself: nothing is read before the last one is there."""
        host = self.host
        chunk, pc, number = host.address[:3], host.address[3:12], host.address[12:]
        m.d.comb += [port.addr.eq(pc[1:]), port.data.eq(host.w_data.replicate(chunks))]
        with m.If(host.w_en & (host.space == Space.PROGRAM) & (number == self._queue.id)
                  & (pc[0] == bank) & (pc < self._depth)):
            m.d.comb += port.en.eq((1 << chunk)[:chunks])

    def _host_side(self, m, pc, word, chunks):
        """Read-back and answers. A read goes through pc, which no step needs between runs."""
        host, config = self.host, self._config
        columns, rows = bits_of(power_of_two(config.param_columns)), bits_of(config.param_rows)
        in_program, in_params = Signal(), Signal()
        m.d.comb += [
            in_program.eq((host.space == Space.PROGRAM) & (host.address[12:] == self._queue.id)),
            in_params.eq((host.space == Space.PARAMS)
                         & (host.address[columns + rows:] == self._queue.id))]
        # The request is on cycle 0, the read on cycle 1, the answer on cycle 2.
        wrote, read_program, read_params = Signal(), Signal(), Signal()
        m.d.sync += [wrote.eq(host.w_en & (in_program | in_params)),
                     read_program.eq(host.r_en & in_program),
                     read_params.eq(host.r_en & in_params)]
        with m.If(host.r_en & in_program):
            m.d.sync += pc.eq(host.address[3:12])
        self._param_override = read_params
        param = self._params(m, columns, rows, in_params)
        m.d.sync += [host.ack.eq(wrote | read_program | read_params), host.r_data.eq(0)]
        with m.If(read_program):
            parts = [word[16 * chunk:16 * chunk + 16] for chunk in range(chunks)]
            parts += [Const(0, 16)] * (PROGRAM_CHUNKS - chunks)
            m.d.sync += host.r_data.eq(Array(parts)[host.address[:3]])
        with m.If(read_params):
            m.d.sync += host.r_data.eq(param)

    def _params(self, m, columns, rows, in_params):
        """Delay parameters of all rows; returns the one of ``_param_column`` in the row."""
        host = self.host
        store = memory.Memory(shape=PARAM_BITS, depth=self._config.param_rows << columns, init=[])
        m.submodules.params = store
        read, write = store.read_port(domain="comb"), store.write_port()
        self._param_column = Signal(columns, name="param_column")
        m.d.comb += [
            read.addr.eq(Mux(self._param_override, host.address[:columns + rows],
                             Cat(self._param_column, self.row[:rows]))),
            write.addr.eq(host.address[:columns + rows]), write.data.eq(host.w_data),
            write.en.eq(host.w_en & in_params)]
        self._param = read.data
        return read.data

    # P: substitution and loops.

    def _prepare(self, m, word, second, loop_pc, has_loop, beyond):
        """Resolve the instruction in F's registers; returns P's registers by name."""
        config, f = self._config, self._field
        op = Mux(beyond, 0, f(word, "op"))
        is_end, is_nop = op == Control.END, op == Control.NOP
        first, override = Signal(), Signal()
        poison = Signal()
        loop_wait, loop_param = Signal(WAIT_BITS, reset_less=True), Signal(reset_less=True)

        # The wait: that of the LOOP just taken, or the instruction's own.
        raw, use_param, wait = Signal(WAIT_BITS), Signal(), Signal(WAIT_BITS)
        m.d.comb += [
            raw.eq(Mux(override, loop_wait, Mux(beyond, 0, f(word, "wait")))),
            use_param.eq(Mux(override, loop_param, f(word, "wait_param") & ~beyond)),
            self._param_column.eq(raw),
            wait.eq(Mux(use_param, self._param, raw))]

        n1, n2, zero = self._counts(m, word, "op")
        if "d2" not in self._layout:
            # Without outer repeats n2 is the length of a loop body, and 1 elsewhere.
            n2, loops_only = Const(1), n2 != 1
        end_ok = ~f(word, "n1_param") & ((f(word, "n1") == END_ALWAYS)
                                         | (f(word, "n1") == END_IF_PROMPT))
        known = is_nop | is_end & end_ok
        for unit_op in self._unit.ops:
            known |= op == unit_op.code
        executes = ~is_end & ~is_nop
        reserved = ~known | use_param & (raw >= config.param_columns)
        if self._adds_index:
            reserved |= executes & (f(word, "index") == 3)
        if "d2" not in self._layout:
            reserved |= executes & loops_only
        gap = (n1 > 1) & (f(word, "d1", 1) == 0) | (n2 > 1) & (f(word, "d2", 1) == 0)
        short = (first | override) & (wait[2:] == 0)
        bad_encoding, bad = Signal(), Signal()
        ends = Signal()
        m.d.comb += [
            bad_encoding.eq(reserved & ~poison),
            bad.eq(reserved | poison | short | executes & (zero | gap)),
            ends.eq(is_end & ((f(word, "n1") == END_ALWAYS) | self.prompt) & ~bad)]

        p = {name: Signal.like(value, name=f"p_{name}", reset_less=True) for name, value in {
            "wait": wait, "issue": bad, "end": bad, "bad": bad, "bad_encoding": bad}.items()}
        assign = {"wait": Mux(bad_encoding & (wait == 0), 1, wait), "issue": executes & ~bad,
                  "end": ends, "bad": bad, "bad_encoding": bad_encoding}
        plain = ~executes | bad
        for name, count in (("n1", n1), ("n2", n2)):
            p[f"{name}_less"] = Signal(COUNT_BITS, name=f"p_{name}_less", reset_less=True)
            p[f"{name}_one"] = Signal(name=f"p_{name}_one", reset_less=True)
            assign[f"{name}_less"], assign[f"{name}_one"] = count - 1, plain | (count == 1)
        for name, default in (("d1", 1), ("d2", 1), ("s1", 0), ("s2", 0)):
            if name in self._layout:
                p[name] = Signal.like(f(word, name), name=f"p_{name}", reset_less=True)
                assign[name] = f(word, name)
            else:
                p[name] = Const(default)
        for name in self._payload:
            p[name] = Signal.like(f(word, name), name=f"p_{name}", reset_less=True)
            assign[name] = f(word, name)
        base = self._loop(m, second, loop_pc, has_loop & ~ends & ~bad, override, poison,
                          loop_wait, loop_param, first)
        if self._has_address:
            width = len(self.issue.address)
            for name in ("address", "index"):
                p[f"{name}_sum"] = Signal(width, name=f"p_{name}_sum", reset_less=True)
            assign["address_sum"] = f(word, "address") + base
            assign["index_sum"] = self._index(word) if self._adds_index else 0

        advance = self._f_valid & self._f_take
        m.d.comb += self._f_take.eq(~self._p_valid | self._p_take)
        with m.If(self._f_take):
            m.d.sync += self._p_valid.eq(self._f_valid)
            m.d.sync += [p[name].eq(value) for name, value in assign.items()]
        with m.If(advance & (ends | bad)):
            m.d.sync += [self._running.eq(0), self._f_valid.eq(0)]
        with m.If(self.restart):
            m.d.sync += [first.eq(1), override.eq(0), poison.eq(0)]
        return p

    def _counts(self, m, word, name):
        """n1 and n2 of a word with count registers substituted, and whether one is 0."""
        resolved = []
        for count in ("n1", "n2"):
            value = Signal(COUNT_BITS, name=f"{name}_{count}")
            field = self._field(word, count, 1)
            if count in self._layout:
                m.d.comb += value.eq(Mux(self._field(word, f"{count}_param"),
                                         self.counts[field[:2]], field))
            else:
                m.d.comb += value.eq(1)
            resolved.append(value)
        return (*resolved, (resolved[0] == 0) | (resolved[1] == 0))

    def _loop(self, m, word, loop_pc, taken, override, poison, wait, wait_param, first):
        """Resolve the LOOP behind the instruction that leaves F; returns the base of this round."""
        f = self._field
        rounds, body, zero = self._counts(m, word, "loop")
        done = Signal(COUNT_BITS)
        base = Signal(signed(len(self.issue.address))) if self._has_address else Const(0)
        m.d.comb += [
            self._target.eq(loop_pc - body),
            self._jump.eq(self._f_valid & self._f_take & taken & ~zero & (rounds != done + 1))]
        with m.If(self._f_valid & self._f_take):
            m.d.sync += [first.eq(0), override.eq(0), poison.eq(0)]
            with m.If(taken):
                m.d.sync += [override.eq(zero | self._jump), poison.eq(zero),
                             wait.eq(f(word, "wait")), wait_param.eq(f(word, "wait_param")),
                             done.eq(Mux(self._jump, done + 1, 0))]
                if self._has_address:
                    m.d.sync += base.eq(Mux(self._jump, base + f(word, "s2"), 0))
        with m.If(self.restart):
            m.d.sync += done.eq(0)
            if self._has_address:
                m.d.sync += base.eq(0)
        return base

    def _index(self, word):
        """The run-time value that an instruction adds to its address."""
        value = Mux(self._field(word, "index") == Index.POSITION, self.position,
                    Mux(self._field(word, "index") == Index.TOKEN, self.token, 0))
        return value >> self._field(word, "index_shift")

    # E: repeats and issue.

    @property
    def _has_address(self) -> bool:
        return "address" in self._layout

    @property
    def _adds_index(self) -> bool:
        return self._has_address and "index" in self._layout

    @property
    def _payload(self) -> list:
        """Fields that go to the slice as they are."""
        members = self.issue.signature.members
        return [name for name in self._layout if name in members and name != "address"]

    def _repeat(self, m, p):
        """Count down to every issue; P's registers are loaded on the last issue before theirs."""
        issue = self.issue
        names = ["end", "bad", "bad_encoding", "issue", "n1_less", "n2_less", "n1_one"]
        names += [name for name in ("d1", "d2", "s1", "s2") if name in self._layout]
        e = {name: Signal.like(p[name], name=f"e_{name}", reset_less=True) for name in names}
        e = {name: p[name] for name in ("d1", "d2", "s1", "s2")} | e
        valid, due = Signal(), Signal()
        timer, since = Signal(WAIT_BITS, reset_less=True), Signal(SINCE_BITS)
        last, take, load, late = Signal(), Signal(), Signal(), Signal()
        missed = Mux(valid, 0, since)
        m.d.comb += [
            last.eq(due & issue.j_last & issue.i_last),
            take.eq(last | ~valid), self._p_take.eq(take),
            # The wait of an instruction that was not in P on the last issue is partly over.
            late.eq((p["wait"] <= missed) | since.all() & ~valid),
            load.eq(take & self._p_valid)]
        fires = Signal()
        with m.If(load):
            m.d.sync += [e[name].eq(p[name]) for name in names]
            m.d.sync += [getattr(issue, name).eq(p[name]) for name in self._payload]
            m.d.sync += timer.eq(p["wait"] - missed)
            m.d.comb += fires.eq(p["wait"] == missed + 1)
        with m.Elif(due):
            gap = Mux(issue.j_last, e["d2"], e["d1"])
            m.d.sync += timer.eq(gap)
            m.d.comb += fires.eq(~last & (gap == 1))
        with m.Else():
            m.d.sync += timer.eq(timer - 1)
            m.d.comb += fires.eq(valid & (timer == 2))
        m.d.sync += [valid.eq(load | valid & ~last), due.eq(fires),
                     issue.valid.eq(fires & Mux(load, p["issue"], e["issue"]))]
        with m.If(valid):
            m.d.sync += since.eq(1)
        with m.Elif(~since.all()):
            m.d.sync += since.eq(since + 1)
        self._indices(m, p, e, load, due)

        # Ends and faults, on the scheduled cycle.
        ended, encoding, underrun = Signal(), Signal(), Signal()
        m.d.comb += [
            self.ended.eq(ended | due & e["end"]),
            encoding.eq(due & e["bad"] & e["bad_encoding"] | load & late & p["bad_encoding"]),
            underrun.eq(due & e["bad"] & ~e["bad_encoding"] | load & late & ~p["bad_encoding"]),
            self._halt.eq(encoding | underrun)]
        m.d.sync += [ended.eq(self.ended), self.fault.causes.eq(0),
                     self.fault.causes[fault_bit(Fault.ENCODING)].eq(encoding),
                     self.fault.causes[fault_bit(Fault.UNDERRUN)].eq(underrun)]
        with m.If(self._halt | self.restart | self.stop):
            m.d.sync += [valid.eq(0), due.eq(0), issue.valid.eq(0)]
        with m.If(self.restart | self.stop):
            m.d.sync += [since.eq(0), ended.eq(0)]

    def _indices(self, m, p, e, load, due):
        """Repeat indices, their flags, and the address."""
        issue = self.issue
        with m.If(load):
            m.d.sync += [issue.i.eq(0), issue.j.eq(0), issue.i_first.eq(1), issue.j_first.eq(1),
                         issue.i_last.eq(p["n2_one"]), issue.j_last.eq(p["n1_one"])]
        with m.Elif(due & issue.j_last):
            m.d.sync += [issue.i.eq(issue.i + 1), issue.i_first.eq(0),
                         issue.i_last.eq(issue.i + 1 == e["n2_less"]),
                         issue.j.eq(0), issue.j_first.eq(1), issue.j_last.eq(e["n1_one"])]
        with m.Elif(due):
            m.d.sync += [issue.j.eq(issue.j + 1), issue.j_first.eq(0),
                         issue.j_last.eq(issue.j + 1 == e["n1_less"])]
        if self._has_address:
            row = Signal(len(issue.address), reset_less=True)
            total = Signal(len(issue.address))
            with m.If(load):
                m.d.comb += total.eq(p["address_sum"] + p["index_sum"])
            with m.Elif(issue.j_last):
                m.d.comb += total.eq(row + e["s2"])
            with m.Else():
                m.d.comb += total.eq(issue.address + e["s1"])
            with m.If(load | due):
                m.d.sync += issue.address.eq(total)
            with m.If(load | due & issue.j_last):
                m.d.sync += row.eq(total)

