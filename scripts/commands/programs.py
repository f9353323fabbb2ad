"""``metronome asm``, ``disasm`` and ``run``: programs written by hand."""
import sys

import numpy as np

import metronome
from arch.faults import Fault
from arch.hostmap import NO_TOKEN, ROW_GENERATE, Space, mem_address
from arch.image import MAGIC, Image
from compiler.asm import assemble
from compiler.disasm import disassemble
from compiler.errors import MetronomeError
from scripts.commands.common import CheckFailed, read_text, say
from sim import engine as engines


def run(options) -> dict:
    return {"asm": _asm, "disasm": _disasm, "run": _run}[options.command](options)


def _assembled(path: str) -> Image:
    try:
        return assemble(read_text(path))
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
    text = disassemble(metronome.load_image(options.image))
    if not options.json:
        sys.stdout.write(text)
    return {"text": text}


def _program(path: str) -> Image:
    """An image file, or the text of a program."""
    try:
        with open(path, "rb") as file:
            binary = file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise MetronomeError(f"{path}: cannot be read: {error.strerror}") from None
    return metronome.load_image(path) if binary else _assembled(path)


def _run(options) -> dict:
    if options.engine == "board":
        raise MetronomeError("engine board is not offered by this version")
    if options.trace and options.engine != "verilator":
        raise MetronomeError(f"--trace needs engine verilator, not {options.engine}")
    image = _program(options.image)
    config = image.config
    if not 0 <= options.input < config.vocab_max:
        raise MetronomeError(f"--input must be 0 to {config.vocab_max - 1}, not {options.input}")
    extra = {}
    if options.engine == "verilator":
        extra = {"notify": say, "waves": options.trace}
    with engines.create(options.engine, config, **extra) as engine:
        engine.load(image)
        result = engine.run([options.input], options.steps, vocabulary=config.vocab_max,
                            stop=NO_TOKEN, trace=True)
        memory = _memory(engine, config)
    predicted = [int(image.rows[at // config.columns][ROW_GENERATE])
                 for at in range(len(result.cycles))]
    report = {"engine": options.engine, "profile": config.name, "tokens": result.tokens,
              "cycles": result.cycles, "predicted": predicted,
              "writes": len(result.writes), "mem": memory,
              "seconds": result.seconds, "simulated_hz": result.simulated_hz,
              "fault": None if result.fault is None else
              {"cause": result.fault.cause.name, "queue": result.fault.queue,
               "cycle": result.fault.cycle, "position": result.fault.position}}
    if not options.json:
        for place, lanes in memory.items():
            print(f"{place:<8} {' '.join(map(str, lanes))}")
        say(f"{len(result.cycles)} steps of {result.cycles} cycles on engine {options.engine}")
    if result.fault is not None and result.fault.cause != Fault.NONE:
        raise CheckFailed(str(result.fault), report)
    if result.cycles != predicted:
        raise CheckFailed(f"the steps took {result.cycles} cycles, the program says {predicted}",
                          report)
    return report


def _memory(engine: engines.Engine, config) -> dict:
    """Words of MEM that are not all 0, by place, as lanes."""
    found = {}
    for bank in range(config.mem_banks):
        raw = engine.read_space(Space.MEM, mem_address(config, bank, 0, 0),
                                config.mem_depth * config.lanes)
        words = np.asarray(raw, np.uint16).view(np.int16).reshape(config.mem_depth, config.lanes)
        found |= {f"m{bank}[{word}]": lanes.tolist() for word, lanes in enumerate(words)
                  if lanes.any()}
    return found
