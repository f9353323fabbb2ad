"""Behaviour of the ECP5 primitives that `hdl` instantiates, as their data sheet has it.

`install` puts them in the place of Amaranth's ``Instance``, so that a ``vendor=True`` design can be
simulated with its real port and parameter lists. They refuse what they do not model.

Ref: Lattice FPGA-TN-02204 (DP16KD: normal write mode, output registers, byte enables on AD1..0 of
18-bit ports), FPGA-TN-02205 (MULT18X18D, ALU54B), FPGA-DS-02012 (slice: PFUMX and L6MUX21); CCU2C
as in Yosys ``techlibs/ecp5/ccu2c_sim.vh``.
"""
from amaranth import Cat, Elaboratable, Module, Mux, Signal, Value, signed
from amaranth.lib import memory

import hdl.cells
import hdl.dsp
import hdl.logic_cells


def install(monkeypatch):
    """Make the modules of the platform hook build these models instead of primitives."""
    models = {"MULT18X18D": Mult18x18d, "ALU54B": Alu54b, "DP16KD": Dp16kd, "LUT4": Lut4,
              "PFUMX": Pfumx, "L6MUX21": L6mux21, "TRELLIS_FF": Register, "CCU2C": Ccu2c}
    for module in (hdl.cells, hdl.dsp, hdl.logic_cells):
        monkeypatch.setattr(module, "Instance", lambda kind, **ports: models[kind](ports))


class _Primitive(Elaboratable):
    def __init__(self, ports):
        self.inputs = {name[2:]: Value.cast(value) for name, value in ports.items()
                       if name.startswith("i_")}
        self.outputs = {name[2:]: value for name, value in ports.items() if name.startswith("o_")}
        self.parameters = {name[2:]: value for name, value in ports.items()
                           if name.startswith("p_")}

    def word(self, name, width):
        return Cat(self.inputs[f"{name}{index}"] for index in range(width))


class Lut4(_Primitive):
    """Bit D C B A of INIT."""

    def elaborate(self, platform):
        m = Module()
        index = Cat(self.inputs[name] for name in "ABCD")
        m.d.comb += self.outputs["Z"].eq(self.parameters["INIT"].bit_select(index, 1))
        return m


class Ccu2c(_Primitive):
    """Two full adders: a LUT4 propagates, a LUT2 of its lowest four bits generates."""

    def elaborate(self, platform):
        m = Module()
        carry = self.inputs["CIN"]
        for half in "01":
            assert self.parameters[f"INJECT1_{half}"] == "NO"
            index = Cat(self.inputs[name + half] for name in "ABCD")
            init = self.parameters[f"INIT{half}"]
            propagate, generate = Signal(name=f"p{half}"), Signal(name=f"g{half}")
            m.d.comb += [propagate.eq(init.bit_select(index, 1)),
                         generate.eq(init.bit_select(index[:2], 1)),
                         self.outputs[f"S{half}"].eq(propagate ^ carry)]
            carry = Mux(propagate, carry, generate)
        m.d.comb += self.outputs["COUT"].eq(carry)
        return m


class Pfumx(_Primitive):
    """ALUT where C0 is 1."""

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.outputs["Z"].eq(
            Mux(self.inputs["C0"], self.inputs["ALUT"], self.inputs["BLUT"]))
        return m


class L6mux21(_Primitive):
    """D1 where SD is 1."""

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.outputs["Z"].eq(
            Mux(self.inputs["SD"], self.inputs["D1"], self.inputs["D0"]))
        return m


class Register(_Primitive):
    """TRELLIS_FF on the rising edge, always enabled, never reset."""

    def elaborate(self, platform):
        m = Module()
        assert (self.parameters["CEMUX"], self.parameters["CLKMUX"]) == ("1", "CLK")
        assert self.inputs["LSR"].value == 0 and self.parameters["REGSET"] == "RESET"
        q = Signal()
        m.d.sync += q.eq(self.inputs["DI"])
        m.d.comb += self.outputs["Q"].eq(q)
        return m


class _Dsp(_Primitive):
    """Registers where ``REG_*_CLK`` is CLK0, enabled by CE0; RST0 must be 0."""

    def check(self, *registers):
        assert all(len(value) == 1 for value in self.inputs.values())
        assert self.inputs["RST0"].value == 0
        for name, value in self.parameters.items():
            if name.startswith("REG_") and name.endswith("_CLK"):
                assert name[4:-4] in registers and value in ("NONE", "CLK0")

    def stage(self, m, register, value):
        if self.parameters.get(f"REG_{register}_CLK", "NONE") == "NONE":
            return value
        assert self.parameters[f"REG_{register}_CE"] == "CE0"
        q = Signal(value.shape(), name=register.lower())
        with m.If(self.inputs["CE0"]):
            m.d.sync += q.eq(value)
        return q


class Mult18x18d(_Dsp):
    """Beside the product come the registered operands and whether it is signed."""

    def elaborate(self, platform):
        m = Module()
        self.check("INPUTA", "INPUTB", "OUTPUT", "PIPELINE")
        operands = {}
        for name in "AB":
            raw = self.word(name, 18)
            value = Signal(signed(19), name=name.lower())
            m.d.comb += value.eq(Cat(raw, raw[17] & self.inputs[f"SIGNED{name}"]).as_signed())
            operands[name] = self.stage(m, f"INPUT{name}", value)
        product = Signal(signed(36))
        m.d.comb += product.eq(operands["A"] * operands["B"])
        product = self.stage(m, "OUTPUT", self.stage(m, "PIPELINE", product))
        for name, bit in self.outputs.items():
            if name == "SIGNEDP":
                source = self.inputs["SIGNEDA"] | self.inputs["SIGNEDB"]
            elif name.startswith("RO"):
                source = operands[name[2]][int(name[3:])]
            else:
                source = product[int(name[1:])]
            m.d.comb += bit.eq(source)
        return m


class Alu54b(_Dsp):
    """A + B + C (opcode 4 on OP10..7) of the products; C is 0 or the input of that name, of which
    bits that are not connected read as 1 here: what depends on them shows."""

    def elaborate(self, platform):
        m = Module()
        self.check("OUTPUT0", "OUTPUT1")
        assert self.parameters["REG_OUTPUT0_CLK"] == self.parameters["REG_OUTPUT1_CLK"]
        opcode = sum(self.inputs[f"OP{bit}"].value << bit for bit in range(11))
        choose_a, choose_b, choose_c = opcode & 3, opcode >> 2 & 3, opcode >> 4 & 7
        assert (opcode >> 7, choose_a, choose_b) == (4, 1, 1) and choose_c in (0, 3)
        terms = []
        for side in "AB":
            raw = self.word(f"M{side}", 36)
            term = Signal(signed(37), name=f"term_{side}")
            m.d.comb += term.eq(Cat(raw, raw[35] & self.inputs[f"SIGNEDI{side}"]).as_signed())
            terms.append(term)
        addend = Cat(self.inputs.get(f"C{bit}", 1) for bit in range(54)) if choose_c else 0
        total = Signal(54)
        m.d.comb += total.eq(terms[0] + terms[1] + addend)
        total = self.stage(m, "OUTPUT0", total)
        m.d.comb += [bit.eq(total[int(name[1:])]) for name, bit in self.outputs.items()]
        return m


class Dp16kd(_Primitive):
    """Both ports of one width, port A without writes. A read of the word that the other port
    writes in the same cycle gives wrong data on purpose."""

    def elaborate(self, platform):
        m = Module()
        assert self.parameters["RESETMODE"] == "SYNC"
        widths = {self.parameters[f"DATA_WIDTH_{side}"] for side in "AB"}
        assert widths in ({9}, {18})
        width, low = (9, 3) if widths == {9} else (18, 4)
        cells = memory.Memory(shape=width, depth=1 << 14 - low, init=[])
        m.submodules.cells = cells
        write = cells.write_port(granularity=9)
        address = {side: self.word(f"AD{side}", 14)[low:] for side in "AB"}
        writes = self.inputs["WEB"] & self.inputs["CEB"]
        bytes_on = self.word("ADB", 2) if width == 18 else 1
        m.d.comb += [write.addr.eq(address["B"]), write.data.eq(self.word("DIB", width)),
                     write.en.eq(Mux(writes, bytes_on, 0))]
        for side in "AB":
            assert self.parameters[f"WRITEMODE_{side}"] == "NORMAL"
            assert self.parameters[f"CSDECODE_{side}"] == "0b000"
            for index in range(3):
                assert self.inputs[f"CS{side}{index}"].value == 0
            assert self.inputs["WEA"].value == 0 and self.inputs[f"RST{side}"].value == 0
            read = cells.read_port(domain="comb")
            latch = Signal(width, name=f"latch_{side}")
            met = (address["A"] == address["B"]) & (write.en != 0) & (side == "A")
            m.d.comb += read.addr.eq(address[side])
            # Normal mode: a write leaves the latch of its own port as it is.
            with m.If(self.inputs[f"CE{side}"] & ~self.inputs[f"WE{side}"]):
                m.d.sync += latch.eq(Mux(met, ~read.data, read.data))
            out = latch
            if self.parameters[f"REGMODE_{side}"] == "OUTREG":
                out = Signal(width, name=f"out_{side}")
                with m.If(self.inputs[f"OCE{side}"]):
                    m.d.sync += out.eq(latch)
            m.d.comb += [bit.eq(out[int(name[3:])]) for name, bit in self.outputs.items()
                         if name.startswith(f"DO{side}")]
        return m
