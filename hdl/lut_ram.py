"""Distributed RAM with one write and one read port, deep ones with the multiplexer of the FPGA."""
from amaranth import Module, Signal
from amaranth.hdl import Fragment
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from hdl.cells import Outline
from hdl.choose import choose

#: Words of one RAM cell of the FPGA.
CELL_DEPTH = 16
_DISTRIBUTED = {"ram_style": "distributed"}


class LutRam(wiring.Component):
    """Words that are read in the same cycle and written at its end.

    A write is seen by reads from the next cycle on. Addresses of ``depth`` and above: undefined
    data, writes must not be enabled.

    Parameters
    ----------
    width, depth : int
        Bits and number of the words. They start as 0.
    granularity : int
        Bits that share a write enable.
    vendor : bool
        Use blocks of 16 words and multiplexer cells (`hdl.choose`): a third less than what Yosys
        makes of a deep memory.

    Members
    -------
    r_address, r_data : read port.
    w_address, w_data, w_en : write port, an enable per part of ``granularity`` bits.

    Attributes
    ----------
    memory : `amaranth.lib.memory.Memory` or None
        The array of the twin, for back-door access.
    """

    def __init__(self, *, width: int, depth: int, granularity: int | None = None,
                 vendor: bool = False):
        self._depth, self._granularity, self._vendor = depth, granularity or width, vendor
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
            self._connect(m, self.memory, self.r_data, self.w_en)
            return m
        blocks, above = [], self.w_address[4:]
        for number in range(-(-self._depth // CELL_DEPTH)):
            block = memory.Memory(shape=len(self.r_data), depth=CELL_DEPTH, init=[],
                                  attrs=_DISTRIBUTED)
            m.submodules[f"block_{number}"] = block
            read, w_en = Signal.like(self.r_data), Signal.like(self.w_en)
            m.d.comb += w_en.eq(self.w_en & (above == number).replicate(len(w_en)))
            self._connect(m, block, read, w_en)
            blocks.append(read)
        m.d.comb += self.r_data.eq(choose(blocks, self.r_address[4:], m, True))
        return m

    def _connect(self, m, store, data, w_en):
        read, write = store.read_port(domain="comb"), store.write_port(
            granularity=self._granularity)
        m.d.comb += [read.addr.eq(self.r_address), data.eq(read.data),
                     write.addr.eq(self.w_address), write.data.eq(self.w_data),
                     write.en.eq(w_en)]
