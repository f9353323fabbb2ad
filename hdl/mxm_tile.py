"""One systolic tile of the MXM: weight banks, multipliers and partial sums of a few columns."""
from amaranth import Cat, Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from hdl.cells import BYTE_BITS, WORD_BITS, WeightBank, bank_parts, copies
from hdl.choose import choose
from hdl.dsp import ProductSum
from hdl.pipeline import delay


def sum_bits(config: Config, count: int) -> int:
    """Bits of a signed sum of ``count`` products."""
    return config.activation_bits + config.weight_bits - 1 + (count - 1).bit_length()


class WeightPortSignature(wiring.Signature):
    """Port B of the banks of one tile; a write lands at the end of the cycle.

    A byte of column c and row r travels on line c xor r, c counted over all columns: whether a
    column of rows is written or a row of columns, every byte has a line of its own, and no bank
    chooses between two.

    Members
    -------
    address : word, of a write or a read, for every row pair.
    columns : which columns are accessed, by parts of the banks (`hdl.cells.WeightBank`).
    rows : of these, the rows that are written; none for a read.
    lines : bytes to write, nine bits each.
    read_place : column, and part within it, whose word the banks show on the next cycle (address
        one cycle ago) and ``read`` the cycle after.
    read : its bytes by row.
    """

    def __init__(self, config: Config):
        columns, parts = config.tile_columns, bank_parts(config.weight_depth)
        super().__init__({
            "address": Out(data.ArrayLayout(config.weight_address_bits, config.pairs)),
            "columns": Out(data.ArrayLayout(parts, columns)), "rows": Out(config.rows),
            "lines": Out(data.ArrayLayout(BYTE_BITS, config.lanes)),
            "read_place": Out(range(columns * parts)),
            "read": In(data.ArrayLayout(BYTE_BITS, config.rows))})


class MxmTile(wiring.Component):
    """``tile_columns`` columns of ``rows`` multipliers, two to a weight bank.

    Row pair p works p cycles after row pair 0: for a step whose first address is here on cycle s,
    the address of pair p is on ``i_address[p]`` on cycle s + p, its two activations are on ``i_x``
    on cycle s + p + 2, and the sums over all rows are on ``o_sum`` on cycle
    s + 4 + pairs + mxm_stages. The next tile gets everything one cycle later.

    Parameters
    ----------
    config : Config
    first : int
        Number of its first column.
    vendor : bool
        Build the cells from ECP5 primitives.

    Members
    -------
    i_x, i_address : activations by row, addresses by row pair.
    i_used : by row pair, whether this cycle's address belongs to a step; if not, nothing is
        checked and the sum means nothing.
    o_x, o_address, o_used : the same for the next tile.
    o_sum : one sum per column.
    o_parity : a weight used on cycle e had a wrong parity; high on cycle e + 2.
    port : second port of the banks.
    """

    def __init__(self, *, config: Config, first: int = 0, vendor: bool = False):
        self._config, self._first, self._vendor = config, first, vendor
        pairs, columns = config.pairs, config.tile_columns
        activations = data.ArrayLayout(signed(config.activation_bits), config.rows)
        addresses = data.ArrayLayout(config.weight_address_bits, pairs)
        self.banks = {(column, pair): WeightBank(depth=config.weight_depth, vendor=vendor)
                      for column in range(columns) for pair in range(pairs)}
        self._products = {
            (column, pair): ProductSum(
                width_a=config.activation_bits, width_b=config.weight_bits,
                width_c=sum_bits(config, 2 * pair) if pair else 0,
                width_o=sum_bits(config, 2 * pair + 2), vendor=vendor)
            for column in range(columns) for pair in range(pairs)}
        sums = data.ArrayLayout(signed(sum_bits(config, config.rows)), columns)
        super().__init__({
            "i_x": In(activations), "o_x": Out(activations),
            "i_address": In(addresses), "o_address": Out(addresses),
            "i_used": In(pairs), "o_used": Out(pairs),
            "o_sum": Out(sums), "o_parity": Out(1),
            "port": In(WeightPortSignature(config))})

    def elaborate(self, platform):
        m = Module()
        self._hop(m)
        words = {key: self._bank(m, *key) for key in self.banks}
        for column in range(self._config.tile_columns):
            self._sum(m, column)
        self._check(m, words)
        self._read_out(m)
        return m

    def _hop(self, m):
        """Registers towards the next tile."""
        x = Signal.like(self.i_x.as_value(), reset_less=True)
        used = Signal.like(self.i_used)
        m.d.sync += [x.eq(self.i_x.as_value()), used.eq(self.i_used)]
        address = copies(m, self.i_address, 1, "address", self._vendor)[0]
        m.d.comb += [self.o_x.as_value().eq(x), self.o_address.as_value().eq(address),
                     self.o_used.eq(used)]

    def _bank(self, m, column, pair):
        """A weight bank and the two products of its words; returns the word that port A gives."""
        bank, port = self.banks[column, pair], self.port
        m.submodules[f"bank_{column}_{pair}"] = bank
        rows = (2 * pair, 2 * pair + 1)
        m.d.comb += [
            # Cycle s + p: address in.
            bank.a_address.eq(self.i_address[pair]),
            bank.b_address.eq(port.address[pair]),
            bank.b_en.eq(port.columns[column]),
            bank.b_w_en.eq(Cat(port.rows[row] for row in rows)),
            bank.b_w_data.eq(Cat(port.lines[(self._first + column) ^ row] for row in rows)),
        ]
        # Cycle s + p + 2: weights and activations enter the multipliers.
        product = self._products[column, pair]
        m.submodules[f"product_{column}_{pair}"] = product
        weights = [bank.a_r_data[half * BYTE_BITS:][:self._config.weight_bits].as_signed()
                   for half in range(2)]
        m.d.comb += [product.a0.eq(self.i_x[rows[0]]), product.a1.eq(self.i_x[rows[1]]),
                     product.b0.eq(weights[0]), product.b1.eq(weights[1])]
        return bank.a_r_data

    def _sum(self, m, column):
        """Partial sums of a column: pair p adds on cycle s + p + 4, and hands on to pair p + 1."""
        config = self._config
        chain = [self._products[column, pair] for pair in range(config.pairs)]
        for before, product in zip(chain, chain[1:]):
            m.d.comb += product.c.eq(before.o)
        m.d.comb += self.o_sum[column].eq(delay(m, chain[-1].o, config.mxm_stages,
                                                f"sum_{column}"))

    def _check(self, m, words):
        """Parity of the words that multipliers take, collected over the tile in two registers."""
        config = self._config
        used = copies(m, self.i_used, 1, "used", self._vendor)[0]
        # Every column has its own registers.
        used = copies(m, used, config.tile_columns, "used_late", self._vendor)
        wrong = Signal(len(words))
        for index, ((column, pair), word) in enumerate(words.items()):
            # An unused word resets the register, which takes no logic.
            with m.If(used[column][pair]):
                m.d.sync += wrong[index].eq(word[:BYTE_BITS].xor() | word[BYTE_BITS:].xor())
            with m.Else():
                m.d.sync += wrong[index].eq(0)
        parity = Signal()
        m.d.sync += parity.eq(wrong.any())
        m.d.comb += self.o_parity.eq(parity)

    def _read_out(self, m):
        """Word of one column from port B, by row. Every row pair has its own register to choose."""
        config = self._config
        places = copies(m, self.port.read_place, config.pairs, "read_place", self._vendor)
        for pair, place in enumerate(places):
            words = [self.banks[column, pair].b_r_data[part]
                     for column in range(config.tile_columns)
                     for part in range(bank_parts(config.weight_depth))]
            # The cells join eight words at most.
            cells = (m, self._vendor) if len(words) <= 8 else ()
            read = Signal(WORD_BITS, name=f"read_{pair}", reset_less=True)
            m.d.sync += read.eq(choose(words, place, *cells))
            m.d.comb += self.port.read.as_value()[pair * WORD_BITS:][:WORD_BITS].eq(read)
