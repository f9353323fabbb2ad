"""Multiplexers in the shape that ECP5 slices have: trees of two-to-one, joined by PFUMX and L6MUX.

Yosys makes and-or logic of a ``Switch`` with many cases, which takes half as many LUTs again, and
a tree of its own multiplexers never uses PFUMX: 3, 7 and 15 LUTs for 4, 8 and 16 inputs. With
``vendor`` the cells are instantiated: 2, 4 and 8, and 3 for most places of five.
"""
from amaranth import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from arch.isa import UNITS, sources_of
from arch.queues import STREAM_BITS, Stream
from hdl.cells import Outline, copies, multiplex_four, multiplex_pair

#: Lanes that share registers of what is for all of them, and of what selects their operand.
GROUP, _SELECT_LANES = 4, 2


def choose(values, index, m=None, vendor: bool = False) -> Value:
    """``values[index]`` as a tree of two-to-one multiplexers, lowest bit of the index first.

    Any result is fine where the list ends before the index, and where it has None: the other value
    of the two goes up as it is.

    Parameters
    ----------
    m : Module or None
        Gets a `Chooser` where there are three values or more. Without one, the tree stands where it
        is used.
    vendor : bool
        Instantiate the multiplexers of the FPGA; needs ``m``.
    """
    values = [value if value is None else Value.cast(value) for value in values]
    if m is not None and sum(value is not None for value in values) >= 3:
        return _chooser(m, values, index, vendor)
    return _tree(values, index)


def _tree(values, index) -> Value:
    for bit in index:
        if len(values) == 1:
            break
        values += [None] * (len(values) % 2)
        values = [_either(bit, low, high) for low, high in zip(values[::2], values[1::2])]
    return values[0]


def _either(bit, low, high):
    return high if low is None else low if high is None else Mux(bit, high, low)


def _choose_cells(m, values, index):
    """Groups of four by PFUMX, pairs of full groups by L6MUX21, twice; LUTs for what remains."""
    if 4 < len(values) <= 8 and sum(value is not None for value in values) == 5:
        return _choose_five(m, values, index)
    nodes = []
    for first in range(0, len(values), 4):
        four = (values[first:first + 4] + [None] * 3)[:4]
        if sum(value is not None for value in four) >= 3:
            nodes.append((_cells(m, multiplex_four, four, index[:2]), True))
        else:
            nodes.append((_tree(four, index[:2]), False))
    for level, bit in enumerate(index[2:]):
        if len(nodes) == 1:
            break
        nodes += [(None, False)] * (len(nodes) % 2)
        joined = []
        for (low, full_low), (high, full_high) in zip(nodes[::2], nodes[1::2]):
            if full_low and full_high and level < 2:
                joined.append((_cells(m, multiplex_pair, [low, high], [bit]), True))
            else:
                joined.append((_either(bit, low, high), False))
        nodes = joined
    return nodes[0][0]


def _choose_five(m, values, index):
    """Five of eight places: holes of the lower four take what is four places above them.

    That leaves few above, mostly one, for LUTs behind the PFUMX.
    """
    low, high = list(values[:4]), list(values[4:]) + [None] * (8 - len(values))
    for place in range(4):
        if low[place] is None:
            low[place], high[place] = high[place], None
    known = [place for place in range(4) if high[place] is not None]
    chosen = (_cells(m, multiplex_four, low, index[:2])
              if sum(value is not None for value in low) >= 3 else _tree(low, index[:2]))
    for place in known:
        chosen = Mux(index[2] & (index[:2] == place), high[place], chosen)
    return chosen


def _cells(m, build, values, index):
    """A multiplexer cell for every bit, in the shape that the values have in common."""
    known = [value for value in values if value is not None]
    shape = _tree(values, index).shape()
    result = Signal(shape, name="chosen")
    for number, bit in enumerate(result):
        bits = [value[min(number, len(value) - 1)]
                if number < len(value) or value.shape().signed else Const(0, 1) for value in known]
        places = (at for at, value in enumerate(values) if value is not None)
        build(m, dict(zip(places, bits)), index, bit)
    return result


class Chooser(wiring.Component):
    """The multiplexer as a cell, so that what surrounds it is the same however it is built.

    Parameters
    ----------
    shape : Shape
        Of the values and of the result.
    places : tuple of int
        Index of every value on ``i``; other indices give anything.
    vendor : bool
        Instantiate the multiplexers of the FPGA.
    """

    def __init__(self, *, shape, places: tuple, vendor: bool):
        self._places, self._vendor = places, vendor
        super().__init__({"i": In(data.ArrayLayout(shape, len(places))),
                          "index": In(places[-1].bit_length()), "o": Out(shape)})

    def elaborate(self, platform):
        if isinstance(platform, Outline):
            return platform.cell(self, places=repr(self._places))
        m = Module()
        values = [None] * (self._places[-1] + 1)
        for number, place in enumerate(self._places):
            values[place] = self.i[number]
        if self._vendor:
            m.d.comb += self.o.eq(_choose_cells(m, values, self.index))
        else:
            m.d.comb += self.o.eq(_tree(values, self.index))
        return m


def _chooser(m, values, index, vendor: bool) -> Value:
    """The result of a `Chooser` that is a submodule of ``m``."""
    places = tuple(at for at, value in enumerate(values) if value is not None)
    shape = _tree(values, index).shape()
    # In a module of its own, so that no ``If`` around the call gates what goes in.
    m.submodules += (inner := Module())
    inner.submodules.cell = cell = Chooser(shape=shape, places=places, vendor=vendor)
    inner.d.comb += [cell.i[number].eq(values[place]) for number, place in enumerate(places)]
    inner.d.comb += cell.index.eq(index)
    return cell.o


def operand(m, streams, coming, unit: str, name: str, config: Config, width: int = 16,
            vendor: bool = False, beside=None):
    """Multiplex an operand over the streams that it has wires from.

    What selects is decoded on the cycle before, and every two lanes have registers of their own for
    it.

    Parameters
    ----------
    streams : interface of `hdl.signatures.StreamsSignature`
    coming : Value
        The `Stream` number in the instruction, on the cycle before the operand is taken.
    unit, name : str
        Format and operand field.
    width : int
        Bits per lane; wider streams are cut to their low bits, narrower ones extended.
    vendor : bool
        As for `choose`.
    beside : dict of Stream to list, or None
        Further lanes, by the number of a stream that the operand has no wires from: ``known`` stays
        0 for it.

    Returns
    -------
    lanes : list of Signal, valid : Signal, known : Signal
        Anything on the lanes, and ``valid`` without meaning, unless ``known``: the field has wires
        from that stream (NONE has none).
    """
    field = UNITS[unit].field(name)
    sources = [stream for stream in sources_of(field, config) if stream != Stream.NONE]
    beside = beside or {}
    named = [*sources, *beside]
    bits = next(bits for bits in range(STREAM_BITS + 1)
                if len({stream % (1 << bits) for stream in named}) == len(named))
    places, select = {stream % (1 << bits): stream for stream in named}, coming[:bits]
    *four, last = named
    if len({stream % 4 for stream in four}) == len(four) == 4:
        # The fifth of five comes in behind a multiplexer of four, for one LUT.
        bits, select = 3, Cat(coming[:2], coming == last)
        places = {stream % 4: stream for stream in four} | {4 + last % 4: last}

    wide = [stream for stream in sources if stream in field.wide]
    decoded = copies(m, Cat(select, (coming == stream for stream in wide)),
                     -(-config.lanes // _SELECT_LANES), f"{name}_select", vendor)

    def pick(value_of, others, index=0):
        return choose([value_of(stream, getattr(streams, stream.name.lower()))
                       if stream in sources else others.get(stream)
                       for stream in map(places.get, range(1 << bits))],
                      decoded[index // _SELECT_LANES][:len(select)], m, vendor)

    lanes = [Signal(signed(width), name=f"{name}_{lane}") for lane in range(config.lanes)]
    valid, known = Signal(name=f"{name}_valid"), Signal(name=f"{name}_known")
    low = 16 if wide else width
    for index, lane in enumerate(lanes):
        narrow = pick(lambda stream, side: side.data[index][:low],
                      {stream: values[index] for stream, values in beside.items()}, index)
        if wide:
            # Above bit 15: of a wide stream its own bits, of the others the sign.
            above = Signal(width - 16, name=f"{name}_above_{index}")
            m.d.comb += above.eq(narrow[15].replicate(width - 16))
            for stream, chosen in zip(wide, decoded[index // _SELECT_LANES][len(select):]):
                with m.If(chosen):
                    side = getattr(streams, stream.name.lower())
                    m.d.comb += above.eq(side.data[index][16:width])
            narrow = Cat(narrow, above)
        m.d.comb += lane.eq(narrow)
    m.d.comb += valid.eq(pick(lambda stream, side: side.valid, {}))
    m.d.sync += known.eq(0)
    with m.Switch(coming):
        with m.Case(*map(int, sources)):
            m.d.sync += known.eq(1)
    return lanes, valid, known
