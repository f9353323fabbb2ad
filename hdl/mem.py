"""Vector SRAM: the MEM banks, read and written every cycle, and the constants, read only.

A word is ``lanes`` lanes of 18 bits, two bytes of nine: the ninth makes the parity of each even.
"""
from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from arch.faults import Fault
from arch.hostmap import Space, power_of_two
from arch.queues import Stream
from hdl.bus import BusSignature, bits_of
from hdl.cells import BYTE_BITS, WORD_BITS, parity_byte
from hdl.choose import choose, operand
from hdl.lut_ram import LutRam
from hdl.pipeline import delay
from hdl.signatures import (FaultSignature, IssueSignature, StreamSignature, StreamsSignature,
                            fault_bit)

LANE_BITS = 16


def stored(lane):
    """The bits that are stored of a 16-bit lane."""
    return Cat(parity_byte(lane[:8]), parity_byte(lane[8:16]))


def lanes_of(word, lanes: int) -> list:
    """The 16-bit lanes of a stored word."""
    pieces = [word[WORD_BITS * lane:][:WORD_BITS] for lane in range(lanes)]
    return [Cat(piece[:8], piece[BYTE_BITS:BYTE_BITS + 8]) for piece in pieces]


def damaged(word, lanes: int):
    """Whether any byte of a stored word has odd parity."""
    return Cat(word[BYTE_BITS * byte:][:BYTE_BITS].xor() for byte in range(2 * lanes)).any()


class HostLane:
    """Decodes an access of the host to one lane of a vector memory.

    Parameters
    ----------
    host : interface of `BusSignature`
    space : Space
    depth : int
        Words.
    bank : int
        Above the word address, which is padded to a power of two; None if there are no banks.
    """

    def __init__(self, host, space: Space, depth: int, lanes: int, bank: int | None = None):
        lane_bits, word_bits = bits_of(lanes), bits_of(power_of_two(depth))
        self.lane = host.address[:lane_bits]
        self.word = host.address[lane_bits:lane_bits + word_bits]
        rest = host.address[lane_bits + word_bits:]
        self.selected = (host.space == space) & (rest == (bank or 0))
        self.w_en = host.w_en & self.selected & (self.word < depth)
        self.r_en = host.r_en & self.selected


class MemBank(wiring.Component):
    """One bank of vector SRAM: queues ``r<bank>`` and ``w<bank>``.

    A read issued on cycle t is on ``o`` on cycle t + ``timing(config).mem_read``. A write issued on
    cycle t takes its source stream on cycle t and is seen by reads from cycle t + 1 on. A write
    without an operand or outside of the bank, and a read outside of it, is not done.

    Parameters
    ----------
    config : Config
    bank : int
    vendor : bool
        Use the multiplexer cells of the FPGA. The RAM is distributed, which every tool infers.

    Members
    -------
    issue_read, issue_write : operations of the two queues.
    streams : operands.
    o : stream M<bank>.
    fault_read : ADDRESS; PARITY on the cycle of the stream.
    fault_write : OPERAND, ENCODING and ADDRESS.
    host : MEM of this bank, while no step runs.
    w_valid, w_address, w_halves, w_data : what a queue writes on this cycle, for simulation.

    Attributes
    ----------
    store, checks : `amaranth.lib.memory.Memory` or None
        The lanes, and the parity of their bytes, two bits a lane, for back-door access; None with
        ``vendor``.
    """

    def __init__(self, *, config: Config, bank: int, vendor: bool = False):
        self._config, self._bank, self._vendor = config, bank, vendor
        super().__init__({
            "issue_read": In(IssueSignature("mem_read", config)),
            "issue_write": In(IssueSignature("mem_write", config)),
            "streams": In(StreamsSignature(config)),
            "o": Out(StreamSignature(LANE_BITS, config.lanes)),
            "fault_read": Out(FaultSignature()), "fault_write": Out(FaultSignature()),
            "host": In(BusSignature()),
            "w_valid": Out(1), "w_address": Out(config.mem_address_bits), "w_halves": Out(2),
            "w_data": Out(LANE_BITS * config.lanes)})
        # Block RAM would be faster, but the weights need all of it. The parity has an array of its
        # own: RAM cells are four bits wide, so that 18 bits a lane would waste every tenth.
        half = config.lanes // 2
        self._data = LutRam(width=LANE_BITS * config.lanes, depth=config.mem_depth,
                            granularity=LANE_BITS, vendor=vendor)
        self._checks = LutRam(width=2 * config.lanes, depth=config.mem_depth,
                              granularity=2 * half, vendor=vendor)
        self.store, self.checks = self._data.memory, self._checks.memory

    def elaborate(self, platform):
        m = Module()
        config = self._config
        m.submodules.data, m.submodules.checks = self._data, self._checks
        access = HostLane(self.host, Space.MEM, config.mem_depth, config.lanes, self._bank)
        lanes = self._read(m, access)
        self._write(m, access)

        # The host: request on cycle 0, word in the register on cycle 1, answer on cycle 2.
        r_en, w_en = Signal(), Signal()
        m.d.sync += [r_en.eq(access.r_en), w_en.eq(self.host.w_en & access.selected),
                     self.host.ack.eq(r_en | w_en),
                     self.host.r_data.eq(Mux(r_en, choose(lanes, access.lane, m, self._vendor),
                                             0))]
        return m

    def _read(self, m, access):
        """Cycle t: read. Cycle t + 1, or ``mem_stages`` later: the stream, and its parity.

        Returns the lanes of cycle t + 1, for the host.
        """
        config, issue = self._config, self.issue_read
        in_range, valid = issue.address < config.mem_depth, Signal()
        data, checked = self._data, self._checks
        word = Signal.like(data.r_data, reset_less=True)
        checks = Signal.like(checked.r_data, reset_less=True)
        address = Mux(issue.valid, issue.address, access.word)
        m.d.comb += [data.r_address.eq(address), checked.r_address.eq(address),
                     valid.eq(issue.valid & in_range)]
        with m.If(valid | access.r_en):
            m.d.sync += [word.eq(data.r_data), checks.eq(checked.r_data)]
        late, late_checks = (delay(m, value, config.mem_stages, name)
                             for value, name in ((word, "word"), (checks, "checks")))
        o_valid = delay(m, valid, 1 + config.mem_stages, "valid", reset=True)
        odd = Cat(late[8 * byte:][:8].xor() ^ late_checks[byte] for byte in range(2 * config.lanes))
        causes = self.fault_read.causes
        m.d.comb += [self.o.valid.eq(o_valid), self.o.data.as_value().eq(late)]
        m.d.sync += [causes[fault_bit(Fault.ADDRESS)].eq(issue.valid & ~in_range),
                     causes[fault_bit(Fault.PARITY)].eq(o_valid & odd.any())]
        return [word[LANE_BITS * lane:][:LANE_BITS] for lane in range(config.lanes)]

    def _write(self, m, access):
        """Cycle t: take the operand and write.

        What the host writes takes the place of RED, which is the same on every lane: so one
        multiplexer serves all lanes. Parity is that of the streams, not of what is chosen of them.
        Host and queue never write in the same cycle, or read while the host writes.
        """
        config, issue, causes = self._config, self.issue_write, self.fault_write.causes
        host, half = self.host, config.lanes // 2

        def stored(stream, value):
            value = value[:LANE_BITS]
            if stream == Stream.RED:
                value = Mux(host.w_en, host.w_data, value)
            return Cat(value, value[:8].xor(), value[8:].xor())

        source = Mux(issue.valid, issue.x, int(Stream.RED))
        words, valid, named = operand(m, self.streams, source, "mem_write", "x", config, WORD_BITS,
                                      stored, self._vendor)
        in_range = issue.address < config.mem_depth
        m.d.comb += [
            self.w_valid.eq(issue.valid & named & valid & in_range),
            self.w_address.eq(issue.address), self.w_halves.eq(issue.halves),
            self.w_data.eq(Cat(word[:LANE_BITS] for word in words))]
        # Halves as the queue chooses them, lanes as the host does. The parity of a half is written
        # whole: the host leaves that of the other lanes as it is.
        halves = [bit & self.w_valid for bit in issue.halves]
        by_host = [access.w_en & (access.lane == lane) for lane in range(config.lanes)]
        old = self._checks.r_data
        checks = [Mux(issue.valid | by_host[lane], word[LANE_BITS:], old[2 * lane:2 * lane + 2])
                  for lane, word in enumerate(words)]
        address = Mux(issue.valid, issue.address, access.word)
        m.d.comb += [
            self._data.w_address.eq(address), self._data.w_data.eq(self.w_data),
            self._data.w_en.eq(Cat(halves[lane // half] | by_host[lane]
                                   for lane in range(config.lanes))),
            self._checks.w_address.eq(address), self._checks.w_data.eq(Cat(checks)),
            self._checks.w_en.eq(Cat(halves[number] | Cat(by_host[number * half:][:half]).any()
                                     for number in (0, 1)))]
        m.d.sync += [
            causes[fault_bit(Fault.OPERAND)].eq(issue.valid & named & ~valid),
            causes[fault_bit(Fault.ENCODING)].eq(issue.valid & ~named),
            causes[fault_bit(Fault.ADDRESS)].eq(issue.valid & ~in_range)]


class ConstBank(wiring.Component):
    """The constants: queue ``const``, in block RAM.

    A read issued on cycle t is on ``o`` on cycle t + ``timing(config).const_read``. One outside of
    the memory is not done.

    Parameters
    ----------
    config : Config
    vendor : bool
        Without effect: block RAM is inferred, its output register is one of the fabric.

    Members
    -------
    issue : operations of the queue.
    o : stream CONST.
    fault : ADDRESS; PARITY on the cycle of the stream.
    host : CONSTANTS, while no step runs.

    Attributes
    ----------
    store : `amaranth.lib.memory.Memory`
        The array, for back-door access.
    """

    def __init__(self, *, config: Config, vendor: bool = False):
        self._config = config
        super().__init__({
            "issue": In(IssueSignature("const", config)),
            "o": Out(StreamSignature(LANE_BITS, config.lanes)),
            "fault": Out(FaultSignature()), "host": In(BusSignature())})
        # The host writes only while nothing is read. A port that reads in the same cycle and a
        # register behind it become a synchronous port without logic for a clash of both.
        self.store = memory.Memory(shape=WORD_BITS * config.lanes, depth=config.const_depth,
                                   init=[], attrs={"no_rw_check": 1})

    def elaborate(self, platform):
        m = Module()
        config, issue, host, store = self._config, self.issue, self.host, self.store
        m.submodules.data = store
        read, write = store.read_port(domain="comb"), store.write_port(granularity=WORD_BITS)
        access = HostLane(host, Space.CONSTANTS, config.const_depth, config.lanes)

        # Cycle t: address. Cycle t + 1: block output. Cycle t + 2: output register, the stream.
        in_range, valid = issue.address < config.const_depth, Signal()
        word = Signal(len(read.data), reset_less=True)
        m.d.comb += [read.addr.eq(Mux(issue.valid, issue.address, access.word)),
                     valid.eq(issue.valid & in_range)]
        m.d.sync += word.eq(read.data)
        late = delay(m, word, 1 + config.const_stages, "word")
        o_valid = delay(m, valid, 2 + config.const_stages, "valid", reset=True)
        lanes = lanes_of(late, config.lanes)
        m.d.comb += [self.o.valid.eq(o_valid), self.o.data.as_value().eq(Cat(lanes))]
        m.d.sync += [
            self.fault.causes[fault_bit(Fault.ADDRESS)].eq(issue.valid & ~in_range),
            self.fault.causes[fault_bit(Fault.PARITY)].eq(o_valid & damaged(late, config.lanes))]

        # The host: request on cycle 0, word on the stream's cycle, answer one later.
        r_en = delay(m, access.r_en, 2 + config.const_stages, "host_read", reset=True)
        w_en = delay(m, host.w_en & access.selected, 1, "host_write", reset=True)
        m.d.comb += [
            write.addr.eq(access.word), write.data.eq(stored(host.w_data).replicate(config.lanes)),
            write.en.eq((1 << access.lane)[:config.lanes]
                        & access.w_en.replicate(config.lanes))]
        m.d.sync += [host.ack.eq(r_en | w_en),
                     host.r_data.eq(Mux(r_en, choose(lanes, access.lane), 0))]
        return m
