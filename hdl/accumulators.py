"""Accumulator files of the columns of one MXM tile."""
from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from hdl.cells import copies
from hdl.mxm_tile import sum_bits

ACCUMULATOR_BITS = 32


class Accumulators(wiring.Component):
    """One int32 file of ``accumulators`` entries per column, read asynchronously.

    An addition reads, adds and writes in one cycle, so that steps on consecutive cycles may add to
    one entry; the drain sees the sum one cycle after the addition. Entries start as 0 and wrap.

    Parameters
    ----------
    config : Config
    vendor : bool
        Build the cells from ECP5 primitives.

    Members
    -------
    i_valid, i_index, i_start : add the ``i_sum`` of the next cycle to an entry; ``i_start``
        overwrites it.
    r_index, r_data : the entry to drain is on ``r_data`` one cycle after its index.
    """

    def __init__(self, *, config: Config, vendor: bool = False):
        self._config, self._vendor = config, vendor
        columns = config.tile_columns
        super().__init__({
            "i_valid": In(1), "i_start": In(1), "i_index": In(config.accumulator_bits),
            "i_sum": In(data.ArrayLayout(signed(sum_bits(config, config.rows)), columns)),
            "r_index": In(config.accumulator_bits),
            "r_data": Out(data.ArrayLayout(signed(ACCUMULATOR_BITS), columns))})

    def elaborate(self, platform):
        m = Module()
        config = self._config
        # Every column has its own registers: each index bit drives its memories alone.
        control = Cat(self.i_valid, self.i_start, self.i_index)
        controls = copies(m, control, config.tile_columns, "control", self._vendor)
        indices = copies(m, self.r_index, config.tile_columns, "index", self._vendor)
        for column in range(config.tile_columns):
            valid, start, index = controls[column][0], controls[column][1], controls[column][2:]
            entries = memory.Memory(shape=signed(ACCUMULATOR_BITS),
                                    depth=config.accumulators, init=[])
            m.submodules[f"column_{column}"] = entries
            old, drain = entries.read_port(domain="comb"), entries.read_port(domain="comb")
            write = entries.write_port()
            base = Signal(signed(ACCUMULATOR_BITS), name=f"base_{column}")
            m.d.comb += [
                old.addr.eq(index), base.eq(Mux(start, 0, old.data)),
                write.addr.eq(index), write.en.eq(valid),
                write.data.eq(base + self.i_sum[column]),
                drain.addr.eq(indices[column]), self.r_data[column].eq(drain.data)]
        return m
