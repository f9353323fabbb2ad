"""A register on the way of a stream."""
from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out


class Relay(wiring.Component):
    """Passes a stream on one cycle later, one item every two cycles.

    Nothing on one side follows from the other side in the same cycle: two parts of the chip that
    are far apart each have a cycle of their own.

    Parameters
    ----------
    shape : shape of an item

    Members
    -------
    i, o : the stream.
    """

    def __init__(self, *, shape):
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.i.ready.eq(~self.o.valid)
        with m.If(~self.o.valid):
            m.d.sync += [self.o.valid.eq(self.i.valid), self.o.payload.eq(self.i.payload)]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        return m
