"""A multiplexer as a cell: what surrounds it is the same with and without vendor cells."""
from amaranth import Module, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hdl.cells import Outline
from hdl.choose import choose


class Selector(wiring.Component):
    """One of up to eight values, in the same cycle.

    Parameters
    ----------
    width : int
        Bits of a value.
    count : int
        Values, 1 to 8. An index of ``count`` or above gives anything.
    vendor : bool
        Instantiate the multiplexers of the FPGA (`hdl.choose.choose`).
    """

    def __init__(self, *, width: int, count: int, vendor: bool = False):
        if not 1 <= count <= 8:
            raise ValueError(f"count must be 1 to 8, not {count!r}")
        self._width, self._count, self._vendor = width, count, vendor
        super().__init__({"i": In(data.ArrayLayout(width, count)),
                          "index": In((count - 1).bit_length()), "o": Out(width)})

    def elaborate(self, platform):
        if isinstance(platform, Outline):
            return platform.cell(self, width=self._width, count=self._count)
        m = Module()
        values = [self.i[number] for number in range(self._count)]
        m.d.comb += self.o.eq(choose(values, self.index, m, self._vendor))
        return m


def selected(m, values, index, name: str, vendor: bool):
    """``values[index]`` from a `Selector` called ``name``; see there for the index."""
    values = [Value.cast(value) for value in values]
    m.submodules[name] = cell = Selector(width=len(values[0]), count=len(values), vendor=vendor)
    m.d.comb += [cell.i[number].eq(value) for number, value in enumerate(values)]
    m.d.comb += cell.index.eq(index)
    return cell.o
