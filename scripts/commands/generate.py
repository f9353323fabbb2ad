"""``metronome generate``: a model's text from any engine, streamed as it comes."""
import sys

from tqdm import tqdm

import metronome
from metronome import MetronomeError, stop_token
from scripts.commands.common import CheckFailed, program_of, read_prompt, say


def run(options) -> dict:
    if bool(options.port) != (options.engine == "board"):
        raise MetronomeError("engine board needs the serial port of a board: --port DEV"
                             if options.engine == "board" else "--port belongs to engine board")
    if options.check and options.engine == "board":
        raise MetronomeError("a board cannot show what --check compares; use metronome selftest")
    if options.trace and options.engine != "verilator":
        raise MetronomeError(f"--trace needs engine verilator, not {options.engine}")
    metronome.check_engine(options.engine)
    text = read_prompt(options)
    program = program_of(options)
    program.selection(options.temperature, options.top_k, options.top_p)
    stop = stop_token(program.tokenizer, program.image.meta["vocabulary"], _stop(options.stop))
    prompt = program.encode(text)
    tokens = metronome.steps_that_fit(program, prompt, options.tokens)
    with metronome.Session(program, engine=options.engine, trace=options.trace,
                           port=options.port,
                           notify=say) as session:
        bar = tqdm(total=len(prompt) - 1 + tokens, unit="step", file=sys.stderr, leave=False,
                   disable=not sys.stderr.isatty() or not options.json and sys.stdout.isatty())
        with bar:
            if not options.json:
                _write(text)
            result = session.generate(prompt, tokens, temperature=options.temperature,
                                      seed=options.seed, top_k=options.top_k, top_p=options.top_p,
                                      stop="" if stop is None else stop, check=options.check,
                                      on_step=lambda _: bar.update(),
                                      on_text=None if options.json else _write)
    if not options.json:
        _write("\n")
    report = _report(result)
    if result.fault:
        raise CheckFailed(str(result.fault), report)
    if result.difference:
        raise CheckFailed(f"check failed: {result.difference}", report)
    if options.check:
        say(f"check passed: {len(result.cycles)} steps equal the reference bit by bit and take "
            "the predicted cycles")
    if not options.json:
        total = sum(result.cycles)
        say(f"{len(result.tokens)} tokens, {total} cycles in {len(result.cycles)} steps "
            f"({total / len(result.cycles):.0f} a step, predicted "
            f"{sum(result.predicted) / len(result.cycles):.0f}), "
            f"{100 * result.utilisation:.1f} % of {result.macs_per_cycle} MACs busy; "
            f"{result.seconds:.2f} s, {len(result.cycles) / max(result.seconds, 1e-9):.1f} steps/s"
            f", {result.simulated_hz:.0f} cycles/s")
    return report


def _write(text: str) -> None:
    """Text to stdout at once, whatever encoding the terminal claims to have."""
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()


def _stop(text: str | None) -> int | str | None:
    """A stop token as the command line has it: digits are the number of a token."""
    return int(text) if text and text.isascii() and text.isdigit() else text


def _report(result: metronome.Generation) -> dict:
    return {"text": result.text, "prompt_tokens": result.prompt_tokens, "tokens": result.tokens,
            "cycles": result.cycles, "predicted": result.predicted, "engine": result.engine,
            "profile": result.profile, "macs_per_cycle": result.macs_per_cycle,
            "utilisation": result.utilisation, "seconds": result.seconds,
            "simulated_hz": result.simulated_hz}
