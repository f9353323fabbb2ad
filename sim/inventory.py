"""What there is to run on: profiles, engines and tools, and what is missing for the others."""
from __future__ import annotations

from arch.config import PROFILES
from sim import engine, toolchain

__all__ = ["inventory"]

_TOOLS = {"verilator": toolchain.verilator, "C++ compiler": toolchain.compiler,
          "iverilog": lambda: toolchain.icarus()[0], "yosys": toolchain.yosys,
          "nextpnr": toolchain.nextpnr, "amaranth": toolchain.amaranth}


def inventory() -> dict[str, dict]:
    """Profiles (sizes by name), engines (None, or why one cannot run here), tools (versions)."""
    profiles = {name: {"rows": config.rows, "columns": config.columns,
                       "macs_per_cycle": config.macs_per_cycle,
                       "weight_bytes": config.weight_depth * config.macs_per_cycle,
                       "context": config.context, "vocab_max": config.vocab_max}
                for name, config in PROFILES.items()}
    engines: dict[str, str | None] = {"reference": None}
    engines |= {name: engine.engine_class(name).unavailable() for name in engine.ENGINES}
    tools = {}
    for name, find in _TOOLS.items():
        try:
            tools[name] = find().version
        except toolchain.ToolMissing as error:
            tools[name] = str(error)
    return {"profiles": profiles, "engines": engines, "tools": tools}
