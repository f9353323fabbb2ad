"""Second port of the weight banks: run-time writes, read-out, and the host's way to the weights."""
from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from arch.faults import Fault
from arch.isa import UNITS
from hdl.cells import BYTE_BITS, parity_byte
from hdl.choose import choose, operand
from hdl.mxm_tile import WeightPortSignature
from hdl.signatures import FaultSignature, IssueSignature, StreamsSignature, fault_bit

#: Cycles from ``r_en`` of the host to ``r_data``.
HOST_READ_LATENCY = 5
_WRITE_K, _WRITE_V, _READ_OUT = (UNITS["kv"].op(name).code
                                 for name in ("WRITE_K", "WRITE_V", "READ_OUT"))


def host_address_bits(config: Config) -> int:
    """Bits of an address of space WEIGHTS (`arch.hostmap.weight_address`)."""
    return (config.weight_address_bits + (config.columns - 1).bit_length()
            + (config.pairs - 1).bit_length())


class WeightHostSignature(wiring.Signature):
    """Access to the weights, 16 bits at a time, while no operation of the queue is issued.

    Members
    -------
    address : as `arch.hostmap.weight_address`; words beyond ``weight_depth`` are not written.
    w_en, w_data : write a word, both bytes with fresh parity.
    r_en, r_data : ``r_data`` holds the word on the cycle `HOST_READ_LATENCY` after ``r_en``; one
        read per cycle.
    r_error : with ``r_data``: the parity of the word, or of its column at that address, is wrong.
    """

    def __init__(self, config: Config):
        super().__init__({"address": Out(host_address_bits(config)),
                          "w_en": Out(1), "w_data": Out(16), "r_en": Out(1),
                          "r_data": In(16), "r_error": In(1)})


def saturated_byte(value):
    """``saturate_symmetric(value, 8)`` of an int16 value, as the nine bits that are stored.

    The parity is found beside the saturation, not behind it.
    """
    sign = value[15]
    inside = ~value[7:].any() | value[7:].all()
    lowest = value[7] & ~value[:7].any()
    byte = Mux(inside, Cat(value[0] | lowest, value[1:8]), Mux(sign, 0x81, 0x7F))
    parity = Mux(inside, value[:8].xor() ^ lowest, ~sign)
    return Cat(byte, parity)


class KvPort(wiring.Component):
    """Unit "kv". A write issued on cycle t reaches the banks on cycle t + 1 and lands at its end;
    the vector whose last part is issued on cycle t is given on cycle t + 4, for ACC on t + 5.

    Parameters
    ----------
    config : Config

    Members
    -------
    issue, streams, position, token : as in `hdl.mxm.Mxm`.
    host : `WeightHostSignature`.
    port_0, port_1, ... : port B of tile 0, 1, ... (`WeightPortSignature`), in order of columns.
    read_address, read_used : what port A of row pair 0 in the first tile of a half reads on this
        cycle; entry k is the same, k cycles later.
    o, o_valid : vector read out.
    fault : OPERAND, ADDRESS and ENCODING on cycle t, CONFLICT on t + 1, PARITY on t + 5.
    """

    def __init__(self, *, config: Config):
        self._config = config
        self._part_bits = (config.groups - 1).bit_length()
        tiles = config.columns // config.tile_columns
        taps = config.pairs + config.half_columns // config.tile_columns - 1
        super().__init__({
            "issue": In(IssueSignature("kv", config)),
            "streams": In(StreamsSignature(config)),
            "position": In(config.position_bits), "token": In(config.token_bits),
            "host": In(WeightHostSignature(config)),
            **{f"port_{tile}": Out(WeightPortSignature(config)) for tile in range(tiles)},
            "read_address": In(data.ArrayLayout(config.weight_address_bits, taps)),
            "read_used": In(taps),
            "o": Out(data.ArrayLayout(signed(8), config.lanes)), "o_valid": Out(1),
            "fault": Out(FaultSignature())})
        self._ports = [getattr(self, f"port_{tile}") for tile in range(tiles)]

    def elaborate(self, platform):
        m = Module()
        write, read = self._decode(m)
        pair, host_pair, column = self._place(m, write, read)
        self._write(m)
        self._conflict(m, write, pair, column)
        self._read_out(m, read, host_pair, column)
        return m

    def _decode(self, m):
        """Cycle t: faults of the issue. Returns whether it writes and whether it reads."""
        config, issue = self._config, self.issue
        self._lanes, valid, defined = operand(m, self.streams, issue.x, "kv", "x", config)
        writes = (issue.op == _WRITE_K) | (issue.op == _WRITE_V)
        reads = issue.op == _READ_OUT
        in_range = issue.address < config.weight_depth
        write, read = Signal(), Signal()
        m.d.comb += [write.eq(issue.valid & writes & in_range),
                     read.eq(issue.valid & reads & in_range)]
        unknown = ~(writes | reads) | writes & ~defined
        for fault, event in ((Fault.OPERAND, writes & defined & ~valid),
                             (Fault.ADDRESS, (writes | reads) & ~in_range),
                             (Fault.ENCODING, unknown)):
            m.d.sync += self.fault.causes[fault_bit(fault)].eq(issue.valid & event)
        return write, read

    def _place(self, m, write, read):
        """Cycle t to t + 1: address and bytes concerned, of the queue or of the host."""
        config, issue, host = self._config, self.issue, self.host
        pair_bits, column_bits = ((size - 1).bit_length() for size in (config.pairs,
                                                                       config.columns))
        host_pair = host.address[:pair_bits]
        host_column = host.address[pair_bits:][:column_bits]
        host_word = host.address[pair_bits + column_bits:]
        is_v, busy = issue.op == _WRITE_V, issue.valid
        row = self.position[:(config.rows - 1).bit_length()]
        column = Signal(column_bits)
        rows, columns = Signal(config.rows), Signal(config.columns)
        write_host = host.w_en & ~busy & (host_word < config.weight_depth)
        with m.If(~busy):
            m.d.comb += [column.eq(host_column), columns.eq(write_host << column)]
            m.d.comb += [rows[index].eq(host_pair == index // 2) for index in range(config.rows)]
        with m.Elif(is_v):
            m.d.comb += [rows.eq(1 << row), columns.eq(write.replicate(config.columns))]
        with m.Else():
            by_token = (issue.op == _READ_OUT) & ~issue.half0[0]
            m.d.comb += [column.eq(Mux(by_token, self.token, self.position)),
                         rows.eq(~0), columns.eq(write << column)]
        for number, port in enumerate(self._ports):
            # Cycle t + 1: at the banks. Every tile has its own registers.
            first = number * config.tile_columns
            for name, value in (("address", Mux(busy, issue.address, host_word)),
                                ("columns", columns[first:first + config.tile_columns]),
                                ("rows", rows), ("by_row", ~(busy & is_v))):
                target = getattr(port, name)
                register = Signal.like(target, name=f"{name}_{number}",
                                       reset_less=name != "columns")
                m.d.sync += register.eq(value)
                m.d.comb += target.eq(register)
        return row[1:], host_pair, column

    def _write(self, m):
        """Cycle t: take the vector. Cycle t + 1: saturate, make parity."""
        config, issue, host = self._config, self.issue, self.host
        taken = [Signal(16, name=f"taken_{lane}", reset_less=True)
                 for lane in range(config.lanes)]
        part = Signal(self._part_bits, reset_less=True)
        by_host = Signal(reset_less=True)
        host_data = Signal(16, reset_less=True)
        m.d.sync += [lane.eq(value) for lane, value in zip(taken, self._lanes)]
        m.d.sync += [part.eq(issue.half0 + issue.j), by_host.eq(~issue.valid),
                     host_data.eq(host.w_data)]
        stored = [Signal(BYTE_BITS, name=f"stored_{lane}") for lane in range(config.lanes)]
        m.d.comb += [byte.eq(saturated_byte(lane)) for byte, lane in zip(stored, taken)]
        for row in range(config.rows):
            byte = Signal(BYTE_BITS, name=f"row_{row}")
            of_host = parity_byte(host_data.word_select(row % 2, 8))
            of_part = choose(stored[row::config.rows], part)
            m.d.comb += byte.eq(Mux(by_host, of_host, of_part))
            m.d.comb += [port.row_bytes[row].eq(byte) for port in self._ports]
        for lane, byte in enumerate(stored):
            number, index = divmod(lane, config.tile_columns)
            m.d.comb += self._ports[number].column_bytes[index].eq(byte)

    def _conflict(self, m, write, pair, column):
        """Cycle t + 1: does port A read a bank and word that is being written?

        Of the entries of ``read_used``, WRITE_K meets those of every row pair in the tile of its
        column, WRITE_V those of its row pair in every tile.
        """
        config = self._config
        tile = column[(config.tile_columns - 1).bit_length():
                      (config.half_columns - 1).bit_length()]
        taps = len(self.read_used)
        every_tile, every_pair = (1 << taps - config.pairs + 1) - 1, (1 << config.pairs) - 1
        places = Mux(self.issue.op == _WRITE_V, every_tile << pair, every_pair << tile)
        written = Signal(taps)
        m.d.sync += written.eq(places & write.replicate(taps))
        same = Cat(self.read_address[k] == self._ports[0].address for k in range(taps))
        m.d.sync += self.fault.causes[fault_bit(Fault.CONFLICT)].eq(
            (written & self.read_used & same).any())

    def _read_out(self, m, read, host_pair, column):
        """Cycle t + 1 to t + 5: collect the bytes of a column."""
        config, issue, host = self._config, self.issue, self.host
        rows, groups = config.rows, config.groups
        late = self._delayed(m, read | host.r_en & ~issue.valid, host_pair, column, read)
        tile_bits = (config.tile_columns - 1).bit_length()
        # Cycle t + 3: words at the outputs of the banks; every tile chooses a column.
        for port in self._ports:
            m.d.comb += port.read_column.eq(late[3].column[:tile_bits])
        # Cycle t + 4: choose a tile; the host takes its pair, the vector is put together.
        now = late[4]
        chosen = Signal(data.ArrayLayout(BYTE_BITS, rows))
        words = [port.read.as_value() for port in self._ports]
        m.d.comb += chosen.as_value().eq(choose(words, now.column[tile_bits:]))
        wrong, error, error_queue = Signal(), Signal(), Signal()
        m.d.comb += wrong.eq(Cat(chosen[row].xor() for row in range(rows)).any() & now.live)
        m.d.sync += [error.eq(wrong), error_queue.eq(wrong & now.queue),
                     self.fault.causes[fault_bit(Fault.PARITY)].eq(error_queue)]
        pairs = [Cat(chosen[row][:8], chosen[row + 1][:8]) for row in range(0, rows, 2)]
        word = Signal(16, reset_less=True)
        m.d.sync += word.eq(choose(pairs, now.pair))
        m.d.comb += [host.r_data.eq(word), host.r_error.eq(error),
                     self.o_valid.eq(now.live & now.emit)]
        for group in range(groups):
            here, past = now.part == group, now.part > group
            for row in range(rows):
                byte = chosen[row][:8].as_signed()
                kept = Signal(signed(8), name=f"kept_{group}_{row}", reset_less=True)
                with m.If(now.live & here):
                    m.d.sync += kept.eq(byte)
                m.d.comb += self.o[group * rows + row].eq(Mux(here, byte, Mux(past, kept, 0)))

    def _delayed(self, m, live, host_pair, column, queue):
        """What the read-out needs to know, one entry per cycle from t on."""
        config, issue = self._config, self.issue
        part = Signal(self._part_bits)
        m.d.comb += part.eq(issue.j)
        layout = data.StructLayout({"live": 1, "queue": 1, "emit": 1, "part": self._part_bits,
                                    "pair": len(host_pair), "column": len(column)})
        entries = [Signal(layout, name=f"read_{stage}") for stage in range(5)]
        first = entries[0]
        m.d.comb += [first.live.eq(live), first.queue.eq(queue), first.part.eq(part),
                     first.emit.eq(queue & ((part == config.groups - 1) | issue.j_last)),
                     first.pair.eq(host_pair), first.column.eq(column)]
        m.d.sync += [later.eq(sooner) for sooner, later in zip(entries, entries[1:])]
        return entries
