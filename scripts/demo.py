"""What ``scripts/demo`` shows: the flagship's RTL writes two passages, character by character."""
import argparse
import sys
import time

import metronome
from compiler.errors import MetronomeError

PROMPTS = ("ROMEO:\n", "First Citizen:\n")


def _say(message: str) -> None:
    print(f"demo: {message}", file=sys.stderr, flush=True)


def _stream(piece: bytes) -> None:
    sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def show(profile: str, tokens: int | None, temperature: float) -> int:
    """Generate both passages; returns the exit status: 1 if a step took other than predicted."""
    began = time.perf_counter()
    _say(f"compiling the built-in model for {profile}")
    program = metronome.compile(metronome.load_model(), profile)
    macs = program.config.macs_per_cycle
    written, status = 0, 0
    with metronome.Session(program, notify=_say) as session:
        _say(f"ready after {time.perf_counter() - began:.0f} s; from here on every character comes "
             f"out of the simulated RTL ({macs} multipliers)")
        for seed, prompt in enumerate(PROMPTS):
            print(prompt, end="", flush=True)
            result = session.generate(prompt, tokens, temperature=temperature, seed=seed,
                                      on_step=_stream)
            print()
            if result.fault:
                raise MetronomeError(str(result.fault))
            written += len(result.text)
            steps, cycles, predicted = (len(result.cycles), sum(result.cycles),
                                        sum(result.predicted))
            _say(f"{len(result.tokens)} tokens in {result.seconds:.1f} s: "
                 f"{len(result.tokens) / result.seconds:.1f} tokens/s, "
                 f"{result.simulated_hz / 1e3:.0f} thousand cycles/s; cycles per token "
                 f"{cycles / steps:.1f} measured, {predicted / steps:.1f} predicted, "
                 f"{'all equal' if result.cycles == result.predicted else 'NOT EQUAL'}; "
                 f"{100 * result.utilisation:.1f} % of the multipliers busy")
            status |= result.cycles != result.predicted
    _say(f"{written} characters, {time.perf_counter() - began:.0f} s in all")
    return int(status)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--profile", default=metronome.DEFAULT_PROFILE)
    parser.add_argument("--tokens", type=int, help="a passage (default: as many as fit)")
    parser.add_argument("--temperature", type=float, default=0.8)
    options = parser.parse_args()
    try:
        return show(options.profile, options.tokens, options.temperature)
    except (MetronomeError, ValueError) as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
