"""Sizes of a machine: profiles, derived sizes, and every value that is refused."""
import dataclasses

import pytest

from arch.config import PROFILES, Config, ConfigError, profile
from arch.timing import timing

TINY = profile("tiny")


@pytest.mark.parametrize("changes, message", [
    ({"rows": 3}, "rows must be 2, 4, 8, 16 or 32, not 3"),
    ({"rows": 64, "columns": 64}, "rows must be 2, 4, 8, 16 or 32, not 64"),
    ({"rows": "8"}, "rows must be 2, 4, 8, 16 or 32, not '8'"),
    ({"columns": 12}, "columns must be 1, 2 or 4 times rows, not 12"),
    ({"columns": 32}, "columns must be 1, 2 or 4 times rows, not 32"),
    ({"rows": 2, "columns": 2, "tile_columns": 1}, "columns must be at least 4, not 2"),
    ({"tile_columns": 0}, "tile_columns must be at least 1, not 0"),
    ({"tile_columns": 3}, "tile_columns must divide half of the columns, not 3"),
    ({"tile_columns": 8}, "tile_columns must divide half of the columns, not 8"),
    ({"weight_depth": 0}, "weight_depth must be at least 1, not 0"),
    ({"weight_bits": 4}, "weight_bits must be 8, not 4"),
    ({"activation_bits": 7}, "activation_bits must be 8 to 10, not 7"),
    ({"activation_bits": 11}, "activation_bits must be 8 to 10, not 11"),
    ({"accumulators": 12}, "accumulators must be a power of two from 4 to 64, not 12"),
    ({"accumulators": 128}, "accumulators must be a power of two from 4 to 64, not 128"),
    ({"mem_banks": 1}, "mem_banks must be 2 to 4, not 1"),
    ({"mem_banks": 5}, "mem_banks must be 2 to 4, not 5"),
    ({"mem_depth": 0}, "mem_depth must be at least 1, not 0"),
    ({"const_depth": -1}, "const_depth must be at least 1, not -1"),
    ({"patterns": 0}, "patterns must be at least 1, not 0"),
    ({"context": 0}, "context must be at least 1, not 0"),
    ({"context": 36}, "context must be a multiple of columns, not 36"),
    ({"vocab_max": 1}, "vocab_max must be 2 to 65535, not 1"),
    ({"vocab_max": 65536}, "vocab_max must be 2 to 65535, not 65536"),
    ({"param_columns": 0}, "param_columns must be at least 1, not 0"),
    ({"links": 1}, r"links must be 0 \(reserved\), not 1"),
    ({"program_depth": (("alu", 64),)}, "program_depth names no queue 'alu'"),
    ({"program_depth": (("*", 3),)}, "program_depth must be 4 to 512, not 3"),
    ({"program_depth": (("*", 64), ("vxm", 513))}, "program_depth must be 4 to 512, not 513"),
    *[({f"{name}_stages": value}, f"{name}_stages must be 0 to 3, not {value}")
      for name in ("mem", "const", "mxm", "drain", "vxm", "perm", "reduce") for value in (-1, 4)],
])
def test_refused(changes, message):
    with pytest.raises(ConfigError, match=f"profile 'tiny': {message}"):
        TINY.replace(**changes)


def test_every_stage_field_is_refused_somewhere_above():
    names = {field.name for field in dataclasses.fields(Config) if field.name.endswith("_stages")}
    assert names == {f"{name}_stages" for name in ("mem", "const", "mxm", "drain", "vxm", "perm",
                                                   "reduce")}


def test_profiles():
    assert set(PROFILES) >= {"tiny", "small", "ecp5_85k", "sim_large"}
    assert all(profile(name).name == name for name in PROFILES)
    with pytest.raises(ConfigError, match="unknown profile 'huge'; there are tiny, small, ecp5_85k"):
        profile("huge")


def test_derived_sizes():
    flagship = profile("ecp5_85k")
    assert (flagship.lanes, flagship.half_columns, flagship.groups, flagship.pairs) == (16, 8, 2, 4)
    assert (flagship.macs_per_cycle, flagship.param_rows) == (128, 16)
    # 3,072 words; 48 words; 512 words; 16 accumulators; 8 patterns; 256 positions; 1,024 tokens.
    assert flagship.weight_address_bits == 12 and flagship.mem_address_bits == 6
    assert flagship.const_address_bits == 9 and flagship.accumulator_bits == 4
    assert flagship.pattern_bits == 3 and flagship.lane_bits == 4
    assert flagship.position_bits == 8 and flagship.token_bits == 10
    assert flagship.replace(weight_depth=4097).weight_address_bits == 13
    assert flagship.replace(patterns=1).pattern_bits == 1
    assert (flagship.depth_of("vxm"), flagship.depth_of("red")) == (96, 32)


def test_queues_follow_the_banks():
    assert TINY.queues == ("mxm", "drain", "kv", "vxm", "perm", "red", "const", "sample",
                           "r0", "r1", "r2", "r3", "w0", "w1", "w2", "w3")
    assert TINY.replace(mem_banks=2).queues[8:] == ("r0", "r1", "w0", "w1")


def test_a_config_is_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.rows = 8
    with pytest.raises(TypeError):
        Config("positional")


def test_digest_ties_every_field():
    digests = {TINY.digest()}
    changes = [{"name": "other"}, {"weight_depth": 1000}, {"vxm_stages": 1}, {"patterns": 9},
               {"program_depth": (("*", 64),)}, {"tile_columns": 1}, {"param_columns": 31}]
    digests |= {TINY.replace(**change).digest() for change in changes}
    assert len(digests) == len(changes) + 1
    assert len(TINY.digest()) == 8 and TINY.digest() == TINY.replace().digest()


def test_latencies_by_hand():
    # tiny: 2 row pairs, 2 tiles per half (1 hop). Take 3, multiply 2, pairs 2, hop 1,
    # write 1; the drain reads one cycle after its issue.
    tiny = timing(TINY)
    assert tiny.matmul_to_drain == 8 and tiny.drain_to_matmul == -6
    assert tiny.kv_write_to_matmul == 4 and tiny.matmul_to_kv_write == 0
    assert tiny.sample_gap == tiny.perm_gap == 4
    # 16 columns in tiles of 4: 2 tiles per half; 4 row pairs; one more stage for the sums.
    flagship = timing(profile("ecp5_85k"))
    assert flagship.matmul_to_drain == 11 and flagship.matmul_to_kv_write == 2
    stages = timing(TINY.replace(mem_stages=1, const_stages=2, mxm_stages=3, drain_stages=1,
                                 vxm_stages=2, perm_stages=3, reduce_stages=1))
    assert (stages.mem_read, stages.const_read, stages.matmul_to_drain, stages.drain, stages.vxm,
            stages.perm, stages.reduce, stages.reduce_function) == (2, 4, 11, 3, 10, 8, 7, 12)
    # The first extra stage of MEM delays a read in front of the bank: it sees later writes.
    assert [timing(TINY.replace(mem_stages=number)).mem_write_to_read
            for number in range(3)] == [2, 1, 1]
