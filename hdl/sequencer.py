"""Token loop and barrier: positions, step lengths, tokens, stop conditions, faults, registers.

A step of length L is on cycles 0 to L - 1. Its last cycle is the barrier of the next one: all
queues restart the cycle before, for they are one cycle ahead of what they rule, and are stopped two
cycles later, before they can issue, if the run ends there.
"""
from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, fifo, memory, stream, wiring
from amaranth.lib.wiring import In, Out, connect

from arch.config import Config
from arch.faults import Fault
from arch.hostmap import ROW_COUNTS, ROW_GENERATE, ROW_PROMPT, ROW_WORDS, EventFlag, Space
from arch.isa import COUNT_REGISTERS
from arch.queues import QUEUES
from hdl.bus import BusSignature, bits_of
from hdl.faults import FaultRecorder
from hdl.registers import Registers
from hdl.relay import Relay
from hdl.signatures import fault_bit

CYCLE_BITS = 16
#: Cycles from the position of the next step to its barrier.
PREFETCH = 3


def event_layout(config: Config) -> data.StructLayout:
    """One step as told to the host; ``flags`` are bits of `arch.hostmap.EventFlag`."""
    return data.StructLayout({"flags": 3, "position": config.position_bits,
                              "token": config.token_bits, "cycles": CYCLE_BITS})


class Sequencer(wiring.Component):
    """Runs steps from FIRST on until LIMIT, STOP, an abort or a fault.

    Step lengths below `PREFETCH` + 1 are not supported: the next step would use what belongs to
    this one. A run starts once all events of the one before have been taken.

    Parameters
    ----------
    config : Config
    build : int
        For the registers BUILD0 to BUILD3.

    Members
    -------
    host : REGISTERS, ROWS and TOKENS.
    ended : by queue id; high for queues that do not exist.
    causes : by queue id; faults as in `hdl.signatures.FaultSignature`.
    sampled : token of the sampler, on the last cycle of a generate step.
    restart, stop : for the queues; ``restart`` is high on the cycle before ``barrier``.
    row, prompt, position, token : of the step that is running.
    counts : of the step that is running on the next cycle: there is time to take them far.
    load_start, load_next, load_row, loading : delay parameters, see `hdl.params.ParamStore`. A run
        begins with the first two rows loaded; as a row begins, the next one is loaded.
    vocabulary, temperature, seed : registers for the sampler.
    barrier : the cycle before the first step, and the last cycle of every step.
    busy : from RUN to the end of the run.
    fault : a fault is recorded.
    event : `event_layout`, one per step. It holds a full context and never pushes back.
    """

    def __init__(self, *, config: Config, build: int = 0):
        self._config, self._build = config, build
        causes = data.ArrayLayout(len(Fault) - 1, len(QUEUES))
        super().__init__({
            "host": In(BusSignature()), "ended": In(len(QUEUES)), "causes": In(causes),
            "sampled": In(config.token_bits),
            "restart": Out(1), "stop": Out(1), "row": Out(max(1, bits_of(config.param_rows))),
            "counts": Out(data.ArrayLayout(config.count_bits, COUNT_REGISTERS)), "prompt": Out(1),
            "position": Out(config.position_bits), "token": Out(config.token_bits),
            "load_start": Out(1), "load_next": Out(1),
            "load_row": Out(max(1, bits_of(config.param_rows))), "loading": In(1),
            "vocabulary": Out(16), "temperature": Out(16), "seed": Out(64),
            "barrier": Out(1), "busy": Out(1), "fault": Out(1),
            "event": Out(stream.Signature(event_layout(config)))})

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.registers = registers = Registers(config=config, build=self._build)
        m.submodules.faults = faults = FaultRecorder()
        # Positions of a run follow each other: they are counted where the events leave.
        m.submodules.events = events = fifo.SyncFIFOBuffered(
            width=event_layout(config).size - config.position_bits, depth=config.context)
        # The output of the block RAM comes late in its cycle.
        m.submodules.leaving = leaving = Relay(shape=len(events.r_data))
        self._registers, self._faults, self._leaving = registers, faults, leaving

        # The step that runs, and what is known of the next one.
        turn, running, starting = Signal(), Signal(), Signal()
        cycle, length = Signal(CYCLE_BITS), Signal(CYCLE_BITS, reset_less=True)
        after = Signal(config.position_bits + 1, reset_less=True)
        row_word, token_word = self._memories(m, after, turn & running)
        next_prompt, next_length, at_limit = self._next(m, after, row_word)
        # One cycle behind the last one: whether it was that of the run. The causes of faults come from
        # everywhere, and have been recorded by then.
        done, begun, ends = Signal(), Signal(), Signal()
        m.d.sync += [
            begun.eq(turn & running),
            done.eq(registers.abort | ~self.ended.all() | at_limit
                    | ~self.prompt & (self.sampled == registers.halt_token))]
        m.d.comb += [ends.eq(begun & (done | faults.fault)), self.barrier.eq(turn)]
        # On the first cycle of a step that may not begin, its length means nothing.
        m.d.sync += [cycle.eq(cycle + 1), self.stop.eq(ends), turn.eq(self.restart),
                     self.restart.eq(running & ~self.restart & ~turn & ~begun
                                     & (cycle + 3 >= length))]
        # A step that does not begin may have its values.
        with m.If(ends):
            m.d.sync += running.eq(0)
        with m.If(turn):
            m.d.sync += [cycle.eq(0), running.eq(1),
                         self.position.eq(after), after.eq(after + 1),
                         self.row.eq(after[bits_of(config.columns):]),
                         self.prompt.eq(next_prompt), length.eq(next_length),
                         self.token.eq(Mux(running & ~self.prompt, self.sampled, token_word))]
        with m.If(self.restart):
            m.d.sync += [self.counts[index].eq(row_word[field])
                         for index, field in enumerate(ROW_COUNTS)]
        # The row changes with the step that begins on the next cycle.
        next_row, row_begins = after[bits_of(config.columns):][:len(self.row)], Signal()
        m.d.sync += row_begins.eq(turn & running & (next_row != self.row))
        m.d.sync += self.load_next.eq(row_begins & ~ends)
        m.d.comb += self.load_row.eq(Mux(self.load_start, next_row, self.row))
        self._start(m, running, starting, turn, after, events)
        self._report(m, turn, running, begun, ends, cycle, events)
        m.d.comb += [getattr(registers.host, name).eq(getattr(self.host, name))
                     for name in ("space", "address", "w_en", "r_en", "w_data")]
        m.d.comb += [
            self.busy.eq(running | starting), self.fault.eq(faults.fault),
            self.vocabulary.eq(registers.vocabulary), self.seed.eq(registers.seed),
            self.temperature.eq(registers.temperature),
            registers.running.eq(self.busy),
            registers.fault.eq(faults.fault), registers.cause.eq(faults.cause),
            registers.queue.eq(faults.queue), registers.fault_cycle.eq(faults.cycle)]
        return m

    def _memories(self, m, after, stores):
        """Row table and token memory: what the position ``after`` needs, two cycles later.

        A token is stored one cycle after the barrier, when it is that of the step: nobody reads it
        before the next run. Between runs the host has both; it is answered three cycles after its
        request.
        """
        config, host = self._config, self.host
        rows = memory.Memory(shape=16 * ROW_WORDS, depth=config.param_rows, init=[])
        # No write meets a read whose word counts: a token that is stored is that of the step before.
        tokens = memory.Memory(shape=config.token_bits, depth=config.context, init=[],
                               attrs={"no_rw_check": 1, "ram_style": "block"})
        m.submodules.rows, m.submodules.tokens = rows, tokens
        row_read, row_write = rows.read_port(domain="comb"), rows.write_port(granularity=16)
        token_read, token_write = tokens.read_port(), tokens.write_port()
        in_rows, in_tokens = host.space == Space.ROWS, host.space == Space.TOKENS
        field_bits = bits_of(ROW_WORDS)
        row, lookup = host.address[field_bits:], host.r_en & in_tokens
        asked, known, wrote, stored = Signal(), Signal(), Signal(), Signal()
        by_host_row = (host.r_en | asked) & in_rows
        row_word = Signal(data.ArrayLayout(16, ROW_WORDS), reset_less=True)
        m.d.comb += [
            row_read.addr.eq(Mux(by_host_row, row, after[bits_of(config.columns):])),
            row_write.addr.eq(row), row_write.data.eq(host.w_data.replicate(ROW_WORDS)),
            row_write.en.eq(Mux(host.w_en & in_rows & (row < config.param_rows),
                                1 << host.address[:field_bits], 0)),
            token_read.addr.eq(Mux(lookup, host.address, after)),
            token_write.addr.eq(Mux(stored, self.position, host.address)),
            token_write.data.eq(Mux(stored, self.token, host.w_data)),
            token_write.en.eq(stored | host.w_en & in_tokens & (host.address < config.context))]
        m.d.sync += [stored.eq(stores & ~self.prompt & (after < config.context)),
                     row_word.eq(row_read.data)]
        token_word = Signal(config.token_bits, reset_less=True)
        m.d.sync += token_word.eq(token_read.data)
        m.d.sync += [asked.eq(host.r_en & (in_rows | in_tokens)), known.eq(asked),
                     wrote.eq(host.w_en & (in_rows | in_tokens))]
        answer, ack = Signal(16), Signal()
        m.d.sync += [ack.eq(known | wrote), answer.eq(0)]
        with m.If(known):
            m.d.sync += answer.eq(Mux(in_rows, row_word[host.address[:field_bits]], token_word))
        m.d.comb += [self.host.ack.eq(ack | self._registers.host.ack),
                     self.host.r_data.eq(answer | self._registers.host.r_data)]
        return row_word, token_word

    def _next(self, m, after, row_word):
        """Registers that describe the step at ``after``: its kind, its length, whether it runs."""
        config, registers = self._config, self._registers
        prompt, length, at_limit = Signal(), Signal(CYCLE_BITS, reset_less=True), Signal()
        m.d.sync += [prompt.eq(after + 1 < registers.prompt),
                     at_limit.eq((after >= registers.limit) | (after >= config.context)),
                     length.eq(Mux(prompt, row_word[ROW_PROMPT], row_word[ROW_GENERATE]))]
        return prompt, length, at_limit

    def _start(self, m, running, starting, turn, after, events):
        """RUN: set the position, give the memories their time, then the first barrier."""
        registers = self._registers
        waiting = Signal(range(PREFETCH + 1))
        m.d.sync += self.load_start.eq(registers.run & ~self.busy)
        with m.If(registers.run & ~self.busy):
            m.d.sync += [starting.eq(1), waiting.eq(PREFETCH), after.eq(registers.first)]
        with m.Elif(starting & ~turn & ((waiting != PREFETCH)
                                            | (events.level == 0) & ~self.event.valid
                                            & ~self.load_start & ~self.loading)):
            # The first of these cycles waits for the events of the last run to leave, and for the
            # delay parameters.
            m.d.sync += [waiting.eq(waiting - 1), self.restart.eq(waiting == 2)]
        with m.If(turn):
            m.d.sync += starting.eq(0)
        with m.If(turn & starting):
            m.d.sync += self.event.payload.position.eq(after)
        with m.Elif(self.event.valid & self.event.ready):
            m.d.sync += self.event.payload.position.eq(self.event.payload.position + 1)

    def _report(self, m, turn, running, begun, ends, cycle, events):
        """Faults of a step, one cycle after its last one; its event, two cycles after."""
        faults, registers, leaving = self._faults, self._registers, self._leaving
        connect(m, events.r_stream, leaving.i)
        before, length_fault = Signal(CYCLE_BITS), Signal(len(QUEUES))
        sampled, token = Signal(), Signal(self._config.token_bits)
        cycles, push = Signal(CYCLE_BITS), Signal()
        # The position that the host reads stays where the run ended.
        first, last, ended_run = Signal(), Signal(), Signal()
        m.d.sync += first.eq(turn)
        with m.If(first & ~ends):
            m.d.sync += registers.position.eq(self.position)
        m.d.comb += last.eq(turn & running)
        m.d.sync += [before.eq(cycle), push.eq(begun), ended_run.eq(ends),
                     length_fault.eq(Mux(last, ~self.ended, 0))]
        with m.If(last):
            m.d.sync += [sampled.eq(~self.prompt), token.eq(Mux(self.prompt, 0, self.sampled)),
                         cycles.eq(cycle + 1)]
        assert (EventFlag.SAMPLED, EventFlag.LAST, EventFlag.FAULT) == (1, 2, 4)
        payload = self.event.payload
        m.d.comb += [
            registers.length.eq(cycles),
            events.w_en.eq(push),
            events.w_data.eq(Cat(sampled, ended_run, ended_run & faults.fault, token, cycles)),
            Cat(payload.flags, payload.token, payload.cycles).eq(leaving.o.payload),
            self.event.valid.eq(leaving.o.valid), leaving.o.ready.eq(self.event.ready),
            faults.clear.eq(registers.clear), faults.event_cycle.eq(before)]
        for number in range(len(QUEUES)):
            m.d.comb += faults.causes[number].eq(
                self.causes[number] | length_fault[number] << fault_bit(Fault.LENGTH))
