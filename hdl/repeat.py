"""Last stage of an instruction queue: counts cycles, repeats an instruction, issues it."""
from amaranth import Cat, Const, Module, Mux, Shape, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from arch.faults import Fault
from arch.isa import UNITS, WAIT_BITS, layout
from hdl.logic_cells import add
from hdl.signatures import FaultSignature, IssueSignature, fault_bit

_REPEATS = ("n1", "n2", "d1", "d2", "s1", "s2")


def payload(unit: str, config: Config) -> list:
    """Fields of a format that go to the slice as they are."""
    members = IssueSignature(unit, config).members
    return [name for name in layout(UNITS[unit], config) if name in members and name != "address"]


def prepared_layout(unit: str, config: Config) -> data.StructLayout:
    """An instruction with parameters and counts resolved.

    ``wait`` as in the instruction, 1 at least. ``executes``: it is an operation; ``ends``: it is an
    END that is taken; ``bad``: it stops the queue, by ENCODING if ``bad_encoding``, else by
    UNDERRUN; none of these: a NOP. ``n*_one``: the count is 1. ``address`` has the index added.
    """
    fields = layout(UNITS[unit], config)
    members = {"wait": WAIT_BITS, "executes": 1, "ends": 1, "bad": 1, "bad_encoding": 1,
               "n1_one": 1}
    members |= {"n2_one": 1} if "n2" in fields else {}
    for name in (*_REPEATS, *payload(unit, config)):
        if name in fields:
            _, width, is_signed = fields[name]
            members[name] = signed(width) if is_signed else width
    if "address" in fields:
        members["address"] = fields["address"][1] + 2
    return data.StructLayout(members)


def _base_shape(unit: str, config: Config):
    """Shape of the base of a queue, of one bit where there are no addresses."""
    return signed(Shape.cast(prepared_layout(unit, config).members.get("address", 1)).width)


class Repeater(wiring.Component):
    """Issues prepared instructions on their cycles.

    An instruction that is on ``next`` on the cycle before the last issue of the one before, or
    earlier, is in time for every wait of 1 and more; on cycle c after that issue, for waits of
    c + 2 and more. After an END that is taken, or a fault, nothing is taken until ``restart``.

    Parameters
    ----------
    unit : str
    config : Config
    vendor : bool
        Build the cycle counter of carry cells.

    Members
    -------
    restart, stop : as in `hdl.icu.InstructionQueue`.
    next, next_valid, take : the next instruction; it is taken on cycles with ``take``.
    base : what is added to its address.
    issue, ended, fault : as in the queue.
    """

    def __init__(self, *, unit: str, config: Config, vendor: bool = False):
        self._unit, self._config, self._vendor = unit, config, vendor
        self._layout = prepared_layout(unit, config)
        super().__init__({
            "restart": In(1), "stop": In(1), "next": In(self._layout), "next_valid": In(1),
            "take": Out(1), "base": In(_base_shape(unit, config)),
            "issue": Out(IssueSignature(unit, config)), "ended": Out(1),
            "fault": Out(FaultSignature())})

    def elaborate(self, platform):
        m = Module()
        issue, following = self.issue, self.next
        now = Signal(self._layout, reset_less=True)
        valid, dead = Signal(), Signal(init=1)
        # Cycles to the next issue, negative, counted up to 0; without an instruction at hand, two more
        # than the cycles since the last issue.
        count = Signal(signed(WAIT_BITS + 1), init=2)
        i_last, j_last = Signal(reset_less=True), Signal(reset_less=True)
        fires, stops, silenced = Signal(), Signal(reset_less=True), Signal()
        self._fires, self._i_last, self._j_last = fires, i_last, j_last
        m.d.comb += [
            fires.eq(valid & ~count[-1]),
            silenced.eq(self.restart | self.stop),
            self.take.eq(~dead & ~valid | fires & i_last & j_last & ~stops)]
        # One more cycle, less the cycles to wait. On the cycle of an issue the count is taken as 1,
        # not 0: that leaves 1 less the wait.
        gap = Mux(j_last, now.d2, now.d1) if "d2" in self._layout.members else now.d1
        more = self.take & self.next_valid | fires & ~self.take
        m.d.sync += count.eq(add(
            m, WAIT_BITS + 1, lambda a, b, c, d: (a, ~b & c), a=Cat(count[0] | fires, count[1:]),
            b=Mux(self.take, following.wait, gap), c=more, carry=Const(1), vendor=self._vendor))
        with m.If(self.restart):
            m.d.sync += count.eq(2)
        with m.If(self.take):
            m.d.sync += [now.eq(following), valid.eq(self.next_valid),
                         stops.eq(following.bad | following.ends)]
        with m.If(fires & stops):
            m.d.sync += [valid.eq(0), dead.eq(1)]
        with m.If(silenced):
            m.d.sync += [valid.eq(0), dead.eq(~self.restart)]
        self._counts(m, now)
        if "address" in self._layout.members:
            self._address(m, now)
        m.d.sync += issue.valid.eq(fires & now.executes & ~now.bad & ~silenced)
        m.d.sync += [getattr(issue, name).eq(now[name])
                     for name in payload(self._unit, self._config)]
        self._events(m, now, silenced)
        return m

    def _events(self, m, now, silenced):
        """END and faults, on their scheduled cycles."""
        causes, failed = self.fault.causes, Signal()
        m.d.sync += [failed.eq(self._fires & now.bad & ~silenced),
                     causes[fault_bit(Fault.ENCODING)].eq(failed & now.bad_encoding),
                     causes[fault_bit(Fault.UNDERRUN)].eq(failed & ~now.bad_encoding)]
        with m.If(self._fires & now.ends & ~now.bad):
            m.d.sync += self.ended.eq(1)
        with m.If(silenced):
            m.d.sync += self.ended.eq(0)

    def _counts(self, m, now):
        """Repeat indices and their flags."""
        issue, fires, take = self.issue, self._fires, self.take
        for name, last, steps in (("j", self._j_last, fires),
                                  ("i", self._i_last, fires & self._j_last)):
            # The number of the issue behind the next one, counted from 1.
            number = Signal(self._config.count_bits, name=f"{name}_number", reset_less=True)
            first = Signal(name=f"{name}_first", reset_less=True)
            count = "n1" if name == "j" else "n2"
            if count not in self._layout.members:
                m.d.comb += [last.eq(1), issue.i_first.eq(1), issue.i_last.eq(1)]
                continue
            with m.If(take | steps):
                m.d.sync += [number.eq(number + 1), first.eq(0), last.eq(
                    Mux(take, self.next[f"{count}_one"], number == now[count]))]
            again = take
            if name == "j" and "n2" in self._layout.members:
                again = take | fires & last
                with m.If(fires & last & ~take):
                    m.d.sync += last.eq(now.n1_one)
            with m.If(again):
                m.d.sync += [number.eq(2), first.eq(1)]
            m.d.sync += [getattr(issue, name).eq(number - 2),
                         getattr(issue, f"{name}_first").eq(first),
                         getattr(issue, f"{name}_last").eq(last)]

    def _address(self, m, now):
        """The address of the next issue: one adder; ``row`` keeps that of j = 0."""
        fires, take, width = self._fires, self.take, len(self.issue.address)
        address, step = Signal(width, name="next_address", reset_less=True), now.s1
        last = address
        if "s2" in self._layout.members:
            row = Signal(width, reset_less=True)
            last, step = Mux(self._j_last, row, address), Mux(self._j_last, now.s2, now.s1)
        total = add(m, width, lambda a, b, c, d: (a, c & b | ~c & d),
                    a=Mux(take, self.base, last), b=self.next.address, c=take, d=step,
                    vendor=self._vendor)
        with m.If(take | fires):
            m.d.sync += address.eq(total)
        if "s2" in self._layout.members:
            with m.If(take | fires & self._j_last):
                m.d.sync += row.eq(total)
        m.d.sync += self.issue.address.eq(address)
