"""The internal bus between the host port and everything that it can read or write."""
from amaranth import Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

ADDRESS_BITS = 24
SPACE_BITS = 4


class BusSignature(wiring.Signature):
    """One access at a time to a 16-bit word of an address space of `arch.hostmap`.

    The host port drives the outputs and holds ``space``, ``address`` and ``w_data`` from the
    request to the answer. Whoever owns the address answers with one cycle of ``ack`` one or more
    cycles later; everybody else keeps ``ack`` and ``r_data`` at 0, so that answers are ORed.

    Members
    -------
    space, address : what is accessed.
    w_en, r_en : high on the one cycle that requests a write or a read.
    w_data : word to write.
    ack : the access is done; ``r_data`` is the word read, 0 after a write.
    """

    def __init__(self):
        super().__init__({"space": Out(SPACE_BITS), "address": Out(ADDRESS_BITS),
                          "w_en": Out(1), "r_en": Out(1), "w_data": Out(16),
                          "r_data": In(16), "ack": In(1)})


class BusTap(wiring.Component):
    """Registers of the bus before one of its ends, which may be all over the chip.

    The end sees requests for its own spaces alone, two cycles after the host port makes them, and
    holds them until the next one: every tap has an enable of its own, so that none is the copy of
    another. Answers pass through in the same cycle.

    Parameters
    ----------
    spaces : tuple of Space
        Of the end.
    words : int
        The largest of them; the host port asks for nothing beyond.

    Members
    -------
    bus : from the host port.
    end : to the end.
    """

    def __init__(self, *, spaces: tuple, words: int):
        self._spaces, self._address_bits = spaces, bits_of(words)
        super().__init__({"bus": In(BusSignature()), "end": Out(BusSignature())})

    def elaborate(self, platform):
        m = Module()
        bus, end = self.bus, self.end
        mine, address = Signal(), Signal(self._address_bits, reset_less=True)
        with m.Switch(bus.space):
            with m.Case(*map(int, self._spaces)):
                m.d.comb += mine.eq(1)
        # The host port holds what it asks for: there is time to decode whether it is ours.
        writes, reads = Signal(), Signal()
        m.d.sync += [writes.eq(bus.w_en & mine), reads.eq(bus.r_en & mine),
                     end.w_en.eq(writes), end.r_en.eq(reads)]
        space, word = Const(int(self._spaces[0]), SPACE_BITS), Signal(16, reset_less=True)
        if len(self._spaces) > 1:
            space = Signal(SPACE_BITS, reset_less=True)
        with m.If(writes | reads):
            m.d.sync += [address.eq(bus.address), word.eq(bus.w_data)]
            if len(self._spaces) > 1:
                m.d.sync += space.eq(bus.space)
        m.d.comb += [end.space.eq(space), end.address.eq(address), end.w_data.eq(word),
                     bus.r_data.eq(end.r_data), bus.ack.eq(end.ack)]
        return m


def bits_of(count: int) -> int:
    """Width of an unsigned field that holds ``0 .. count - 1``; 0 for a single value."""
    return (count - 1).bit_length()
