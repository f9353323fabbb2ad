"""``metronome flash``: bitstream and model into the flash of a board, with openFPGALoader."""
import contextlib
import pathlib
import tempfile

import metronome
from metronome import BoardSpec, MetronomeError, board
from scripts import bitstream
from scripts.commands.common import CheckFailed, say, write_file
from sim import toolchain
from sim.flash_image import IMAGE_OFFSET, flash_image


def run(options) -> dict:
    spec = board(options.board)
    if options.model_only and options.bitstream:
        raise MetronomeError("--model-only and --bitstream exclude each other")
    program = _program(options, spec)
    content = flash_image(program, options.temperature)
    result = {"board": spec.name, "model_bytes": len(content), "offset": IMAGE_OFFSET,
              "bitstream": None, "file": options.output}
    if options.output:
        write_file(options.output, content)
        say(f"{options.output}: {len(content)} bytes, to be written at {IMAGE_OFFSET:#x}")
        return result
    reason = toolchain.missing(toolchain.programmer)
    if reason:
        raise MetronomeError(reason)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = folder / "model.bin"
        model.write_bytes(content)
        if not options.model_only:
            result["bitstream"] = str(_bitstream(options, spec))
            _write(spec, "bitstream", result["bitstream"])
        # Raw bytes at the model's place; the board starts again and reads them.
        _write(spec, "model", model, "--file-type", "raw", "--offset", IMAGE_OFFSET)
    say(f"board {spec.name} has its model; it speaks at {spec.baud} baud")
    return result


def _program(options, spec: BoardSpec) -> metronome.Program:
    if options.image:
        program = metronome.load_program(options.image)
        if program.config.name != spec.profile:
            raise MetronomeError(f"{options.image}: is for profile {program.config.name}, board "
                                 f"{spec.name} has {spec.profile}")
        return program
    model = metronome.load_model(profile=spec.profile)
    say(f"compiling {model.name} for {spec.profile}")
    return metronome.compile(model, spec.profile)


def _bitstream(options, spec: BoardSpec) -> pathlib.Path:
    if options.bitstream:
        path = pathlib.Path(options.bitstream)
        if not path.is_file():
            raise MetronomeError(f"{path}: is no file")
        return path
    reason = toolchain.missing(toolchain.amaranth, toolchain.boards, toolchain.yosys,
                               toolchain.nextpnr)
    if reason:
        raise MetronomeError(reason)
    kept = bitstream.kept(bitstream.plan(spec))
    if kept is None:
        raise MetronomeError(f"there is no bitstream of these sources yet: metronome bitstream "
                             f"--board {spec.name}")
    return kept


def _write(spec: BoardSpec, what: str, path, *arguments) -> None:
    say(f"writing the {what} to the flash of {spec.name}")
    done = toolchain.programmer().run("--board", spec.programmer, "--write-flash",
                                      "--unprotect-flash", *arguments, path)
    if done.returncode == 0:
        return
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    text = " ".join(lines)
    if "shared libraries" in text:
        raise MetronomeError(f"openFPGALoader cannot start: {lines[0].split(': ', 1)[-1]}; install "
                             "the system packages libusb-1.0-0 and libftdi1-2")
    if "device not found" in text or "unable to open" in text:
        raise MetronomeError(f"no {spec.name} is connected, or it may not be opened "
                             "(docs/hardware_ci.md: permissions)")
    raise CheckFailed(f"the {what} could not be written: {lines[-1] if lines else 'no message'}")
