"""Activation feed of one half of the MXM columns: takes a vector, holds it, scales its parts."""
from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from arch import isa
from arch.config import Config
from hdl.cells import copies
from hdl.choose import choose, operand
from hdl.signatures import StreamsSignature


def shift_coarse(m, value, shift, within, bits: int, name: str, vendor: bool) -> tuple:
    """First half of ``activation`` of `arch.numerics` for an int16 value: the shift by 0, 4, 8, 12.

    Parameters
    ----------
    within : Value
        Bit i: after the whole shift, bit ``bits - 1 + i`` of the value still counts; see
        `still_counts`.

    Returns
    -------
    coarse : Value
        The ``bits + 4`` bits that the fine shift can reach, one bit below the point first.
    outside : Value
        Whether the value saturates, but for what rounding does.
    """
    sign = value[15]
    padded = Cat(0, value, sign.replicate(16))
    coarse = choose([padded[4 * step:][:bits + 4] for step in range(4)], shift, m, vendor)
    return coarse, (within & (value[bits - 1:15] ^ sign.replicate(len(within)))).any()


def shift_fine(m, coarse, outside, sign, shift, bits: int, name: str, vendor: bool):
    """Second half: the shift by 0 to 3, rounding, symmetric saturation.

    Saturation is decided beside the rounding adder, not behind it: the largest value and a half
    would overflow, the one value below the lower limit without a half is too low.
    """
    fine = choose([coarse[step:][:bits + 1] for step in range(4)], shift, m, vendor)
    at_end = ((fine[:bits].all() | ~fine[:bits].any()) & (fine[0] != fine[bits]))
    limit, total = (1 << bits - 1) - 1, Signal(bits, name=f"{name}_total")
    m.d.comb += total.eq(fine[1:] + fine[0])
    return Mux(outside | at_end, Mux(sign, -limit, limit), total.as_signed())


def still_counts(shift, bits: int):
    """Which bits of an int16 value, from ``bits - 1`` to 14, a right shift leaves beyond ``bits``.
    """
    return Cat(shift <= place for place in range(16 - bits))


class ActivationFeed(wiring.Component):
    """Takes the lanes of a stream on cycle t and gives one part of them, scaled, on cycle t + 3.

    Parameters
    ----------
    config : Config
    vendor : bool
        Build the cells from ECP5 primitives.

    Members
    -------
    i_coming : stream to take on the next cycle; ``i_take`` : hold what is taken on this cycle from
        its end on.
    i_part, i_shift : for every issue, which ``rows`` lanes of the held vector and how much to
        shift; they meet the vector taken on the same cycle or before. ``i_within`` : what
        `still_counts` makes of the shift.
    o : activations, ``rows`` of them.
    o_valid, o_defined : whether the source of this cycle carries a vector, and whether its number
        names a stream.
    """

    def __init__(self, *, config: Config, vendor: bool = False):
        self._config, self._vendor = config, vendor
        source, shift = (isa.UNITS["mxm"].field(name).bits(config) for name in ("x0", "shift"))
        super().__init__({
            "streams": In(StreamsSignature(config)),
            "i_coming": In(source), "i_take": In(1), "i_part": In((config.groups - 1).bit_length()),
            "i_shift": In(shift), "i_within": In(16 - config.activation_bits),
            "o": Out(data.ArrayLayout(signed(config.activation_bits), config.rows)),
            "o_valid": Out(1), "o_defined": Out(1)})

    def elaborate(self, platform):
        m = Module()
        config, vendor = self._config, self._vendor
        # Cycle t: take.
        lanes, valid, defined = operand(m, self.streams, self.i_coming, "mxm", "x0", config,
                                        vendor=vendor)
        m.d.comb += [self.o_valid.eq(valid), self.o_defined.eq(defined)]
        held = [Signal(16, name=f"held_{lane}", reset_less=True)
                for lane in range(config.lanes)]
        with m.If(self.i_take):
            m.d.sync += [held[lane].eq(lanes[lane]) for lane in range(config.lanes)]
        bits = config.activation_bits
        # Every row pair has its own registers.
        controls = copies(m, Cat(self.i_shift, self.i_within, self.i_part),
                          config.pairs, "control", vendor)
        for pair, control in enumerate(controls):
            fine = Signal(2, name=f"fine_{pair}", reset_less=True)
            m.d.sync += fine.eq(control[:2])
            shift, rest = control[:len(self.i_shift)], control[len(self.i_shift):]
            within, part = rest[:16 - bits], rest[16 - bits:]
            for row in (2 * pair, 2 * pair + 1):
                # Cycle t + 1: choose the part, shift by a multiple of four.
                lane = Signal(16, name=f"lane_{row}")
                m.d.comb += lane.eq(choose(held[row::config.rows], part))
                shifted, beyond = shift_coarse(m, lane, shift[2:], within, bits, f"coarse_{row}",
                                               vendor)
                coarse = Signal(bits + 4, name=f"shifted_{row}", reset_less=True)
                outside = Signal(name=f"outside_{row}", reset_less=True)
                sign = Signal(name=f"sign_{row}", reset_less=True)
                m.d.sync += [coarse.eq(shifted), outside.eq(beyond), sign.eq(lane[15])]
                # Cycle t + 2: shift by the rest, round, saturate.
                result = Signal(signed(bits), name=f"o_{row}", reset_less=True)
                m.d.sync += result.eq(shift_fine(m, coarse, outside, sign, fine, bits,
                                                 f"fine_{row}", vendor))
                m.d.comb += self.o[row].eq(result)
        return m
