"""A board: the chip behind a serial line, with lamps. What is the same on every board stands here."""
from amaranth import Module, Signal
from amaranth.lib import fifo, wiring
from amaranth.lib.wiring import In, Out, connect

from arch.config import Config
from hdl.chip import Chip
from hdl.console import Console
from hdl.relay import Relay
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
    build : int
        64 bits by which the host knows the RTL of the chip.

    Members
    -------
    uart_rx, uart_tx : pins, seen from the board.
    led_alive : blinks. led_running : a run is under way. led_fault : a fault is recorded, or the
        chip did not take the model in the flash.
    led_line : bytes were lost on the serial line, or frames of it damaged.
    led_speaking : the serial line is a terminal (`hdl.console`).
    button : active high, without bounces.
    flash_select, flash_clock, flash_out, flash_in : the flash; ``flash_select`` is active high.
    """

    def __init__(self, *, config: Config, clock_hz: float, baud: float, vendor: bool = False,
                 build: int = 0):
        self._chip = Chip(config=config, vendor=vendor, build=build)
        self._console = Console(config=config)
        self._line = {"clock_hz": clock_hz, "baud": baud}
        super().__init__({"uart_rx": In(1, init=1), "uart_tx": Out(1, init=1),
                          "led_alive": Out(1), "led_running": Out(1), "led_fault": Out(1),
                          "led_line": Out(1), "led_speaking": Out(1), "button": In(1),
                          "flash_select": Out(1), "flash_clock": Out(1), "flash_out": Out(1),
                          "flash_in": In(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.chip = chip = self._chip
        m.submodules.receiver = receiver = UartReceiver(**self._line)
        m.submodules.transmitter = transmitter = UartTransmitter(**self._line)
        m.submodules.received = received = fifo.SyncFIFOBuffered(width=8, depth=RECEIVE_DEPTH)
        connect(m, receiver.o, received.w_stream)
        m.submodules.console = console = self._console
        connect(m, received.r_stream, console.line_rx)
        # A byte on the line lasts many cycles: there is time for registers between the parts.
        for name, source, target in (("to_line", console.line_tx, transmitter.i),
                                     ("to_chip", console.chip_rx, chip.rx),
                                     ("from_chip", chip.tx, console.chip_tx)):
            m.submodules[name] = relay = Relay(shape=8)
            connect(m, source, relay.i)
            connect(m, relay.o, target)
        m.d.comb += [console.button.eq(self.button), console.flash_in.eq(self.flash_in),
                     self.flash_select.eq(console.flash_select), self.led_speaking.eq(console.speaking),
                     self.flash_clock.eq(console.flash_clock), self.flash_out.eq(console.flash_out)]
        alive = Signal(ALIVE_BIT + 1)
        m.d.comb += [receiver.pin.eq(self.uart_rx), self.uart_tx.eq(transmitter.pin),
                     self.led_alive.eq(alive[-1]), self.led_running.eq(chip.o_running),
                     self.led_fault.eq(chip.o_fault | console.failed)]
        m.d.sync += [alive.eq(alive + 1), self.led_line.eq(self.led_line | receiver.error)]
        return m
