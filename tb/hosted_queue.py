"""An instruction queue with the host's way to its program, for tests that load it over the bus."""
from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, connect, flipped

from arch.config import Config
from hdl.bus import BusSignature
from hdl.icu import InstructionQueue
from hdl.program import ProgramPort


class HostedQueue(wiring.Component):
    """Ports of the queue, but ``host`` in place of ``program`` and ``idle``.

    It counts as idle from a read of the host to the next restart.
    """

    def __init__(self, *, config: Config, queue: str):
        self._queue = InstructionQueue(config=config, queue=queue)
        self._port, self._name = ProgramPort(config=config, queues=(queue,)), queue
        self._passed = {name: member for name, member in self._queue.signature.members.items()
                        if name not in ("program", "idle")}
        super().__init__(self._passed | {"host": In(BusSignature())})

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue, m.submodules.port = queue, port = self._queue, self._port
        connect(m, flipped(self.host), port.host)
        connect(m, getattr(port, self._name), queue.program)
        for name, member in self._passed.items():
            inside, outside = getattr(queue, name), getattr(self, name)
            if member.is_signature:
                connect(m, flipped(outside), inside)
            else:
                m.d.comb += inside.eq(outside) if member.flow == In else outside.eq(inside)
        idle = Signal(init=1)
        with m.If(self.restart):
            m.d.sync += idle.eq(0)
        with m.Elif(self.host.r_en):
            m.d.sync += idle.eq(1)
        m.d.comb += queue.idle.eq(idle)
        return m
