"""VXM: the vector unit, one multiply-accumulate or table look-up per lane and cycle.

The numeric definition of every operation is `arch.numerics`; this file multiplexes the operands,
carries the operation along the pipeline and masks lanes. The arithmetic is in `hdl.vxm_lane`.
"""
from amaranth import C, Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from arch import numerics
from arch.config import Config
from arch.faults import Fault
from arch.isa import UNITS
from arch.queues import Stream
from hdl.cells import copies
from hdl.choose import GROUP, operand
from hdl.pipeline import all_equal, delay
from hdl.signatures import (FaultSignature, IssueSignature, StreamSignature, StreamsSignature,
                            fault_bit, issued, stream_width)
from hdl.vxm_lane import CONTROL, VxmLane

_OP = {op.name: op.code for op in UNITS["vxm"].ops}
#: Lanes that share control registers where a bit of them reaches most cells of a lane.
_CONTROL_LANES = 2


class Vxm(wiring.Component):
    """The vector unit.

    An operation issued on cycle t takes its operands from ``streams`` on cycle t and has its
    result on ``o_vxm`` on cycle t + ``timing(config).vxm``; a new one may be issued every cycle.

    Every source that an instruction names must carry a value on cycle t, whether the operation
    uses it or not (else OPERAND); NONE stands for 0, 1 and 0. EXP2, SILU and GELU always
    saturate to 16 bits: ``wide``, ``pre`` and, but for EXP2, ``post`` mean nothing to them.

    Extra stages: the first in front of the multipliers, the second behind the operand
    multiplexers, the third in front of the saturation.

    Parameters
    ----------
    config : Config
    vendor : bool
        Use the multiplier primitive of the FPGA.

    Members
    -------
    issue : operations of queue ``vxm``.
    streams : operands.
    position : that of the step, stable while operations are in the pipeline; for ``mask``.
    o_vxm : results, int32 lanes.
    fault : OPERAND and ENCODING.
    """

    def __init__(self, *, config: Config, vendor: bool = False):
        self._config, self._vendor = config, vendor
        super().__init__({
            "issue": In(IssueSignature("vxm", config)),
            "streams": In(StreamsSignature(config)),
            "position": In(config.position_bits),
            "o_vxm": Out(StreamSignature(stream_width(Stream.VXM), config.lanes)),
            "fault": Out(FaultSignature()),
        })

    def elaborate(self, platform):
        m = Module()
        config, stages = self._config, self._config.vxm_stages
        within, before, after = int(stages >= 1), int(stages >= 2), int(stages >= 3)

        # Cycle 0: operands and control, which every group of lanes has for itself.
        a, b, c, absent = self._operands(m)
        controls = copies(m, Cat(self._control(m), absent), -(-config.lanes // GROUP), "control",
                          self._vendor)
        valid = delay(m, self._now.valid, 8 + stages, "valid", reset=True)
        m.d.comb += self.o_vxm.valid.eq(valid)
        groups = [self._pipeline(m, number, control, before, within, after)
                  for number, control in enumerate(controls)]
        beyond = Signal(config.lanes, reset_less=True)
        m.d.sync += beyond.eq(~((2 << self.position[:config.lane_bits]) - 1))

        for number in range(config.lanes):
            control, (no_a, no_b, no_c), (prepares, multiplies, fine, add, result) = groups[
                number // GROUP]
            lane = VxmLane(within=within, after=after, vendor=self._vendor)
            m.submodules[f"lane_{number}"] = lane
            taken, place = self._taken(m, a[number], no_a, 0), number % GROUP // _CONTROL_LANES
            m.d.comb += [
                lane.a.eq(delay(m, taken, before, f"a_{number}")),
                lane.a_fits.eq(delay(m, all_equal(taken[15:]), before, f"a_fits_{number}")),
                lane.b.eq(delay(m, self._taken(m, b[number], no_b, 1, control.exp | control.act),
                                before, f"b_{number}")),
                # SILU and GELU have no addend.
                lane.c.eq(delay(m, self._taken(m, c[number], no_c | control.act, 0), before,
                                f"c_{number}")),
                lane.i_prepare.eq(prepares[place]), lane.i_multiply.eq(multiplies[place]),
                lane.i_fine.eq(fine), lane.i_add.eq(add), lane.i_result.eq(result),
                lane.masked.eq(CONTROL(add).mask & beyond[number]),
                self.o_vxm.data[number].eq(lane.o),
            ]
        return m

    def _pipeline(self, m, number, decoded, before, within, after):
        """Control of one group of lanes on the cycles that use it; extra stages move the later ones.

        Returns that of cycle 0, which operands are absent then, and that of the later stages; of the
        first two, for every few lanes.
        """
        control = CONTROL(decoded[:CONTROL.size])
        count = -(-GROUP // _CONTROL_LANES)
        prepares = [CONTROL(bits) for bits in copies(
            m, delay(m, control, before, "prepare"), count, f"prepare_{number}", self._vendor)]
        multiplies = [delay(m, prepare, 1, "multiply") for prepare in prepares]
        fine = delay(m, multiplies[0], 3 + within, "fine")
        add = delay(m, fine, 1, "add")
        result = delay(m, add, 1 + after, "result")
        return control, decoded[CONTROL.size:], (prepares, multiplies, fine, add, result)

    def _taken(self, m, value, absent, instead, clear=C(0, 1)):
        """Register of an operand, and what stands in its place."""
        register = Signal.like(value, name="taken", reset_less=True)
        with m.If(clear):
            m.d.sync += register.eq(0)
        with m.Elif(absent):
            m.d.sync += register.eq(instead)
        with m.Else():
            m.d.sync += register.eq(value)
        return register

    def _operands(self, m):
        """Multiplex the three operands and report operand and encoding faults.

        Returns the lanes of each on cycle 0, and which are NONE, a cycle before.
        """
        self._now = now = issued(m, self.issue)
        operands, missing, undefined = [], [], []
        for name, width in (("a", 32), ("b", 16), ("c", 16)):
            source = getattr(self.issue, name)
            lanes, valid, known = operand(m, self.streams, source, "vxm", name,
                                           self._config, width, vendor=self._vendor)
            operands.append(lanes)
            missing.append(known & ~valid)
            undefined.append(~known & (getattr(now, name) != Stream.NONE))
        known = Signal()
        with m.Switch(now.op):
            with m.Case(*_OP.values()):
                m.d.comb += known.eq(1)
        valid, causes = now.valid, self.fault.causes
        faults = {Fault.OPERAND: missing[0] | missing[1] | missing[2],
                  Fault.ENCODING: undefined[0] | undefined[1] | undefined[2] | ~known}
        for fault, event in faults.items():
            register = Signal(name=f"fault_{fault.name.lower()}")
            m.d.sync += register.eq(valid & event)
            m.d.comb += causes[fault_bit(fault)].eq(register)
        return *operands, Cat(getattr(self.issue, name) == Stream.NONE for name in "abc")

    def _control(self, m):
        """Decode the operation of the next cycle."""
        issue, control = self.issue, Signal(CONTROL)
        exp, silu, gelu = (issue.op == _OP[name] for name in ("EXP2", "SILU", "GELU"))
        act = silu | gelu
        m.d.comb += [
            control.max.eq(issue.op == _OP["MAX"]), control.exp.eq(exp), control.act.eq(act),
            control.silu.eq(silu), control.gelu.eq(gelu), control.pre.eq(issue.pre),
            control.post.eq(Mux(act, numerics.ACT_FRAC_BITS, issue.post)),
            control.b_float.eq(issue.b_float & ~exp & ~act),
            control.narrow.eq(~issue.wide | exp | act),
            control.mask.eq(issue.mask & issue.j_last),
        ]
        return control
