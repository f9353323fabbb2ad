"""RED: reduces lanes and vectors to one value: a sum, a maximum, or a function of a sum."""
from amaranth import C, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from arch import numerics
from arch.config import Config
from arch.faults import Fault
from arch.isa import UNITS
from arch.queues import Stream
from hdl.cells import copies
from hdl.choose import GROUP, operand
from hdl.logic_cells import add
from hdl.pipeline import clearable, delay, limit, shift_coarse, shift_fine
from hdl.reciprocal import Reciprocal
from hdl.signatures import (FaultSignature, IssueSignature, StreamSignature, StreamsSignature,
                            fault_bit, issued, stream_width)

_OP = {op.name: op.code for op in UNITS["red"].ops}
#: Levels of the adder tree in front of its register.
_FIRST_LEVELS = 2


def _levels(values, combine, count):
    """``count`` levels of a binary tree over a list of values."""
    for _ in range(count):
        values = [combine(*pair) for pair in zip(values[::2], values[1::2])]
    return values


def _both(left, right):
    """Sum and maximum of two nodes."""
    (sum_a, max_a), (sum_b, max_b) = left, right
    return sum_a + sum_b, Mux(max_a < max_b, max_b, max_a)


class Red(wiring.Component):
    """Lane reduction.

    An instruction of n1 issues reduces n1 vectors to one value; the accumulators restart at its
    first issue. Operands are taken from ``streams`` on the cycle of each issue. The result of an
    instruction whose last issue is on cycle t is on every lane of ``o_red`` on cycle
    t + ``timing(config).reduce`` (SUM, MAX) or ``reduce_function`` (RECIP, RSQRT). Instructions
    may follow each other without a gap, unless two results meet: COLLISION on the cycle of the
    results, which are then lost.

    Extra stages: the first behind the first level of the tree, the second behind the operand
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
        self._now = issue = issued(m, self.issue)

        # Cycle 0: operands.
        x = [delay(m, lane, 1 + before, f"x_{number}")
             for number, lane in enumerate(self._operand(m))]
        # Cycles 1 to 3, extra stages apart: tree and accumulators.
        total, largest = self._accumulate(m, *self._tree(m, x, 1 + before, within),
                                          3 + before + within)

        # Cycle 4: who is done, and with what.
        at = 4 + before + within
        done = delay(m, issue.valid & issue.j_last, at, "done", reset=True)
        op = delay(m, issue.op, at, "op")
        post = delay(m, issue.post, at, "post")
        is_function = (op == _OP["RECIP"]) | (op == _OP["RSQRT"])
        rounded = self._rounded(m, total, post)
        m.submodules.reciprocal = reciprocal = Reciprocal(vendor=self._vendor)
        m.d.comb += [reciprocal.total.eq(total), reciprocal.bias.eq(post),
                     reciprocal.root.eq(op == _OP["RSQRT"])]

        # Cycle 5 (SUM, MAX) and 10 (RECIP, RSQRT): the result.
        plain = delay(m, done & ~is_function, 1, "plain", reset=True)
        function = delay(m, done & is_function, Reciprocal.LATENCY, "function", reset=True)
        take_max = delay(m, op == _OP["MAX"], 1, "take_max")
        largest = delay(m, largest, 1, "largest")
        y, valid, collision = Signal(signed(16)), Signal(), Signal()
        # What is rounded comes last.
        other = Mux(function, reciprocal.o.as_signed(), largest)
        m.d.comb += y.eq(Mux(function | take_max, other, rounded))
        m.d.sync += [valid.eq(plain | function), collision.eq(plain & function)]
        m.d.comb += self.o_red.valid.eq(delay(m, valid, after, "valid", reset=True))
        # Every group of lanes has its own register.
        ys = copies(m, delay(m, y, after, "y"), -(-self._config.lanes // GROUP), "y",
                    self._vendor)
        m.d.comb += [lane.eq(ys[number // GROUP].as_signed())
                     for number, lane in enumerate(self.o_red.data)]
        late = delay(m, collision, 1 + after, "collision", reset=True)
        m.d.comb += self.fault.causes[fault_bit(Fault.COLLISION)].eq(late)
        return m

    def _operand(self, m):
        """Multiplex the operand and report faults."""
        issue, known = self._now, Signal()
        x, valid, source = operand(m, self.streams, self.issue.x, "red", "x", self._config, 32,
                                   vendor=self._vendor)
        with m.Switch(issue.op):
            with m.Case(*_OP.values()):
                m.d.comb += known.eq(1)
        for fault, event in ((Fault.OPERAND, source & ~valid), (Fault.ENCODING, ~source | ~known)):
            register = Signal(name=f"fault_{fault.name.lower()}")
            m.d.sync += register.eq(issue.valid & event)
            m.d.comb += self.fault.causes[fault_bit(fault)].eq(register)
        return x

    def _tree(self, m, x, cycle, within):
        """Cycles 1 and 2: sum and maximum of the lanes (cycle 3).

        MAX compares by the difference where a sum is made of registers: the adders of the first
        level take the second operand inverted, those behind a register get it so.
        """
        is_max = delay(m, self._now.op == _OP["MAX"], cycle, "is_max")
        nodes = []
        for a, b in zip(x[::2], x[1::2]):
            total = add(m, 33, lambda a, b, c, d: (a, (b ^ c) & d), a=a, b=b, c=is_max, d=C(1, 1),
                        vendor=self._vendor).as_signed()
            # Bit 16 as it would be if the low 16 bits were all.
            b_wins = total[16] ^ a[16] ^ b[16] ^ a[15] ^ b[15]
            nodes.append((total, Mux(b_wins, b[:16], a[:16]).as_signed()))
        is_max, depth = delay(m, is_max, within, "is_max_within"), self._config.lane_bits
        nodes = [tuple(delay(m, value, within, f"within_{node}") for value in pair)
                 for node, pair in enumerate(nodes)]
        nodes = _levels(nodes, _both, min(depth, _FIRST_LEVELS) - 1)
        nodes = [(clearable(m, total, is_max, f"sum_{node}"),
                  clearable(m, ~largest if node % 2 else largest, ~is_max, f"max_{node}"))
                 for node, (total, largest) in enumerate(nodes)]
        if depth > _FIRST_LEVELS:
            nodes = [self._join(m, *pair) for pair in zip(nodes[::2], nodes[1::2])]
            nodes = _levels(nodes, _both, depth - _FIRST_LEVELS - 1)
        total, largest = nodes[0]
        return delay(m, total, 1, "sum_node"), delay(m, largest, 1, "max_node")

    def _join(self, m, left, right):
        """Two nodes of registers, of which sums or maxima are 0; the right maximum is inverted."""
        (sum_a, max_a), (sum_b, max_b) = left, right
        total = add(m, len(sum_a) + 1, lambda a, b, c, d: (a | b, c | d), a=sum_a, b=max_a,
                    c=sum_b, d=max_b, vendor=self._vendor).as_signed()
        return total, Mux(total[16], ~max_b, max_a).as_signed()

    def _accumulate(self, m, node, largest_node, cycle):
        """Cycle 3: the accumulators (cycle 4)."""
        total = Signal(signed(numerics.SUM_BITS), reset_less=True)
        largest = Signal(signed(16), reset_less=True)
        first = delay(m, self._now.j_first, cycle, "first")
        valid = delay(m, self._now.valid, cycle, "valid", reset=True)
        more = add(m, len(total), lambda a, b, c, d: (a, b & c), a=node, b=total, c=~first,
                   vendor=self._vendor)
        with m.If(valid):
            m.d.sync += total.eq(more)
        with m.If(valid & (first | (largest < largest_node))):
            m.d.sync += largest.eq(largest_node)
        return total, largest

    def _rounded(self, m, total, post):
        """Cycle 4: coarse shift. Cycle 5: fine shift, rounding, saturation."""
        low, high = shift_coarse(m, total, post[2:], 16, "shift", self._vendor)
        low, high, sign, fine = (delay(m, value, 1, name) for value, name in (
            (low, "shift_low"), (high, "shift_high"), (total[-1], "sign"), (post[:2], "fine")))
        rounded, over = shift_fine(m, low, high, fine, 16, "shift", self._vendor)
        return Mux(over | ~sign & rounded[-1], limit(sign, 16), rounded)
