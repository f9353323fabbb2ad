"""``metronome selftest``: checks of a board on a serial port, real or virtual, for people and for CI."""
import contextlib
import pathlib
import xml.etree.ElementTree as xml

import metronome
from compiler.checkpoint import ModelConfig, random_checkpoint
from compiler.errors import MetronomeError
from compiler.pipeline import compile_model
from scripts.commands.common import CheckFailed, config_of, say, write_file
from sim import engine, selftest
from sim.reference_engine import run_reference

#: Steps that the model runs.
STEPS = 8
#: A model for profiles that the built-in one does not fit; seeded, so always the same.
SMALL = ModelConfig(dim=32, hidden_dim=44, n_layers=2, n_heads=8, n_kv_heads=4, vocab_size=43,
                    seq_len=32, tied=True)


def run(options) -> dict:
    if bool(options.port) == options.virtual:
        raise MetronomeError("selftest needs either --port DEV or --virtual")
    compiled = _compiled(options)
    config, steps = compiled.config, min(STEPS, compiled.model.context)
    settings = {"seed": 0, "inverse_temperature": 0, "stop": 0xFFFF,
                "vocabulary": compiled.model.config.vocab_size}
    expected = run_reference(compiled, [1], steps, **settings)
    with contextlib.ExitStack() as stack:
        port = options.port
        if options.virtual:
            port = stack.enter_context(_virtual(config)).port
            say(f"the virtual board is on {port}")
        board = stack.enter_context(engine.create("board", config, port=port))
        outcomes = selftest.run(board, compiled.image, [1], expected.tokens,
                                [compiled.predicted(at) for at in range(steps)], _tell, **settings)
    if options.junit:
        write_file(options.junit, _junit(config.name, outcomes))
    failed = [outcome for outcome in outcomes if outcome.failure]
    report = {"profile": config.name, "port": port, "virtual": options.virtual,
              "passed": not failed,
              "checks": [{"name": outcome.name, "failure": outcome.failure,
                          "seconds": round(outcome.seconds, 3)} for outcome in outcomes]}
    if failed:
        raise CheckFailed(f"self-test failed: {failed[0].name}: {failed[0].failure}", report)
    say(f"self-test passed: {len(outcomes)} checks")
    return report


def _tell(outcome: selftest.Outcome) -> None:
    say(f"{outcome.name:<18} {outcome.failure or 'ok'} ({outcome.seconds:.1f} s)")


def _virtual(config):
    from sim.virtual_board import VirtualBoard
    reason = VirtualBoard.unavailable()
    if reason:
        raise MetronomeError(f"there can be no virtual board here: {reason}")
    return VirtualBoard(config, say)


def _compiled(options):
    """The model of ``--image``, else the built-in one, else one of its kind that fits."""
    if options.image:
        if not pathlib.Path(options.image).exists():
            raise MetronomeError(f"{options.image}: cannot be read: no such file")
        return metronome.load_program(options.image).compiled
    config = config_of(options)
    if config.context >= 256:
        return metronome.compile(metronome.load_model(), config).compiled
    return compile_model(random_checkpoint(SMALL, 1), config)


def _junit(profile: str, outcomes: list) -> bytes:
    """The outcomes in the XML format that CI servers read."""
    failed = sum(outcome.failure is not None for outcome in outcomes)
    suite = xml.Element("testsuite", name=f"metronome selftest {profile}",
                        tests=str(len(outcomes)), failures=str(failed),
                        time=f"{sum(outcome.seconds for outcome in outcomes):.3f}")
    for outcome in outcomes:
        case = xml.SubElement(suite, "testcase", classname=f"selftest.{profile}",
                              name=outcome.name, time=f"{outcome.seconds:.3f}")
        if outcome.failure:
            xml.SubElement(case, "failure", message=outcome.failure)
    return b'<?xml version="1.0" encoding="utf-8"?>\n' + xml.tostring(suite) + b"\n"
