"""Bits that flip in the middle of a run: each is told, or all results are right."""
import re

import pytest

from arch.config import profile
from scripts.campaign import PROMPT, SETTINGS, STEPS
from sim import engine as engines
from sim import flip_campaign, rtl
from sim.flip_campaign import DRIVER, GONE, HOST, OUTCOMES, PARITY, SCRUB, SCRUB_LATE, SILENT
from sim.flip_memories import HIDDEN, memories
from tests.rtl import available

pytestmark = pytest.mark.slow
TINY = profile("tiny")
#: Kinds of memory with what may become of their flips besides GONE.
TOLD = {"weights": {PARITY, HOST}, "KV cache": {PARITY, HOST}, "MEM": {PARITY, HOST},
        "constants": {PARITY, HOST}, "noise table": {PARITY}, "tokens": {DRIVER},
        "patterns": {SCRUB, SCRUB_LATE}, "rows": None, "parameters": None, "programs": None}


def test_every_memory_has_a_kind(tiny):
    """All bits of all memories of the RTL, but for banks of programs that the image leaves empty."""
    available("verilator")
    made = rtl.generate(TINY, print)
    bits = dict.fromkeys(made.memories, 0)
    for memory in memories(tiny.image, made.memories):
        assert memory.kind in {*TOLD, *(kind for kind, *_ in HIDDEN)}
        bits[memory.name] += len(memory.words) * memory.bits
    empty = {name for name, count in bits.items() if not count}
    assert empty and all(re.search(r"\.program\.bank[1-5]$", name) for name in empty)
    # By hand: a bank of weights, of MEM, the noise.
    assert bits["mxm.tile_0.bank_1_1.memory"] == 1024 * 18
    assert bits["mem.bank2.data.data"] == 64 * 8 * 16
    assert bits["sample.gumbel_even.table"] == 512 * 26


@pytest.fixture(scope="module")
def campaign(tiny):
    available("verilator")
    with engines.create("verilator", TINY) as engine:
        yield flip_campaign.FlipCampaign(engine, tiny.image, PROMPT, STEPS, SETTINGS, seed=7)


@pytest.mark.parametrize("kind", TOLD)
def test_a_few_flips(campaign, kind):
    for _ in range(12):
        campaign.flip(kind)
    found = campaign.outcomes[kind]
    assert sum(found.values()) == 12 and not found[SILENT]
    assert set(+found) <= (TOLD[kind] | {GONE} if TOLD[kind] else set(OUTCOMES))
    assert sum(found.values()) > found[GONE]


def test_without_a_scrub_programs_change_in_silence(campaign, monkeypatch):
    """The campaign itself: it notices wrong results that nobody tells."""
    monkeypatch.setattr(flip_campaign, "scrub", lambda *arguments: [])
    before = campaign.outcomes["patterns"][SILENT]
    for _ in range(12):
        campaign.flip("patterns")
    assert campaign.outcomes["patterns"][SILENT] > before


def test_a_scrub_takes_some_cycles_for_a_word(campaign):
    """CHECK takes at least 6 cycles a word: of MEM and of the weights, 2,048 and 16,384 words."""
    cycles = {space.name: count for space, count in campaign.scrub_cycles().items()}
    assert 6 * 2048 < cycles["MEM"] < 25 * 2048 and 6 * 16384 < cycles["WEIGHTS"] < 25 * 16384
