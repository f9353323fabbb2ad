"""The machine model and the reference side by side, step by step, bit by bit and cycle by cycle."""
import numpy as np

from arch import numerics
from arch.selection import Selection
from compiler.pipeline import Compiled
from sim.compare import Mismatch, compare_logits, compare_writes
from sim.machine import Machine
from sim.reference import Reference
from sim.selection import Selector

SEED = 5


def write_log(record, lanes: int) -> np.ndarray:
    """A step's MEM writes as `sim.compare` takes them."""
    log = np.zeros(len(record.writes), [("cycle", "<u4"), ("bank", "<u2"), ("address", "<u4"),
                                        ("halves", "<u2"), ("lanes", "<i2", (lanes,))])
    for entry, write in zip(log, record.writes):
        for name, value in zip(log.dtype.names, write):
            entry[name] = value
    return log


def lockstep(compiled: Compiled, prompt: list, steps: int, temperature: int = 0,
             machine: Machine = None, settings: Selection = None) -> int:
    """Run both from position 0 and compare everything; returns how many vectors were compared.

    Parameters
    ----------
    steps : int
        Positions 0 to ``steps - 1``; those before the last prompt token are prompt steps.
    temperature : int
        Inverse temperature as in `arch.numerics.sampling_keys`; 0 is greedy.
    machine : Machine, optional
        Loaded with the image to run; without it, that of ``compiled``.
    settings : Selection, optional
        For a program with stages; its temperature takes the place of ``temperature``.

    Raises
    ------
    Mismatch, ScheduleError
    """
    config, vocabulary = compiled.config, compiled.model.config.vocab_size
    if machine is None:
        machine = Machine(config)
        machine.load(compiled.image)
    if settings:
        temperature = settings.register
        words = compiled.image.meta["sampling"]["words"]
        for address, row in settings.rows(words, config.lanes).items():
            machine.constants[address] = row
    selector = Selector(compiled.sampling, config.lanes, len(compiled.model.layers))
    reference, token, vectors = Reference(compiled.model, config), prompt[0], 0
    for position in range(steps):
        given = position + 1 < len(prompt)
        logits = reference.step(token, position, keep=True)
        record = machine.run_step(position, token, given, SEED, temperature, vocabulary)
        if record.cycles != compiled.predicted(position, given):
            raise Mismatch(f"position {position}: {record.cycles} cycles, expected "
                           f"{compiled.predicted(position, given)}")
        if settings:
            logits = selector(logits, settings, reference.kept)
        log = write_log(record, config.lanes)
        compare_writes(compiled, position, given, reference.kept, log)
        vectors += len(log)
        if given:
            assert record.token is None and record.logits is None
            token = prompt[position + 1]
            continue
        compare_logits(position, logits, record.logits[:vocabulary])
        keys = numerics.sampling_keys(logits, temperature, SEED, position)
        token = int(np.argmax(keys))
        if record.token != token:
            raise Mismatch(f"position {position}: sampled {record.token}, expected {token}")
    return vectors
