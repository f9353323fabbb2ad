"""Second port of the weight banks: run-time writes, read-out, and the host's way to the weights."""
from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from arch.config import Config
from arch.faults import Fault
from arch.isa import UNITS, sources_of
from hdl.cells import BYTE_BITS, WORD_BITS, bank_parts, copies
from hdl.choose import GROUP, choose
from hdl.mxm_tile import WeightPortSignature
from hdl.signatures import FaultSignature, IssueSignature, StreamsSignature, fault_bit, issued

#: Cycles from ``r_en`` of the host to ``r_data``.
HOST_READ_LATENCY = 9
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
        read per cycle. PARITY if the word, or another one of its column at that address, is wrong.
    """

    def __init__(self, config: Config):
        super().__init__({"address": Out(host_address_bits(config)),
                          "w_en": Out(1), "w_data": Out(16), "r_en": Out(1),
                          "r_data": In(16)})


def saturated_byte(value, raw):
    """``saturate_symmetric(value, 8)`` of an int16 value, as the nine bits that are stored.

    The parity is found beside the saturation, not behind it. -128 stays as it is if ``raw``.
    """
    sign = value[15]
    inside = ~value[7:].any() | value[7:].all()
    lowest = value[7] & ~value[:7].any() & ~raw
    byte = Mux(inside, Cat(value[0] | lowest, value[1:8]), Mux(sign, 0x81, 0x7F))
    parity = Mux(inside, value[:8].xor() ^ lowest, ~sign)
    return Cat(byte, parity)


class KvPort(wiring.Component):
    """Unit "kv". A write issued on cycle t reaches the banks on cycle t + 4 and lands at its end;
    the vector whose last part is issued on cycle t is given on cycle t + 9, for ACC on t + 10.

    Parameters
    ----------
    config : Config
    vendor : bool
        Build the cells from ECP5 primitives.

    Members
    -------
    issue, streams, position, token : as in `hdl.mxm.Mxm`.
    host : `WeightHostSignature`.
    port_0, port_1, ... : port B of tile 0, 1, ... (`WeightPortSignature`), in order of columns.
    read_address, read_used : what port A of row pair 0 in the first tile of a half reads on the
        next cycle; entry k is the same, k cycles later.
    o, o_valid : vector read out; a bit of ``o_valid`` for the lanes of each tile.
    fault : OPERAND, ADDRESS and ENCODING on cycle t, CONFLICT on t + 4, PARITY on t + 10.
    """

    def __init__(self, *, config: Config, vendor: bool = False):
        self._config, self._vendor = config, vendor
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
            "o": Out(data.ArrayLayout(signed(8), config.lanes)), "o_valid": Out(tiles),
            "fault": Out(FaultSignature())})
        self._ports = [getattr(self, f"port_{tile}") for tile in range(tiles)]

    def elaborate(self, platform):
        m = Module()
        write, read = self._decode(m)
        late = [None, self._place(m, write, read)]
        for stage in range(2, 9):
            late.append(Signal.like(late[1], name=f"access_{stage}"))
            m.d.sync += late[stage].eq(late[stage - 1])
        self._write(m, late[1])
        self._reach(m, late[2])
        self._conflict(m, late[2])
        self._read_out(m, late)
        return m

    def _decode(self, m):
        """Cycle t: take the vector; faults of the issue. Returns whether it writes, whether it
        reads. From where is decoded on the cycle before."""
        config, coming, host = self._config, self.issue, self.host
        self._now = issue = issued(m, coming)
        sources = sources_of(UNITS["kv"].field("x"), config)
        sides = [getattr(self.streams, stream.name.lower()) for stream in sources]
        place, found, known = Signal(range(len(sides) + 1)), Signal(), Signal()
        with m.Switch(coming.x):
            for number, stream in enumerate(sources):
                with m.Case(int(stream)):
                    m.d.comb += [place.eq(number), found.eq(1)]
        with m.If(~coming.valid):
            m.d.comb += place.eq(len(sides))
        m.d.sync += known.eq(found)
        places = copies(m, place, -(-config.lanes // GROUP), "place", self._vendor)
        valid = choose([*(side.valid for side in sides), Const(0, 1)], places[0], m, self._vendor)
        self._taken = []
        for lane in range(config.lanes):
            # The word of the host is on every pair of lanes.
            byte = host.w_data.word_select(lane % 2, 8)
            values = [side.data[lane][:16] for side in sides]
            values.append(Cat(byte, byte[7].replicate(8)))
            taken = Signal(16, name=f"taken_{lane}", reset_less=True)
            m.d.sync += taken.eq(choose(values, places[lane // GROUP], m, self._vendor))
            self._taken.append(taken)
        writes = (issue.op == _WRITE_K) | (issue.op == _WRITE_V)
        reads = issue.op == _READ_OUT
        in_range = issue.address < config.weight_depth
        write, read = Signal(), Signal()
        m.d.comb += [write.eq(issue.valid & writes & in_range),
                     read.eq(issue.valid & reads & in_range)]
        unknown = ~(writes | reads) | writes & ~known
        for fault, event in ((Fault.OPERAND, writes & known & ~valid),
                             (Fault.ADDRESS, (writes | reads) & ~in_range),
                             (Fault.ENCODING, unknown)):
            m.d.sync += self.fault.causes[fault_bit(fault)].eq(issue.valid & event)
        return write, read

    def _place(self, m, write, read):
        """Cycle t: what is accessed, by the queue or by the host. Returns it for cycle t + 1.

        A write covers one row of all columns if ``v``, else all rows, or those of ``pair``
        if ``host``, of ``column``. A read concerns ``column``; its vector is complete if ``emit``.
        """
        config, issue, host = self._config, self._now, self.host
        pair_bits, column_bits = ((size - 1).bit_length() for size in (config.pairs,
                                                                       config.columns))
        layout = data.StructLayout({
            "write": 1, "read": 1, "v": 1, "host": 1, "emit": 1,
            "address": config.weight_address_bits, "column": column_bits,
            "row": config.rows.bit_length() - 1, "pair": pair_bits,
            "half": self._part_bits, "part": self._part_bits})
        now, access = Signal(layout), Signal(layout, name="access")
        host_word = host.address[pair_bits + column_bits:]
        by_token = (issue.op == _READ_OUT) & ~issue.half0[0]
        part = issue.j[:self._part_bits]
        m.d.comb += [
            now.v.eq(issue.op == _WRITE_V), now.row.eq(self.position),
            now.pair.eq(host.address[:pair_bits]), now.part.eq(part),
            now.half.eq(issue.half0 + issue.j),
            now.emit.eq((part == config.groups - 1) | issue.j_last)]
        with m.If(issue.valid):
            m.d.comb += [now.write.eq(write), now.read.eq(read), now.address.eq(issue.address),
                         now.column.eq(Mux(by_token, self.token, self.position))]
        with m.Else():
            m.d.comb += [now.host.eq(1), now.read.eq(host.r_en),
                         now.write.eq(host.w_en & (host_word < config.weight_depth)),
                         now.address.eq(host_word), now.column.eq(host.address[pair_bits:])]
        m.d.sync += access.eq(now)
        return access

    def _write(self, m, access):
        """Cycle t + 1: saturate, make parity. Cycle t + 2: every byte to its line. Cycle t + 3: to
        the tiles, which are all over the chip and have registers of their own.

        Line l has the byte of lane l xor ``turn``: for V, column c of row r on line c xor r is lane
        c; for K, row r of column c is lane r of the half; for the host, lane r.
        """
        config = self._config
        stored = [Signal(BYTE_BITS, name=f"stored_{lane}", reset_less=True)
                  for lane in range(config.lanes)]
        m.d.sync += [byte.eq(saturated_byte(lane, access.host))
                     for byte, lane in zip(stored, self._taken)]
        turn = Signal(config.lane_bits)
        half = Cat(Const(0, config.rows.bit_length() - 1), access.half)
        with m.If(access.v & ~access.host):
            m.d.comb += turn.eq(access.row)
        with m.Else():
            m.d.comb += turn.eq(access.column ^ Mux(access.host, 0, half))
        turns = copies(m, turn, 4, "turn", self._vendor)
        for low in range(0, len(turn), 2):
            index = [copy[low:low + 2] for copy in turns]
            stored = [choose([stored[line ^ number << low]
                              for number in range(1 << len(index[0]))], index[line % 4], m,
                             self._vendor)
                      for line in range(config.lanes)]
        lines = Signal(data.ArrayLayout(BYTE_BITS, config.lanes), reset_less=True)
        m.d.sync += [lines[line].eq(byte) for line, byte in enumerate(stored)]
        # Cycle t + 4: at the banks.
        everywhere = copies(m, lines, len(self._ports), "lines", self._vendor)
        m.d.comb += [port.lines.as_value().eq(there)
                     for port, there in zip(self._ports, everywhere)]

    def _reach(self, m, access):
        """Cycle t + 2: decode the place. Cycle t + 4: at the banks."""
        config = self._config
        parts = bank_parts(config.weight_depth)
        rows, columns = Signal(config.rows), Signal(config.columns)
        for row in range(config.rows):
            here = Mux(access.host, access.pair == row // 2, ~access.v | (access.row == row))
            m.d.sync += rows[row].eq(access.write & here)
        for column in range(config.columns):
            here = (access.column == column) | access.v & ~access.host
            m.d.sync += columns[column].eq(here & (access.write | access.read))
        address = Signal(config.weight_address_bits, reset_less=True)
        m.d.sync += address.eq(access.address)
        segments = [address[-1] == part if parts > 1 else Const(1) for part in range(parts)]
        self._address = address
        # A row pair of a tile stands in one row of the chip.
        reach = [copies(m, Cat(address, rows[2 * pair:2 * pair + 2]), len(self._ports),
                        f"reach_{pair}", self._vendor) for pair in range(config.pairs)]
        for number, port in enumerate(self._ports):
            first = number * config.tile_columns
            chosen = Cat(columns[first + column] & segment
                         for column in range(config.tile_columns) for segment in segments)
            register = Signal(len(chosen), name=f"columns_{number}", reset_less=True)
            m.d.sync += register.eq(chosen)
            m.d.comb += [Cat(port.address[pair], port.rows[2 * pair:2 * pair + 2]).eq(there[number])
                         for pair, there in enumerate(reach)]
            m.d.comb += port.columns.as_value().eq(register)

    def _conflict(self, m, access):
        """Cycle t + 4: does port A read a bank and word that is being written?

        Of the entries of ``read_used``, WRITE_K meets those of every row pair in the tile of its
        column, WRITE_V those of its row pair in every tile. Compared one cycle ahead.
        """
        config = self._config
        tile = access.column[(config.tile_columns - 1).bit_length():
                             (config.half_columns - 1).bit_length()]
        taps = len(self.read_used)
        every_tile, every_pair = (1 << taps - config.pairs + 1) - 1, (1 << config.pairs) - 1
        places = Mux(access.v, every_tile << access.row[1:], every_pair << tile)
        written, met = Signal(taps), Signal(taps)
        m.d.sync += written.eq(places & (access.write & ~access.host).replicate(taps))
        same = Cat(self.read_address[k] == self._address for k in range(taps))
        m.d.sync += [met.eq(written & self.read_used & same),
                     self.fault.causes[fault_bit(Fault.CONFLICT)].eq(met.any())]

    def _read_out(self, m, late):
        """Cycle t + 6 to t + 9: collect the bytes of a column; ``late[k]`` is that of cycle t + k.
        """
        config, host = self._config, self.host
        rows, groups = config.rows, config.groups
        # Cycle t + 6: words at the outputs of the banks; every tile chooses a column, told one cycle
        # before.
        tile_bits = (config.tile_columns - 1).bit_length()
        place = late[5].column[:tile_bits]
        if bank_parts(config.weight_depth) > 1:
            place = Cat(late[5].address[-1], place)
        m.d.comb += [port.read_place.eq(place) for port in self._ports]
        # Cycle t + 7: choose a tile.
        words = [port.read.as_value() for port in self._ports]
        chosen = Signal(data.ArrayLayout(BYTE_BITS, rows), reset_less=True)
        tiles = copies(m, late[6].column[tile_bits:], config.pairs, "read_tile", self._vendor)
        for pair, tile in enumerate(tiles):
            part = slice(pair * WORD_BITS, (pair + 1) * WORD_BITS)
            m.d.sync += chosen.as_value()[part].eq(
                choose([word[part] for word in words], tile, m, self._vendor))
        # Cycle t + 8: the host takes its pair, the vector is put together.
        now = late[8]
        wrong, error, late_error = Signal(), Signal(), Signal()
        m.d.comb += wrong.eq(Cat(chosen[row].xor() for row in range(rows)).any() & now.read)
        m.d.sync += [error.eq(wrong), late_error.eq(error),
                     self.fault.causes[fault_bit(Fault.PARITY)].eq(late_error)]
        pairs = [Cat(chosen[row][:8], chosen[row + 1][:8]) for row in range(0, rows, 2)]
        word = Signal(16, reset_less=True)
        m.d.sync += word.eq(choose(pairs, now.pair))
        m.d.comb += host.r_data.eq(word)
        for group in range(groups):
            for row in range(rows):
                # Parts come in order, so a part clears those behind it.
                kept = Signal(signed(8), name=f"kept_{group}_{row}", reset_less=True)
                with m.If(now.read & (now.part == group)):
                    m.d.sync += kept.eq(chosen[row][:8])
                with m.Elif(now.read & (now.part < group)):
                    m.d.sync += kept.eq(0)
                m.d.comb += self.o[group * rows + row].eq(kept)
        emit = copies(m, now.read & ~now.host & now.emit, len(self._ports), "emit", self._vendor)
        m.d.comb += self.o_valid.eq(Cat(emit))
