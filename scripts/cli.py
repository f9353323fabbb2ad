"""The ``metronome`` command: arguments in, one JSON object or text out, and the exit status.

0: done; 1: a check, self-test or timing failed; 2: bad input or a missing tool, with one line on
stderr; 130: interrupted. With ``--json`` stdout holds exactly one JSON object.
"""
import argparse
import json
import os
import sys

from arch.boards import BOARDS, BoardError
from arch.config import PROFILES, ConfigError
from arch.faults import ScheduleError
from arch.image import ImageError
from arch.isa import IsaError
from arch.selection import STAGES
from compiler.errors import MetronomeError
from compiler.export import FORMATS
from scripts.commands.common import CheckFailed

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130
SCHEMA = 1


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line."""

    def error(self, message):
        raise MetronomeError(f"{message} (metronome {self.prog.split()[-1]} --help)"
                             if " " in self.prog else f"{message} (metronome --help)")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return value


def _seed(text: str) -> int:
    value = int(text, 0)
    if not 0 <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"must be 0 to 2**64 - 1, not {text}")
    return value


def _stages(text: str) -> tuple:
    stages = tuple(text.split(","))
    for stage in stages:
        if stage not in STAGES:
            raise argparse.ArgumentTypeError(f"there are {', '.join(STAGES)}, not {stage!r}")
    return stages


def _model_arguments(parser, calibrate=True):
    parser.add_argument("--model", metavar="PATH",
                        help="llama2.c .bin or Hugging Face folder "
                        "(default: the built-in model)")
    parser.add_argument("--tokenizer", metavar="PATH", help="llama2.c tokenizer .bin or tokenizer.json "
                        "(default: the one in the folder)")
    if calibrate:
        parser.add_argument("--calibrate", metavar="FILE",
                            help="text for the activation scales (default: sampled from the model)")


def _profile_argument(parser):
    parser.add_argument("--profile", metavar="NAME", help=f"one of {', '.join(PROFILES)} "
                        "(default: ecp5_85k, or that of the image)")


ENGINE_NAMES = ("reference", "machine", "verilator", "icarus", "pysim", "board")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="metronome", description="An open language processor: compile a model, "
                     "run it cycle by cycle, look at the hardware.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser,
                                     metavar="COMMAND")

    def add(name, module, description):
        command = commands.add_parser(name, help=description, description=description)
        command.add_argument("--json", action="store_true",
                             help="print one JSON object on stdout and nothing else")
        command.set_defaults(module=module)
        return command

    command = add("generate", "generate", "run a model and print its text")
    _model_arguments(command)
    _profile_argument(command)
    command.add_argument("--image", metavar="IMAGE", help="run a compiled image instead")
    command.add_argument("--prompt", metavar="TEXT", help="text to go on from")
    command.add_argument("--prompt-file", metavar="FILE",
                         help="file with the prompt, taken as it is (-: standard input)")
    command.add_argument("--tokens", metavar="N", type=_count,
                         help="tokens to generate (default: as many as fit)")
    command.add_argument("--engine", choices=ENGINE_NAMES, metavar="NAME", default="verilator",
                         help=f"one of {', '.join(ENGINE_NAMES)} (default: %(default)s)")
    command.add_argument("--temperature", metavar="T", type=float, default=0.0,
                         help="0 for greedy (default), else 0.0625 to 100")
    command.add_argument("--seed", metavar="S", type=_seed, default=0,
                         help="of the sampler (default: 0)")
    command.add_argument("--top-k", metavar="K", type=int, default=0,
                         help="draw from the K most likely tokens (default: 0, from all)")
    command.add_argument("--top-p", metavar="P", type=float, default=1.0,
                         help="draw from the most likely tokens that make up the probability P "
                         "(default: 1, from all)")
    command.add_argument("--stop", metavar="TOKEN",
                         help="token that ends the text: its number, or its text if it is one "
                         "token; '' for none (default: the model's own)")
    command.add_argument("--port", metavar="DEV", help="serial port of a board")
    command.add_argument("--trace", metavar="FILE.fst",
                         help="write waves (.fst or .vcd; engine verilator)")
    command.add_argument("--check", action="store_true",
                         help="also run the reference, fail on the first bit or cycle that differs")

    command = add("compile", "compile", "compile a model to an image and tell its cycles")
    _model_arguments(command)
    _profile_argument(command)
    command.add_argument("--sampling", metavar="STAGES", type=_stages, default=(),
                         help=f"make the program fit for {', '.join(STAGES)} or both, with a comma")
    command.add_argument("-o", "--output", metavar="IMAGE", help="where to write the image")

    command = add("eval", "evaluate", "measure a model on a text, in nats per token")
    _model_arguments(command)
    _profile_argument(command)
    command.add_argument("--text", metavar="FILE", required=True)
    command.add_argument("--engine", choices=("float", "reference"), metavar="NAME",
                         default="reference", help="float or reference (default)")
    command.add_argument("--context", metavar="N", type=_count, help="tokens per window")
    command.add_argument("--limit", metavar="TOKENS", type=_count, help="score only so many")
    command.add_argument("--report", action="store_true", help="float against integers, layer by "
                         "layer: signal-to-noise ratio and saturated values")

    command = add("export", "export", "write a model in another format")
    _model_arguments(command, calibrate=False)
    command.add_argument("--format", choices=FORMATS, metavar="NAME", required=True,
                         help=f"one of {', '.join(FORMATS)}")
    command.add_argument("-o", "--output", metavar="PATH", required=True,
                         help="the .bin, its tokenizer beside it, or the folder")

    command = add("asm", "programs", "assemble a program by hand")
    command.add_argument("source", metavar="SOURCE")
    _profile_argument(command)
    command.add_argument("-o", "--output", metavar="PROGRAM", required=True)

    command = add("disasm", "programs", "print the program of an image")
    command.add_argument("image", metavar="IMAGE")

    command = add("run", "programs", "run a program for some steps")
    command.add_argument("image", metavar="PROGRAM")
    command.add_argument("--engine", choices=ENGINE_NAMES[1:], metavar="NAME", default="machine",
                         help=f"one of {', '.join(ENGINE_NAMES[1:])} (default: %(default)s)")
    command.add_argument("--steps", metavar="N", type=_count, default=1)
    command.add_argument("--input", metavar="ID", type=int, default=0,
                         help="token of the first step (default: 0)")
    command.add_argument("--trace", metavar="FILE.fst", help="write waves (engine verilator)")

    command = add("verilog", "verilog", "write the machine as one Verilog file")
    _profile_argument(command)
    command.add_argument("-o", "--output", metavar="FILE", help="default: stdout")

    command = add("synth", "synth", "synthesise for ECP5, optionally place and route")
    _profile_argument(command)
    command.add_argument("--unit", metavar="NAME", help="only this slice")
    command.add_argument("--pnr", action="store_true", help="place and route, report Fmax")
    command.add_argument("--seeds", metavar="N", type=_count, default=1,
                         help="placements to try (default: 1)")

    command = add("bitstream", "bitstream", "build the bitstream of a board")
    command.add_argument("--board", metavar="NAME", required=True,
                         help=f"one of {', '.join(BOARDS)}")
    command.add_argument("-o", "--output", metavar="DIR", default=".",
                         help="folder for the .bit and its report (default: here)")
    command.add_argument("--seeds", metavar="N", type=_count, default=1,
                         help="placements to try; the fastest is taken (default: 1)")

    command = add("flash", "flash", "write bitstream and model to the flash of a board")
    command.add_argument("--board", metavar="NAME", required=True,
                         help=f"one of {', '.join(BOARDS)}")
    command.add_argument("--bitstream", metavar="FILE",
                         help="bitstream to write (default: the one in the cache, or none with "
                         "--model-only)")
    command.add_argument("--model-only", action="store_true",
                         help="leave the bitstream that is in the flash")
    command.add_argument("--image", metavar="IMAGE", help="model to write (default: the built-in "
                         "one that fits)")
    command.add_argument("--temperature", metavar="T", type=float, default=0.8,
                         help="0 for greedy, else 0.0625 to 100 (default: %(default)s)")
    command.add_argument("-o", "--output", metavar="FILE",
                         help="write the model's bytes to a file, and nothing to a board")

    command = add("selftest", "selftest", "check a board: memories, a model, every cycle")
    _profile_argument(command)
    command.add_argument("--port", metavar="DEV", help="serial port of the board")
    command.add_argument("--virtual", action="store_true",
                         help="simulate a board behind a pseudo-terminal instead")
    command.add_argument("--image", metavar="IMAGE", help="model to run (default: the built-in one)")
    command.add_argument("--junit", metavar="FILE", help="write the outcome as JUnit XML")

    add("info", "info", "profiles, boards, and which engines run here")
    return parser


def _print_json(result: dict) -> None:
    print(json.dumps({"schema": SCHEMA} | result))


def main(arguments: list | None = None) -> int:
    """Run one command; returns the exit status."""
    as_json = False
    try:
        options = _parser().parse_args(arguments)
        as_json = options.json
        # Imported on demand: a command should not pay for the packages of another.
        command = __import__(f"scripts.commands.{options.module}", fromlist=["run"])
        result = command.run(options)
        if as_json:
            _print_json(result)
        sys.stdout.flush()
        return 0
    except CheckFailed as error:
        print(f"metronome: {error}", file=sys.stderr)
        if as_json and error.result is not None:
            _print_json(error.result)
        return EXIT_FAILED
    except ScheduleError as error:
        print(f"metronome: {error}", file=sys.stderr)
        return EXIT_FAILED
    except (MetronomeError, BoardError, ConfigError, ImageError, IsaError) as error:
        print(f"metronome: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except MemoryError:
        print("metronome: there is not enough memory for this model", file=sys.stderr)
        return EXIT_BAD_INPUT
    except BrokenPipeError:
        # Whoever read the output went away: not an error of ours. Keep Python from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("metronome: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
