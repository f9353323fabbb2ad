"""Multiplexers in the shape that ECP5 slices have: trees of two-to-one, joined by PFUMX and L6MUX.

Yosys makes and-or logic of a ``Switch`` with many cases, which takes half as many LUTs again.
"""
from amaranth import Mux, Signal, Value

from arch.config import Config
from arch.queues import Stream
from hdl.signatures import streams_of


def choose(values, index) -> Value:
    """``values[index]`` as a tree of two-to-one multiplexers, lowest bit of the index first.

    Any result is fine where the list ends before the index: the last value of a level goes up as
    it is.
    """
    values = [Value.cast(value) for value in values]
    for bit in index:
        if len(values) == 1:
            break
        odd = [values[-1]] if len(values) % 2 else []
        values = [Mux(bit, high, low) for low, high in zip(values[::2], values[1::2])] + odd
    return values[0]


def take(m, streams, source, config: Config, prefix: str):
    """The 16-bit lanes of a stream, for consumers that must name one.

    Parameters
    ----------
    streams : interface of `hdl.signatures.StreamsSignature`
    source : Value
        A `Stream` number.

    Returns
    -------
    lanes : list of Signal, valid : Signal, defined : Signal
        Anything on the lanes unless ``valid``; ``valid`` means something if ``defined``: the number
        is that of a stream of this machine, and not NONE.
    """
    sides = {int(stream): getattr(streams, stream.name.lower()) for stream in streams_of(config)}
    valid, defined = Signal(name=f"{prefix}_valid"), Signal(name=f"{prefix}_defined")

    def pick(value_of):
        """Numbers 8 and 9 share places with NONE and 1, so that eight are left to choose from."""
        places = []
        for place in range(8):
            low, high = (sides.get(number) for number in (place, place + 8))
            if low is not None and high is not None:
                places.append(Mux(source[3], value_of(high), value_of(low)))
            else:
                side = low or high
                places.append(value_of(side) if side is not None else None)
        known = [value for value in places if value is not None]
        return choose([known[0] if value is None else value for value in places], source[:3])

    lanes = [Signal(16, name=f"{prefix}_{lane}") for lane in range(config.lanes)]
    for index, lane in enumerate(lanes):
        m.d.comb += lane.eq(pick(lambda side: side.data[index][:16]))
    with m.Switch(source):
        for stream in sides:
            with m.Case(stream):
                m.d.comb += defined.eq(1)
    m.d.comb += valid.eq(pick(lambda side: side.valid))
    return lanes, valid, defined
