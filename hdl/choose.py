"""Multiplexers in the shape that ECP5 slices have: trees of two-to-one, joined by PFUMX and L6MUX.

Yosys makes and-or logic of a ``Switch`` with many cases, which takes half as many LUTs again.
"""
from amaranth import Mux, Signal, Value, signed

from arch.config import Config
from arch.isa import UNITS, sources_of
from arch.queues import STREAM_BITS, Stream


def choose(values, index) -> Value:
    """``values[index]`` as a tree of two-to-one multiplexers, lowest bit of the index first.

    Any result is fine where the list ends before the index, and where it has None: the other value
    of the two goes up as it is.
    """
    values = [value if value is None else Value.cast(value) for value in values]
    for bit in index:
        if len(values) == 1:
            break
        values += [None] * (len(values) % 2)
        values = [high if low is None else low if high is None else Mux(bit, high, low)
                  for low, high in zip(values[::2], values[1::2])]
    return values[0]


def operand(m, streams, source, unit: str, name: str, config: Config, width: int = 16):
    """Multiplex an operand over the streams that it has wires from.

    Parameters
    ----------
    streams : interface of `hdl.signatures.StreamsSignature`
    source : Value
        The `Stream` number in the instruction.
    unit, name : str
        Format and operand field.
    width : int
        Bits per lane; wider streams are cut to their low bits, narrower ones extended.

    Returns
    -------
    lanes : list of Signal, valid : Signal, known : Signal
        Anything on the lanes, and ``valid`` without meaning, unless ``known``: the field has wires
        from that stream (NONE has none).
    """
    sources = [stream for stream in sources_of(UNITS[unit].field(name), config)
               if stream != Stream.NONE]
    bits = next(bits for bits in range(STREAM_BITS + 1)
                if len({stream % (1 << bits) for stream in sources}) == len(sources))
    places = {stream % (1 << bits): getattr(streams, stream.name.lower()) for stream in sources}

    def pick(value_of):
        return choose([value_of(places[place]) if place in places else None
                       for place in range(1 << bits)], source[:bits])

    lanes = [Signal(signed(width), name=f"{name}_{lane}") for lane in range(config.lanes)]
    valid, known = Signal(name=f"{name}_valid"), Signal(name=f"{name}_known")
    for index, lane in enumerate(lanes):
        m.d.comb += lane.eq(pick(lambda side: side.data[index]))
    m.d.comb += valid.eq(pick(lambda side: side.valid))
    with m.Switch(source):
        with m.Case(*map(int, sources)):
            m.d.comb += known.eq(1)
    return lanes, valid, known
