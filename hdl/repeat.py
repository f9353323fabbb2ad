"""Last stage of an instruction queue: counts cycles, repeats an instruction, issues it."""
from amaranth import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from arch.faults import Fault
from arch.isa import COUNT_BITS, UNITS, WAIT_BITS, layout
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
    UNDERRUN; none of these: a NOP. ``n*_one``: the count is 1. ``address`` and ``index`` add up.
    Formats without outer repeats have no ``n2`` and ``d2``.
    """
    fields = layout(UNITS[unit], config)
    outer = "d2" in fields
    members = {"wait": WAIT_BITS, "executes": 1, "ends": 1, "bad": 1, "bad_encoding": 1,
               "n1_one": 1}
    members |= {"n2_one": 1} if outer else {}
    for name in (*_REPEATS, *payload(unit, config)):
        if name in fields and (outer or name not in ("n2", "d2")):
            _, width, is_signed = fields[name]
            members[name] = signed(width) if is_signed else width
    if "address" in fields:
        members["address"] = fields["address"][1] + 2
        if "index" in fields:
            members["index"] = fields["address"][1] + 2
    return data.StructLayout(members)


class Repeater(wiring.Component):
    """Issues prepared instructions on their cycles.

    An instruction that is on ``next`` on the cycle before the last issue of the one before, or
    earlier, is in time for every wait of 1 and more; on cycle c after that issue, for waits of
    c + 2 and more. After an END that is taken, or a fault, nothing is taken until ``restart``.

    Parameters
    ----------
    unit : str
    config : Config

    Members
    -------
    restart, stop : as in `hdl.icu.InstructionQueue`.
    next, next_valid, take : the next instruction; it is taken on cycles with ``take``.
    issue, ended, fault : as in the queue.
    """

    def __init__(self, *, unit: str, config: Config):
        self._unit, self._config = unit, config
        self._layout = prepared_layout(unit, config)
        super().__init__({
            "restart": In(1), "stop": In(1), "next": In(self._layout), "next_valid": In(1),
            "take": Out(1), "issue": Out(IssueSignature(unit, config)), "ended": Out(1),
            "fault": Out(FaultSignature())})

    def elaborate(self, platform):
        m = Module()
        issue, following = self.issue, self.next
        now = Signal(self._layout, reset_less=True)
        valid, dead = Signal(), Signal(init=1)
        # Cycles since the last issue as of the next cycle, 2 on the cycle of that issue; the number
        # to issue again on; and whether that is now.
        since, target = Signal(WAIT_BITS), Signal(WAIT_BITS, reset_less=True)
        due = Signal(reset_less=True)
        i_last, j_last = Signal(reset_less=True), Signal(reset_less=True)
        fires, stops, silenced = Signal(), Signal(), Signal()
        self._fires, self._i_last, self._j_last = fires, i_last, j_last
        m.d.comb += [
            fires.eq(valid & due), stops.eq(now.bad | now.ends),
            silenced.eq(self.restart | self.stop),
            self.take.eq(~dead & ~valid | fires & i_last & j_last & ~stops)]
        m.d.sync += since.eq(since + 1)
        with m.If(fires | self.restart):
            m.d.sync += since.eq(2)
        gap = Mux(j_last, self._of(now, "d2", 1), self._of(now, "d1", 1))
        one = Mux(j_last, self._of(now, "d2", 1) == 1, self._of(now, "d1", 1) == 1)
        m.d.sync += due.eq(Mux(fires, Mux(self.take, following.wait == 1, one),
                               Mux(self.take, following.wait == since, target == since)))
        with m.If(self.take):
            m.d.sync += [now.eq(following), valid.eq(self.next_valid),
                         target.eq(following.wait)]
        with m.Elif(fires):
            m.d.sync += target.eq(gap)
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

    def _of(self, instruction, name: str, constant: int):
        """A field, or what stands for it where the format has none."""
        return instruction[name] if name in self._layout.members else constant

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
        for name, last, steps, begins in (
                ("j", self._j_last, fires, self._j_last),
                ("i", self._i_last, fires & self._j_last, None)):
            # The number of the issue behind the next one, counted from 1.
            number = Signal(COUNT_BITS, name=f"{name}_number", reset_less=True)
            first = Signal(name=f"{name}_first", reset_less=True)
            count = "n1" if name == "j" else "n2"
            if count not in self._layout.members:
                m.d.comb += [last.eq(1), issue.i_first.eq(1), issue.i_last.eq(1)]
                continue
            with m.If(take):
                m.d.sync += [number.eq(2), first.eq(1), last.eq(self.next[f"{count}_one"])]
            with m.Elif(steps):
                m.d.sync += [number.eq(number + 1), first.eq(0), last.eq(number == now[count])]
                if begins is not None:
                    with m.If(begins):
                        m.d.sync += [number.eq(2), first.eq(1), last.eq(now[f"{count}_one"])]
            m.d.sync += [getattr(issue, name).eq(number - 2),
                         getattr(issue, f"{name}_first").eq(first),
                         getattr(issue, f"{name}_last").eq(last)]

    def _address(self, m, now):
        """The address of the next issue: one adder; ``row`` keeps that of j = 0."""
        fires, following, width = self._fires, self.next, len(self.issue.address)
        address, row = (Signal(width, name=name, reset_less=True) for name in ("next_address", "row"))
        first, total = following.address, Signal(width)
        base, step = (Mux(self._j_last, row, address),
                      Mux(self._j_last, self._of(now, "s2", 0), now.s1))
        if "index" in self._layout.members:
            m.d.comb += total.eq(Mux(self.take, first, base)
                                 + Mux(self.take, following["index"].as_signed(), step))
        else:
            m.d.comb += total.eq(Mux(self.take, first, base + step))
        with m.If(self.take | fires):
            m.d.sync += address.eq(total)
        with m.If(self.take | fires & self._j_last):
            m.d.sync += row.eq(total)
        m.d.sync += self.issue.address.eq(address)
