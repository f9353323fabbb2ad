"""Delay parameters of all queues: one block memory, and the loader that deals out its rows.

A queue holds the parameters of two rows: those of the step that runs, and those of the next row,
which are loaded meanwhile. Rows alternate between the two halves.
"""
from amaranth import Cat, Module, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from arch.hostmap import Space, power_of_two
from arch.isa import PARAM_BITS
from arch.queues import queue_ids
from hdl.bus import BusSignature, bits_of


class ParamLoadSignature(wiring.Signature):
    """A delay parameter on its way to the queues.

    Members
    -------
    queue : one bit per queue id; high for the queue that is to take it.
    half, column, value : the parameter and its place. The half of a row is its lowest bit.
    """

    def __init__(self, config: Config):
        super().__init__({"queue": Out(queue_ids(config)), "half": Out(1),
                          "column": Out(column_bits(config)), "value": Out(PARAM_BITS)})


def column_bits(config: Config) -> int:
    return bits_of(power_of_two(config.param_columns))


class ParamStore(wiring.Component):
    """Memory of the delay parameters, for the host, and its loader.

    A load of one row takes `arch.timing.row_load` cycles.

    Parameters
    ----------
    config : Config

    Members
    -------
    host : PARAMS; answers three cycles after a request.
    start : deal out rows ``row`` and ``row + 1``. next : only row ``row + 1``.
    row : is taken on the cycle of ``start`` or ``next``.
    busy : a load is under way.
    load : what the queues take.
    """

    def __init__(self, *, config: Config):
        self._config = config
        super().__init__({
            "host": In(BusSignature()), "start": In(1), "next": In(1),
            "row": In(max(1, bits_of(config.param_rows))), "busy": Out(1),
            "load": Out(ParamLoadSignature(config))})

    def elaborate(self, platform):
        m = Module()
        config, host = self._config, self.host
        columns, rows = column_bits(config), bits_of(config.param_rows)
        queues = queue_ids(config)
        queue_bits = bits_of(queues)
        # No write meets a read of its word: the host writes between runs.
        store = memory.Memory(shape=PARAM_BITS, depth=1 << queue_bits + rows + columns, init=[],
                              attrs={"no_rw_check": 1, "ram_style": "block"})
        m.submodules.store = store
        # Read in the cycle and kept in a register: a synchronous port without logic for a clash.
        read, write = store.read_port(domain="comb"), store.write_port()
        word = Signal(PARAM_BITS, reset_less=True)
        mine = host.space == Space.PARAMS

        # Cycle 0: the address. Cycle 1: the word. Cycle 2: the word on its way.
        place = Signal(columns + queue_bits)
        row, half, again = Signal(rows), Signal(), Signal()
        column, queue = place[:columns], place[columns:]
        with m.If(self.start | self.next):
            m.d.sync += [self.busy.eq(1), again.eq(self.start), half.eq(self.row[0] ^ self.next),
                         row.eq(self.row + self.next)]
        with m.Elif(self.busy):
            m.d.sync += place.eq(place + 1)
            with m.If(place.all()):
                m.d.sync += [row.eq(row + 1), half.eq(~half), again.eq(0), self.busy.eq(again)]
        asked, wrote, known = Signal(), Signal(), Signal()
        m.d.comb += [
            read.addr.eq(Cat(column, row, queue)), write.addr.eq(host.address),
            write.data.eq(host.w_data), write.en.eq(host.w_en & mine)]
        with m.If(~self.busy):
            m.d.comb += read.addr.eq(host.address)
        taken, chosen = Signal(), Signal(columns + queue_bits)
        taken_half = Signal()
        m.d.sync += [taken.eq(self.busy), chosen.eq(place), taken_half.eq(half),
                     self.load.queue.eq((1 << chosen[columns:]) & taken.replicate(queues)),
                     self.load.half.eq(taken_half), self.load.column.eq(chosen),
                     word.eq(read.data), self.load.value.eq(word)]
        m.d.sync += [asked.eq(host.r_en & mine), known.eq(asked),
                     wrote.eq(host.w_en & mine), host.ack.eq(known | wrote)]
        m.d.sync += host.r_data.eq(self.load.value & known.replicate(PARAM_BITS))
        return m
