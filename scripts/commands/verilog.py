"""``metronome verilog``: the machine as one Verilog file."""
import sys

from compiler.errors import MetronomeError
from scripts.commands.common import config_of, say, write_file
from sim import rtl, toolchain


def run(options) -> dict:
    reason = toolchain.missing(toolchain.amaranth, toolchain.yosys)
    if reason:
        raise MetronomeError(reason)
    config = config_of(options)
    made = rtl.generate(config, say)
    result = {"profile": config.name, "top": made.top, "bytes": len(made.verilog.encode())}
    if options.output:
        write_file(options.output, made.verilog.encode())
        result["file"] = options.output
    elif options.json:
        result["verilog"] = made.verilog
    else:
        sys.stdout.write(made.verilog)
    return result
