"""The self-test must find a broken line of RTL and a flipped bit, and say which it is.

The Verilated chip stands for the board: the same host port without the serial line around it.
"""
import dataclasses
import json

import pytest

import metronome
from arch.config import profile
from arch.hostmap import Space
from sim import rtl as rtl_files
from sim import selftest
from sim.verilator import VerilatorEngine
from tests.rtl import available

pytestmark = pytest.mark.slow
TINY = profile("tiny")
#: Memory, word and bit that flips before the model runs; the checks that fail, and what they say.
WEIGHT, CACHE = "mxm.tile_1.bank_0_1.memory", "mxm.tile_3.bank_1_0.memory"
FLIPS = {
    "weight": (WEIGHT, 2, 5, {"generate": "first run: fault PARITY: queue mxm, position 0",
                              "scrub": "WEIGHTS has changed since it was loaded; a word of WEIGHTS "
                                       "has wrong parity"}),
    "parity of a weight": (WEIGHT, 2, 17, {"generate": "first run: fault PARITY: queue mxm",
                                           "scrub": "board: a word of WEIGHTS has wrong parity"}),
    "cache of a later position": (CACHE, 267, 4, {
        "scrub": "board: a word of WEIGHTS has wrong parity: a bit has flipped"}),
    "vector that nobody reads": ("mem.bank3.data.data", 63, 7, {
        "scrub": "board: a word of MEM has wrong parity: a bit has flipped"}),
    "program": ("queue_red.program.bank0", 15, 30, {
        "generate": "board: PROGRAM of queue red has changed since it was loaded",
        "scrub": "board: PROGRAM of queue red has changed since it was loaded"}),
    "delay": ("params.store", 16 * 4 * 3 + 3 * 16, 1, {
        "generate": "board: PARAMS of queue vxm has changed since it was loaded",
        "scrub": "board: PARAMS of queue vxm has changed since it was loaded"}),
}


class Chip(VerilatorEngine):
    """What `sim.selftest` takes for a board."""
    name = "board"
    _wears = True
    flip = None

    def __init__(self, config, *, port: str):
        super().__init__(config)

    def load(self, image, backdoor=False):
        super().load(image, backdoor=False)
        self._flips = "vocabulary" in image.meta  # the model, not the program of check "fault"

    def run(self, *arguments, **settings):
        if self._flips and self.flip:
            memory, word, bit = self.flip
            self._memories()[memory][word, bit // 8] ^= 1 << bit % 8
            self._flips = False
        return super().run(*arguments, **settings)


@pytest.fixture
def failures(tiny, monkeypatch, capsys):
    """A function that runs the command with a kind of chip; gives failures by check."""
    available("verilator")
    # The model of the command for this profile, compiled already.
    monkeypatch.setattr(metronome, "compile_model", lambda checkpoint, config: tiny)

    def run(chip, marched) -> dict:
        from scripts.cli import main
        monkeypatch.setattr(selftest, "create", lambda name, config, port: chip(config, port=port))
        monkeypatch.setattr(selftest, "MARCHED", marched)
        status = main(["selftest", "--port", "none", "--profile", "tiny", "--json"])
        out, err = capsys.readouterr()
        found = {check["name"]: check["failure"] for check in json.loads(out)["checks"]
                 if check["failure"]}
        assert status == bool(found)
        if found:
            first, said = next(iter(found.items()))
            assert err.splitlines()[-1] == f"metronome: self-test failed: {first}: {said}"
        return found
    return run


def test_nothing_is_found_where_nothing_is(failures):
    assert failures(Chip, selftest.MARCHED) == {}


@pytest.mark.parametrize("name", FLIPS)
def test_a_flipped_bit(failures, name):
    memory, word, bit, wanted = FLIPS[name]

    class Flipped(Chip):
        flip = memory, word, bit
    found = failures(Flipped, (Space.TOKENS,))
    assert found.keys() == wanted.keys()
    for check, message in wanted.items():
        assert message in found[check], found


def test_a_broken_line(failures, monkeypatch):
    """Of a bank of MEM, one address line of the read port is stuck."""
    made = rtl_files.generate(TINY, print)
    begin = made.verilog.index("module \\metronome_tiny.mem.bank1.data (")
    end = made.verilog.index("endmodule", begin)
    whole = made.verilog[begin:end]
    broken = whole.replace("data[r_address_late]", "data[r_address_late & 6'd61]")
    assert broken != whole
    monkeypatch.setattr(rtl_files, "generate", lambda *arguments: dataclasses.replace(
        made, verilog=made.verilog[:begin] + broken + made.verilog[end:]))
    found = failures(Chip, (Space.TOKENS, Space.MEM))
    # Bank 1 has 64 words of 8 lanes; words 2 and 3 of every four come from 0 and 1.
    assert found["march MEM"].startswith(f"256 of 2048 words of MEM differ, first at {66 * 8}: wrote")
    assert found["generate"].startswith("first run: fault PARITY: queue r1, position 0")
