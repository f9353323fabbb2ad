"""The sticky fault register: cause, queue and cycle of the first fault."""
from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from arch.faults import Fault
from arch.queues import QUEUES

#: Queue number of a fault that belongs to none.
NO_QUEUE = 0xFF
_CAUSES = len(Fault) - 1


def lowest(value, numbers, otherwise: int):
    """The number that belongs to the lowest bit that is set."""
    result = otherwise
    for bit, number in reversed(list(zip(value, numbers))):
        result = Mux(bit, number, result)
    return result


class FaultRecorder(wiring.Component):
    """Keeps the first cycle on which there is a fault, and decodes it.

    Of several causes in that cycle the lowest-numbered wins, of several queues with that cause the
    one with the lowest id.

    Members
    -------
    causes : by queue id, as in `hdl.signatures.FaultSignature`.
    event_cycle : cycle in the step, one cycle ago.
    clear : forget.
    fault : a fault has been kept; from the cycle after the first cause on.
    cause, queue, cycle : which. Valid two cycles after ``fault`` has risen.
    """

    def __init__(self):
        super().__init__({
            "causes": In(data.ArrayLayout(_CAUSES, len(QUEUES))), "event_cycle": In(16),
            "clear": In(1), "fault": Out(1), "cause": Out(4), "queue": Out(8),
            "cycle": Out(16)})

    def elaborate(self, platform):
        m = Module()
        kept, cycle = Signal(data.ArrayLayout(_CAUSES, len(QUEUES))), Signal(16)
        with m.If(self.clear):
            m.d.sync += [self.fault.eq(0), kept.eq(0)]
        # Kept on every cycle, the last time on that of a fault: whether there is one comes late.
        with m.Elif(~self.fault):
            m.d.sync += [kept.eq(self.causes), cycle.eq(self.event_cycle)]
            with m.If(self.causes.as_value().any()):
                m.d.sync += self.fault.eq(1)
        m.d.comb += self.cycle.eq(Mux(self.fault, cycle, 0))
        # One cycle later the cause, two cycles later the queue.
        queues = range(len(QUEUES))
        by_cause = [Cat(kept[queue][bit] for queue in queues).any() for bit in range(_CAUSES)]
        chosen = Cat((kept[queue] << 1).bit_select(self.cause, 1) for queue in queues)
        m.d.sync += [self.cause.eq(lowest(by_cause, range(1, _CAUSES + 1), Fault.NONE)),
                     self.queue.eq(lowest(chosen, queues, NO_QUEUE))]
        return m
