"""Campaigns of damage against the machine in simulation: ``python -m scripts.campaign link|flips``.

``link``: 10,000 damaged frames among 1,000 intact ones, three times; and sessions of the driver over a
line that damages both directions. ``flips``: bits that flip in every kind of memory in the middle of
a run. Writes the figures into docs/robustness.md.
"""
import argparse
import collections
import datetime
import statistics
import time

from arch.config import profile
from arch.hostmap import Space
from compiler.checkpoint import random_checkpoint
from compiler.pipeline import compile_model
from scripts.pages import ROOT, filled, table
from sim import engine as engines
from sim.flip_campaign import OUTCOMES, FlipCampaign
from sim.link_campaign import RawCampaign, driver_campaign
from sim.selftest import SMALL

PAGE = ROOT / "docs" / "robustness.md"
INTACT, DAMAGED, SEEDS, SESSIONS = 1000, 10_000, 3, 40
#: Flips by kind of memory.
FLIPS = {"weights": 400, "KV cache": 300, "MEM": 400, "constants": 250, "programs": 480,
         "parameters": 150, "rows": 80, "patterns": 80, "tokens": 80, "noise table": 80,
         "parameters in the queues": 100, "accumulators": 100, "events": 50}
#: What the flips happen to: a prompt, and steps.
PROMPT, STEPS = [3, 1, 7, 4], 12
SETTINGS = {"vocabulary": SMALL.vocab_size, "seed": 5, "inverse_temperature": 4096}


def small_image():
    """The image of a small model for profile tiny."""
    return compile_model(random_checkpoint(SMALL, 1), profile("tiny")).image


def run(engine) -> tuple:
    """Tokens, cycles, and what is in MEM after them."""
    result = engine.run([3, 1], 10, **SETTINGS)
    if result.fault:
        raise engines.EngineError(str(result.fault))
    return result.tokens, result.reported, engine.read_space(Space.MEM, 0, 300).tolist()


def link() -> str:
    """Both campaigns; returns their tables."""
    began, kinds, answers = time.perf_counter(), collections.Counter(), collections.Counter()
    with engines.create("verilator", profile("tiny")) as engine:
        engine.read_space(Space.TOKENS, 0, 1)
        for seed in range(SEEDS):
            raw = RawCampaign(engine, seed)
            raw.run(INTACT, DAMAGED)
            kinds += raw.counts
            answers += raw.answers
        raw_seconds = time.perf_counter() - began
        sessions = driver_campaign(engine, small_image(), run, SESSIONS, seed=1)
    frames = table(["frames sent without a pause", "number"],
                   [[kind, f"{count:,}"] for kind, count in kinds.most_common()])
    replies = table(["answers", "number"],
                    [[kind, f"{count:,}"] for kind, count in answers.most_common()])
    driven = table([f"{SESSIONS} sessions of the driver over a bad line", "number"],
                   [[kind, f"{count:,}"] for kind, count in sorted(sessions.items())])
    return (f"{frames}\n{replies}\n{driven}\nTaken on {datetime.date.today()}: "
            f"{raw_seconds:.0f} s and {time.perf_counter() - began - raw_seconds:.0f} s.")


def flips() -> str:
    """Flips in all memories; returns their tables."""
    began = time.perf_counter()
    with engines.create("verilator", profile("tiny")) as engine:
        campaign = FlipCampaign(engine, small_image(), PROMPT, STEPS, SETTINGS, seed=1)
        missing = set(campaign.kinds) ^ set(FLIPS)
        assert not missing, f"kinds of memory that FLIPS lacks, or that are none: {missing}"
        for kind, count in FLIPS.items():
            for _ in range(count):
                campaign.flip(kind)
            print(kind, dict(campaign.outcomes[kind]), flush=True)
        cycles = campaign.scrub_cycles()
    kinds = table(["flips in", *OUTCOMES],
                  [[kind, *(f"{campaign.outcomes[kind][outcome]:,}" for outcome in OUTCOMES)]
                   for kind in FLIPS])
    faults = table(["faults of", "cycles from flip to fault: least", "median", "most"],
                   [[kind, *(f"{value:,.0f}" for value in (min(found), statistics.median(found),
                                                           max(found)))]
                    for kind, found in campaign.latencies.items()])
    reads = table(["parity of", "read by", "cycles from read to fault"],
                  [[kind, queue, latency] for kind, found in campaign.read_latencies.items()
                   for queue, latency in sorted(found)])
    scrubs = table(["scrub of", "cycles"], [[space.name, f"{count:,}"]
                                            for space, count in cycles.items()]
                   + [["all", f"{sum(cycles.values()):,}"]])
    return (f"{kinds}\n{faults}\n{reads}\n{scrubs}\nTaken on {datetime.date.today()}: "
            f"{sum(FLIPS.values()):,} flips in {time.perf_counter() - began:.0f} s.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("campaign", choices=["link", "flips"])
    campaign = parser.parse_args().campaign
    text = {"link": link, "flips": flips}[campaign]()
    print(text)
    page = filled(PAGE.read_text(encoding="utf-8"),
                  {"scripts/campaign.py": lambda: {campaign: text}}, "measured", campaign)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
