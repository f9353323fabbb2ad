"""``metronome info``: the profiles, the boards, and which engines run here and why not."""
import dataclasses

import metronome


def run(options) -> dict:
    found = metronome.inventory()
    profiles, engines, tools = found["profiles"], found["engines"], found["tools"]
    if not options.json:
        print("profiles")
        for name, sizes in profiles.items():
            print(f"  {name:<10} {sizes['rows']} x {sizes['columns']} MACs, "
                  f"{sizes['weight_bytes'] // 1024} KiB of weights, "
                  f"context {sizes['context']}, vocabulary up to {sizes['vocab_max']}")
        print("boards")
        for name, spec in metronome.BOARDS.items():
            print(f"  {name:<10} {spec.part}, profile {spec.profile}, "
                  f"{spec.clock_hz / 1e6:.0f} MHz; not yet run on hardware")
        print("engines")
        for name, reason in engines.items():
            print(f"  {name:<10} {'runs here' if reason is None else reason}")
        print("tools")
        for name, version in tools.items():
            print(f"  {name:<13} {version}")
    return {"profiles": profiles,
            "boards": {name: dataclasses.asdict(spec) for name, spec in metronome.BOARDS.items()},
            "tools": tools,
            "engines": {name: {"available": reason is None, "reason": reason}
                        for name, reason in engines.items()}}
