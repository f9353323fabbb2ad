"""Drives one slice cycle by cycle and records what it puts on its stream and its fault lines."""
import functools
import operator

import numpy as np
from amaranth.hdl import Value
from amaranth.sim import Simulator

from arch.faults import Fault
from arch.queues import Stream
from hdl.signatures import stream_width, streams_of


@functools.lru_cache(maxsize=4)
def _simulated(kind, config):
    """A slice, its simulator, and a list that holds the test bench to run.

    To elaborate a slice takes longer than most runs: all benches of one configuration share it, and
    every run but the first begins with a reset of the simulator.
    """
    dut, benches = kind(config=config), []

    async def testbench(ctx):
        await benches[-1](ctx)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    return dut, simulator, benches


class SliceBench:
    """A schedule of issues, streams and inputs, and the recording of its run.

    Streams that carry no value on a cycle show junk, so that an operand taken on a wrong cycle is
    seen.

    Parameters
    ----------
    kind : class of a component with ``issue``, ``streams`` and ``fault``
    config : Config
    output : str or None
        Member that holds the result stream.
    watch : sequence of str
        Further members to record.
    """

    def __init__(self, kind, config, output=None, watch=()):
        self.dut, self._simulator, self._benches = _simulated(kind, config)
        self.config, self.output, self.watch = config, output, watch
        self._schedule = {}

    def _add(self, cycle, signal, value, idle):
        signal = Value.cast(signal)
        self._schedule.setdefault(cycle, {})[id(signal)] = (signal, value, idle)

    def issue(self, cycle, **fields):
        """One operation on ``cycle``; ``j`` flags are those of a single issue unless given.

        It is on the port on the cycle before.
        """
        fields = {"valid": 1, "j_first": 1, "j_last": 1, "i_first": 1, "i_last": 1} | fields
        for name, value in fields.items():
            self._add(cycle - 1, getattr(self.dut.issue, name), int(value), 0)

    def stream(self, cycle, stream, values):
        """Lane values on a stream for one cycle."""
        side, width = getattr(self.dut.streams, stream.name.lower()), stream_width(stream)
        self._add(cycle, side.valid, 1, 0)
        self._add(cycle, side.data, self.pack(values, width), self._junk(width))

    def bus(self, cycle, space, address, word=None):
        """A request on the host bus; a read when there is no ``word``."""
        bus = self.dut.bus
        self._add(cycle, bus.r_en if word is None else bus.w_en, 1, 0)
        for name, value in (("space", int(space)), ("address", address), ("w_data", word or 0)):
            self._add(cycle, getattr(bus, name), value, None)

    def set(self, cycle, name, value):
        """Input ``name`` from ``cycle`` on."""
        self._add(cycle, getattr(self.dut, name), int(value), None)

    def _junk(self, width):
        return self.pack([-0x5A5B - 77 * lane for lane in range(self.config.lanes)], width)

    @staticmethod
    def pack(values, width):
        mask = (1 << width) - 1
        return sum((int(value) & mask) << width * lane for lane, value in enumerate(values))

    def run(self, cycles):
        """Simulate; returns ``results`` (cycle to int array), ``faults`` (cycle to set of Fault)
        and ``watched`` (list of dicts per cycle)."""
        results, faults, watched = {}, {}, []
        lanes = self.config.lanes
        fault_lines = self.dut.fault.causes
        stream = getattr(self.dut, self.output) if self.output else None
        width = Value.cast(stream.data).shape().width // lanes if stream else 0
        watch = [(name, operator.attrgetter(name)(self.dut)) for name in self.watch]

        def unpack(value):
            raw = value.to_bytes(lanes * width // 8, "little")
            return np.frombuffer(raw, f"<i{width // 8}").astype(np.int64)

        async def testbench(ctx):
            for source in streams_of(self.config):
                data = Value.cast(getattr(self.dut.streams, source.name.lower()).data)
                ctx.set(data, self._junk(stream_width(source)))
            shown, idle = {}, {}
            for cycle in range(-1, cycles):
                # The simulator works all through the slice at every change: nothing is set twice.
                coming, idle = idle, {}
                for key, (signal, value, rest) in self._schedule.get(cycle, {}).items():
                    coming[key] = (signal, value)
                    if rest is not None:
                        idle[key] = (signal, rest)
                for key, (signal, value) in coming.items():
                    if shown.get(key) != value:
                        ctx.set(signal, value)
                        shown[key] = value
                if cycle < 0:
                    await ctx.tick()
                    continue
                if stream is not None and ctx.get(stream.valid):
                    results[cycle] = unpack(ctx.get(Value.cast(stream.data)))
                causes = ctx.get(fault_lines)
                if causes:
                    faults[cycle] = {fault for fault in Fault if fault and causes >> fault - 1 & 1}
                watched.append({name: ctx.get(signal) for name, signal in watch})
                await ctx.tick()

        if self._benches:
            self._simulator.reset()
        self._benches[:] = [testbench]
        self._simulator.run()
        return results, faults, watched


#: Streams by whether their lanes have 32 bits.
WIDE = (Stream.ACC, Stream.VXM)
