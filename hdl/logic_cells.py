"""Sums and look-ups in the shape that ECP5 slices have, with more in a cell than Yosys puts there.

A carry cell has four inputs a bit. Yosys uses two, and makes LUTs of what stands in front: gates,
inverters and multiplexers of the operands, which `Sum` takes into the cell. `TableOr` joins two
LUTs of unlike inputs by PFUMX, where Yosys takes a third; `Gate` holds one LUT a bit together, and
`Table` those of a look-up.

All are cells of the platform hook, as those of `hdl.cells`: with ``vendor`` they instantiate
primitives, else they are the same in plain Amaranth.
"""
from amaranth import Cat, Const, Instance, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hdl.cells import Outline

#: Carry cell that passes input A on as the carry; D must be 1.
_CARRY_IN = 0x00AA


def truth(function) -> list:
    """``function(a, b, c, d)`` over all bits of each number 0 to 15, which are d c b a.

    The function may use ~, &, | and ^ of its arguments and 0.
    """
    return [function(*(-(index >> bit & 1) for bit in range(4))) for index in range(16)]


def as_init(bits) -> int:
    """INIT of a LUT4 for a truth table whose entries count by their lowest bit."""
    return sum((bit & 1) << index for index, bit in enumerate(bits))


def _propagate(summands) -> int:
    """INIT of the half carry cell that adds the two bits of ``summands``.

    The carry passes where the bits differ; where they agree, the cell takes the carry from its INIT
    for C = D = 0, so there it must be what both of them are.
    """
    pairs = truth(summands)
    init = as_init([x ^ y for x, y in pairs])
    for index, (x, y) in enumerate(pairs):
        if x == y and (init >> (index & 3) & 1) != x & 1:
            raise ValueError(f"summands do not fit a carry cell at d c b a = {index:04b}")
    return init


class Sum(wiring.Component):
    """Sum of two numbers, each made bit by bit of four inputs, and of a carry; combinational.

    ``x, y = summands(a, b, c, d)`` must be such that x = y implies x = x' ^ y', where x' and y' are
    what ``a, b, 0, 0`` give: a, or ~a, plus anything that is 0 for c = d = 0 is fine.

    Parameters
    ----------
    width : int
        Bits of inputs and sum; the sum wraps.
    summands : callable
        Two results of ~, &, | and ^, for bits as for values of ``width`` bits.
    carried : bool
        Whether the carry counts; it takes half a cell.
    vendor : bool
        Instantiate CCU2C.

    Members
    -------
    a, b, c, d : inputs.
    carry : added at bit 0 if ``carried``.
    o : the sum.
    """

    def __init__(self, *, width: int, summands, carried: bool = True, vendor: bool = False):
        self._summands, self._init, self._vendor = summands, _propagate(summands), vendor
        self._carried = carried
        super().__init__({**{name: In(width) for name in "abcd"}, "carry": In(1),
                          "o": Out(width)})

    def elaborate(self, platform):
        if isinstance(platform, Outline):
            return platform.cell(self, INIT=self._init, carried=int(self._carried))
        m = Module()
        if not self._vendor:
            x, y = self._summands(self.a, self.b, self.c, self.d)
            m.d.comb += self.o.eq(x + y + self.carry if self._carried else x + y)
            return m
        # Where a half is left over it makes the carry, else what leads a constant in takes a cell.
        halves = []
        if self._carried or len(self.o) % 2:
            halves.append((_CARRY_IN, (self.carry if self._carried else 0, 0, 0, 1), None))
        halves += [(self._init, bits, out)
                   for *bits, out in zip(self.a, self.b, self.c, self.d, self.o)]
        if len(halves) % 2:
            halves.append((0, (0, 0, 0, 0), None))
        carry = Const(0, 1)
        for number in range(0, len(halves), 2):
            ports, over = {}, Signal(name=f"carry_{number}")
            for half, (init, bits, out) in enumerate(halves[number:number + 2]):
                ports |= {f"p_INIT{half}": Const(init, 16), f"p_INJECT1_{half}": "NO",
                          f"o_S{half}": Signal(name="unused") if out is None else out}
                ports |= {f"i_{name}{half}": bit if isinstance(bit, Value) else Const(bit, 1)
                          for name, bit in zip("ABCD", bits)}
            m.submodules[f"pair_{number}"] = Instance("CCU2C", i_CIN=carry, o_COUT=over, **ports)
            carry = over
        return m


def add(m, width: int, summands, *, carry=None, vendor: bool = False, **operands) -> Value:
    """The output of a `Sum` that is a submodule of ``m``, of operands ``a`` to ``d`` or 0.

    They are extended to its width; a single bit as ``c`` or ``d`` counts for all bits.
    """
    cell = Sum(width=width, summands=summands, carried=carry is not None, vendor=vendor)
    if carry is not None:
        m.d.comb += cell.carry.eq(carry)
    return _connected(m, width, cell, operands)


def gate(m, width: int, function, *, vendor: bool = False, **operands) -> Value:
    """The output of a `Gate` that is a submodule of ``m``; operands as in `add`."""
    return _connected(m, width, Gate(width=width, function=function, vendor=vendor), operands)


def _connected(m, width, cell, operands) -> Value:
    m.submodules += cell
    for port, value in operands.items():
        value = Value.cast(value)
        if port in "cd" and len(value) == 1:
            value = value.replicate(width)
        m.d.comb += getattr(cell, port).eq(value)
    return cell.o


class Gate(wiring.Component):
    """A function of four inputs a bit, in just one LUT each; combinational.

    Yosys restructures what stands in front and behind, for speed that nobody needs; here it cannot.

    Parameters
    ----------
    width : int
        Bits of ``a`` to ``d`` and of the result.
    function : callable
        ``function(a, b, c, d)``, made of ~, &, | and ^.
    vendor : bool
        Instantiate LUT4.
    """

    def __init__(self, *, width: int, function, vendor: bool = False):
        self._function, self._vendor = function, vendor
        super().__init__({**{name: In(width) for name in "abcd"}, "o": Out(width)})

    def elaborate(self, platform):
        init = as_init(truth(self._function))
        if isinstance(platform, Outline):
            return platform.cell(self, INIT=init)
        m = Module()
        if not self._vendor:
            m.d.comb += self.o.eq(self._function(self.a, self.b, self.c, self.d))
            return m
        for a, b, c, d, out in zip(self.a, self.b, self.c, self.d, self.o):
            m.submodules += Instance("LUT4", p_INIT=Const(init, 16), i_A=a, i_B=b, i_C=c, i_D=d,
                                     o_Z=out)
        return m


class TableOr(wiring.Component):
    """A table of 16 words, or a function of four inputs a bit; combinational.

    Parameters
    ----------
    width : int
        Bits of the words, of ``a`` to ``d`` and of the result.
    table : list of int
        Words, not negative.
    function : callable
        ``function(a, b, c, d)``, made of ~, &, | and ^.
    vendor : bool
        Instantiate two LUT4 and a PFUMX a bit.

    Members
    -------
    look_up : whether ``o`` is the word at ``index``; else it is the function of ``a`` to ``d``.
    """

    def __init__(self, *, width: int, table, function, vendor: bool = False):
        self._table, self._function, self._vendor = [int(x) for x in table], function, vendor
        super().__init__({**{name: In(width) for name in "abcd"}, "index": In(4),
                          "look_up": In(1), "o": Out(width)})

    def elaborate(self, platform):
        init = as_init(truth(self._function))
        if isinstance(platform, Outline):
            return platform.cell(self, INIT=init, table=repr(self._table))
        m = Module()
        if not self._vendor:
            word = Signal.like(self.o, name="word")
            with m.Switch(self.index):
                for number, value in enumerate(self._table):
                    with m.Case(number):
                        m.d.comb += word.eq(value)
            m.d.comb += self.o.eq(Mux(self.look_up, word, self._function(self.a, self.b, self.c,
                                                                         self.d)))
            return m
        for number, out in enumerate(self.o):
            halves = []
            for kind, bits, lut in (
                    ("word", self.index, as_init(word >> number for word in self._table)),
                    ("other", Cat(self.a[number], self.b[number], self.c[number],
                                  self.d[number]), init)):
                half = Signal(name=f"{kind}_{number}")
                halves.append(half)
                m.submodules += Instance("LUT4", p_INIT=Const(lut, 16), o_Z=half,
                                         **{f"i_{name}": bit for name, bit in zip("ABCD", bits)})
            m.submodules += Instance("PFUMX", i_ALUT=halves[0], i_BLUT=halves[1],
                                     i_C0=self.look_up, o_Z=out)
        return m


class Table(wiring.Component):
    """A table of up to 64 words; combinational.

    Parameters
    ----------
    width : int
        Bits of the words.
    table : list of int
        16, 32 or 64 words; of negative ones the low bits count.
    vendor : bool
        Instantiate four LUT4, two PFUMX and an L6MUX21 a bit, less where the end of a column is 0.

    Members
    -------
    index : the word that is on ``o``.
    """

    def __init__(self, *, width: int, table, vendor: bool = False):
        self._table, self._vendor = [int(x) % (1 << width) for x in table], vendor
        super().__init__({"index": In((len(table) - 1).bit_length()), "o": Out(width)})

    def elaborate(self, platform):
        if isinstance(platform, Outline):
            return platform.cell(self, table=repr(self._table))
        m = Module()
        if not self._vendor:
            with m.Switch(self.index):
                for number, value in enumerate(self._table):
                    with m.Case(number):
                        m.d.comb += self.o.eq(value)
            return m
        for number, out in enumerate(self.o):
            column = [word >> number & 1 for word in self._table]
            m.d.comb += out.eq(self._column(m, column))
        return m

    def _column(self, m, column) -> Value:
        """The entry of a column of bits at the index."""
        half, out = len(column) // 2, Signal(name="entry")
        top = self.index[(half - 1).bit_length()]
        if len(column) == 16:
            m.submodules += Instance("LUT4", p_INIT=Const(as_init(column), 16), o_Z=out,
                                     **{f"i_{name}": bit
                                        for name, bit in zip("ABCD", self.index)})
        elif not any(column[half:]):
            m.d.comb += out.eq(self._column(m, column[:half]) & ~top)
        elif half == 16:
            m.submodules += Instance("PFUMX", i_ALUT=self._column(m, column[16:]),
                                     i_BLUT=self._column(m, column[:16]), i_C0=top, o_Z=out)
        else:
            m.submodules += Instance("L6MUX21", i_D0=self._pair(m, column[:half]),
                                     i_D1=self._pair(m, column[half:]), i_SD=top, o_Z=out)
        return out

    def _pair(self, m, column) -> Value:
        """As `_column` of 32 bits, by PFUMX in any case: L6MUX21 takes nothing else."""
        out = Signal(name="pair")
        m.submodules += Instance("PFUMX", i_ALUT=self._column(m, column[16:]),
                                 i_BLUT=self._column(m, column[:16]), i_C0=self.index[4], o_Z=out)
        return out
