"""``metronome verilog``: the machine as one Verilog file."""
import sys

import metronome
from scripts.commands.common import config_of, say, write_file


def run(options) -> dict:
    config = config_of(options)
    made = metronome.verilog(config, say)
    result = {"profile": config.name, "top": made.top, "bytes": len(made.verilog.encode())}
    if options.output:
        write_file(options.output, made.verilog.encode())
        result["file"] = options.output
    elif options.json:
        result["verilog"] = made.verilog
    else:
        sys.stdout.write(made.verilog)
    return result
