"""Instruction formats: hand-computed words, round trips, every refused field."""
import random

import pytest

from arch.config import PROFILES, profile
from arch.hostmap import PROGRAM_CHUNKS
from arch.isa import (DEFAULTS, UNITS, Control, Instruction, IsaError, decode, encode, layout,
                      op_code, operands, reserved_fields, sources_of, unit_of, word_bits)
from arch.queues import QUEUES, Stream, mem_stream

TINY = profile("tiny")


def test_a_word_by_hand():
    # mem_read of tiny, lowest bits first: op 4, wait_param 1, wait 10, n1_param 1, n1 9, d1 7,
    # n2_param 1, n2 9, d2 7, address 6, s1 7, s2 7: 69 bits.
    fields = {"wait": 5, "n1": 3, "n1_param": 1, "d1": 2, "n2_param": 1, "n2": 1, "d2": 9, "address": 33,
              "s1": -1, "s2": 4}
    parts = [(4, 4), (0, 1), (5, 10), (1, 1), (3, 9), (2, 7), (1, 1), (1, 9), (9, 7), (33, 6),
             (127, 7), (4, 7)]
    word, at = 0, 0
    for value, bits in parts:
        word |= value << at
        at += bits
    assert encode("r0", Instruction("READ", fields), TINY) == word
    assert word_bits(UNITS["mem_read"], TINY) == at == 69
    assert decode("r3", word, TINY).fields == fields | {"wait_param": 0}
    # mem_write: no outer repeats, but x 4, halves 2: 51 bits.
    write = {"wait": 5, "n1": 3, "d1": 2, "address": 33, "s1": -1, "x": 7, "halves": 2}
    assert encode("w3", Instruction("WRITE", write), TINY) == (
        4 | 5 << 5 | 3 << 16 | 2 << 25 | 33 << 32 | 127 << 38 | 7 << 45 | 2 << 49)
    assert word_bits(UNITS["mem_write"], TINY) == 51


def test_control_words_by_hand():
    # Defaults: wait, n1, d1 are 1.
    assert encode("sample", Instruction("NOP", {"wait": 3}), TINY) == (
        1 | 3 << 5 | 1 << 16 | 1 << 25)
    assert encode("sample", Instruction("END", {"n1": 2}), TINY) == (
        3 | 1 << 5 | 2 << 16 | 1 << 25)
    assert [op_code(UNITS["vxm"], name) for name in ("NOP", "LOOP", "END", "MAC", "GELU")] == [
        1, 2, 3, 4, 8]


@pytest.mark.parametrize("name", PROFILES)
def test_formats_are_contiguous_and_fit_the_host_map(name):
    config = profile(name)
    for unit in UNITS.values():
        at = 0
        for offset, width, _ in layout(unit, config).values():
            assert offset == at and width > 0
            at += width
        assert word_bits(unit, config) == at <= 16 * PROGRAM_CHUNKS
        assert list(layout(unit, config))[:3] == ["op", "wait_param", "wait"]
        assert len({field.name for field in unit.fields}) == len(unit.fields)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("queue", ["mxm", "drain", "kv", "vxm", "perm", "red", "const", "sample",
                                   "r0", "w0"])
def test_round_trip(name, queue):
    config, rng = profile(name), random.Random(name + queue)
    unit = unit_of(queue)
    for _ in range(100):
        fields = {}
        for field in unit.fields[1:]:
            bits = field.bits(config)
            low = -(1 << bits - 1) if field.signed else int(field.name in DEFAULTS)
            high = 0 if field.reserved else (1 << bits - field.signed) - 1
            fields[field.name] = rng.choice([low, high, rng.randint(low, high)])
        op = rng.choice([op.name for op in unit.ops] + list(Control.__members__))
        word = encode(queue, Instruction(op, fields), config)
        assert 0 <= word < 1 << word_bits(unit, config)
        assert decode(queue, word, config) == Instruction(op, fields)


@pytest.mark.parametrize("name", ["tiny", "ecp5_85k"])
@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_every_field_refuses_what_does_not_fit(name, unit):
    config = profile(name)
    queue = next(queue for queue in QUEUES if QUEUES[queue].unit == unit.name)
    for field in unit.fields[1:]:
        bits = field.bits(config)
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if field.signed else (
            0, (1 << bits) - 1)
        for value in (low - 1, high + 1):
            with pytest.raises(IsaError, match=f"{queue}: {unit.ops[0].name}: {field.name} must "
                               f"be {low} to {high}, not {value}"):
                encode(queue, Instruction(unit.ops[0].name, {field.name: value}), config)


@pytest.mark.parametrize("field", ["n1", "n2", "d1", "d2", "wait"])
def test_zero_counts_and_gaps_are_refused(field):
    with pytest.raises(IsaError, match=f"{field} must be at least 1, not 0"):
        encode("r0", Instruction("READ", {field: 0}), TINY)


@pytest.mark.parametrize("field", ["n1", "n2", "wait"])
def test_register_and_parameter_0_exist(field):
    encode("r0", Instruction("READ", {field: 0, f"{field}_param": 1}), TINY)


def test_unknown_names():
    with pytest.raises(IsaError, match="there is no queue 'alu'; there are mxm, drain"):
        unit_of("alu")
    with pytest.raises(IsaError, match="red has no operation 'DIV'; it has SUM, MAX, RECIP, RSQRT"):
        encode("red", Instruction("DIV", {}), TINY)
    with pytest.raises(IsaError, match="red: SUM has no field 'address'"):
        encode("red", Instruction("SUM", {"address": 0}), TINY)


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_reserved_opcodes(unit):
    queue = next(queue for queue in QUEUES if QUEUES[queue].unit == unit.name)
    used = {op.code for op in unit.ops} | {int(control) for control in Control}
    assert 0 not in used and len(used) == len(unit.ops) + len(Control)
    for code in range(16):
        if code not in used:
            with pytest.raises(IsaError, match=f"{queue}: opcode {code} is reserved"):
                decode(queue, code, TINY)


def test_streams():
    assert [mem_stream(bank) for bank in range(4)] == [Stream.M0, Stream.M1, Stream.M2, Stream.M3]
    a = UNITS["vxm"].field("a")
    assert sources_of(a, TINY) == (0, 1, 2, 3, 4, 5, 6, 7, 8)
    assert sources_of(a, TINY.replace(mem_banks=2)) == (0, 1, 2, 5, 6, 7, 8)
    assert sources_of(UNITS["mem_write"].field("x"), TINY) == (5, 7, 8, 10)
    assert [field.name for field in operands(UNITS["mxm"])] == ["x0", "x1"]
    assert not operands(UNITS["drain"])


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_two_or_three_bits_tell_the_sources_apart(unit):
    """The hardware takes the low bits of the number as the address of the multiplexer."""
    for field in operands(unit):
        named = [stream for stream in sources_of(field, TINY) if stream != Stream.NONE]
        bits = 2 if len(named) <= 4 else 3
        assert len({stream & (1 << bits) - 1 for stream in named}) == len(named)


def test_queue_ids_are_the_order():
    assert [queue.id for queue in QUEUES.values()] == list(range(18))
    assert (QUEUES["w2"].unit, QUEUES["w2"].bank, QUEUES["sample"].id) == ("mem_write", 2, 7)


def test_reserved_fields():
    """What each format keeps for later, and that no value but 0 can be encoded."""
    reserved = {unit.name: reserved_fields(unit) for unit in UNITS.values()}
    assert {name: fields for name, fields in reserved.items() if fields} == {
        "mxm": ("nibble", "chain", "p"), "kv": ("nibble", "ahead"), "vxm": ("ahead",),
        "perm": ("ahead",), "const": ("ahead",), "sample": ("more", "sequence")}
    for unit, fields in reserved.items():
        queue = next(queue for queue in QUEUES if QUEUES[queue].unit == unit)
        for field in fields:
            with pytest.raises(IsaError, match=f"{field} is reserved and must be 0, not 1"):
                encode(queue, Instruction(UNITS[unit].ops[0].name, {field: 1}), TINY)


def test_queues_of_links_are_on_no_machine():
    assert (QUEUES["send"].id, QUEUES["receive"].id) == (16, 17)
    for config in PROFILES.values():
        assert not {"send", "receive"} & set(config.queues)
