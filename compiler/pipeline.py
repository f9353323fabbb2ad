"""The whole compiler: checkpoint and calibration text in, image and report out."""
import dataclasses
import functools

from arch.config import PROFILES, Config
from arch.image import Image
from compiler.account import account
from compiler.checkpoint import Checkpoint
from compiler.emit import NoTime, emit
from compiler.errors import CapacityError, ModelError
from compiler.layout import ceil_div
from compiler.lower import Lowered, lower
from compiler.prepare import prepare
from compiler.quantised import QuantModel
from compiler.schedule import Schedule, finish_row, orders, solve_row
from compiler.verify import verify_program


#: Steps of local search over the order of tasks: about 2 % of the cycles for as many seconds.
TRIES = 400


@dataclasses.dataclass(frozen=True)
class StoredVector:
    """One write to MEM that the schedule makes in a step."""
    cycle: int
    bank: int
    address: int
    halves: int
    label: str
    layer: int
    index: int


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
    """A compiled model: the image, and what the compiler knows about it.

    Parameters
    ----------
    model : QuantModel
        The integers that the reference computes with.
    image : Image
    lowered : Lowered
    schedules : list of Schedule
        By row.
    order : tuple
        Order of the tasks of each section.
    """
    config: Config
    model: QuantModel
    image: Image
    lowered: Lowered
    schedules: list
    order: tuple

    def row(self, position: int) -> int:
        return position // self.config.columns

    def predicted(self, position: int, prompt: bool = False) -> int:
        """Cycles of the step at ``position``, as written in the image."""
        return int(self.image.rows[self.row(position), 5 if prompt else 4])

    def stored(self, position: int, prompt: bool = False) -> list:
        """Every MEM write of a step in order of (cycle, bank), as `StoredVector`."""
        return self._stored(self.row(position), prompt)

    @functools.lru_cache(maxsize=64)  # noqa: B019 - compiled models are few and long-lived
    def _stored(self, row: int, prompt: bool) -> list:
        program, times, n = self.lowered.program, self.schedules[row], row + 1
        found = []

        def add(tasks, starts, layer):
            for task, start in zip(tasks, starts):
                for use in task.uses:
                    if not use.queue.startswith("w"):
                        continue
                    fields = use.instruction.fields
                    for j in range(use.n1(n)):
                        found.append(StoredVector(
                            start + use.offset(n) + j * use.d1, int(use.queue[1:]),
                            fields["address"] + j * fields["s1"], fields["halves"], use.label,
                            layer, use.first + j))
        add(program.prologue, times.prologue, -1)
        for layer in range(program.layers):
            add(program.body, [start + layer * times.period for start in times.body], layer)
        if not prompt:
            add(program.epilogue, times.epilogue, program.layers)
            for section, (starts, period) in zip(program.tail, times.tail):
                for number in range(section.rounds):
                    add(section.tasks, [start + number * period for start in starts],
                        program.layers + number)
        return sorted(found, key=lambda stored: (stored.cycle, stored.bank))

    @property
    def sampling(self) -> tuple:
        """Stages of `arch.selection` that the program has."""
        return tuple(self.lowered.sampling["stages"]) if self.lowered.sampling else ()

    def selection_cycles(self, position: int) -> int:
        """Cycles of a generate step from the last logit on, where the program has stages."""
        if not self.sampling:
            return 0
        stored = self.stored(position)
        return self.predicted(position) - max(item.cycle for item in stored
                                              if item.label == "logits")

    def useful_macs(self, position: int) -> int:
        """Multiplications of a generate step that a model without padding needs."""
        c = self.model.config
        per_layer = (c.dim * (2 * c.n_heads + 2 * c.n_kv_heads) * c.head_size
                     + (3 if c.activation == "silu_gated" else 2) * c.dim * c.hidden_dim)
        attention = 2 * c.n_heads * c.head_size * (position + 1)
        return c.n_layers * (per_layer + attention) + c.dim * c.vocab_size

    def utilisation(self, position: int) -> float:
        """Useful MACs over cycles times MACs per cycle."""
        return self.useful_macs(position) / (self.predicted(position)
                                             * self.config.macs_per_cycle)

    def account(self, position: int, prompt: bool = False) -> list:
        """Where the cycles of a step go; see `compiler.account`."""
        return account(self, position, prompt)

    def report(self) -> dict:
        """The figures of ``metronome compile --json``; the last two of programs with stages."""
        config, lowered = self.config, self.lowered
        positions = range(self.model.context)
        word = config.macs_per_cycle
        weights = len(self.image.weights)
        lanes = 2 * config.lanes
        constants = len(self.image.constants) * lanes
        return {
            "macs_per_cycle": word,
            "image_bytes": len(self.image.to_bytes()),
            "program_bytes": self.image.program_bytes,
            "weight_bytes": (weights - lowered.kv_words) * word,
            "kv_bytes": lowered.kv_words * word,
            "constant_bytes": constants,
            "sram_used": weights * word + constants + lowered.mem_words * lanes
            + self.image.program_bytes,
            "sram_total": config.weight_depth * word + config.const_depth * lanes
            + config.mem_banks * config.mem_depth * lanes + self.image.program_bytes,
            "cycles": [self.predicted(position) for position in positions],
            "mac_cycles": [ceil_div(self.useful_macs(position), word) for position in positions],
            "utilisation": [round(self.utilisation(position), 4) for position in positions],
        } | ({} if not self.sampling else {
            "sampling": list(self.sampling),
            "selection_cycles": [self.selection_cycles(position) for position in positions],
        })


def compile_quantised(model: QuantModel, config: Config, tries: int = TRIES,
                      sampling: tuple = ()) -> Compiled:
    """Lower, schedule and emit a quantised model.

    Parameters
    ----------
    tries : int
        Steps of local search over the order of tasks.
    sampling : tuple of str
        Stages of `arch.selection` between logits and sampler.

    Raises
    ------
    ModelError
        If the model does not fit the machine.
    """
    rows = ceil_div(model.context, config.columns)
    lowered = lower(model, config, sampling)
    verify_program(lowered.program, config)
    order = orders(lowered.program, config, rows, tries)
    program, schedules, words, params, table = _solve(lowered, order, rows, config)
    lowered = dataclasses.replace(lowered, program=program)
    meta = {"context": model.context, "vocabulary": model.config.vocab_size,
            "layers": model.config.n_layers}
    if lowered.sampling:
        meta["sampling"] = lowered.sampling
    image = Image(config, words, params, table, lowered.patterns, lowered.constants,
                  lowered.weights, meta)
    return Compiled(config, model, image, lowered, schedules, order)


def _solve(lowered: Lowered, order: tuple, rows: int, config: Config) -> tuple:
    """Program with the best epilogue, the schedule of every row, and what `emit` makes of them."""
    room = {}
    while True:
        schedules = [solve_row(lowered.program, order, n, config, room)
                     for n in range(1, rows + 1)]
        best = lowered.program, schedules
        for epilogue in lowered.epilogues[1:]:
            # Only the timing inside of the last task differs: the order serves for all of them.
            program = dataclasses.replace(lowered.program, epilogue=epilogue)
            candidate = [finish_row(program, order, row, n, config, room)
                         for n, row in enumerate(schedules, 1)]
            if sum(row.generate for row in candidate) < sum(row.generate for row in best[1]):
                best = program, candidate
        try:
            return *best, *emit(best[0], order, best[1], config)
        except NoTime as error:
            lacking = error.room
        more = {key: least for key, least in lacking.items() if least > room.get(key, 1)}
        if not more:
            task, queue = next(iter(lacking))
            raise CapacityError(f"queue {queue!r} has waits within {task!r} that no instruction "
                                "of its format can hold in every row")
        room |= more


def compile_model(checkpoint: Checkpoint, config: Config, calibration_tokens=None,
                  bos: int = 1, seed: int = 0, tries: int = TRIES,
                  sampling: tuple = ()) -> Compiled:
    """Compile a checkpoint for a machine.

    Parameters
    ----------
    calibration_tokens : int array [sequences, length], optional
        Text that sets the activation scales; without it the model samples its own.
    bos : int
        First token of self-sampled text.
    sampling : tuple of str
        Stages of `arch.selection` between logits and sampler, in their order.

    Raises
    ------
    ModelError
        If the model does not fit the machine or its fixed-point formats.
    """
    model = prepare(checkpoint, config, calibration_tokens, bos, seed)
    try:
        return compile_quantised(model, config, tries, sampling)
    except CapacityError as error:
        fits = [name for name in PROFILES
                if name != config.name and _fits(model, PROFILES[name], sampling)]
        hint = (f"it fits profile {' or '.join(repr(name) for name in fits)}" if fits
                else "it fits no profile")
        raise CapacityError(f"{error}; {hint}") from None


def _fits(model: QuantModel, config: Config, sampling: tuple) -> bool:
    """Whether a model quantised for another machine has room on this one."""
    try:
        compile_quantised(model, config, 0, sampling)
    except ModelError:
        return False
    return True
