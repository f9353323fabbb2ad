"""Accumulator files of the columns of one MXM tile."""
from amaranth import Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from hdl.mxm_tile import sum_bits

ACCUMULATOR_BITS = 32


class Accumulators(wiring.Component):
    """One int32 file of ``accumulators`` entries per column, read asynchronously.

    An addition reads, adds and writes in one cycle, so that steps on consecutive cycles may add to
    one entry; the drain sees the sum one cycle after the addition. Entries start as 0 and wrap.

    Parameters
    ----------
    config : Config

    Members
    -------
    i_valid, i_index, i_start : add ``i_sum`` to an entry; ``i_start`` overwrites it.
    r_index, r_data : the entry to drain, on the same cycle.
    """

    def __init__(self, *, config: Config):
        self._config = config
        columns = config.tile_columns
        super().__init__({
            "i_valid": In(1), "i_start": In(1), "i_index": In(config.accumulator_bits),
            "i_sum": In(data.ArrayLayout(signed(sum_bits(config, config.rows)), columns)),
            "r_index": In(config.accumulator_bits),
            "r_data": Out(data.ArrayLayout(signed(ACCUMULATOR_BITS), columns))})

    def elaborate(self, platform):
        m = Module()
        for column in range(self._config.tile_columns):
            entries = memory.Memory(shape=signed(ACCUMULATOR_BITS),
                                    depth=self._config.accumulators, init=[])
            m.submodules[f"column_{column}"] = entries
            old, drain = entries.read_port(domain="comb"), entries.read_port(domain="comb")
            write = entries.write_port()
            base = Signal(signed(ACCUMULATOR_BITS), name=f"base_{column}")
            m.d.comb += [
                old.addr.eq(self.i_index), base.eq(Mux(self.i_start, 0, old.data)),
                write.addr.eq(self.i_index), write.en.eq(self.i_valid),
                write.data.eq(base + self.i_sum[column]),
                drain.addr.eq(self.r_index), self.r_data[column].eq(drain.data)]
        return m
