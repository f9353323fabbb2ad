"""``metronome asm``, ``disasm`` and ``run``: programs written by hand."""
import sys

import metronome
from metronome import Image, MetronomeError
from scripts.commands.common import CheckFailed, read_text, say


def run(options) -> dict:
    return {"asm": _asm, "disasm": _disasm, "run": _run}[options.command](options)


def _assembled(path: str) -> Image:
    try:
        return metronome.assemble(read_text(path))
    except MetronomeError as error:
        raise MetronomeError(f"{path}: {error}") from None


def _asm(options) -> dict:
    image = _assembled(options.source)
    if options.profile and options.profile != image.config.name:
        raise MetronomeError(f"{options.source}: is for profile {image.config.name}, "
                             f"not {options.profile}")
    metronome.Program(image, None).save(options.output)
    counts = {queue: len(words) for queue, words in image.program.items()}
    result = {"profile": image.config.name, "image_bytes": len(image.to_bytes()),
              "program_bytes": image.program_bytes, "instructions": counts}
    if not options.json:
        say(f"wrote {options.output}: {sum(counts.values())} instructions in {len(counts)} queues "
            f"for profile {image.config.name}")
    return result


def _disasm(options) -> dict:
    text = metronome.disassemble(metronome.load_image(options.image))
    if not options.json:
        sys.stdout.write(text)
    return {"text": text}


def _program(path: str) -> Image:
    """An image file, or the text of a program."""
    try:
        with open(path, "rb") as file:
            binary = metronome.is_image(file.read(8))
    except OSError as error:
        raise MetronomeError(f"{path}: cannot be read: {error.strerror}") from None
    return metronome.load_image(path) if binary else _assembled(path)


def _run(options) -> dict:
    if options.engine == "board":
        raise MetronomeError("programs run on machine, verilator, icarus or pysim; a board runs "
                             "images by metronome generate --engine board")
    if options.trace and options.engine != "verilator":
        raise MetronomeError(f"--trace needs engine verilator, not {options.engine}")
    image = _program(options.image)
    most = image.config.vocab_max - 1
    if not 0 <= options.input <= most:
        raise MetronomeError(f"--input must be 0 to {most}, not {options.input}")
    result = metronome.run_image(image, options.engine, options.steps, options.input,
                                 options.trace, say)
    fault = result.fault
    report = {"engine": result.engine, "profile": result.profile, "tokens": result.tokens,
              "cycles": result.cycles, "predicted": result.predicted, "writes": result.writes,
              "mem": result.memory, "seconds": result.seconds,
              "simulated_hz": result.simulated_hz,
              "fault": None if fault is None else
              {"cause": fault.cause.name, "queue": fault.queue, "cycle": fault.cycle,
               "position": fault.position}}
    if not options.json:
        for place, lanes in result.memory.items():
            print(f"{place:<8} {' '.join(map(str, lanes))}")
        say(f"{len(result.cycles)} steps of {result.cycles} cycles on engine {result.engine}")
    if result.failure:
        raise CheckFailed(result.failure, report)
    return report
