"""Reads bytes from an SPI flash: the one that holds the bitstream.

Ref: the commands 0x03 (read) and 0xAB (release from power-down), which all such parts have.
"""
from amaranth import Cat, Const, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

READ, WAKE = 0x03, 0xAB
ADDRESS_BITS = 24
#: Cycles of a clock period of the flash: 20 MHz at 80 MHz; every flash reads at that speed.
PERIOD = 4
#: Cycles that a flash takes to wake up (at least 30 us), and to rest between two commands.
WAKE_CYCLES, REST_CYCLES = 4096, 16


class FlashReader(wiring.Component):
    """Bytes of a flash from an address on.

    After reset it wakes the flash. While ``read`` is set, the bytes from ``address`` on come on
    ``o``, each 8 periods of the flash clock after the one before at the soonest; they stop as
    ``read`` falls, which it must for a cycle before the next address is taken.

    Members
    -------
    address, read, o : see above. o.valid falls with ``read``.
    select : of the flash, active high; the pin is active low. clock, out, in_ : its other pins.
    """

    def __init__(self):
        super().__init__({
            "address": In(ADDRESS_BITS), "read": In(1),
            "o": Out(stream.Signature(8)), "select": Out(1), "clock": Out(1), "out": Out(1),
            "in_": In(1)})

    def elaborate(self, platform):
        m = Module()
        shift, left = Signal(8 + ADDRESS_BITS), Signal(range(8 + ADDRESS_BITS + 1))
        phase, wait = Signal(range(PERIOD)), Signal(range(WAKE_CYCLES + 1), init=WAKE_CYCLES)
        awake, last, taken = Signal(), Signal(), Signal()
        m.d.comb += [self.out.eq(shift[-1]), last.eq(phase == PERIOD - 1),
                     self.o.payload.eq(shift[:8])]
        # Whoever asks decides late what to ask for.
        read, address = Signal(), Signal.like(self.address, reset_less=True)
        m.d.sync += [phase.eq(0), read.eq(self.read), address.eq(self.address)]

        def clocked(done):
            """One bit per period: out with the falling edge, in just before it."""
            m.d.sync += [phase.eq(phase + 1), self.clock.eq((phase >= PERIOD // 2 - 1) & ~last)]
            with m.If(last):
                m.d.sync += [shift.eq(Cat(self.in_, shift[:-1])), left.eq(left - 1), phase.eq(0)]
                with m.If(left == 1):
                    m.next = done

        def stopped():
            """Nothing more is wanted: a read may end anywhere."""
            with m.If(~read):
                m.d.sync += self.clock.eq(0)
                m.next = "REST"

        with m.FSM():
            with m.State("REST"):
                m.d.sync += [wait.eq(wait - 1), self.select.eq(0)]
                with m.If(wait == 0):
                    m.d.sync += wait.eq(0)
                    with m.If(~awake):
                        m.d.sync += [shift.eq(Const(WAKE, 8) << ADDRESS_BITS), left.eq(8),
                                     self.select.eq(1)]
                        m.next = "WAKE"
                    with m.Elif(read):
                        m.d.sync += [shift.eq(Cat(address, Const(READ, 8))),
                                     left.eq(8 + ADDRESS_BITS), self.select.eq(1)]
                        m.next = "COMMAND"
            with m.State("WAKE"):
                m.d.sync += [awake.eq(1), wait.eq(WAKE_CYCLES)]
                clocked("REST")
            with m.State("COMMAND"):
                m.d.sync += wait.eq(REST_CYCLES)
                clocked("NEXT")
                stopped()
            with m.State("NEXT"):
                m.d.sync += left.eq(8)
                m.next = "BYTE"
                stopped()
            with m.State("BYTE"):
                clocked("OFFER")
                stopped()
            with m.State("OFFER"):
                # Not what the read before this one has left. That it is taken comes late, too.
                m.d.comb += self.o.valid.eq(self.read & read & ~taken)
                m.d.sync += taken.eq(self.o.valid & self.o.ready)
                with m.If(taken):
                    m.next = "NEXT"
                stopped()
        return m
