"""``metronome compile``: a model to an image, and what it costs."""
from scripts.commands.common import program_of, say


def run(options) -> dict:
    program = program_of(options)
    report = program.report()
    if options.output:
        program.save(options.output)
        say(f"wrote {options.output}")
    if not options.json:
        cycles, busy = report["cycles"], report["utilisation"]
        middle, last = len(cycles) // 2, len(cycles) - 1
        print(f"profile           {program.config.name}, {report['macs_per_cycle']} MACs a cycle")
        print(f"image             {report['image_bytes']} bytes")
        for name in ("weight", "kv", "constant", "program"):
            print(f"{name + 's':<17} {report[name + '_bytes']} bytes")
        print(f"SRAM              {report['sram_used']} of {report['sram_total']} bytes")
        for position in sorted({0, middle, last}):
            print(f"position {position:<8} {cycles[position]} cycles, "
                  f"{100 * busy[position]:.1f} % of the multipliers busy")
        if "sampling" in report:
            print(f"{' and '.join(report['sampling']):<17} {report['selection_cycles'][0]} cycles "
                  "of a generate step, from the last logit on")
        print(f"\nwhere the {cycles[middle]} cycles of position {middle} go:")
        print(f"{'matmul':<20} {'busy':>6} {'useful':>8} {'waiting':>8}")
        for entry in program.compiled.account(middle):
            print(f"{entry.name:<20} {entry.busy:>6} {entry.useful:>8.1f} {entry.waiting:>8}")
    return report
