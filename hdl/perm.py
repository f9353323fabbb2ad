"""PERM: moves values between lanes by a table of patterns that the host writes."""
from amaranth import C, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from arch.faults import Fault
from arch.hostmap import PATTERN_ZERO, Space
from arch.isa import UNITS, Index
from arch.queues import Stream
from hdl.bus import BusSignature
from hdl.choose import choose, operand
from hdl.pipeline import delay
from hdl.signatures import (FaultSignature, IssueSignature, StreamSignature, StreamsSignature,
                            fault_bit, stream_width)

_OP = {op.name: op.code for op in UNITS["perm"].ops}


class Perm(wiring.Component):
    """Lane permutation.

    ``y[l] = x[pattern[l] ^ ((index value << index_shift) mod lanes)]``, or 0 where the pattern
    says so. An operation issued on cycle t takes ``x`` from ``streams`` on cycle t and has its
    result on ``o_perm`` on cycle t + ``timing(config).perm``; a new one may be issued every cycle.

    The table is space PATTERNS of the host bus, answered one cycle after the request. The host may
    use it while no operation is issued.

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
    bus : host side of the pattern table.
    o_perm : results, int16 lanes.
    fault : OPERAND, ENCODING, and ADDRESS for a pattern that the table does not have.
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
        x = self._operand(m)
        row = self._table(m)
        index = self._index(m)
        valid = delay(m, self.issue.valid, 2 + stages, "valid", reset=True)
        m.d.comb += self.o_perm.valid.eq(valid)

        # Cycle 1: the crossbar.
        values = [delay(m, lane, 1 + before, f"x_{number}") for number, lane in enumerate(x)]
        for number in range(config.lanes):
            source = delay(m, row[number].lane ^ index, 1 + before, f"source_{number}")
            zero = delay(m, row[number].zero, 1 + before, f"zero_{number}")
            y = Signal(signed(16), name=f"y_{number}", reset_less=True)
            with m.If(zero):
                m.d.sync += y.eq(0)
            with m.Else():
                m.d.sync += y.eq(choose(values, source, m, self._vendor))
            m.d.comb += self.o_perm.data[number].eq(delay(m, y, after, f"y_late_{number}"))
        return m

    def _operand(self, m):
        """Multiplex the operand and report faults."""
        issue, causes = self.issue, self.fault.causes
        x, valid, source = operand(m, self.streams, issue.x, "perm", "x", self._config,
                                   vendor=self._vendor)
        faults = {
            Fault.OPERAND: source & ~valid,
            Fault.ENCODING: ~source | (issue.op != _OP["PERM"]) | (issue.index > max(Index)),
            Fault.ADDRESS: issue.pattern >= self._config.patterns,
        }
        for fault, event in faults.items():
            register = Signal(name=f"fault_{fault.name.lower()}")
            m.d.sync += register.eq(issue.valid & event)
            m.d.comb += causes[fault_bit(fault)].eq(register)
        return x

    def _index(self, m):
        """The run-time value exclusive-ored into the lane numbers."""
        lanes, issue = self._config.lane_bits, self.issue
        value, index = Signal(lanes), Signal(lanes)
        with m.Switch(issue.index):
            with m.Case(int(Index.POSITION)):
                m.d.comb += value.eq(self.position)
            with m.Case(int(Index.TOKEN)):
                m.d.comb += value.eq(self.token)
        with m.Switch(issue.index_shift):
            for shift in range(lanes):
                with m.Case(shift):
                    m.d.comb += index.eq(value << shift)
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
                     read.addr.eq(Mux(self.issue.valid, self.issue.pattern, pattern))]
        for number in range(config.lanes):
            m.d.comb += [write.data[number][name].eq(value) for name, value in entry.items()]
        # Cycle 1 of an access: the answer.
        found = read.data[lane]
        zero_bit = PATTERN_ZERO.bit_length() - 1
        m.d.sync += [bus.ack.eq((bus.space == Space.PATTERNS) & (bus.w_en | bus.r_en)),
                     bus.r_data.eq(Mux(ours & bus.r_en, Cat(
                         found.lane, C(0, zero_bit - config.lane_bits), found.zero), 0))]
        return read.data
