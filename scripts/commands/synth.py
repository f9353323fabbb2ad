"""``metronome synth``: what the machine, or one slice of it, costs on an ECP5, and how fast it is."""
import pathlib
import sys
import tempfile

from tqdm import tqdm

from compiler.errors import MetronomeError
from scripts import synthesis
from scripts.commands.common import CheckFailed, config_of, say
from sim import toolchain


def run(options) -> dict:
    needed = [toolchain.amaranth, toolchain.yosys] + [toolchain.nextpnr] * options.pnr
    reason = toolchain.missing(*needed)
    if reason:
        raise MetronomeError(reason)
    if options.seeds > 1 and not options.pnr:
        raise MetronomeError("--seeds needs --pnr: synthesis does not depend on a seed")
    config, unit = config_of(options), options.unit or "chip"
    with tempfile.TemporaryDirectory(prefix="metronome-synth-") as name:
        folder = pathlib.Path(name)
        say(f"synthesising {unit} of profile {config.name}")
        result = {"profile": config.name, "unit": unit}
        result |= synthesis.synthesise(config, unit, folder)
        result["clock"], result["fmax_mhz"] = None, None
        if options.pnr:
            result |= _pnr(folder, options.seeds, unit == "chip")
    result["tools"] = {tool.name: tool.version for tool in
                       (find() for find in needed)}
    if not options.json:
        _show(result)
    simulated, synthesised = (result["rtl_sha256"][name] for name in ("simulated", "synthesised"))
    if simulated != synthesised:
        raise CheckFailed("the synthesised RTL is not the simulated one outside of vendor cells",
                          result)
    if options.pnr and result["fmax_mhz"]["max"] < synthesis.TARGET_MHZ:
        raise CheckFailed(f"timing failed: {result['fmax_mhz']['max']:.1f} MHz at best, "
                          f"{synthesis.TARGET_MHZ} wanted", result)
    return result


def _pnr(folder: pathlib.Path, seeds: int, whole: bool) -> dict:
    """Place with seeds 1, 2, ...; the slowest clock of each counts."""
    speeds, last = [], None
    with tqdm(total=seeds, desc="placing", unit="seed", file=sys.stderr, leave=False,
              disable=not sys.stderr.isatty()) as bar:
        for seed in range(1, seeds + 1):
            last = synthesis.place(folder, seed, whole)
            if not last["fmax"]:
                raise MetronomeError("nextpnr found no clocked path in this unit")
            clock, speed = min(last["fmax"].items(), key=lambda item: item[1])
            speeds.append(speed)
            bar.update()
    return {"clock": clock, "fmax_mhz": synthesis.spread(speeds), "seeds": speeds,
            "utilization": last["utilization"]}


def _show(result: dict) -> None:
    for kind, count in result["cells"].items():
        print(f"{kind:<18} {count}")
    formula = " + ".join(f"{sites} x {kind}" for kind, sites in synthesis.LUT_SITES.items())
    print(f"LUT4-equivalent    {result['lut4_equivalent']} ({formula})")
    print(f"RTL                sha256 {result['rtl_sha256']['synthesised']}, simulated and "
          "synthesised, without vendor cells")
    for name, memory in result["memories"].items():
        size = f"{memory['depth']} x {memory['width']}" if memory["width"] else "instantiated"
        cells = ", ".join(f"{count} {kind}" for kind, count in memory["cells"].items())
        print(f"memory {name}: {size}: {cells or 'logic'}")
    if result["fmax_mhz"]:
        speed = result["fmax_mhz"]
        print(f"clock {result['clock']}: {speed['min']:.1f} / {speed['median']:.1f} / "
              f"{speed['max']:.1f} MHz (min / median / max of {len(result['seeds'])} seeds)")
