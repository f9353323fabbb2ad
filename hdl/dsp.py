"""The platform hook of the DSP slices: products and sums of products, ECP5 primitives or twins.

As `hdl.cells`, for MULT18X18D and ALU54B. An ALU54B stands between the two multipliers of a slice
and adds their products and a third number, in the output register that the slice has in any case:
a sum of products takes no logic at all. ``tests/hdl/test_dsp.py`` proves the twins equal.

nextpnr knows no delays of ALU54B: it places one with its multipliers, but reports no path through
it, from one to the next or to logic. Give a result that leaves the slices a register of its own.

Ref: Lattice FPGA-TN-02205 (ECP5 sysDSP; operation codes in its table of ALU54 opcodes); port and
parameter names as in Yosys ``techlibs/ecp5/cells_bb.v``.
"""
from amaranth import ClockSignal, Instance, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.cells import Outline

DSP_WIDTH = 18
PRODUCT_WIDTH = 2 * DSP_WIDTH
ALU_WIDTH = 54
#: Opcodes of ALU54B: A + B + C where A is the first product (1), B the second (1), and C nothing
#: (0) or the C input (3).
_ADD_PRODUCTS, _ADD_PRODUCTS_AND_C = 0b0100_000_01_01, 0b0100_011_01_01


class Multiplier(wiring.Component):
    """Signed multiplier with registered operands and a registered product.

    The product of the operands on ``a`` and ``b`` on cycle t is on ``p`` on cycle t + `LATENCY`.
    The registers have no reset.

    Parameters
    ----------
    width_a, width_b : int
        Operand widths, 2 to 18 bits. The product has ``width_a + width_b`` bits.
    vendor : bool
        Instantiate MULT18X18D.
    """
    LATENCY = 2

    def __init__(self, *, width_a: int = DSP_WIDTH, width_b: int = DSP_WIDTH,
                 vendor: bool = False):
        _check_widths(width_a, width_b)
        self._vendor = vendor
        super().__init__({"a": In(signed(width_a)), "b": In(signed(width_b)),
                          "p": Out(signed(width_a + width_b))})

    def elaborate(self, platform):
        if isinstance(platform, Outline):
            return platform.cell(self)
        m = Module()
        if self._vendor:
            p = Signal(PRODUCT_WIDTH)
            m.submodules.dsp = _multiplier(m, self.a, self.b, p, "OUTPUT",
                                           {f"i_C{bit}": 0 for bit in range(DSP_WIDTH)})
            m.d.comb += self.p.eq(p)
        else:
            m.d.comb += self.p.eq(_product(m, self.a, self.b))
        return m


class ProductSum(wiring.Component):
    """Two products and a third number, added: ``o = a0 * b0 + a1 * b1 + c``.

    Operands are taken on cycle t, ``c`` on cycle t + 2; the sum is on ``o`` on cycle t + `LATENCY`.
    The registers have no reset. What does not fit ``o`` is cut off.

    Parameters
    ----------
    width_a, width_b : int
        Operand widths, 2 to 18 bits.
    width_c : int
        Bits of ``c``, at most those of ``o``; 0 for none.
    width_o : int
        Bits of the sum, at most 54.
    vendor : bool
        Instantiate two MULT18X18D and an ALU54B.
    """
    LATENCY = 3

    def __init__(self, *, width_a: int, width_b: int, width_c: int, width_o: int,
                 vendor: bool = False):
        _check_widths(width_a, width_b)
        self._vendor, self._width_c = vendor, width_c
        super().__init__({"a0": In(signed(width_a)), "b0": In(signed(width_b)),
                          "a1": In(signed(width_a)), "b1": In(signed(width_b)),
                          "c": In(signed(width_c) if width_c else 0), "o": Out(signed(width_o))})

    def elaborate(self, platform):
        if isinstance(platform, Outline):
            return platform.cell(self)
        m = Module()
        if self._vendor:
            self._primitives(m)
        else:
            total = Signal.like(self.o, name="total", reset_less=True)
            m.d.sync += total.eq(_product(m, self.a0, self.b0) + _product(m, self.a1, self.b1)
                                 + self.c)
            m.d.comb += self.o.eq(total)
        return m

    def _primitives(self, m):
        """The output registers belong to the ALU, so products have the pipeline registers.

        Products, operands and signs reach the ALU on wires of their own; the inputs C are those of
        the multipliers, who do without.
        """
        ports, result = {}, Signal(ALU_WIDTH, name="result")
        for side, a, b in (("A", self.a0, self.b0), ("B", self.a1, self.b1)):
            product = Signal(PRODUCT_WIDTH, name=f"product_{side}")
            operands, sign = Signal(PRODUCT_WIDTH, name=f"operands_{side}"), Signal(
                name=f"sign_{side}")
            past = {f"o_RO{name}{bit}": operands[offset + bit]
                    for name, offset in (("A", 0), ("B", DSP_WIDTH)) for bit in range(DSP_WIDTH)}
            m.submodules[f"dsp_{side}"] = _multiplier(m, a, b, product, "PIPELINE",
                                                      past | {"o_SIGNEDP": sign})
            ports |= {f"i_M{side}{bit}": product[bit] for bit in range(PRODUCT_WIDTH)}
            ports |= {f"i_{side}{bit}": operands[bit] for bit in range(PRODUCT_WIDTH)}
            ports[f"i_SIGNEDI{side}"] = sign
        if self._width_c:
            # Bits above those of the sum have no part in it.
            addend = Signal(signed(len(self.o)), name="addend")
            m.d.comb += addend.eq(self.c)
            ports |= {f"i_C{bit}": addend[bit] for bit in range(len(addend))}
        opcode = _ADD_PRODUCTS_AND_C if self._width_c else _ADD_PRODUCTS
        ports |= {f"i_OP{bit}": opcode >> bit & 1 for bit in range(11)}
        ports |= {f"o_R{bit}": result[bit] for bit in range(ALU_WIDTH)}
        m.submodules.alu = Instance("ALU54B", **ports, **_clocked("OUTPUT0", "OUTPUT1"),
                                    p_GSR="DISABLED")
        m.d.comb += self.o.eq(result)


def _check_widths(width_a: int, width_b: int):
    for name, width in (("width_a", width_a), ("width_b", width_b)):
        if not 2 <= width <= DSP_WIDTH:
            raise ValueError(f"{name} must be 2 to {DSP_WIDTH}, not {width!r}")


def _product(m, a, b):
    """The twin of a multiplier: registers for operands and product."""
    operands = []
    for value in (a, b):
        register = Signal.like(value, name=f"{value.name}_register", reset_less=True)
        m.d.sync += register.eq(value)
        operands.append(register)
    product = Signal(signed(len(a) + len(b)), name=f"{a.name}_product", reset_less=True)
    m.d.sync += product.eq(operands[0] * operands[1])
    return product


def _clocked(*registers):
    """Ports and parameters of a DSP primitive whose ``registers`` are on CLK0."""
    ports = {f"p_REG_{register}_{kind}": f"{kind}0" for register in registers
             for kind in ("CLK", "CE", "RST")}
    for number in range(4):
        ports |= {f"i_CLK{number}": ClockSignal() if number == 0 else 0,
                  f"i_CE{number}": int(number == 0), f"i_RST{number}": 0}
    return ports


def _multiplier(m, a, b, product, register: str, more: dict) -> Instance:
    """MULT18X18D with input registers A and B and one that holds the product."""
    ports = dict(more)
    for name, value in (("A", a), ("B", b)):
        wide = Signal(signed(DSP_WIDTH), name=f"{value.name}_wide")
        m.d.comb += wide.eq(value)
        ports |= {f"i_{name}{bit}": wide[bit] for bit in range(DSP_WIDTH)}
    ports |= {f"o_P{bit}": product[bit] for bit in range(PRODUCT_WIDTH)}
    return Instance("MULT18X18D", **ports, **_clocked("INPUTA", "INPUTB", register),
                    p_GSR="DISABLED", i_SIGNEDA=1, i_SIGNEDB=1, i_SOURCEA=0, i_SOURCEB=0)
