"""``metronome info``: the profiles, the boards, and which engines run here and why not."""
from arch.config import PROFILES
from sim import engine, toolchain

_TOOLS = {"verilator": toolchain.verilator, "C++ compiler": toolchain.compiler,
          "iverilog": lambda: toolchain.icarus()[0], "yosys": toolchain.yosys,
          "nextpnr": toolchain.nextpnr, "amaranth": toolchain.amaranth}


def run(options) -> dict:
    profiles = {name: {"rows": config.rows, "columns": config.columns,
                       "macs_per_cycle": config.macs_per_cycle,
                       "weight_bytes": config.weight_depth * config.macs_per_cycle,
                       "context": config.context, "vocab_max": config.vocab_max}
                for name, config in PROFILES.items()}
    engines = {"reference": None}
    engines |= {name: engine.engine_class(name).unavailable() for name in engine.ENGINES}
    tools = {}
    for name, find in _TOOLS.items():
        try:
            tools[name] = find().version
        except toolchain.ToolMissing as error:
            tools[name] = str(error)
    if not options.json:
        print("profiles")
        for name, sizes in profiles.items():
            print(f"  {name:<10} {sizes['rows']} x {sizes['columns']} MACs, "
                  f"{sizes['weight_bytes'] // 1024} KiB of weights, "
                  f"context {sizes['context']}, vocabulary up to {sizes['vocab_max']}")
        print("boards\n  none in this version")
        print("engines")
        for name, reason in engines.items():
            print(f"  {name:<10} {'runs here' if reason is None else reason}")
        print("tools")
        for name, version in tools.items():
            print(f"  {name:<13} {version}")
    return {"profiles": profiles, "boards": {}, "tools": tools,
            "engines": {name: {"available": reason is None, "reason": reason}
                        for name, reason in engines.items()}}
