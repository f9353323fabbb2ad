"""The machine model as an engine: cycle-accurate in numpy, needs nothing but Python."""
import time

import numpy as np

from arch.faults import ScheduleError
from arch.hostmap import NO_TOKEN, Space, mem_address
from arch.image import Image
from arch.queues import QUEUES
from sim import hostlink
from sim.engine import (Engine, EngineError, RunResult, checked_run, fault_info, write_log_type)
from sim.machine import Machine

_NO_QUEUE = 0xFF


class MachineEngine(Engine):
    """`sim.machine.Machine` behind the calls of an engine."""
    name = "machine"

    def __init__(self, config):
        super().__init__(config)
        self._machine = Machine(config)

    @classmethod
    def unavailable(cls) -> str | None:
        return None

    def load(self, image: Image, backdoor: bool = True) -> None:
        """Load an image; there is only one way."""
        if image.config.digest() != self.config.digest():
            raise EngineError(f"the image is for profile {image.config.name!r}, the engine for "
                              f"{self.config.name!r}; compile the model for this one")
        self._machine.load(image)

    def run(self, prompt, steps, *, first=0, seed=0, inverse_temperature=0, stop=NO_TOKEN,
            vocabulary, progress=None, trace=False) -> RunResult:
        checked_run(self.config, prompt, steps, first)
        machine, began = self._machine, time.perf_counter()
        machine.tokens[:len(prompt)] = prompt
        tokens, cycles, writes, logits, fault = [], [], [], {}, None
        for position in range(first, first + steps):
            given = position + 1 < len(prompt)
            try:
                record = machine.run_step(position, int(machine.tokens[position]), given, seed,
                                          inverse_temperature, vocabulary)
            except ScheduleError as error:
                queue = QUEUES[error.queue].id if error.queue in QUEUES else _NO_QUEUE
                fault = fault_info(error.fault, queue, error.cycle, position)
                break
            cycles.append(record.cycles)
            if trace:
                writes += [(position - first, *write[:2], write[3], write[2], write[4])
                           for write in record.writes]
                if record.logits is not None:
                    logits[position - first] = record.logits
            if not given:
                tokens.append(machine.sampled)
                if position + 1 < self.config.context:
                    machine.tokens[position + 1] = machine.sampled
            if progress:
                progress(position, None if given else machine.sampled, record.cycles)
            if not given and machine.sampled == stop:
                break
        log = None
        if trace:
            log = np.array(writes, write_log_type(self.config))
            log.sort(order=["step", "cycle", "bank"], kind="stable")
        return RunResult(tokens, cycles, list(cycles), fault, log, sum(cycles),
                         time.perf_counter() - began, logits if trace else None)

    def write_constant(self, address: int, lanes: np.ndarray) -> None:
        self._machine.constants[address] = lanes

    def read_space(self, space: Space, address: int, count: int) -> np.ndarray:
        machine, config = self._machine, self.config
        if space == Space.MEM:
            words = np.zeros((config.mem_banks, mem_address(config, 1, 0, 0)), np.uint16)
            mem = machine.mem.astype(np.int16).view(np.uint16).reshape(config.mem_banks, -1)
            words[:, :mem.shape[1]] = mem
        elif space == Space.WEIGHTS:
            halves = machine.weights.astype(np.int8)
            words = hostlink.weight_words(np.concatenate([halves[:, 0], halves[:, 1]], axis=2))
        elif space == Space.TOKENS:
            words = (machine.tokens & (1 << config.token_bits) - 1).astype(np.uint16)
        elif space == Space.CONSTANTS:
            words = np.zeros((config.const_depth, config.lanes), np.uint16)
            words[:len(machine.constants)] = machine.constants.astype(np.int16).view(np.uint16)
        elif space == Space.REGISTERS:
            raise EngineError("the machine model has no host registers")
        else:
            last = address + count
            words = np.zeros(last, np.uint16)
            for found, start, part in hostlink.image_blocks(machine.image):
                if found == space and start < last:
                    part = part[:last - start]
                    words[start:start + len(part)] = part
        return words.ravel()[address:address + count]
