"""MEM: banks of vector SRAM, read and written every cycle.

A word is ``lanes`` lanes of 16 bits, and a bit for each that makes its parity even.
"""
from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from arch.config import Config
from arch.faults import Fault
from arch.hostmap import Space, power_of_two
from arch.queues import Stream, shares_wires
from hdl.bus import BusSignature, bits_of
from hdl.cells import copies
from hdl.choose import GROUP
from hdl.lut_ram import LutRam
from hdl.pipeline import delay
from hdl.signatures import (LANE_BITS, FaultSignature, IssueSignature, StreamSignature,
                            StreamsSignature, fault_bit)
from hdl.store import StoreBus

#: Lanes of a bank that share registers of the address.
_PART_LANES = 2


def written_ports(config: Config) -> dict:
    """What a queue writes to a bank, a cycle behind the issue, for simulation."""
    return {"w_valid": Out(1), "w_address": Out(config.mem_address_bits), "w_halves": Out(2),
            "w_data": Out(LANE_BITS * config.lanes)}


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
        self.here = self.selected & (self.word < depth)
        self.w_en, self.r_en = host.w_en & self.here, host.r_en & self.here


class MemBank(wiring.Component):
    """One bank of vector SRAM.

    Times as those of `Mem`, whose part it is.

    Parameters
    ----------
    config : Config
    bank : int
    vendor : bool
        Use the multiplexer cells of the FPGA. The RAM is distributed, which every tool infers.

    Members
    -------
    issue_read, issue_write : operations of the two queues.
    lanes, scalars, scalar_en, taken : what to write, from `hdl.store.StoreBus`.
    o : stream M<bank>.
    fault_read : ADDRESS; PARITY on the cycle behind the stream, also of what the host reads.
    fault_write : ADDRESS.
    host : as of `Mem`, for this bank; ``w_en`` comes two cycles behind what is written.
    w_valid, w_address, w_halves, w_data : what a queue writes on this cycle, the one behind the
        issue, for simulation.

    Attributes
    ----------
    store, checks : `amaranth.lib.memory.Memory` or None
        The lanes, and their parity, a bit each, for back-door access; None with ``vendor``.
    """

    def __init__(self, *, config: Config, bank: int, vendor: bool = False):
        self.config, self._bank, self._vendor = config, bank, vendor
        super().__init__({
            "issue_read": In(IssueSignature("mem_read", config)),
            "issue_write": In(IssueSignature("mem_write", config)),
            "lanes": In(data.ArrayLayout(LANE_BITS + 1, config.lanes)), "scalars": In(
                data.ArrayLayout(LANE_BITS + 1, -(-config.lanes // GROUP))),
            "scalar_en": In(-(-config.lanes // GROUP)), "taken": In(1),
            "o": Out(StreamSignature(LANE_BITS, config.lanes)),
            "fault_read": Out(FaultSignature()), "fault_write": Out(FaultSignature()),
            "host": In(BusSignature()), **written_ports(config)})
        # Block RAM would be faster, but the weights need all of it. The parity has an array of its
        # own: RAM cells are four bits wide, and a bit of each lane shares one with those of others.
        self._data = LutRam(width=LANE_BITS * config.lanes, depth=config.mem_depth,
                            granularity=LANE_BITS, part=_PART_LANES * LANE_BITS, vendor=vendor)
        self._checks = LutRam(width=config.lanes, depth=config.mem_depth,
                              granularity=config.lanes // 2, vendor=vendor)
        self.store, self.checks = self._data.memory, self._checks.memory

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.data, m.submodules.checks = self._data, self._checks
        access = HostLane(self.host, Space.MEM, config.mem_depth, config.lanes, self._bank)
        self._read(m, access)
        self._write(m, access)
        m.d.sync += self.host.ack.eq(self.host.w_en & access.selected)
        return m

    def _read(self, m, access):
        """Cycle t: read, at an address decoded before. Cycle t + 1, or ``mem_stages`` later: the
        stream; one cycle on its parity by lanes, then what is wrong. The first extra stage is in
        front of the memory, whose parts are far from each other; the others are behind it."""
        config, coming = self.config, self.issue_read
        before = min(1, config.mem_stages)
        in_range, valid, beyond = coming.address < config.mem_depth, Signal(), Signal()
        data, checked = self._data, self._checks
        address = Signal(config.mem_address_bits)
        near = delay(m, address, before, "r_address")
        m.d.comb += [address.eq(Mux(coming.valid, coming.address, access.word)),
                     data.r_address.eq(near), checked.r_address.eq(near)]
        m.d.sync += [valid.eq(coming.valid & in_range), beyond.eq(coming.valid & ~in_range)]
        late, late_checks = (delay(m, memory.r_data, config.mem_stages - before, name)
                             for memory, name in ((data, "word"), (checked, "checks")))
        # What the host reads is checked as well.
        by_host = delay(m, access.r_en, 1, "by_host", reset=True)
        seen = delay(m, valid | by_host, 2 + config.mem_stages, "seen", reset=True)
        o_valid = delay(m, valid, 1 + config.mem_stages, "valid", reset=True)
        odd = delay(m, Cat(late[LANE_BITS * lane:][:LANE_BITS].xor() ^ late_checks[lane]
                           for lane in range(config.lanes)), 1, "odd")
        causes = self.fault_read.causes
        m.d.comb += [self.o.valid.eq(o_valid), self.o.data.as_value().eq(late)]
        m.d.sync += [causes[fault_bit(Fault.ADDRESS)].eq(beyond),
                     causes[fault_bit(Fault.PARITY)].eq(seen & odd.any())]

    def _write(self, m, access):
        """Cycle t: whether the operand is there. Cycle t + 1: write it, where it has been decoded to.

        Host and queue never write in the same cycle, or read while the host writes.
        """
        config, coming, causes = self.config, self.issue_write, self.fault_write.causes
        half = config.lanes // 2
        words = [lane if shares_wires(Stream.RED, self._bank)
                 else Mux(self.scalar_en[number // GROUP], self.scalars[number // GROUP], lane)
                 for number, lane in enumerate(self.lanes)]
        in_range = coming.address < config.mem_depth
        valid, beyond, by_queue = Signal(), Signal(), Signal()
        address, chosen = (Signal(bits, reset_less=True) for bits in (config.mem_address_bits, 2))
        m.d.sync += [
            by_queue.eq(coming.valid), valid.eq(coming.valid & in_range),
            beyond.eq(coming.valid & ~in_range), chosen.eq(coming.halves),
            address.eq(Mux(coming.valid, coming.address, access.word)),
            causes[fault_bit(Fault.ADDRESS)].eq(beyond)]
        m.d.sync += [self.w_valid.eq(valid & self.taken), self.w_address.eq(address),
                     self.w_halves.eq(chosen)]
        m.d.comb += self.w_data.eq(Cat(word[:LANE_BITS] for word in words))
        # Halves as the queue chooses them, lanes as the host does. The parity of a half is written
        # whole: the host leaves that of the other lanes as it is, which it has read by then.
        groups = -(-config.lanes // GROUP)
        *halves, half_checks = copies(m, Cat(bit & valid & self.taken for bit in chosen), groups + 1,
                                      "halves", self._vendor)
        # The host holds its address, so that the lane is known before it writes.
        lane_here = Signal(config.lanes, reset_less=True)
        coming_by_host = lane_here & self.host.w_en.replicate(config.lanes)
        by_host, fresh = Signal(config.lanes), Signal(config.lanes, reset_less=True)
        touched = Signal(2)
        m.d.sync += [lane_here.eq(Mux(access.here, 1 << access.lane, 0)),
                     by_host.eq(coming_by_host),
                     touched.eq(Cat(coming_by_host[number * half:][:half].any()
                                    for number in (0, 1))),
                     fresh.eq(coming_by_host | by_queue.replicate(config.lanes))]
        old = self._checks.r_data
        checks = [Mux(fresh[lane], word[LANE_BITS], old[lane]) for lane, word in enumerate(words)]
        m.d.comb += [
            self._data.w_address.eq(address), self._data.w_data.eq(self.w_data),
            self._data.w_en.eq(Cat(halves[lane // GROUP][lane // half] | by_host[lane]
                                   for lane in range(config.lanes))),
            self._checks.w_address.eq(address), self._checks.w_data.eq(Cat(checks)),
            self._checks.w_en.eq(half_checks | touched)]


class Mem(wiring.Component):
    """All banks of vector SRAM: queues ``r<bank>`` and ``w<bank>``.

    A read issued on cycle t is on ``o_<bank>`` on cycle t + ``timing(config).mem_read``. A write
    issued on cycle t takes its source stream on cycle t and is seen by reads from cycle
    t + ``timing(config).mem_write_to_read`` on. A write without an operand or outside of the bank,
    and a read outside of it, is not done.

    Parameters
    ----------
    config : Config
    vendor : bool
        Use the multiplexer cells of the FPGA.

    Members
    -------
    issue_r<bank>, issue_w<bank> : operations of the queues.
    streams : operands.
    o_<bank> : stream M<bank>.
    fault_r<bank> : ADDRESS; PARITY on the cycle behind the stream, also of what the host reads.
    fault_w<bank> : OPERAND, CONFLICT (see `hdl.store.StoreBus`), ADDRESS and ENCODING.
    host : MEM, while no step runs: writes. A word that it reads is on ``o_<bank>``, not valid, from
        the cycle behind that of the stream on; `hdl.perm` answers.
    w<bank>_valid, ... : what a queue writes, a cycle behind the issue, for simulation.

    Attributes
    ----------
    banks : list of MemBank
    """

    def __init__(self, *, config: Config, vendor: bool = False):
        self.banks = [MemBank(config=config, bank=bank, vendor=vendor)
                      for bank in range(config.mem_banks)]
        self._bus = StoreBus(config=config, vendor=vendor)
        members = {"streams": In(StreamsSignature(config)), "host": In(BusSignature())}
        for bank in range(config.mem_banks):
            members |= {
                f"issue_r{bank}": In(IssueSignature("mem_read", config)),
                f"issue_w{bank}": In(IssueSignature("mem_write", config)),
                f"o_{bank}": Out(StreamSignature(LANE_BITS, config.lanes)),
                f"fault_r{bank}": Out(FaultSignature()), f"fault_w{bank}": Out(FaultSignature())}
            members |= {f"w{bank}{name[1:]}": port for name, port in written_ports(config).items()}
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        m.submodules.bus = bus = self._bus
        connect(m, flipped(self.streams), bus.streams)
        # The host holds what it writes, and where to; the parity there is read first.
        coming = delay(m, self.host.w_en, 1, "host_coming", reset=True)
        host_en = delay(m, coming, 1, "host_en", reset=True)
        m.d.comb += [bus.host_en.eq(coming), bus.host_data.eq(self.host.w_data)]
        ack = Const(0, 1)
        for number, bank in enumerate(self.banks):
            m.submodules[f"bank{number}"] = bank
            write, fault = getattr(self, f"issue_w{number}"), getattr(self, f"fault_w{number}")
            connect(m, flipped(getattr(self, f"issue_r{number}")), bank.issue_read)
            connect(m, flipped(write), bank.issue_write)
            connect(m, flipped(getattr(self, f"o_{number}")), bank.o)
            connect(m, flipped(getattr(self, f"fault_r{number}")), bank.fault_read)
            m.d.comb += [
                bus.valid[number].eq(write.valid), bus.source[number].eq(write.x),
                bank.lanes.eq(bus.o_lanes), bank.scalars.eq(bus.o_scalars),
                bank.scalar_en.eq(bus.o_scalar_en[number]), bank.taken.eq(bus.o_taken[number]),
                fault.causes.eq(bank.fault_write.causes | getattr(bus, f"fault_{number}").causes)]
            m.d.comb += [getattr(self, f"w{number}{name[1:]}").eq(getattr(bank, name))
                         for name in written_ports(bank.config)]
            m.d.comb += [getattr(bank.host, name).eq(getattr(self.host, name))
                         for name in ("space", "address", "r_en", "w_data")]
            m.d.comb += bank.host.w_en.eq(host_en)
            ack = ack | bank.host.ack
        m.d.comb += self.host.ack.eq(ack)
        return m
