"""Distributed RAM with registers at every port, which decode and join what is deep."""
from amaranth import Cat, Module, Mux, Signal
from amaranth.hdl import Fragment
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from hdl.cells import Outline, copies

#: Words of one RAM cell of the FPGA.
CELL_DEPTH = 16
_CELL_BITS = 4
_DISTRIBUTED = {"ram_style": "distributed"}


class LutRam(wiring.Component):
    """Words that are read and written at the end of the cycle behind that of their address.

    A read gives what was there before a write of the same cycle. Addresses of ``depth`` and above:
    undefined data, writes must not be enabled.

    Parameters
    ----------
    width, depth : int
        Bits and number of the words. They start as 0.
    granularity : int
        Bits that share a write enable; all, if it is not given.
    part : int
        Bits that share registers of an address, which stand beside them: a wire to all of a wide
        word takes longer than a cycle. All, if it is not given.
    vendor : bool
        Use blocks of 16 words, each with registers of its own that are 0 where the word is not in
        the block. Flip-flops beside the RAM cost nothing, and joining four blocks takes one LUT a
        bit, half of what a multiplexer takes.

    Members
    -------
    r_address, r_data : read port; the word is there two cycles after its address.
    w_address, w_data, w_en : write port, an enable per part of ``granularity`` bits; data and
        enables come one cycle behind the address.

    Attributes
    ----------
    memory : `amaranth.lib.memory.Memory` or None
        The array of the twin, for back-door access.
    """

    def __init__(self, *, width: int, depth: int, granularity: int | None = None,
                 part: int | None = None, vendor: bool = False):
        self._depth, self._granularity, self._vendor = depth, granularity or width, vendor
        self._part_bits = part or width
        address_bits = max(1, (depth - 1).bit_length())
        self.memory = None if vendor else memory.Memory(shape=width, depth=depth, init=[],
                                                        attrs=_DISTRIBUTED)
        super().__init__({
            "r_address": In(address_bits), "r_data": Out(width), "w_address": In(address_bits),
            "w_data": In(width), "w_en": In(width // self._granularity)})

    def elaborate(self, platform):
        if isinstance(platform, Outline):
            if self.memory is not None:
                Fragment.get(self.memory, platform)  # Else Amaranth warns of an unused memory.
            return platform.cell(self, depth=self._depth, granularity=self._granularity)
        m = Module()
        if not self._vendor:
            m.submodules.data = self.memory
            late = [Signal.like(address, name=name, reset_less=True) for name, address in (
                ("r_address_late", self.r_address), ("w_address_late", self.w_address))]
            m.d.sync += [late[0].eq(self.r_address), late[1].eq(self.w_address)]
            m.d.comb += self.r_data.eq(self._connect(
                m, self.memory, *late, slice(None), 0, self.w_en, "word"))
            return m
        m.d.comb += self.r_data.eq(Cat(
            self._part(m, number, slice(low, min(low + self._part_bits, len(self.r_data))))
            for number, low in enumerate(range(0, len(self.r_data), self._part_bits))))
        return m

    def _part(self, m, number: int, bits: slice):
        """Some bits of all words, with registers of their own for addresses; returns what is read."""
        # Which block it is has registers of its own, beside those of the address. They are 1 for the
        # blocks that are not read: no logic on the way to the reset.
        blocks = range(-(-self._depth // CELL_DEPTH))
        low_bits = min(_CELL_BITS, len(self.r_address))
        r_address, w_address = (
            copies(m, address[:low_bits], 1, f"{name}_{number}", self._vendor)[0]
            for name, address in (("r_place", self.r_address), ("w_place", self.w_address)))
        enables = self.w_en[bits.start // self._granularity:bits.stop // self._granularity]
        joined = 0
        for block in blocks:
            name = f"{number}_{block}"
            m.submodules[f"block_{name}"] = store = memory.Memory(
                shape=bits.stop - bits.start, depth=CELL_DEPTH, init=[], attrs=_DISTRIBUTED)
            other, here = copies(m, Cat(self.r_address[_CELL_BITS:] != block,
                                        self.w_address[_CELL_BITS:] == block), 1,
                                 f"place_{name}", self._vendor)[0]
            joined = joined | self._connect(m, store, r_address, w_address, bits, other,
                                            enables & here.replicate(len(enables)), f"word_{name}")
        return joined

    def _connect(self, m, store, r_address, w_address, bits: slice, elsewhere, w_en, name: str):
        """Both ports of an array; returns the register of what is read, 0 if ``elsewhere``."""
        read, write = store.read_port(domain="comb"), store.write_port(
            granularity=self._granularity)
        word = Signal(len(read.data), name=name, reset_less=True)
        m.d.comb += [read.addr.eq(r_address), write.addr.eq(w_address),
                     write.data.eq(self.w_data[bits]), write.en.eq(w_en)]
        m.d.sync += word.eq(Mux(elsewhere, 0, read.data))
        return word
