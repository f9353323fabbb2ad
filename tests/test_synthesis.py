"""The figures of ``metronome synth``, and that what it synthesises is what is simulated."""
import pytest

from arch.config import profile
from arch.queues import QUEUES
from hdl.chip import Chip
from hdl.verilog import digest
from scripts import synthesis
from sim import toolchain

TINY = profile("tiny")


@pytest.mark.slow
def test_synthesised_is_simulated():
    """Nothing but the cells of the platform hook depends on the vendor."""
    plain, vendor = (digest(Chip(config=TINY, vendor=vendor)) for vendor in (False, True))
    assert plain == vendor


def test_the_digest_sees_hardware_and_the_size_of_cells():
    """Any change of a slice shows, be it a cell: here each weight bank has one word less."""
    smaller = TINY.replace(weight_depth=TINY.weight_depth - 1)
    assert smaller.weight_address_bits == TINY.weight_address_bits
    units = synthesis.units()
    assert digest(units["mxm"](TINY)) != digest(units["mxm"](smaller))
    slower = TINY.replace(reduce_stages=1)
    assert digest(units["red"](TINY)) != digest(units["red"](slower))


def test_units_cover_every_format():
    units = set(synthesis.units())
    names = {name.removeprefix("icu_") for name in units if name.startswith("icu_")}
    assert {QUEUES[name].unit for name in names} == {
        QUEUES[name].unit for name in TINY.queues}
    assert len(names) == 10
    assert {"chip", "mxm", "vxm", "perm", "red", "sample", "mem", "const", "host",
            "sequencer"} <= units


def test_lut4_equivalent_by_hand():
    cells = {"LUT4": 100, "CCU2C": 10, "TRELLIS_DPR16X4": 3, "TRELLIS_FF": 999, "PFUMX": 50}
    assert synthesis.lut4_equivalent(cells) == 100 + 20 + 12
    assert synthesis.lut4_equivalent({"DP16KD": 5}) == 0


@pytest.mark.skipif(bool(toolchain.missing(toolchain.yosys)), reason="yosys is not installed")
def test_every_declared_memory_is_listed(tmp_path):
    """A queue declares two memories; both turn into distributed RAM."""
    result = synthesis.synthesise(TINY, "icu_drain", tmp_path)
    assert result["lut4_equivalent"] == synthesis.lut4_equivalent(result["cells"]) > 100
    assert result["rtl_sha256"]["simulated"] == result["rtl_sha256"]["synthesised"]
    assert len(result["memories"]) >= 2
    assert sum(memory["cells"].get("TRELLIS_DPR16X4", 0) for memory in
               result["memories"].values()) == result["cells"]["TRELLIS_DPR16X4"] > 0
