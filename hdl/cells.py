"""The platform hook: weight memory, multiplexers and copies, as ECP5 primitives or as twins.

``vendor=True`` instantiates DP16KD and, in `hdl.dsp`, MULT18X18D and ALU54B, whose internal
registers Yosys cannot infer, the multiplexers of a slice, for which it takes half as many LUTs
again, and TRELLIS_FF where copies of a register stay apart. ``vendor=False`` describes the same
cycles in plain Amaranth for every simulator and other targets.
``tests/hdl/test_cells.py`` proves the two equal against models of the primitives.

`hdl.choose.choose` is the door to the multiplexers, and its tree of ``Mux`` their twin.

Ref: Lattice FPGA-TN-02204 (ECP5 memory); port and parameter names as in Yosys
``techlibs/ecp5/cells_bb.v``.
"""
from amaranth import Array, Cat, ClockSignal, Const, Instance, Module, Signal, Value
from amaranth.hdl import Fragment
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

BYTE_BITS = 9
WORD_BITS = 2 * BYTE_BITS
#: Words of one DP16KD with 18-bit ports, and with 9-bit ports.
BLOCK_DEPTH, BYTE_BLOCK_DEPTH = 1024, 2048


def parity_byte(value):
    """The nine stored bits of a byte: the byte, and above it the bit that makes parity even."""
    byte = value[:8]
    return Cat(byte, byte.xor())


class Outline:
    """Platform on which the cells of this file are black boxes, whichever way they would be built.

    For comparing what surrounds them.
    """

    def cell(self, component, **parameters) -> Instance:
        ports = {f"{'i' if member.flow == wiring.In else 'o'}_{path[0]}": value
                 for path, member, value in component.signature.flatten(component)}
        return Instance(type(component).__name__, i_clk=ClockSignal(), **ports,
                        **{f"p_{name}": value for name, value in parameters.items()})


class Copies(wiring.Component):
    """Registers of one value that stay apart, each for its own part of the chip. No reset.

    Parameters
    ----------
    width : int
        Bits of the value.
    count : int
        Registers.
    vendor : bool
        Instantiate TRELLIS_FF: Yosys makes one of registers that always agree.
    """

    def __init__(self, *, width: int, count: int, vendor: bool = False):
        self._width, self._count, self._vendor = width, count, vendor
        super().__init__({"i": In(width), "o": Out(data.ArrayLayout(width, count))})

    def elaborate(self, platform):
        if isinstance(platform, Outline):
            return platform.cell(self, width=self._width, count=self._count)
        m = Module()
        for number in range(self._count):
            q = Signal(self._width, name=f"copy_{number}", reset_less=True)
            m.d.comb += self.o[number].eq(q)
            if not self._vendor:
                m.d.sync += q.eq(self.i)
                continue
            for bit in range(self._width):
                m.submodules[f"register_{number}_{bit}"] = Instance(
                    "TRELLIS_FF", a_keep=1, p_GSR="DISABLED", p_CEMUX="1", p_CLKMUX="CLK",
                    p_LSRMUX="LSR", p_REGSET="RESET", p_SRMODE="LSR_OVER_CE", i_CLK=ClockSignal(),
                    i_LSR=Const(0, 1), i_CE=Const(1, 1), i_DI=self.i[bit], o_Q=q[bit])
        return m


def copies(m, value, count: int, name: str, vendor: bool) -> list:
    """``value`` of the cycle before, from ``count`` registers: `Copies` called ``name``."""
    value = Value.cast(value)
    m.submodules[name] = cell = Copies(width=len(value), count=count, vendor=vendor)
    m.d.comb += cell.i.eq(value)
    return [cell.o[number] for number in range(count)]


def shared_copies(m, value, users, each: int, name: str, vendor: bool) -> dict:
    """`copies` of ``value`` by user, of which ``each`` in a row share one."""
    registers = copies(m, value, -(-len(users) // each), name, vendor)
    return {user: registers[place // each] for place, user in enumerate(users)}


def bank_parts(depth: int) -> int:
    """Segments that the user of a `WeightBank` tells apart on port B."""
    return 2 if BYTE_BLOCK_DEPTH < depth <= 2 * BYTE_BLOCK_DEPTH else 1


class WeightBank(wiring.Component):
    """True dual-port memory of 18-bit words, two stored bytes of nine bits each.

    Port A reads: the word of ``a_address`` on cycle t is on ``a_r_data`` on cycle t + `LATENCY`.
    Port B is used while ``b_en`` is set: it writes the bytes chosen by ``b_w_en`` at the end of the
    cycle, or, while ``b_w_en`` is 0, reads like port A. Undefined are ``b_r_data`` two cycles after
    anything but a read, what port A reads while port B writes that word, and addresses of ``depth``
    and above. Words start as 0. The output registers have no reset.

    A bank of two segments (up to 2048 words, and the rest) leaves it to its user to tell them apart
    on port B: ``b_en[s]`` may be set for addresses of segment s only, whose word is then on
    ``b_r_data[s]``. All others have one bit and one word.

    Parameters
    ----------
    depth : int
        Words.
    vendor : bool
        Build it from DP16KD: two of 2048 x 9 for every 2048 words, one of 1024 x 18 for a rest of
        up to 1024. That takes as many blocks as 1024 x 18 alone and halves the output multiplexer.

    Attributes
    ----------
    parts : int
        Bits of ``b_en`` and words on ``b_r_data``, 1 or 2.
    memory : `amaranth.lib.memory.Memory` or None
        The array of the twin, for back-door loading; bits 8:0 of a word are byte 0.
    """
    LATENCY = 2

    def __init__(self, *, depth: int, vendor: bool = False):
        if depth < 2:
            raise ValueError(f"depth must be at least 2, not {depth!r}")
        self._depth, self._vendor = depth, vendor
        self.memory = None if vendor else memory.Memory(shape=WORD_BITS, depth=depth, init=[])
        address_bits = (depth - 1).bit_length()
        self.parts = bank_parts(depth)
        super().__init__({"a_address": In(address_bits), "a_r_data": Out(WORD_BITS),
                          "b_address": In(address_bits), "b_en": In(self.parts),
                          "b_w_en": In(2), "b_w_data": In(WORD_BITS),
                          "b_r_data": Out(data.ArrayLayout(WORD_BITS, self.parts))})

    @property
    def depth(self) -> int:
        return self._depth

    def elaborate(self, platform):
        if isinstance(platform, Outline):
            if self.memory is not None:
                Fragment.get(self.memory, platform)  # Else Amaranth warns of an unused memory.
            return platform.cell(self, depth=self._depth)
        m = Module()
        if self._vendor:
            self._primitives(m)
        else:
            self._twin(m)
        return m

    def _twin(self, m):
        m.submodules.memory = self.memory
        read_a, read_b = self.memory.read_port(), self.memory.read_port()
        write = self.memory.write_port(granularity=BYTE_BITS)
        out_a = Signal(WORD_BITS, reset_less=True)
        out_b = Signal(WORD_BITS, reset_less=True)
        enable = self.b_en.any()
        m.d.comb += [read_a.addr.eq(self.a_address), read_a.en.eq(1),
                     read_b.addr.eq(self.b_address), read_b.en.eq(enable & (self.b_w_en == 0)),
                     write.addr.eq(self.b_address),
                     write.en.eq(self.b_w_en & enable.replicate(2)),
                     write.data.eq(self.b_w_data), self.a_r_data.eq(out_a)]
        m.d.comb += [self.b_r_data[part].eq(out_b) for part in range(self.parts)]
        m.d.sync += [out_a.eq(read_a.data), out_b.eq(read_b.data)]

    def _primitives(self, m):
        """One segment per 2048 words; the outputs are selected behind the output registers."""
        segments_a, segments_b = [], []
        select_bits = max(0, len(self.a_address) - (BYTE_BLOCK_DEPTH - 1).bit_length())
        for number in range(-(-self._depth // BYTE_BLOCK_DEPTH)):
            if self.parts > 1:
                enable = self.b_en[number]
            else:
                enable = self.b_en & (self.b_address[len(self.b_address) - select_bits:] == number)
            out_a = Signal(WORD_BITS, name=f"out_a_{number}")
            out_b = Signal(WORD_BITS, name=f"out_b_{number}")
            if self._depth - number * BYTE_BLOCK_DEPTH <= BLOCK_DEPTH:
                m.submodules[f"block_{number}"] = _block(
                    WORD_BITS, self.a_address, self.b_address, enable, self.b_w_en.any(),
                    self.b_w_en, self.b_w_data, out_a, out_b)
            else:
                for byte in range(2):
                    part = slice(byte * BYTE_BITS, (byte + 1) * BYTE_BITS)
                    m.submodules[f"block_{number}_{byte}"] = _block(
                        BYTE_BITS, self.a_address, self.b_address, enable, self.b_w_en[byte], None,
                        self.b_w_data[part], out_a[part], out_b[part])
            segments_a.append(out_a)
            segments_b.append(out_b)
        m.d.comb += self.a_r_data.eq(self._selected(m, "a", self.a_address, segments_a,
                                                    select_bits))
        if self.parts > 1:
            m.d.comb += [self.b_r_data[part].eq(word) for part, word in enumerate(segments_b)]
        else:
            m.d.comb += self.b_r_data[0].eq(self._selected(m, "b", self.b_address, segments_b,
                                                           select_bits))

    def _selected(self, m, name, address, segments, select_bits):
        """The select travels beside the read: address on t, block output and select on t + 2."""
        if select_bits == 0:
            return segments[0]
        select = Signal(select_bits, name=f"select_{name}", reset_less=True)
        m.d.sync += select.eq(address[-select_bits:])
        return Array(segments)[copies(m, select, 1, f"select_{name}_2", self._vendor)[0]]


def _block(width, a_address, b_address, b_enable, b_write, b_bytes, b_data, out_a, out_b):
    """A DP16KD in normal write mode with both output registers on.

    With 18-bit ports the address starts at bit 4 and bits 0 and 1 are byte enables; with 9-bit
    ports it starts at bit 3. Unused address and data inputs are 0.
    """
    low = 4 if width == WORD_BITS else 3
    ports = {}
    for side, address in (("A", a_address), ("B", b_address)):
        bits = [0] * low + list(address)[:14 - low]
        bits += [0] * (14 - len(bits))
        if side == "B" and b_bytes is not None:
            bits[:2] = list(b_bytes)
        ports |= {f"i_AD{side}{index}": bit for index, bit in enumerate(bits)}
        ports |= {f"i_CLK{side}": ClockSignal(), f"i_OCE{side}": 1,
                  f"i_CE{side}": b_enable if side == "B" else 1,
                  f"i_RST{side}": 0, f"i_WE{side}": b_write if side == "B" else 0,
                  f"p_DATA_WIDTH_{side}": width, f"p_REGMODE_{side}": "OUTREG",
                  f"p_WRITEMODE_{side}": "NORMAL", f"p_CSDECODE_{side}": "0b000"}
        ports |= {f"i_CS{side}{index}": 0 for index in range(3)}
        ports |= {f"i_DI{side}{index}": b_data[index] if side == "B" and index < width else 0
                  for index in range(WORD_BITS)}
    ports |= {f"o_DOA{index}": out_a[index] for index in range(width)}
    ports |= {f"o_DOB{index}": out_b[index] for index in range(width)}
    return Instance("DP16KD", **ports, p_RESETMODE="SYNC", p_GSR="DISABLED")


#: Truth table of a LUT4 that gives B where C is set, else A.
_LUT_CHOOSE = Const(0xCACA, 16)


def multiplex_four(m, bits: dict, index, result):
    """``result = bits[index]`` as PFUMX of two LUTs.

    Parameters
    ----------
    bits : dict of int to Value
        Three or four bits by place, 0 to 3; where one is missing, its neighbour is chosen.
    index : Value
        Two bits.
    """
    halves = [Signal(name=f"half_{number}") for number in (0, 1)]
    for number, half in enumerate(halves):
        low, high = (bits.get(2 * number + side, bits.get(2 * number + 1 - side))
                     for side in (0, 1))
        m.submodules += Instance("LUT4", p_INIT=_LUT_CHOOSE, i_A=low, i_B=high, i_C=index[0],
                                 i_D=Const(0, 1), o_Z=half)
    m.submodules += Instance("PFUMX", i_ALUT=halves[1], i_BLUT=halves[0], i_C0=index[1],
                             o_Z=result)


def multiplex_pair(m, bits: dict, index, result):
    """``result = bits[index]`` of two bits from PFUMX, or two from L6MUX21 that join such."""
    m.submodules += Instance("L6MUX21", i_D0=bits[0], i_D1=bits[1], i_SD=index[0], o_Z=result)
