"""PERM: moves values between lanes by a table of patterns that the host writes."""
from amaranth import C, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from arch.faults import Fault
from arch.hostmap import PATTERN_ZERO, Space, power_of_two
from arch.isa import UNITS, Index
from arch.queues import Stream
from arch.timing import PERM_PASSES, timing
from hdl.bus import BusSignature, bits_of
from hdl.choose import choose, operand
from hdl.pipeline import delay
from hdl.signatures import (LANE_BITS, FaultSignature, IssueSignature, StreamSignature,
                            StreamsSignature, fault_bit, issued, stream_width)

_OP = {op.name: op.code for op in UNITS["perm"].ops}
_PASS_BITS = LANE_BITS // PERM_PASSES
#: Place of the held operand in the multiplexer.
_HELD = Stream.ACC


class Perm(wiring.Component):
    """Lane permutation.

    ``y[l] = x[pattern[l] ^ ((index value << index_shift) mod lanes)]``, or 0 where the pattern
    says so. An operation issued on cycle t takes ``x`` from ``streams`` on cycle t and has its
    result on ``o_perm`` on cycle t + ``timing(config).perm``. The crossbar is a quarter as wide as
    the lanes and moves them in `PERM_PASSES` passes, lowest bits first: operations closer than
    ``timing(config).perm_gap`` fault (CONFLICT).

    The table is space PATTERNS of the host bus, answered two cycles after the request. The host
    reads MEM and CONSTANTS here as well: their words are on their streams by then, and the crossbar
    moves the lane to lane 0. All of that only while no operation is issued.

    Extra stages: the first and the third behind the operand registers, the second at the result.

    Parameters
    ----------
    config : Config
    vendor : bool
        Use the multiplexer cells of the FPGA.

    Members
    -------
    issue : operations of queue ``perm``.
    streams : operands.
    position, token : index values, stable while operations are issued.
    bus : host side of the pattern table, and of reads of MEM and CONSTANTS.
    o_perm : results, int16 lanes.
    fault : OPERAND, CONFLICT, ENCODING, and ADDRESS for a pattern that the table does not have.
    """

    def __init__(self, *, config: Config, vendor: bool = False):
        self._config, self._vendor = config, vendor
        super().__init__({
            "issue": In(IssueSignature("perm", config)),
            "streams": In(StreamsSignature(config)),
            "position": In(config.position_bits),
            "token": In(config.token_bits),
            "bus": In(BusSignature()),
            "o_perm": Out(StreamSignature(stream_width(Stream.PERM), config.lanes)),
            "fault": Out(FaultSignature()),
        })
        self._row = data.ArrayLayout(data.StructLayout({
            "lane": unsigned(config.lane_bits), "zero": 1}), config.lanes)

    def elaborate(self, platform):
        m = Module()
        config, stages = self._config, self._config.perm_stages
        before, after = int(stages >= 1) + int(stages >= 3), int(stages >= 2)

        # Cycle 0: operands, pattern and index.
        self._now = now = issued(m, self.issue)
        valid = [now.valid]
        for cycle in range(timing(config).perm):
            valid.append(delay(m, valid[-1], 1, f"valid_{cycle}", reset=True))
        m.d.comb += self.o_perm.valid.eq(valid[-1])
        busy = Cat(valid[1:timing(config).perm_gap]).any()
        coming, stream, lane = self._fetch(m)
        fetch = delay(m, coming, 1, "fetch", reset=True)
        x = self._operand(m, busy, Mux(self.issue.valid, self.issue.x,
                                       Mux(coming, stream, int(_HELD))))
        row = self._table(m)
        self._answer(m, fetch)
        index = self._index(m)

        # Cycles 1 to 4: the crossbar, whose results move down in front of the next ones.
        values = [delay(m, lane[:_PASS_BITS], before, f"x_late_{number}")
                  for number, lane in enumerate(x)]
        for number in range(config.lanes):
            source = Signal(config.lane_bits, name=f"source_{number}", reset_less=True)
            zero = Signal(name=f"zero_{number}", reset_less=True)
            with m.If(now.valid):
                m.d.sync += [source.eq(row[number].lane ^ index), zero.eq(row[number].zero)]
            if number == 0:
                with m.Elif(fetch):
                    m.d.sync += [source.eq(lane), zero.eq(0)]
            source, zero = (delay(m, value, before, f"{value.name}_late")
                            for value in (source, zero))
            top = Signal(_PASS_BITS, name=f"top_{number}", reset_less=True)
            rest = Signal(LANE_BITS - _PASS_BITS, name=f"rest_{number}", reset_less=True)
            m.d.sync += rest.eq(Cat(rest[_PASS_BITS:], top))
            with m.If(zero):
                m.d.sync += top.eq(0)
            with m.Else():
                m.d.sync += top.eq(choose(values, source, m, self._vendor))
            m.d.comb += self.o_perm.data[number].eq(
                delay(m, Cat(rest, top), after, f"y_late_{number}"))
        return m

    def _fetch(self, m):
        """The cycle before a word that the host reads is on its stream, which that is, the lane."""
        config, bus, times = self._config, self.bus, timing(self._config)
        lane, rest = bus.address[:config.lane_bits], bus.address[config.lane_bits:]
        bank = rest[bits_of(power_of_two(config.mem_depth)):][:bits_of(config.mem_banks)]
        of_mem = bus.space == Space.MEM
        fetch = delay(m, bus.r_en & (of_mem | (bus.space == Space.CONSTANTS)),
                      max(times.mem_read, times.const_read), "asked", reset=True)
        return fetch, Mux(of_mem, bank + int(Stream.M0), int(Stream.CONST)), lane

    def _answer(self, m, fetch):
        """The answer to the host, from the table or from lane 0."""
        bus, lane = self.bus, self.o_perm.data[0]
        found = delay(m, fetch, timing(self._config).perm, "found", reset=True)
        done = Signal(name="done")
        m.d.sync += done.eq(delay(m, (bus.space == Space.PATTERNS) & (bus.w_en | bus.r_en), 1,
                                  "pattern_asked", reset=True))
        m.d.sync += [bus.ack.eq(found | done), bus.r_data.eq(Mux(found, lane, self._entry))]

    def _operand(self, m, busy, coming):
        """Multiplex the operand into registers that move down after that, and report faults.

        The registers are one more input of the multiplexer, at a stream that it lacks.
        """
        issue, causes = self._now, self.fault.causes
        held = [Signal(signed(LANE_BITS), name=f"x_{number}", reset_less=True)
                for number in range(self._config.lanes)]
        x, valid, known = operand(
            m, self.streams, coming, "perm", "x", self._config, vendor=self._vendor,
            beside={_HELD: [lane[_PASS_BITS:].as_signed() for lane in held]})
        m.d.sync += [to.eq(lane) for to, lane in zip(held, x)]
        faults = {
            Fault.OPERAND: known & ~valid,
            Fault.CONFLICT: busy,
            Fault.ENCODING: ~known | (issue.op != _OP["PERM"]) | (issue.index > max(Index)),
            Fault.ADDRESS: issue.pattern >= self._config.patterns,
        }
        for fault, event in faults.items():
            register = Signal(name=f"fault_{fault.name.lower()}")
            m.d.sync += register.eq(issue.valid & event)
            m.d.comb += causes[fault_bit(fault)].eq(register)
        return held

    def _index(self, m):
        """The run-time value exclusive-ored into the lane numbers, decoded a cycle before."""
        lanes, issue = self._config.lane_bits, self.issue
        value, index = Signal(lanes), Signal(lanes, reset_less=True)
        m.d.sync += index.eq(0)
        with m.Switch(issue.index):
            with m.Case(int(Index.POSITION)):
                m.d.comb += value.eq(self.position)
            with m.Case(int(Index.TOKEN)):
                m.d.comb += value.eq(self.token)
        with m.Switch(issue.index_shift):
            for shift in range(lanes):
                with m.Case(shift):
                    m.d.sync += index.eq(value << shift)
        return index

    def _table(self, m):
        """The pattern row of the operation, and the host's access to the table."""
        config, bus = self._config, self.bus
        m.submodules.table = table = memory.Memory(
            shape=self._row, depth=config.patterns, init=[])
        write, read = table.write_port(granularity=1), table.read_port(domain="comb")
        lane = bus.address[:config.lane_bits]
        pattern = bus.address[config.lane_bits:]
        ours = (bus.space == Space.PATTERNS) & (pattern < config.patterns)
        entry = {"lane": bus.w_data[:config.lane_bits],
                 "zero": (bus.w_data & PATTERN_ZERO).any()}
        m.d.comb += [write.addr.eq(pattern), write.en.eq((ours & bus.w_en) << lane),
                     read.addr.eq(Mux(self._now.valid, self._now.pattern, pattern))]
        for number in range(config.lanes):
            m.d.comb += [write.data[number][name].eq(value) for name, value in entry.items()]
        # The lane that the host reads, in two steps: the address may come from a queue, late.
        low = min(2, config.lane_bits)
        rows = [read.data[number].as_value() for number in range(config.lanes)]
        near = [Signal(config.lane_bits + 1, name=f"near_{number}", reset_less=True)
                for number in range(config.lanes >> low)]
        m.d.sync += [entry.eq(choose(rows[number << low:(number + 1) << low], lane[:low]))
                     for number, entry in enumerate(near)]
        found = choose(near, lane[low:])
        zero_bit = PATTERN_ZERO.bit_length() - 1
        self._entry = Signal(LANE_BITS, name="entry")
        asked = delay(m, ours & bus.r_en, 1, "entry_asked", reset=True)
        m.d.sync += self._entry.eq(Mux(asked, Cat(
            found[:-1], C(0, zero_bit - config.lane_bits), found[-1]), 0))
        return read.data
