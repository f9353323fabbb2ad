"""The MXM slice: systolic tiles of multipliers beside their weights, accumulators, drain, KV port.

Timing (see `arch.timing`). A step issued on cycle t takes its activations on cycle t; row pair p of
tile c reads its weights on cycle t + 1 + p + c, multiplies on t + p + c + 3 to + 5, and the sums of
tile c enter the accumulators on cycle t + 5 + pairs + mxm_stages + c.
"""
from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from arch.config import Config
from arch.faults import Fault
from arch.isa import UNITS, Order
from hdl.accumulators import ACCUMULATOR_BITS, Accumulators
from hdl.activation_feed import ActivationFeed, still_counts
from hdl.cells import copies
from hdl.kv_port import KvPort, WeightHostSignature
from hdl.mxm_tile import MxmTile
from hdl.pipeline import delay
from hdl.signatures import (FaultSignature, IssueSignature, StreamSignature, StreamsSignature,
                            fault_bit, issued)

_MATMUL, _DRAIN = UNITS["mxm"].op("MATMUL").code, UNITS["drain"].op("DRAIN").code
FEEDS = 2


class Mxm(wiring.Component):
    """Queues "mxm", "drain" and "kv": matmul, accumulator drain, run-time weights.

    Parameters
    ----------
    config : Config
    vendor : bool
        Build the cells from ECP5 primitives.

    Members
    -------
    issue_mxm, issue_drain, issue_kv : operations of the three queues.
    streams : operands.
    position, token : of the current step; constant while operations issue. Accumulator indices
        wrap around.
    o_acc : stream ACC: drained accumulators and read-out weights.
    host : weights for the host (`hdl.kv_port.WeightHostSignature`).
    fault_mxm : OPERAND, ADDRESS and ENCODING of an issue. PARITY is collected over the array: a bad
        weight that enters its multiplier on cycle e shows in ``causes`` on cycle e + 3.
    fault_drain : ENCODING of an issue; COLLISION on stream ACC, whichever queue is to blame.
    fault_kv : see `hdl.kv_port.KvPort`.
    """

    def __init__(self, *, config: Config, vendor: bool = False):
        self._config, self._vendor = config, vendor
        self._tiles = [MxmTile(config=config, first=first, vendor=vendor)
                       for first in range(0, config.columns, config.tile_columns)]
        super().__init__({
            "issue_mxm": In(IssueSignature("mxm", config)),
            "issue_drain": In(IssueSignature("drain", config)),
            "issue_kv": In(IssueSignature("kv", config)),
            "streams": In(StreamsSignature(config)),
            "position": In(config.position_bits), "token": In(config.token_bits),
            "o_acc": Out(StreamSignature(ACCUMULATOR_BITS, config.lanes)),
            "host": In(WeightHostSignature(config)),
            "fault_mxm": Out(FaultSignature()), "fault_drain": Out(FaultSignature()),
            "fault_kv": Out(FaultSignature())})

    def bank(self, column: int, pair: int):
        """The `hdl.cells.WeightBank` of a column and row pair, for back-door loading."""
        tile, index = divmod(column, self._config.tile_columns)
        return self._tiles[tile].banks[index, pair]

    def elaborate(self, platform):
        m = Module()
        step = self._decode(m)
        addresses, used = self._address_taps(m, step)
        activations = self._feeds(m, step)
        self._array(m, addresses, used, activations)
        drained, drain_valid = self._accumulate(m, step)
        port = self._kv(m, addresses, used)
        self._output(m, drained, drain_valid, port)
        return m

    def _decode(self, m):
        """What the step that comes means, and its ADDRESS fault. Returns it for cycle t."""
        config, issue = self._config, self.issue_mxm
        self._issued = issued(m, issue)
        step = Signal(data.StructLayout({
            "known": 1, "go": 1, "take": 1, "start": 1, "index": config.accumulator_bits,
            "part": (config.groups - 1).bit_length(), "beyond": 1}), name="coming")
        k_inner, hold = issue.order == Order.K_INNER, issue.order == Order.HOLD
        wraps, k_first = step.part == 0, Mux(k_inner, issue.j_first, issue.i_first)
        in_range = issue.address < config.weight_depth
        m.d.comb += [
            step.known.eq((issue.op == _MATMUL) & (issue.order <= max(Order))),
            step.go.eq(issue.valid & step.known & in_range),
            step.part.eq(issue.half0 + Mux(k_inner, issue.j, issue.i)),
            step.take.eq(issue.valid & (hold | issue.j_first & (k_inner | issue.i_first)
                                        | wraps & (k_inner | issue.j_first))),
            step.start.eq(issue.start & k_first),
            step.index.eq(issue.accumulator + Mux(k_inner, issue.i, issue.j)),
            step.beyond.eq(issue.valid & step.known & ~in_range)]
        now = Signal.like(step, name="step")
        m.d.sync += [now.eq(step),
                     self.fault_mxm.causes[fault_bit(Fault.ADDRESS)].eq(now.beyond)]
        return now

    def _address_taps(self, m, step):
        """What row pair 0 of the first tiles reads on the next cycle, on this and on those before.

        Addresses by half: each has registers of its own, near its banks.
        """
        config = self._config
        bits = config.weight_address_bits
        addresses, used = [[self._issued.address[:bits]] * FEEDS], [step.go]
        for tap in range(1, config.pairs + len(self._tiles) // FEEDS):
            valid = Signal(name=f"used_{tap}")
            m.d.sync += valid.eq(used[-1])
            addresses.append([copies(m, address, 1, f"address_{half}_{tap}", self._vendor)[0]
                              for half, address in enumerate(addresses[-1])])
            used.append(valid)
        return addresses, used

    def _feeds(self, m, step):
        """Activations of both halves by row, skewed: row pair p on cycle t + 3 + p."""
        config, issue, causes = self._config, self._issued, self.fault_mxm.causes
        feeds = [ActivationFeed(config=config, vendor=self._vendor) for _ in range(FEEDS)]
        # Both halves are far from here: nothing is left to be decoded on the way.
        within = delay(m, still_counts(self.issue_mxm.shift, config.activation_bits), 1, "within")
        for number, (feed, source) in enumerate(zip(
                feeds, (self.issue_mxm.x0, self.issue_mxm.x1))):
            m.submodules[f"feed_{number}"] = feed
            connect(m, flipped(self.streams), feed.streams)
            m.d.comb += [feed.i_coming.eq(source), feed.i_take.eq(step.take),
                         feed.i_part.eq(step.part), feed.i_shift.eq(issue.shift),
                         feed.i_within.eq(within)]
        missing = Cat(feed.o_defined & ~feed.o_valid for feed in feeds).any()
        unknown = ~step.known | ~Cat(feed.o_defined for feed in feeds).all()
        m.d.sync += [
            causes[fault_bit(Fault.OPERAND)].eq(step.take & step.known & missing),
            causes[fault_bit(Fault.ENCODING)].eq(issue.valid & unknown)]
        return [[delay(m, feed.o[row], row // 2, f"x{number}_{row}")
                 for row in range(config.rows)] for number, feed in enumerate(feeds)]

    def _array(self, m, addresses, used, activations):
        """The tiles of both halves, and the weight parity of all of them."""
        config = self._config
        per_half = len(self._tiles) // FEEDS
        for number, tile in enumerate(self._tiles):
            m.submodules[f"tile_{number}"] = tile
            half, place = divmod(number, per_half)
            if place > 0:
                before = self._tiles[number - 1]
                m.d.comb += [tile.i_x.eq(before.o_x), tile.i_address.eq(before.o_address),
                             tile.i_used.eq(before.o_used)]
                continue
            m.d.comb += [tile.i_x[row].eq(x) for row, x in enumerate(activations[half])]
            m.d.comb += [tile.i_address[pair].eq(addresses[1 + pair][half])
                         for pair in range(config.pairs)]
            m.d.comb += tile.i_used.eq(Cat(used[1:1 + config.pairs]))
        m.d.sync += self.fault_mxm.causes[fault_bit(Fault.PARITY)].eq(
            Cat(tile.o_parity for tile in self._tiles).any())

    def _accumulate(self, m, step):
        """Cycle t + 5 + pairs + mxm_stages + c: tile c adds. A drain reads a cycle after issue."""
        config, issue, causes = self._config, self.issue_drain, self.fault_drain.causes
        per_half = len(self._tiles) // FEEDS
        # The last registers are those of the accumulators.
        control = Cat(step.start, step.index)
        latency = 4 + config.pairs + config.mxm_stages
        valid = delay(m, step.go, latency, "add_valid", reset=True)
        control = delay(m, control, latency, "add")
        # Cycle d: index and faults of a drain, decoded a cycle before.
        index = Signal(config.accumulator_bits)
        m.d.comb += index.eq(issue.accumulator + issue.j)
        indices = copies(m, index, len(self._tiles), "drain_index", self._vendor)
        drains, unknown = Signal(), Signal()
        m.d.sync += [drains.eq(issue.valid & (issue.op == _DRAIN)),
                     unknown.eq(issue.valid & (issue.op != _DRAIN)),
                     causes[fault_bit(Fault.ENCODING)].eq(unknown)]
        drained = []
        for place in range(per_half):
            if place > 0:
                valid = delay(m, valid, 1, f"add_valid_tile_{place}", reset=True)
                control = delay(m, control, 1, f"add_tile_{place}")
            for number in (place, place + per_half):
                files = Accumulators(config=config, vendor=self._vendor)
                m.submodules[f"accumulators_{number}"] = files
                m.d.comb += [files.i_valid.eq(valid), files.i_start.eq(control[0]),
                             files.i_index.eq(control[1:]), files.i_sum.eq(
                                 self._tiles[number].o_sum),
                             files.r_index.eq(indices[number])]
                drained.append((number, files.r_data.as_value()))
        data_drained = Cat(value for _, value in sorted(drained, key=lambda item: item[0]))
        stages = config.drain_stages
        return (delay(m, data_drained, stages, "drain"),
                delay(m, drains, stages + 1, "drain_valid", reset=True))

    def _kv(self, m, addresses, used):
        """The second port of the banks."""
        port = KvPort(config=self._config, vendor=self._vendor)
        m.submodules.kv = port
        connect(m, flipped(self.issue_kv), port.issue)
        connect(m, flipped(self.streams), port.streams)
        connect(m, flipped(self.host), port.host)
        connect(m, flipped(self.fault_kv), port.fault)
        for number, tile in enumerate(self._tiles):
            connect(m, getattr(port, f"port_{number}"), tile.port)
        taps = len(port.read_used)
        m.d.comb += [port.position.eq(self.position), port.token.eq(self.token),
                     port.read_used.eq(Cat(used[:taps]))]
        m.d.comb += [port.read_address[tap].eq(addresses[tap][0]) for tap in range(taps)]
        return port

    def _output(self, m, drained, drain_valid, port):
        """Stream ACC: the last register of a drain and of a read-out."""
        config = self._config
        valid, collision = Signal(), Signal()
        for lane in range(config.lanes):
            # Above its byte a read-out is all signs. They set registers, which start as ones
            # because an ECP5 register is set to what it starts as, and need no multiplexer.
            old = drained[lane * ACCUMULATOR_BITS:][:ACCUMULATOR_BITS]
            byte = port.o[lane].as_unsigned()
            low = Signal(8, name=f"acc_low_{lane}", reset_less=True)
            high = Signal(ACCUMULATOR_BITS - 8, name=f"acc_high_{lane}", init=-1, reset_less=True)
            read_out = port.o_valid[lane // config.tile_columns]
            m.d.sync += [low.eq(Mux(read_out, byte, old[:8])),
                         high.eq(old[8:] & ~read_out.replicate(len(high)))]
            with m.If(read_out & byte[7]):
                m.d.sync += high.eq(-1)
            m.d.comb += self.o_acc.data[lane].eq(Cat(low, high))
        m.d.sync += [valid.eq(drain_valid | port.o_valid[0]),
                     collision.eq(drain_valid & port.o_valid[0]),
                     self.fault_drain.causes[fault_bit(Fault.COLLISION)].eq(collision)]
        m.d.comb += self.o_acc.valid.eq(valid)
