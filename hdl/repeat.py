"""Last stage of an instruction queue: counts cycles, repeats an instruction, issues it."""
from amaranth import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from arch.faults import Fault
from arch.isa import COUNT_BITS, UNITS, WAIT_BITS, layout
from hdl.signatures import FaultSignature, IssueSignature, fault_bit

#: Counter of the cycles since the last issue while no instruction is at hand; stays at its end.
SINCE_BITS = 5
_GAPS_AND_STRIDES = ("d1", "d2", "s1", "s2")


def payload(unit: str, config: Config) -> list:
    """Fields of a format that go to the slice as they are."""
    members = IssueSignature(unit, config).members
    return [name for name in layout(UNITS[unit], config) if name in members and name != "address"]


def prepared_layout(unit: str, config: Config) -> data.StructLayout:
    """An instruction with parameters and counts resolved.

    ``wait`` as in the instruction. ``issues``: it is an operation; ``ends``: it is an END that is
    taken; ``bad``: it stops the queue, by ENCODING if ``bad_encoding``, else by UNDERRUN; none of
    these: a NOP. ``n*_less``: count - 1; ``n*_one``: it is 1. ``address`` and ``index`` add up.
    """
    fields = layout(UNITS[unit], config)
    members = {"wait": WAIT_BITS, "issues": 1, "ends": 1, "bad": 1, "bad_encoding": 1,
               "n1_less": COUNT_BITS, "n1_one": 1, "n2_less": COUNT_BITS, "n2_one": 1}
    for name in (*_GAPS_AND_STRIDES, *payload(unit, config)):
        if name in fields:
            _, width, is_signed = fields[name]
            members[name] = signed(width) if is_signed else width
    if "address" in fields:
        members |= {name: fields["address"][1] + 2 for name in ("address", "index")}
    return data.StructLayout(members)


class Repeater(wiring.Component):
    """Issues prepared instructions on their cycles.

    An instruction that is on ``next`` on the cycle of the last issue of the one before, or earlier,
    is in time for every wait of 1 and more.

    Parameters
    ----------
    unit : str
    config : Config

    Members
    -------
    restart, stop : as in `hdl.icu.InstructionQueue`.
    next, next_valid, take : the next instruction; it is taken on cycles with ``take``.
    issue, ended, fault : as in the queue.
    halt : high on the cycle of a fault: the queue is to stop.
    """

    def __init__(self, *, unit: str, config: Config):
        self._unit = unit
        self._layout = prepared_layout(unit, config)
        super().__init__({
            "restart": In(1), "stop": In(1), "next": In(self._layout), "next_valid": In(1),
            "take": Out(1), "issue": Out(IssueSignature(unit, config)), "ended": Out(1),
            "halt": Out(1), "fault": Out(FaultSignature())})

    def elaborate(self, platform):
        m = Module()
        issue, following = self.issue, self.next
        now = Signal(self._layout, reset_less=True)
        valid, due = Signal(), Signal()
        timer, since = Signal(WAIT_BITS, reset_less=True), Signal(SINCE_BITS)
        last, load, late, fires = Signal(), Signal(), Signal(), Signal()
        # Cycles since the last issue: 0 while an instruction is at hand.
        missed = Mux(valid, 0, since)
        m.d.comb += [
            last.eq(due & issue.j_last & issue.i_last), self.take.eq(last | ~valid),
            load.eq(self.take & self.next_valid),
            late.eq((following.wait <= missed) | ~valid & since.all())]
        with m.If(load):
            m.d.sync += [now.eq(following), timer.eq(following.wait - missed)]
            m.d.comb += fires.eq(following.wait == missed + 1)
        with m.Elif(due):
            gap = Mux(issue.j_last, self._of(now, "d2", 1), self._of(now, "d1", 1))
            m.d.sync += timer.eq(gap)
            m.d.comb += fires.eq(~last & (gap == 1))
        with m.Else():
            m.d.sync += timer.eq(timer - 1)
            m.d.comb += fires.eq(valid & (timer == 2))
        m.d.sync += [valid.eq(load | valid & ~last), due.eq(fires),
                     issue.valid.eq(fires & Mux(load, following.issues, now.issues))]
        with m.If(valid):
            m.d.sync += since.eq(1)
        with m.Elif(~since.all()):
            m.d.sync += since.eq(since + 1)
        m.d.comb += [getattr(issue, name).eq(now[name])
                     for name in payload(self._unit, issue.signature.config)]
        self._indices(m, now, load, due)
        self._events(m, now, due, load & late)
        with m.If(self.halt | self.restart | self.stop):
            m.d.sync += [valid.eq(0), due.eq(0), issue.valid.eq(0)]
        with m.If(self.restart | self.stop):
            m.d.sync += since.eq(0)
        return m

    def _of(self, instruction, name: str, constant: int):
        """A field, or what stands for it where the format has none."""
        return instruction[name] if name in self._layout.members else constant

    def _events(self, m, now, due, missed):
        """END and faults, on their scheduled cycles."""
        following, causes = self.next, self.fault.causes
        ended, encoding, underrun = Signal(), Signal(), Signal()
        m.d.comb += [
            self.ended.eq(ended | due & now.ends),
            encoding.eq(due & now.bad & now.bad_encoding | missed & following.bad_encoding),
            underrun.eq(due & now.bad & ~now.bad_encoding | missed & ~following.bad_encoding),
            self.halt.eq(encoding | underrun)]
        m.d.sync += [ended.eq(self.ended), causes[fault_bit(Fault.ENCODING)].eq(encoding),
                     causes[fault_bit(Fault.UNDERRUN)].eq(underrun)]
        with m.If(self.restart | self.stop):
            m.d.sync += ended.eq(0)

    def _indices(self, m, now, load, due):
        """Repeat indices, their flags, and the address."""
        issue = self.issue
        with m.If(load):
            m.d.sync += [issue.i.eq(0), issue.i_first.eq(1), issue.i_last.eq(self.next.n2_one),
                         issue.j.eq(0), issue.j_first.eq(1), issue.j_last.eq(self.next.n1_one)]
        with m.Elif(due & issue.j_last):
            m.d.sync += [issue.i.eq(issue.i + 1), issue.i_first.eq(0),
                         issue.i_last.eq(issue.i + 1 == now.n2_less),
                         issue.j.eq(0), issue.j_first.eq(1), issue.j_last.eq(now.n1_one)]
        with m.Elif(due):
            m.d.sync += [issue.j.eq(issue.j + 1), issue.j_first.eq(0),
                         issue.j_last.eq(issue.j + 1 == now.n1_less)]
        if "address" not in self._layout.members:
            return
        # One adder; the row keeps the address of j = 0.
        row, total = Signal(len(issue.address), reset_less=True), Signal(len(issue.address))
        with m.If(load):
            m.d.comb += total.eq(self.next.address + self.next.index)
        with m.Elif(issue.j_last):
            m.d.comb += total.eq(row + self._of(now, "s2", 0))
        with m.Else():
            m.d.comb += total.eq(issue.address + self._of(now, "s1", 0))
        with m.If(load | due):
            m.d.sync += issue.address.eq(total)
        with m.If(load | due & issue.j_last):
            m.d.sync += row.eq(total)
