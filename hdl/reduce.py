"""RED: reduces lanes and vectors to one value: a sum, a maximum, or a function of a sum."""
from amaranth import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from arch import numerics
from arch.config import Config
from arch.faults import Fault
from arch.isa import UNITS
from arch.queues import Stream
from hdl.choose import operand
from hdl.pipeline import all_equal, delay, limit, shift_coarse, shift_fine
from hdl.reciprocal import Reciprocal
from hdl.signatures import (FaultSignature, IssueSignature, StreamSignature, StreamsSignature,
                            fault_bit, stream_width)

_OP = {op.name: op.code for op in UNITS["red"].ops}
#: Levels of the adder tree in front of its register.
_FIRST_LEVELS = 2


def _levels(values, combine, count):
    """``count`` levels of a binary tree over a list of values."""
    for _ in range(count):
        values = [combine(*pair) for pair in zip(values[::2], values[1::2])]
    return values


class Red(wiring.Component):
    """Lane reduction.

    An instruction of n1 issues reduces n1 vectors to one value; the accumulators restart at its
    first issue. Operands are taken from ``streams`` on the cycle of each issue. The result of an
    instruction whose last issue is on cycle t is on every lane of ``o_red`` on cycle
    t + ``timing(config).reduce`` (SUM, MAX) or ``reduce_function`` (RECIP, RSQRT). Instructions
    may follow each other without a gap, unless two results meet: COLLISION on the cycle of the
    results, which are then lost.

    Extra stages: the first between adder tree and accumulator, the second behind the operand
    multiplexer, the third at the result.

    Parameters
    ----------
    config : Config
    vendor : bool
        Use the multiplier primitive of the FPGA.

    Members
    -------
    issue : operations of queue ``red``.
    streams : operands.
    o_red : result, the same int16 value on every lane.
    fault : OPERAND, ENCODING and COLLISION.
    """

    def __init__(self, *, config: Config, vendor: bool = False):
        self._config, self._vendor = config, vendor
        super().__init__({
            "issue": In(IssueSignature("red", config)),
            "streams": In(StreamsSignature(config)),
            "o_red": Out(StreamSignature(stream_width(Stream.RED), config.lanes)),
            "fault": Out(FaultSignature()),
        })

    def elaborate(self, platform):
        m = Module()
        stages = self._config.reduce_stages
        within, before, after = int(stages >= 1), int(stages >= 2), int(stages >= 3)
        issue = self.issue

        # Cycle 0: operands.
        x = [delay(m, lane, 1 + before, f"x_{number}")
             for number, lane in enumerate(self._operand(m))]
        # Cycles 1 to 3, extra stages apart: accumulators.
        total = self._sum(m, x, 2 + before + within, within)
        largest = self._max(m, x, 3 + before + within, within)

        # Cycle 3: who is done, and with what.
        extra = before + within
        done = delay(m, issue.valid & issue.j_last, 3 + extra, "done", reset=True)
        op = delay(m, issue.op, 3 + extra, "op")
        post = delay(m, issue.post, 3 + extra, "post")
        is_function = (op == _OP["RECIP"]) | (op == _OP["RSQRT"])
        rounded = self._rounded(m, total, post)
        m.submodules.reciprocal = reciprocal = Reciprocal(vendor=self._vendor)
        m.d.comb += [reciprocal.total.eq(total), reciprocal.bias.eq(post),
                     reciprocal.root.eq(op == _OP["RSQRT"])]

        # Cycle 4 (SUM, MAX) and 9 (RECIP, RSQRT): the result.
        plain = delay(m, done & ~is_function, 1, "plain", reset=True)
        function = delay(m, done & is_function, Reciprocal.LATENCY, "function", reset=True)
        take_max = delay(m, op == _OP["MAX"], 1, "take_max")
        y, valid, collision = Signal(signed(16), reset_less=True), Signal(), Signal()
        m.d.sync += [y.eq(Mux(function, reciprocal.o.as_signed(),
                              Mux(take_max, largest, rounded))),
                     valid.eq(plain | function), collision.eq(plain & function)]
        y = delay(m, y, after, "y")
        m.d.comb += [self.o_red.valid.eq(delay(m, valid, after, "valid", reset=True)),
                     *[lane.eq(y) for lane in self.o_red.data]]
        late = delay(m, collision, 1 + after, "collision", reset=True)
        m.d.comb += self.fault.causes[fault_bit(Fault.COLLISION)].eq(late)
        return m

    def _operand(self, m):
        """Multiplex the operand and report faults."""
        issue, known = self.issue, Signal()
        x, valid, source = operand(m, self.streams, issue.x, "red", "x", self._config, 32)
        with m.Switch(issue.op):
            with m.Case(*_OP.values()):
                m.d.comb += known.eq(1)
        for fault, event in ((Fault.OPERAND, source & ~valid), (Fault.ENCODING, ~source | ~known)):
            register = Signal(name=f"fault_{fault.name.lower()}")
            m.d.sync += register.eq(issue.valid & event)
            m.d.comb += self.fault.causes[fault_bit(fault)].eq(register)
        return x

    def _issue_at(self, m, cycle, name):
        """Whether an operation has reached the accumulator, and whether it restarts it."""
        return (delay(m, self.issue.j_first, cycle, f"{name}_first"),
                delay(m, self.issue.valid, cycle, f"{name}_valid", reset=True))

    def _sum(self, m, x, cycle, within):
        """Cycle 1: two levels of the tree. Cycle 2: the others and the accumulator."""
        depth = self._config.lane_bits
        tree = _levels(x, lambda a, b: a + b, min(depth, _FIRST_LEVELS))
        tree = [delay(m, node, 1, f"sum_{number}") for number, node in enumerate(tree)]
        tree = _levels(tree, lambda a, b: a + b, depth - min(depth, _FIRST_LEVELS))
        node = delay(m, tree[0], within, "sum")
        total = Signal(signed(numerics.SUM_BITS), reset_less=True)
        first, valid = self._issue_at(m, cycle, "sum")
        with m.If(valid):
            m.d.sync += total.eq(Mux(first, 0, total) + node)
        return total

    def _max(self, m, x, cycle, within):
        """Cycles 1 and 2: the tree, on saturated lanes. Cycle 3: the accumulator.

        Saturation does not change the order, so it may come first and narrow the tree.
        """
        depth, tree = self._config.lane_bits, []
        for number, lane in enumerate(x):
            low = Signal(signed(16), name=f"max_{number}")
            m.d.comb += low.eq(Mux(all_equal(lane[15:]), lane[:16].as_signed(),
                                   limit(lane[-1], 16)))
            tree.append(low)
        larger = lambda a, b: Mux(a < b, b, a)  # noqa: E731 - one line says it best
        for level in range(depth):
            tree = _levels(tree, larger, 1)
            if level in (0, depth - 1 if depth < 3 else 2):
                tree = [delay(m, node, 1, f"max_{level}_{number}")
                        for number, node in enumerate(tree)]
        node = delay(m, tree[0], within, "max")
        largest = Signal(signed(16), reset_less=True)
        first, valid = self._issue_at(m, cycle, "max")
        with m.If(valid & (first | (largest < node))):
            m.d.sync += largest.eq(node)
        return largest

    def _rounded(self, m, total, post):
        """Cycle 3: coarse shift. Cycle 4: fine shift, rounding, saturation."""
        low, high = shift_coarse(m, total, post[2:], 16, "shift")
        low, high, sign, fine = (delay(m, value, 1, name) for value, name in (
            (low, "shift_low"), (high, "shift_high"), (total[-1], "sign"), (post[:2], "fine")))
        rounded, over = shift_fine(m, low, high, sign, fine, 16, "shift")
        return Mux(over, limit(sign, 16), rounded)
