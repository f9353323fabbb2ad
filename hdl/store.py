"""What the MEM banks write: one stream on a cycle, on wires that they share; RED beside it."""
from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from arch.faults import Fault
from arch.isa import UNITS, sources_of
from arch.queues import STREAM_BITS, Stream, shares_wires
from hdl.cells import copies
from hdl.choose import GROUP, choose
from hdl.signatures import LANE_BITS, FaultSignature, StreamsSignature, fault_bit


def checked(lane):
    """A lane of 16 bits, and above it the bit that makes the parity of both even."""
    return Cat(lane[:LANE_BITS], lane[:LANE_BITS].xor())


class StoreBus(wiring.Component):
    """Chooses what the MEM banks write on this cycle, and makes its parity.

    The lowest of the banks that share the wires (`arch.queues.shares_wires`) and write chooses; a
    higher one that writes another stream faults (CONFLICT), and what it writes is undefined.

    Parameters
    ----------
    config : Config
    vendor : bool
        Use the multiplexer cells of the FPGA.

    Members
    -------
    valid, source : by bank, whether it writes on the next cycle, and what.
    streams : operands.
    host_en, host_data : what the host writes on the next cycle, in the place of RED.
    o_lanes : `checked` lanes of the stream, a cycle later, like the next two.
    o_scalars : a `checked` lane of RED, which is the same on all of them, for every group of lanes.
    o_scalar_en : whether a bank that RED has wires of its own to writes RED, if it writes, for every
        group of lanes. What the host writes is on ``o_lanes`` as well.
    o_taken : by bank, whether what it writes is there.
    fault_0, fault_1, ... : OPERAND, CONFLICT and ENCODING of a bank.
    """

    def __init__(self, *, config: Config, vendor: bool = False):
        self._config, self._vendor = config, vendor
        banks = config.mem_banks
        super().__init__({
            "valid": In(banks), "source": In(data.ArrayLayout(STREAM_BITS, banks)),
            "streams": In(StreamsSignature(config)),
            "host_en": In(1), "host_data": In(LANE_BITS),
            "o_lanes": Out(data.ArrayLayout(LANE_BITS + 1, config.lanes)),
            "o_scalars": Out(data.ArrayLayout(LANE_BITS + 1, -(-config.lanes // GROUP))),
            "o_scalar_en": Out(data.ArrayLayout(-(-config.lanes // GROUP), banks)),
            "o_taken": Out(banks),
            **{f"fault_{bank}": Out(FaultSignature()) for bank in range(banks)}})
        self._sources = [source for source in sources_of(UNITS["mem_write"].field("x"), config)
                         if source != Stream.NONE]

    def elaborate(self, platform):
        m = Module()
        banks = range(self._config.mem_banks)
        shares = [self.valid[bank] & (shares_wires(Stream.RED, bank)
                                      | (self.source[bank] != Stream.RED)) for bank in banks]
        chosen = Const(Stream.RED)
        for bank in reversed(banks):
            chosen = Mux(shares[bank], self.source[bank], chosen)
        bits = self._place_bits()
        chosen_here = copies(m, chosen[:bits], -(-self._config.lanes // GROUP), "chosen",
                             self._vendor)
        scalars = [Mux(here[0], here[1:], self.streams.red.data[GROUP * group]) for group, here
                   in enumerate(copies(m, Cat(self.host_en, self.host_data), len(self.o_scalars),
                                       "host", self._vendor))]
        out = [Signal(LANE_BITS + 1, name=f"scalar_{group}", reset_less=True)
               for group in range(len(scalars))]
        m.d.sync += [there.eq(checked(scalar)) for there, scalar in zip(out, scalars)]
        m.d.comb += [there.eq(scalar) for there, scalar in zip(self.o_scalars, out)]
        for number in range(self._config.lanes):
            lane = Signal(LANE_BITS, name=f"lane_{number}")
            out = Signal(LANE_BITS + 1, name=f"out_{number}", reset_less=True)
            m.d.comb += [
                lane.eq(self._pick(m, chosen_here[number // GROUP], lambda stream, side:
                                   scalars[number // GROUP] if stream == Stream.RED
                                   else side.data[number])),
                self.o_lanes[number].eq(out)]
            m.d.sync += out.eq(checked(lane))
        # Compared a cycle later: all of this comes from the queues.
        decided = copies(m, chosen, 1, "decided", self._vendor)[0]
        for bank, share in enumerate(shares):
            self._check(m, bank, share, decided)
        return m

    def _place_bits(self) -> int:
        """Lowest bits of a stream's number that tell the sources apart."""
        streams = self._sources
        return next(bits for bits in range(STREAM_BITS + 1)
                    if len({stream % (1 << bits) for stream in streams}) == len(streams))

    def _pick(self, m, place, value_of):
        """A part of the stream whose number ends in ``place``."""
        streams, bits = self._sources, len(place)
        places = {stream % (1 << bits): stream for stream in streams}
        return choose([value_of(places[place], getattr(self.streams, places[place].name.lower()))
                       [:LANE_BITS] if place in places else None for place in range(1 << bits)],
                      place, m, self._vendor)

    def _check(self, m, bank, shares, decided):
        """Whether what a bank wants is there, and its faults."""
        valid, source = self.valid[bank], self.source[bank]
        present, known = Signal(name=f"present_{bank}"), Signal(name=f"known_{bank}")
        wanted = Signal(STREAM_BITS, name=f"wanted_{bank}", reset_less=True)
        now, shared = Signal(name=f"valid_{bank}"), Signal(name=f"shared_{bank}")
        scalar_en = Signal(name=f"scalar_en_{bank}", reset_less=True)
        m.d.sync += [now.eq(valid), shared.eq(shares), wanted.eq(source), known.eq(0),
                     scalar_en.eq(source == Stream.RED)]
        m.d.comb += self.o_scalar_en[bank].eq(Cat(copies(
            m, scalar_en, len(self.o_scalars), f"scalar_en_{bank}_late", self._vendor)))
        with m.Switch(source):
            with m.Case(*map(int, self._sources)):
                m.d.sync += known.eq(1)
        place = wanted[:self._place_bits()]
        m.d.comb += [present.eq(self._pick(m, place, lambda stream, side: side.valid)),
                     self.o_taken[bank].eq(known & present)]
        causes = getattr(self, f"fault_{bank}").causes
        m.d.sync += [causes[fault_bit(Fault.OPERAND)].eq(now & known & ~present),
                     causes[fault_bit(Fault.CONFLICT)].eq(shared & (wanted != decided)),
                     causes[fault_bit(Fault.ENCODING)].eq(now & ~known)]
