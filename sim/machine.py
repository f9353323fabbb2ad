"""The cycle-accurate machine model: what the hardware computes, and on which cycle.

No handshake and no stall is modelled because the machine has none. A step is first expanded into
issues and checked (`sim.queue_model`, `sim.legality`), then executed in order of cycles
(`sim.execution`).
"""
import numpy as np

from arch.config import Config
from arch.faults import ScheduleError
from arch.hostmap import Space
from arch.image import Image
from arch.timing import timing
from sim.checker import check_shape, named
from sim.execution import Execution, Sampling, StepRecord
from sim.legality import StepPlan
from sim.parity import parity_faults, place_of
from sim.queue_model import decode_program
from sim.written import Written


class Machine:
    """A machine with its memories.

    Parameters
    ----------
    config : Config

    Members
    -------
    mem : int64 array, [banks, words, lanes]
    accumulators : int32 array, [entries, 2, half_columns]
    weights : int32 array, [words, 2, rows, half_columns]
    tokens : int64 array, [context]
        The token memory.
    """

    def __init__(self, config: Config):
        self.config, self.timing = config, timing(config)
        self.image = None

    def load(self, image: Image) -> None:
        """Load an image; MEM, accumulators and the rest of the weight banks become unwritten.

        Raises
        ------
        sim.checker.ProgramError
            If the image is for another machine or does not fit it.
        """
        check_shape(image)
        config = self.config
        if image.config.digest() != config.digest():
            raise ValueError(f"the image is for profile {image.config.name!r}, which differs from "
                             f"this machine's {config.name!r}")
        self.image, self.written, self.damaged = image, Written(image), set()
        self.mem = np.zeros((config.mem_banks, config.mem_depth, config.lanes), np.int64)
        self.accumulators = np.zeros((config.accumulators, 2, config.half_columns), np.int32)
        self.constants = image.constants.astype(np.int64)
        self.patterns = image.patterns.astype(np.int64)
        self.weights = np.zeros((config.weight_depth, 2, config.rows, config.half_columns),
                                np.int32)
        loaded = image.weights.reshape(-1, config.rows, 2, config.half_columns)
        self.weights[:len(loaded)] = loaded.swapaxes(1, 2)
        self.tokens = np.zeros(config.context, np.int64)
        self.sampled = 0
        self._decoded = {queue: decode_program(image, queue) for queue in config.queues}
        self._plans = {}

    def damage(self, space: Space, address: int) -> None:
        """Flip a bit of a 16-bit word of MEM, CONSTANTS or WEIGHTS: reading it is a fault."""
        self.damaged.add(place_of(self.config, space, address))

    def plan(self, row: int, prompt: bool) -> StepPlan:
        """Expanded issues of a step; kept for later steps."""
        if (row, prompt) not in self._plans:
            self._plans[row, prompt] = StepPlan(self.image, row, prompt, self._decoded)
        return self._plans[row, prompt]

    def run_step(self, position: int, token: int, prompt: bool = False, seed: int = 0,
                 inverse_temperature: int = 0, vocabulary: int = None,
                 watch: tuple = ()) -> StepRecord:
        """Run one step.

        Parameters
        ----------
        position, token : int
        prompt : bool
            Whether it is a prompt step.
        seed, inverse_temperature, vocabulary : int
            Of the sampler; the vocabulary is ``vocab_max`` when left out.
        watch : tuple of Stream
            Streams whose values the record keeps.

        Raises
        ------
        ScheduleError
            If the step is illegal; nothing of it has been executed then.
        """
        plan = self.plan(position // self.config.columns, prompt)
        try:
            plan.check(position, token, self.written,
                       parity_faults(plan, position, token, self.damaged))
        except ScheduleError as error:
            raise named(error, plan, position) from None
        record = StepRecord(position, token, prompt, plan.length)
        sampling = Sampling(seed, inverse_temperature,
                            self.config.vocab_max if vocabulary is None else vocabulary)
        Execution(self, plan, record, sampling, watch).run()
        plan.advance(position, token, self.written)
        if record.token is not None:
            self.sampled = record.token
        return record

    def run(self, tokens, steps: int, first: int = 0, seed: int = 0, inverse_temperature: int = 0,
            stop: int = None, vocabulary: int = None, watch: tuple = ()) -> list:
        """Run up to ``steps`` steps from position ``first``.

        Parameters
        ----------
        tokens : sequence of int
            Given tokens, from position 0 on. The step at position p is a prompt step when
            ``p + 1 < len(tokens)``; else its sampled token becomes the input at p + 1.
        stop : int, optional
            Token that ends the run when it is sampled.
        seed, inverse_temperature, vocabulary, watch
            As in `run_step`.

        Returns
        -------
        list of StepRecord
        """
        self.tokens[:len(tokens)] = tokens
        records = []
        for position in range(first, min(first + steps, self.config.context)):
            prompt = position + 1 < len(tokens)
            record = self.run_step(position, int(self.tokens[position]), prompt, seed,
                                   inverse_temperature, vocabulary, watch)
            records.append(record)
            if not prompt:
                if position + 1 < self.config.context:
                    self.tokens[position + 1] = self.sampled
                if self.sampled == stop:
                    break
        return records

    def read_mem(self, bank: int, word: int) -> np.ndarray:
        """A word of MEM, int16 lanes."""
        return self.mem[bank, word].astype(np.int16)

    def read_weights(self, word: int) -> np.ndarray:
        """A word of the weight banks, int8 ``[rows, columns]``."""
        halves = self.weights[word]
        return np.concatenate([halves[0], halves[1]], axis=1).astype(np.int8)
