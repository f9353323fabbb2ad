"""The machine: all slices, their queues, the sequencer and the host port."""
from amaranth import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from arch.config import Config
from arch.hostmap import Space
from arch.queues import QUEUES, Stream, mem_stream
from hdl.bus import BusSignature, BusTap
from hdl.cells import shared_copies
from hdl.const import ConstBank
from hdl.host import HostPort, space_words
from hdl.icu import InstructionQueue
from hdl.kv_port import HOST_READ_LATENCY
from hdl.mem import Mem
from hdl.mxm import Mxm
from hdl.params import ParamStore
from hdl.perm import Perm
from hdl.pipeline import delay
from hdl.program import QUEUES_A_COPY, ProgramPort
from hdl.reduce import Red
from hdl.sampler import Sampler
from hdl.sequencer import Sequencer
from hdl.signatures import LANE_BITS, StreamsSignature, stream_width
from hdl.vxm import Vxm


def _fields(interface):
    """All members of a flat interface, in one value."""
    return Cat(getattr(interface, name) for name in interface.signature.members)


class Chip(wiring.Component):
    """One machine.

    Parameters
    ----------
    config : Config
    vendor : bool
        Build multipliers and weight memories from ECP5 primitives.
    build : int
        64 bits by which the host knows this RTL (`arch.hostmap.Register.BUILD0`).

    Members
    -------
    rx, tx : bytes from and to the host (`arch.hostmap`).
    o_barrier : the cycle before the first step of a run, and the last cycle of every step.
    o_running : from RUN to the end of the run.
    o_fault : a fault is recorded.
    trace_issue : by queue id, whether the queue issues on this cycle. For simulation, as all below.
    trace_w<b>_valid, trace_w<b>_address, trace_w<b>_halves, trace_w<b>_data : what queue ``w<b>``
        writes on this cycle, lane 0 lowest.
    trace_v_valid, trace_v_data : stream VXM.
    """

    def __init__(self, *, config: Config, vendor: bool = False, build: int = 0):
        self.config, self._vendor, self._build = config, vendor, build
        banks = {}
        for bank in range(config.mem_banks):
            banks |= {f"trace_w{bank}_valid": Out(1),
                      f"trace_w{bank}_address": Out(config.mem_address_bits),
                      f"trace_w{bank}_halves": Out(2),
                      f"trace_w{bank}_data": Out(LANE_BITS * config.lanes)}
        super().__init__({
            "rx": In(stream.Signature(8)), "tx": Out(stream.Signature(8)),
            "o_barrier": Out(1), "o_running": Out(1), "o_fault": Out(1),
            "trace_issue": Out(len(QUEUES)), **banks, "trace_v_valid": Out(1),
            "trace_v_data": Out(stream_width(Stream.VXM) * config.lanes)})

    def elaborate(self, platform):
        m = Module()
        slices, issues, results, faults = self._slices(m)
        self._connect_streams(m, slices, results)
        m.submodules.sequencer = self._sequencer = Sequencer(config=self.config, build=self._build)
        self._queues = self._connect_queues(m, issues, faults)
        self._connect_host(m, slices)
        self._trace(m, slices)
        return m

    def _slices(self, m):
        """Every slice; issue and fault ports by queue, result by stream."""
        config, options = self.config, {"config": self.config, "vendor": self._vendor}
        slices = {"mxm": Mxm(**options), "vxm": Vxm(**options), "perm": Perm(**options),
                  "red": Red(**options), "const": ConstBank(**options),
                  "sample": Sampler(**options), "mem": Mem(**options)}
        mxm = slices["mxm"]
        issues = {name: getattr(mxm, f"issue_{name}") for name in ("mxm", "drain", "kv")}
        faults = {name: getattr(mxm, f"fault_{name}") for name in ("mxm", "drain", "kv")}
        for name in ("vxm", "perm", "red", "const", "sample"):
            issues[name], faults[name] = slices[name].issue, slices[name].fault
        results = {Stream.ACC: mxm.o_acc, Stream.VXM: slices["vxm"].o_vxm,
                   Stream.PERM: slices["perm"].o_perm, Stream.RED: slices["red"].o_red,
                   Stream.CONST: slices["const"].o}
        mem = slices["mem"]
        for bank in range(config.mem_banks):
            for queue in (f"r{bank}", f"w{bank}"):
                issues[queue] = getattr(mem, f"issue_{queue}")
                faults[queue] = getattr(mem, f"fault_{queue}")
            results[mem_stream(bank)] = getattr(mem, f"o_{bank}")
        for name, unit in slices.items():
            m.submodules[name] = unit
        return slices, issues, results, faults

    def _connect_streams(self, m, slices, results):
        """One register of the producer per stream, seen by all consumers."""
        streams = StreamsSignature(self.config).create(path=("streams",))
        for number, result in results.items():
            side = getattr(streams, number.name.lower())
            m.d.comb += [side.valid.eq(result.valid), side.data.eq(result.data)]
        for unit in slices.values():
            if hasattr(unit, "streams"):
                connect(m, streams, unit.streams)

    def _connect_queues(self, m, issues, faults):
        """A queue for every issue port, and its faults with those of its slice."""
        sequencer, queues = self._sequencer, {}
        m.submodules.params = self._params = params = ParamStore(config=self.config)
        m.d.comb += [params.start.eq(sequencer.load_start), params.next.eq(sequencer.load_next),
                     params.row.eq(sequencer.load_row), sequencer.loading.eq(params.busy)]
        m.submodules.programs = self._programs = programs = ProgramPort(
            config=self.config, queues=self.config.queues, vendor=self._vendor)
        ended, self._idle = [Const(1)] * len(QUEUES), Signal(init=1, name="idle")
        m.d.sync += self._idle.eq(~sequencer.busy)
        counts = shared_copies(m, sequencer.counts, self.config.queues, QUEUES_A_COPY, "counts",
                               self._vendor)
        loads = shared_copies(m, _fields(params.load), self.config.queues, QUEUES_A_COPY, "loads",
                              self._vendor)
        for name in self.config.queues:
            number = QUEUES[name].id
            m.submodules[f"queue_{name}"] = queue = InstructionQueue(config=self.config, queue=name,
                                                                     vendor=self._vendor)
            queues[name] = queue
            connect(m, queue.issue, issues[name])
            # The queue is one cycle ahead of its slice.
            queue_causes, late = Signal.like(queue.fault.causes), Signal(name=f"ended_{name}")
            m.d.sync += [queue_causes.eq(queue.fault.causes), late.eq(queue.ended)]
            m.d.comb += [getattr(queue, port).eq(getattr(sequencer, port))
                         for port in ("restart", "stop", "prompt", "position", "token")]
            m.d.comb += [queue.half.eq(sequencer.row[0]),
                         queue.counts.as_value().eq(counts[name]),
                         _fields(queue.load).eq(loads[name])]
            connect(m, getattr(programs, name), queue.program)
            m.d.comb += queue.idle.eq(self._idle)
            m.d.comb += sequencer.causes[number].eq(queue_causes | faults[name].causes)
            ended[number] = late
        m.d.comb += sequencer.ended.eq(Cat(ended))
        return queues

    def _connect_host(self, m, slices):
        """The host port, the bus, and what the slices need to know of the step."""
        sequencer = self._sequencer
        m.submodules.host = host = HostPort(config=self.config)
        connect(m, flipped(self.rx), host.rx)
        connect(m, flipped(self.tx), host.tx)
        connect(m, sequencer.event, host.event)
        m.d.comb += host.busy.eq(~self._idle)
        self._connect_bus(m, host.bus, {
            "registers": (sequencer.host, Space.REGISTERS, Space.ROWS, Space.TOKENS),
            "params": (self._params.host, Space.PARAMS),
            "programs": (self._programs.host, Space.PROGRAM),
            "const": (slices["const"].host, Space.CONSTANTS),
            "weights": (self._weights(m, slices["mxm"].host), Space.WEIGHTS),
            # PERM answers what is read from MEM and CONSTANTS.
            "perm": (slices["perm"].bus, Space.PATTERNS, Space.CONSTANTS, Space.MEM),
            "mem": (slices["mem"].host, Space.MEM)})
        for unit in slices.values():
            for name in ("position", "token", "vocabulary", "temperature", "seed"):
                if hasattr(unit, name):
                    m.d.comb += getattr(unit, name).eq(getattr(sequencer, name))
        m.d.comb += sequencer.sampled.eq(slices["sample"].o_token)

    def _connect_bus(self, m, bus, ends):
        """All ends, with registers on the way to each, and one register for all answers."""
        words, data, ack = space_words(self.config), Const(0, 16), Const(0, 1)
        for name, (end, *spaces) in ends.items():
            m.submodules[f"tap_{name}"] = tap = BusTap(
                spaces=spaces, words=max(words[space] for space in spaces))
            m.d.comb += [getattr(tap.bus, signal).eq(getattr(bus, signal))
                         for signal in ("space", "address", "w_en", "r_en", "w_data")]
            connect(m, tap.end, end)
            data, ack = data | tap.bus.r_data, ack | tap.bus.ack
        m.d.sync += [bus.r_data.eq(data), bus.ack.eq(ack)]

    def _weights(self, m, host):
        """The host's side of the weight memory as an end of the bus."""
        bus = BusSignature().flip().create(path=("weights",))
        wrote = delay(m, bus.w_en, 1, "weights_wrote", reset=True)
        read = delay(m, bus.r_en, HOST_READ_LATENCY, "weights_read", reset=True)
        m.d.comb += [host.address.eq(bus.address), host.w_data.eq(bus.w_data),
                     host.w_en.eq(bus.w_en), host.r_en.eq(bus.r_en),
                     bus.ack.eq(wrote | read),
                     bus.r_data.eq(host.r_data & read.replicate(len(host.r_data)))]
        return bus

    def _trace(self, m, slices):
        """Status pins, and what a simulation wants to see."""
        sequencer = self._sequencer
        m.d.comb += [self.o_barrier.eq(sequencer.barrier), self.o_running.eq(sequencer.busy),
                     self.o_fault.eq(sequencer.fault),
                     self.trace_v_valid.eq(slices["vxm"].o_vxm.valid),
                     self.trace_v_data.eq(slices["vxm"].o_vxm.data.as_value())]
        m.d.sync += [self.trace_issue[QUEUES[name].id].eq(queue.issue.valid)
                     for name, queue in self._queues.items()]
        m.d.comb += [getattr(self, f"trace_w{bank}_{name}").eq(
                         getattr(slices["mem"], f"w{bank}_{name}"))
                     for bank in range(self.config.mem_banks)
                     for name in ("valid", "address", "halves", "data")]
