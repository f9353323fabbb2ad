"""``metronome selftest``: checks of a board on a serial port, real or virtual, for people and for CI."""
import xml.etree.ElementTree as xml

import metronome
from metronome import MetronomeError
from scripts.commands.common import CheckFailed, config_of, say, write_file


def run(options) -> dict:
    if bool(options.port) == options.virtual:
        raise MetronomeError("selftest needs either --port DEV or --virtual")
    program = metronome.load_program(options.image) if options.image else None
    config = program.config if program else config_of(options)
    outcomes = metronome.selftest(options.port, config=config, program=program, on_check=_tell,
                                  notify=say)
    if options.junit:
        write_file(options.junit, _junit(config.name, outcomes))
    failed = [outcome for outcome in outcomes if outcome.failure]
    report = {"profile": config.name, "port": options.port, "virtual": options.virtual,
              "passed": not failed,
              "checks": [{"name": outcome.name, "failure": outcome.failure,
                          "seconds": round(outcome.seconds, 3)} for outcome in outcomes]}
    if failed:
        raise CheckFailed(f"self-test failed: {failed[0].name}: {failed[0].failure}", report)
    say(f"self-test passed: {len(outcomes)} checks")
    return report


def _tell(outcome) -> None:
    say(f"{outcome.name:<18} {outcome.failure or 'ok'} ({outcome.seconds:.1f} s)")


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
