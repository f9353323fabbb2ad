"""A board: the chip behind a serial line, with lamps. What is the same on every board stands here."""
from amaranth import Module, Signal
from amaranth.lib import fifo, wiring
from amaranth.lib.wiring import In, Out, connect

from arch.config import Config
from hdl.chip import Chip
from hdl.uart import UartReceiver, UartTransmitter

#: Bytes that may wait: the host port takes none while it accesses memory or sends a reply.
RECEIVE_DEPTH = 32
#: The lamp that shows that the clock runs changes every 2**ALIVE_BIT cycles.
ALIVE_BIT = 24


class Board(wiring.Component):
    """The chip, its serial line and its lamps, on one clock.

    Parameters
    ----------
    config : Config
    clock_hz, baud : float
        Of the clock, and of the serial line.
    vendor : bool
        Build the cells from ECP5 primitives.

    Members
    -------
    uart_rx, uart_tx : pins, seen from the board.
    led_alive : blinks. led_running : a run is under way. led_fault : a fault is recorded.
    led_line : bytes were lost on the serial line, or frames of it damaged.
    """

    def __init__(self, *, config: Config, clock_hz: float, baud: float, vendor: bool = False):
        self._chip = Chip(config=config, vendor=vendor)
        self._line = {"clock_hz": clock_hz, "baud": baud}
        super().__init__({"uart_rx": In(1, init=1), "uart_tx": Out(1, init=1),
                          "led_alive": Out(1), "led_running": Out(1), "led_fault": Out(1),
                          "led_line": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.chip = chip = self._chip
        m.submodules.receiver = receiver = UartReceiver(**self._line)
        m.submodules.transmitter = transmitter = UartTransmitter(**self._line)
        m.submodules.received = received = fifo.SyncFIFOBuffered(width=8, depth=RECEIVE_DEPTH)
        connect(m, receiver.o, received.w_stream)
        connect(m, received.r_stream, chip.rx)
        connect(m, chip.tx, transmitter.i)
        alive = Signal(ALIVE_BIT + 1)
        m.d.comb += [receiver.pin.eq(self.uart_rx), self.uart_tx.eq(transmitter.pin),
                     self.led_alive.eq(alive[-1]), self.led_running.eq(chip.o_running),
                     self.led_fault.eq(chip.o_fault)]
        m.d.sync += [alive.eq(alive + 1), self.led_line.eq(self.led_line | receiver.error)]
        return m
