"""CONST: constant vectors in block RAM, read every cycle.

A word is ``lanes`` lanes of 18 bits, two bytes of nine: the ninth makes the parity of each even.
"""
from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from arch.faults import Fault
from arch.hostmap import Space
from hdl.bus import BusSignature
from hdl.cells import BYTE_BITS, WORD_BITS, parity_byte
from hdl.mem import HostLane
from hdl.pipeline import delay
from hdl.signatures import LANE_BITS, FaultSignature, IssueSignature, StreamSignature, fault_bit


def stored(lane):
    """The bits that are stored of a 16-bit lane."""
    return Cat(parity_byte(lane[:8]), parity_byte(lane[8:16]))


def lanes_of(word, lanes: int) -> list:
    """The 16-bit lanes of a stored word."""
    pieces = [word[WORD_BITS * lane:][:WORD_BITS] for lane in range(lanes)]
    return [Cat(piece[:8], piece[BYTE_BITS:BYTE_BITS + 8]) for piece in pieces]


def damaged(word, lanes: int):
    """By byte, whether it has odd parity in a stored word."""
    return Cat(word[BYTE_BITS * byte:][:BYTE_BITS].xor() for byte in range(2 * lanes))


class ConstBank(wiring.Component):
    """The constants: queue ``const``, in block RAM.

    A read issued on cycle t is on ``o`` on cycle t + ``timing(config).const_read``. One outside of
    the memory is not done.

    Parameters
    ----------
    config : Config
    vendor : bool
        Without effect: block RAM is inferred. `scripts.output_registers` gives it the register behind
        it.

    Members
    -------
    issue : operations of the queue.
    o : stream CONST.
    fault : ADDRESS; PARITY on the cycle behind the stream, also of what the host reads.
    host : CONSTANTS, while no step runs: writes. A word that it reads is on ``o``, not valid, from
        the cycle behind that of the stream on; `hdl.perm` answers.

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
        in_range, valid, beyond = issue.address < config.const_depth, Signal(), Signal()
        word = Signal(len(read.data), reset_less=True)
        address = Signal(config.const_address_bits, reset_less=True)
        m.d.sync += [address.eq(Mux(issue.valid, issue.address, access.word)),
                     valid.eq(issue.valid & in_range), beyond.eq(issue.valid & ~in_range)]
        m.d.comb += read.addr.eq(address)
        m.d.sync += word.eq(read.data)
        late = delay(m, word, 1 + config.const_stages, "word")
        o_valid = delay(m, valid, 2 + config.const_stages, "valid", reset=True)
        # What the host reads is checked as well.
        by_host = delay(m, access.r_en, 1, "by_host", reset=True)
        seen = delay(m, valid | by_host, 3 + config.const_stages, "seen", reset=True)
        odd = delay(m, damaged(late, config.lanes), 1, "odd")
        lanes = lanes_of(late, config.lanes)
        m.d.comb += [self.o.valid.eq(o_valid), self.o.data.as_value().eq(Cat(lanes))]
        m.d.sync += [
            self.fault.causes[fault_bit(Fault.ADDRESS)].eq(beyond),
            self.fault.causes[fault_bit(Fault.PARITY)].eq(seen & odd.any())]

        m.d.comb += [
            write.addr.eq(access.word), write.data.eq(stored(host.w_data).replicate(config.lanes)),
            write.en.eq((1 << access.lane)[:config.lanes]
                        & access.w_en.replicate(config.lanes))]
        m.d.sync += host.ack.eq(host.w_en & access.selected)
        return m
