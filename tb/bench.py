"""A bench: clock, reset and cycle count, and the drivers, monitors and checkers of one slice.

Cycle t lies between two rising edges. Inputs of cycle t are driven at the falling edge in its
middle, outputs of cycle t are looked at right behind the edge that begins it; they are registers.
"""
import re

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly, RisingEdge

from arch.timing import timing
from hdl.signatures import stream_width
from tb.checker import Checker
from tb.drivers import Driver, IssueDriver, StreamsDriver
from tb.monitors import FaultMonitor, PortMonitor, StreamMonitor
from tb.top import CONFIG

PERIOD_NS = 10
#: Inputs that ask a slice to do something.
_REQUESTS = re.compile(
    r"(?!icu_)\w+__issue(_\w+)?__valid|(?!host__)\w+__(host|bus)__[wr]_en|icu_\w+__restart"
    r"|\w+__streams__\w+__valid|host__(rx|event)__valid|host__bus__ack")


def bench_test_of(cycles: int):
    """Decorator of a test that may take as many cycles."""
    return cocotb.test(timeout_time=cycles * PERIOD_NS, timeout_unit="ns")


#: Every test is ended after this time; that is the watchdog.
bench_test = bench_test_of(30_000)


class Bench:
    """One slice of the bench top.

    Parameters
    ----------
    dut : handle of the top
    prefix : str
        Prefix of the ports of the slice.

    Members
    -------
    drivers, monitors, handshakes : agents; called on every cycle with ``drive`` at the falling
        edge, ``sample`` behind the rising edge, and ``settle`` when the inputs have settled.
    config : Config, time : Timing
    cycle : the current cycle; 0 is the first one after the reset.
    """

    def __init__(self, dut, prefix: str):
        self.dut, self.prefix = dut, prefix
        self.config, self.time = CONFIG, timing(CONFIG)
        self.cycle = -1
        self.driver = Driver()
        self.drivers, self.monitors, self.checkers = [self.driver], [], []
        self.handshakes = []

    def port(self, name: str):
        """Handle of a port of the slice; members of interfaces are separated by ``__``."""
        return getattr(self.dut, f"{self.prefix}__{name}")

    # Agents.

    def add_issue(self, name: str, unit: str) -> IssueDriver:
        self.drivers.append(IssueDriver(lambda member: self.port(f"{name}__{member}"), unit,
                                        self.config))
        return self.drivers[-1]

    def add_streams(self) -> StreamsDriver:
        self.drivers.append(StreamsDriver(lambda member: self.port(f"streams__{member}"),
                                          self.config))
        return self.drivers[-1]

    def _checker(self, name: str) -> Checker:
        self.checkers.append(Checker(name))
        return self.checkers[-1]

    def add_result(self, name: str, stream) -> Checker:
        """Checker of the result stream on port ``name``."""
        checker = self._checker(name)
        self.monitors.append(StreamMonitor(self.port(f"{name}__valid"), self.port(f"{name}__data"),
                                           self.config.lanes, stream_width(stream), checker))
        return checker

    def add_faults(self, name: str) -> Checker:
        """Checker of a fault port: sets of faults on the cycle of the event."""
        checker = self._checker(name)
        self.monitors.append(FaultMonitor(self.port(f"{name}__causes"), checker))
        return checker

    def add_ports(self, *names: str, direct: bool = False) -> Checker:
        """Checker of ports, as a dict by name; see `tb.monitors.PortMonitor`. If ``direct``, they
        follow the inputs of their cycle, without a register."""
        checker = self._checker(names[0])
        monitor = PortMonitor({name: self.port(name) for name in names}, checker)
        (self.handshakes if direct else self.monitors).append(monitor)
        return checker

    # Time.

    async def start(self) -> None:
        """Reset; the next cycle is cycle 0. All other slices stay quiet."""
        self.dut.rst.value = 1
        self.dut.clk.value = 0
        for handle in self.dut:
            if _REQUESTS.fullmatch(handle._name):
                handle.value = 0
        # The simulator's own clock; a race with it is impossible, inputs change at falling edges.
        Clock(self.dut.clk, PERIOD_NS, unit="ns", impl="gpi").start(start_high=False)
        for driver in self.drivers:
            driver.drive(0)
        for _ in range(3):
            await FallingEdge(self.dut.clk)
        self.dut.rst.value = 0

    async def run(self, cycles: int) -> None:
        """Let cycles pass; ``cycle`` is then the last of them."""
        rising, falling, read_only = RisingEdge(self.dut.clk), FallingEdge(self.dut.clk), ReadOnly()
        for _ in range(cycles):
            await rising
            await read_only
            self.cycle += 1
            for monitor in self.monitors:
                monitor.sample(self.cycle)
            await falling
            for driver in self.drivers:
                driver.drive(self.cycle)
            if self.handshakes:
                # Whether a transfer takes place at the next edge follows from all inputs.
                await read_only
                for handshake in self.handshakes:
                    handshake.settle(self.cycle)

    async def until(self, cycle: int) -> None:
        """Let time pass up to and including ``cycle``."""
        await self.run(cycle - self.cycle)

    async def finish(self, idle: int = 24) -> None:
        """Let ``idle`` cycles pass; all that was expected must have been seen, and no more."""
        await self.run(idle)
        for checker in self.checkers:
            checker.finish()
