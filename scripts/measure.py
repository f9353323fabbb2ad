"""The figures of README.md and docs/architecture.md: ``python -m scripts.measure [--speed]``.

Without ``--speed`` it prints what follows from the compiler alone: cycles, utilisation, memory.
These figures are the same everywhere, and `scripts.pages` keeps them up to date. With ``--speed``
it also takes the time of the float model, the reference and the simulators on this computer, scores
the quantised model, runs the demo, and writes the blocks marked ``measured:`` of README.md.
"""
import argparse
import datetime
import functools
import pathlib
import platform
import subprocess
import sys
import time

import numpy as np

import metronome
from arch.boards import BOARDS
from arch.config import profile
from arch.isa import unit_of, word_bits
from arch.numerics import LOGIT_FRACTION
from arch.selection import STAGES
from compiler.checkpoint import ModelConfig, random_checkpoint
from compiler.pipeline import compile_model, compile_quantised
from compiler.quantise import quantise
from scripts import cpu_baseline
from scripts.pages import ROOT, filled, table
from sim.float_model import FloatModel
from sim.reference import Reference

POSITIONS = (0, 127, 255)
#: The clock that the bitstream of the board is built for (`scripts/bitstream.py`).
CLOCK_MHZ = BOARDS["ulx3s-85f"].clock_hz / 1e6
README = ROOT / "README.md"
GOLDEN = ROOT / "tests" / "data" / "golden_logits.npz"
#: The shape of stories260K, for comparisons: cycles depend on the shape, not on the weights.
STORIES260K = ModelConfig(dim=64, hidden_dim=172, n_layers=5, n_heads=8, n_kv_heads=4,
                          vocab_size=512, seq_len=256, tied=True)


@functools.lru_cache(maxsize=None)
def flagship():
    """The built-in model, compiled for the flagship."""
    return metronome.compile(metronome.load_model())


@functools.lru_cache(maxsize=None)
def stories260k():
    """A model of the stories260K shape with random weights, compiled for the flagship."""
    checkpoint = random_checkpoint(STORIES260K, 0)
    tokens = np.random.default_rng(0).integers(3, STORIES260K.vocab_size, (2, 64))
    return compile_model(checkpoint, flagship().config, tokens)


def _results() -> str:
    rows = []
    for name, compiled in (("built-in, 68 characters", flagship().compiled),
                           ("stories260K shape, 512 tokens", stories260k())):
        for position in POSITIONS:
            cycles = compiled.predicted(position)
            rows.append([name, position, f"{cycles:,}",
                         f"{compiled.useful_macs(position):,}",
                         f"{100 * compiled.utilisation(position):.1f} %",
                         f"{CLOCK_MHZ * 1e6 / cycles:,.0f}"])
        mean = np.mean([compiled.predicted(at) for at in range(compiled.model.context)])
        rows.append([name, "mean of 256", f"{mean:,.0f}", "", "",
                     f"{CLOCK_MHZ * 1e6 / mean:,.0f}"])
    return table(["model", "position", "cycles", "useful MACs", "multipliers busy",
                  f"tokens/s at {CLOCK_MHZ:g} MHz"], rows)


def _memory() -> str:
    compiled = flagship().compiled
    config, image, report = compiled.config, compiled.image, compiled.report()
    words, kv = len(image.weights), compiled.lowered.kv_words
    rows = [
        ["weights", f"{words - kv:,} words of {config.macs_per_cycle} bytes",
         f"{config.weight_depth:,} with the KV cache", f"{report['weight_bytes']:,}"],
        ["KV cache", f"{kv:,} words", "", f"{report['kv_bytes']:,}"],
        ["constants", f"{len(image.constants):,} vectors", f"{config.const_depth:,}",
         f"{report['constant_bytes']:,}"],
        ["vector buffers", f"{compiled.lowered.mem_words:,} vectors",
         f"{config.mem_banks} x {config.mem_depth}",
         f"{compiled.lowered.mem_words * 2 * config.lanes:,}"],
        ["program", f"{sum(map(len, image.program.values())):,} instructions, all queues and "
         "positions", "", f"{report['program_bytes']:,}"]]
    return table(["what", "used", "there are", "bytes used"], rows)


def _program() -> str:
    image = flagship().image
    rows = []
    for queue, words in image.program.items():
        params = image.params[queue].shape[1] if queue in image.params else 0
        rows.append([f"`{queue}`", len(words), image.config.depth_of(queue),
                     word_bits(unit_of(queue), image.config), params])
    return table(["queue", "instructions", "room", "bits each", "delay parameters a row"], rows)


@functools.lru_cache(maxsize=None)
def _selection() -> str:
    """Cycles that stages between logits and sampler add to a generate step at any position."""
    config, rows = profile(metronome.DEFAULT_PROFILE), []
    text = np.random.default_rng(0).integers(3, 60, (1, 8))
    for name, checkpoint in (("built-in, 68 characters", metronome.load_model().checkpoint),
                             ("stories260K shape, 512 tokens", random_checkpoint(STORIES260K, 0))):
        # The shortest context: the stages are the same for all.
        model = quantise(checkpoint, config, text, config.columns)
        cycles = [compile_quantised(model, config, 0, sampling).predicted(0)
                  for sampling in ((), STAGES[:1], STAGES[1:], STAGES)]
        rows.append([name, *(f"{count - cycles[0]:,}" for count in cycles[1:])])
    return table(["model", *STAGES, "both"], rows)


def blocks() -> dict:
    """Blocks that follow from the compiler alone."""
    return {"results": _results(), "memory": _memory(), "program": _program(),
            "selection": _selection()}


# Wall-clock figures.

def _timed(function, least: float = 2.0) -> float:
    """Seconds per call, the best of calls for ``least`` seconds."""
    best, spent = float("inf"), 0.0
    while spent < least:
        began = time.perf_counter()
        function()
        taken = time.perf_counter() - began
        best, spent = min(best, taken), spent + taken
    return best


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def _speed_rows(tokens: int) -> list:
    program, model = flagship(), metronome.load_model()
    prompt = program.tokenizer.encode("ROMEO:\n")
    float_model = FloatModel(model.checkpoint)

    def float_steps():
        for position in range(tokens):
            float_model.step(prompt[0], position)
    _, fast = cpu_baseline.run(metronome.MODELS / metronome.BUILT_IN, tokens)
    rows = [["float32 model in C++ on one core, `scripts/cpu_baseline.cpp`", f"{fast:,.0f}", ""],
            ["float32 model in numpy, one token at a time",
             f"{tokens / _timed(float_steps):,.0f}", ""]]
    for engine in ("reference", "machine", "verilator"):
        try:
            metronome.check_engine(engine)
        except metronome.MetronomeError as error:
            print(f"measure: {error}", file=sys.stderr)
            continue
        count = tokens if engine != "machine" else min(tokens, 16)
        with metronome.Session(program, engine, notify=lambda text: print(
                f"measure: {text}", file=sys.stderr)) as session:
            result = session.generate(prompt, count)
        steps, hertz = len(result.cycles), result.simulated_hz
        rows.append([{"reference": "quantised reference in numpy",
                      "machine": "cycle-accurate machine model in numpy",
                      "verilator": "RTL in Verilator"}[engine],
                     f"{steps / result.seconds:,.0f}",
                     f"{hertz:,.0f}" if engine != "reference" else ""])
    return rows


def _quality() -> str:
    """Nats per character of float and reference on the golden windows."""
    windows = np.load(GOLDEN)["tokens"]
    model, program = metronome.load_model(), flagship()
    compiled, float_model = program.compiled, FloatModel(model.checkpoint)
    totals = {"float32": 0.0, "quantised, as the machine computes it": 0.0}
    for window in windows:
        reference = Reference(compiled.model, compiled.config)
        logits = {"float32": float_model.logits(window[:-1])}
        logits["quantised, as the machine computes it"] = np.array(
            [reference.step(int(token), position)
             for position, token in enumerate(window[:-1])]) / 2**LOGIT_FRACTION
        for name, values in logits.items():
            values = np.asarray(values, np.float64)
            top = values.max(1, keepdims=True)
            total = np.log(np.exp(values - top).sum(1)) + top[:, 0]
            totals[name] += float((total - values[np.arange(len(values)), window[1:]]).sum())
    scored = windows.size - len(windows)
    rows = [[name, f"{total / scored:.4f}"] for name, total in totals.items()]
    return (table(["model", "nats per character"], rows)
            + f"\n{len(windows)} windows of {windows.shape[1]} tokens from the validation text, "
            f"{scored} characters scored: enough to see a loss, too few to tell small ones "
            "apart.\n")


def _demo() -> str:
    """What scripts/demo prints, set-up excluded."""
    ran = subprocess.run([sys.executable, "-u", "-m", "scripts.demo"], cwd=ROOT, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True)
    shown = ran.stdout.strip().replace(str(pathlib.Path.home()), "~")
    return f"```text\n{shown}\n```\n"


def measured(tokens: int = 248) -> dict:
    """Blocks that depend on this computer."""
    rows = _speed_rows(tokens)
    note = (f"\nTaken on {datetime.date.today()} on one process of {_cpu()}, Python "
            f"{platform.python_version()}, numpy {np.__version__}; {tokens} tokens (16 on the "
            "machine model), loading and building excluded.\n")
    return {"speed": table(["what", "tokens/s", "simulated cycles/s"], rows) + note,
            "quality": _quality(), "demo": _demo()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.measure", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", action="store_true",
                        help="take times as well and write them into README.md")
    parser.add_argument("--tokens", type=int, default=248, help="per timed run")
    options = parser.parse_args()
    for name, text in blocks().items():
        print(f"{name}\n\n{text}")
    if options.speed:
        made = measured(options.tokens)
        for name, text in made.items():
            print(f"{name}\n\n{text}")
        text = README.read_text(encoding="utf-8")
        README.write_text(filled(text, {"scripts/measure.py": lambda: made}, "measured"),
                          encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
