"""``metronome bitstream``: a board's bitstream, with the report of what it took and how fast it is."""
import json
import pathlib
import shutil

from metronome import MetronomeError, board
from scripts import bitstream
from scripts.commands.common import CheckFailed, say, write_file
from sim import toolchain


def run(options) -> dict:
    spec = board(options.board)
    reason = toolchain.missing(toolchain.amaranth, toolchain.boards, toolchain.yosys,
                               toolchain.nextpnr, toolchain.ecppack)
    if reason:
        raise MetronomeError(reason)
    folder = pathlib.Path(options.output)
    if not folder.is_dir():
        raise MetronomeError(f"{folder}: is no folder")
    made = bitstream.plan(spec)
    say(f"board {spec.name}, profile {spec.profile}, build {made.identity}")
    try:
        bit, report = bitstream.build(made, options.seeds, say)
    except bitstream.TimingError as error:
        raise CheckFailed(str(error), error.report) from None
    target = folder / f"{spec.name}.bit"
    try:
        shutil.copyfile(bit, target)
    except OSError as error:
        raise MetronomeError(f"{target}: cannot be written: {error.strerror}") from None
    report["bitstream"] = str(target)
    write_file(str(target.with_suffix(".json")), (json.dumps(report, indent=2) + "\n").encode())
    if not options.json:
        _show(report)
    return report


def _show(report: dict) -> None:
    for kind, count in report["resources"].items():
        print(f"{kind:<18} {count['used']:>7} of {count['available']:>7} ({count['percent']} %)")
    speed, path = report["fmax_mhz"], report["critical_path"]
    print(f"clock {report['clock_mhz']:.0f} MHz: {speed['min']:.1f} / {speed['median']:.1f} / "
          f"{speed['max']:.1f} MHz (min / median / max of {len(report['seeds'])} seeds)")
    if path:
        print(f"critical path {' -> '.join(path['through'])}: {path['logic_ns']} ns logic, "
              f"{path['routing_ns']} ns routing")
    print(f"{report['bitstream']}: build {report['identity']}, RTL {report['rtl']}, "
          f"seed {report['seed']}")
