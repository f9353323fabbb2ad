"""Lane permutation: every pattern entry, index and fault, and the host's side of the table."""
import numpy as np
import pytest

from arch.config import profile
from arch.faults import Fault
from arch.hostmap import (PATTERN_ZERO, Space, constant_address, mem_address,
                          pattern_address)
from arch.isa import UNITS, Index, sources_of
from arch.queues import Stream
from arch.timing import timing
from hdl.perm import Perm
from tests.hdl.slice_bench import SliceBench

TINY = profile("tiny")
PERM = 4
SOURCES = sources_of(UNITS["perm"].field("x"), TINY)


def bench(config=TINY, table=None):
    """A bench whose first cycles write the pattern table; returns it and the first free cycle."""
    run, cycle = SliceBench(Perm, config, "o_perm",
                            watch=("bus.ack", "bus.r_data")), 0
    for pattern, row in enumerate(() if table is None else table):
        for lane, entry in enumerate(row):
            run.bus(cycle, Space.PATTERNS, pattern_address(config, pattern, lane), int(entry))
            cycle += 1
    return run, cycle + 1


def random_table(rng, config):
    table = rng.integers(config.lanes, size=(config.patterns, config.lanes))
    return table | np.where(rng.random(table.shape) < 0.2, PATTERN_ZERO, 0)


@pytest.mark.parametrize("profile_name, stages", [
    ("tiny", 0), ("tiny", 1), ("tiny", 2), ("tiny", 3), ("ecp5_85k", 0)])
def test_random(profile_name, stages):
    """Random tables, operands, index values and shifts, as close as allowed and with gaps."""
    config = profile(profile_name).replace(perm_stages=stages)
    rng = np.random.default_rng(stages)
    table = random_table(rng, config)
    run, cycle = bench(config, table)
    results = {}
    position, token = int(rng.integers(config.context)), int(rng.integers(config.vocab_max))
    run.set(0, "position", position)
    run.set(0, "token", token)
    for _ in range(300):
        source = SOURCES[rng.integers(len(SOURCES))]
        x = rng.integers(-32768, 32768, config.lanes)
        index = Index(int(rng.integers(3)))
        shift = int(rng.integers(16) if rng.random() < 0.3 else rng.integers(5))
        pattern = int(rng.integers(config.patterns))
        run.stream(cycle, source, x)
        run.issue(cycle, op=PERM, x=source, pattern=pattern, index=index, index_shift=shift)
        value = {Index.NONE: 0, Index.POSITION: position, Index.TOKEN: token}[index]
        y = [0 if entry & PATTERN_ZERO else x[entry ^ (value << shift) % config.lanes]
             for entry in table[pattern]]
        results[cycle + timing(config).perm] = y
        cycle += timing(config).perm_gap + (0 if rng.random() < 0.8 else int(rng.integers(1, 6)))
    got, faults, _ = run.run(cycle + 8)
    assert not faults
    assert {at: y.tolist() for at, y in got.items()} == {
        at: [int(lane) for lane in y] for at, y in results.items()}


def test_by_hand():
    """Reversal with a zero lane; then the same with lanes 2 apart exchanged (position 1, shift 1)."""
    table = np.zeros((TINY.patterns, 8), int)
    table[5] = [7, 6, 5, 4, 3, 2 | PATTERN_ZERO, 1, 0]
    run, cycle = bench(TINY, table)
    run.set(0, "position", 1)
    x = [10, 11, 12, 13, 14, 15, 16, 17]
    run.stream(cycle, Stream.M0, x)
    run.issue(cycle, op=PERM, x=Stream.M0, pattern=5)
    x = [lane - 0x2345 for lane in x]
    run.stream(cycle + 4, Stream.M0, x)
    run.issue(cycle + 4, op=PERM, x=Stream.M0, pattern=5, index=Index.POSITION, index_shift=1)
    got, faults, _ = run.run(cycle + 12)
    assert not faults
    assert list(got) == [cycle + 5, cycle + 9]
    assert got[cycle + 5].tolist() == [17, 16, 15, 14, 13, 0, 11, 10]
    assert got[cycle + 9].tolist() == [y and y - 0x2345 for y in (15, 14, 17, 16, 11, 0, 13, 12)]


def test_host_reads_what_it_wrote():
    """Every entry reads back three cycles after the request; other spaces get no answer."""
    rng = np.random.default_rng(1)
    table = random_table(rng, TINY)
    run, start = bench(TINY, table)
    words = table.ravel().tolist()
    for address in range(len(words)):
        run.bus(start + 3 * address, Space.PATTERNS, address)
    other = start + 3 * len(words)
    run.bus(other, Space.CONSTANTS, 0, 3)
    run.bus(other + 3, Space.WEIGHTS, 0)
    run.bus(other + 6, Space.PATTERNS, 0)
    _, faults, watched = run.run(other + 16)
    assert not faults
    for address, word in enumerate(words):
        assert watched[start + 3 * address + 3] == {"bus.ack": 1, "bus.r_data": word}
        assert watched[start + 3 * address + 4] == {"bus.ack": 0, "bus.r_data": 0}
    assert all(watched[at]["bus.ack"] == (at == other + 9) for at in range(other + 1, other + 16))
    assert watched[other + 9]["bus.r_data"] == words[0]
    writes = [cycle for cycle in range(start + 2) if watched[cycle]["bus.ack"]]
    assert writes == list(range(3, len(words) + 3))


@pytest.mark.parametrize("changes", [{}, {"mem_stages": 3}, {"const_stages": 1, "perm_stages": 2}])
def test_host_reads_vectors(changes):
    """A lane of MEM or CONSTANTS, from the stream on which the word is, though it is not valid."""
    config = TINY.replace(mem_depth=40, **changes)
    times, rng = timing(config), np.random.default_rng(6)
    at_stream = 1 + max(times.mem_read, times.const_read)
    run, cycle = bench(config, random_table(rng, config))
    wanted = {}
    for bank, word, lane in [(0, 0, 0), (1, 39, 7), (2, 5, 3), (3, 39, 4), (None, 127, 5)]:
        space = Space.CONSTANTS if bank is None else Space.MEM
        address = (constant_address(config, word, lane) if bank is None
                   else mem_address(config, bank, word, lane))
        x = rng.integers(-32768, 32768, config.lanes)
        run.stream(cycle + at_stream, Stream.CONST if bank is None else Stream(Stream.M0 + bank), x)
        run.bus(cycle, space, address)
        wanted[cycle + at_stream + times.perm + 1] = int(x[lane]) & 0xFFFF
        cycle += 20
    got, faults, watched = run.run(cycle)
    assert not faults and not got
    assert {at: seen["bus.r_data"] for at, seen in enumerate(watched)
            if seen["bus.ack"] and at > config.patterns * config.lanes + 2} == wanted


def test_faults():
    run, _ = bench(TINY.replace(patterns=5))
    lanes = TINY.lanes
    bad = [({"x": Stream.M0}, Fault.OPERAND), ({"x": Stream.NONE}, Fault.ENCODING),
           *[({"x": source}, Fault.ENCODING) for source in range(10, 16)],
           *[({"x": Stream.M1, "op": op}, Fault.ENCODING) for op in range(16) if op != PERM],
           ({"x": Stream.M1, "index": 3}, Fault.ENCODING),
           *[({"x": Stream.M1, "pattern": pattern}, Fault.ADDRESS) for pattern in (5, 6, 7)]]
    for number, (fields, _) in enumerate(bad):
        run.stream(5 * number + 1, Stream.M0, [0] * lanes)
        run.stream(5 * number, Stream.M1, [0] * lanes)
        run.issue(5 * number, **{"op": PERM} | fields)
    run.stream(5 * len(bad), Stream.M1, [0] * lanes)
    run.issue(5 * len(bad), op=PERM, x=Stream.M1, pattern=4)
    _, faults, _ = run.run(5 * len(bad) + 6)
    assert faults == {5 * number + 1: {fault} for number, (_, fault) in enumerate(bad)}


def test_too_close():
    """The one before is still under way for three cycles."""
    run, cycle = bench()
    wanted = {}
    for gap in (1, 2, 3, 4, 5):
        cycle += 10
        for at in (cycle, cycle + gap):
            run.stream(at, Stream.M1, [0] * TINY.lanes)
            run.issue(at, op=PERM, x=Stream.M1)
        if gap < 4:
            wanted[cycle + gap + 1] = {Fault.CONFLICT}
    _, faults, _ = run.run(cycle + 12)
    assert faults == wanted


def test_nothing_is_valid_after_reset():
    got, faults, _ = bench()[0].run(10)
    assert not got and not faults
