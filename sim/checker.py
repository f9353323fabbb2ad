"""The static schedule checker: every row and both kinds of step, before anything runs."""
from arch.faults import ScheduleError
from arch.hostmap import ROW_GENERATE, ROW_PROMPT
from arch.image import Image
from arch.isa import COUNT_REGISTERS, unit_of, word_bits
from arch.timing import step_minimum
from sim.legality import StepPlan
from sim.queue_model import decode_program
from sim.weight_rules import weight_writes
from sim.written import Written

#: The input token is data: addresses that depend on it are checked for this one here, and for
#: every other one by the machine model and the hardware.
TOKEN = 0


class ProgramError(ValueError):
    """An image whose parts do not fit the machine that it names."""


def check_shape(image: Image) -> None:
    """Check that every part of an image fits its machine.

    Raises
    ------
    ProgramError
    """
    config = image.config

    def need(condition, message):
        if not condition:
            raise ProgramError(f"profile {config.name!r}: {message}")
    for queue, words in image.program.items():
        need(queue in config.queues, f"the machine has no queue {queue!r}; it has "
             f"{', '.join(config.queues)}")
        need(len(words) <= config.depth_of(queue), f"queue {queue} has {len(words)} instructions, "
             f"its program memory holds {config.depth_of(queue)}")
        bits = word_bits(unit_of(queue), config)
        need(all(0 <= word < 1 << bits for word in words),
             f"queue {queue} has a word of more than {bits} bits")
    for queue, table in image.params.items():
        need(queue in config.queues, f"delay parameters for a queue {queue!r} that the machine "
             "does not have")
        need(table.ndim == 2 and table.shape[0] <= config.param_rows
             and table.shape[1] <= config.param_columns, f"delay parameters of {queue} are "
             f"{' x '.join(map(str, table.shape))}, at most {config.param_rows} x "
             f"{config.param_columns} fit")
    need(image.rows.ndim == 2 and image.rows.shape[1] == 6
         and len(image.rows) <= config.param_rows,
         f"rows are {' x '.join(map(str, image.rows.shape))}, at most {config.param_rows} x 6 fit")
    most = (1 << config.count_bits) - 1
    need((image.rows[:, :COUNT_REGISTERS] <= most).all(),
         f"a count register of a row is above {most}")
    for name, table, shape in (
            ("patterns", image.patterns, (config.patterns, config.lanes)),
            ("constants", image.constants, (config.const_depth, config.lanes)),
            ("weights", image.weights, (config.weight_depth, config.rows, config.columns))):
        need(table.ndim == len(shape) and table.shape[1:] == shape[1:]
             and len(table) <= shape[0], f"{name} are {' x '.join(map(str, table.shape))}, at most "
             f"{' x '.join(map(str, shape))} fit")
    need(((image.patterns >= -1) & (image.patterns < config.lanes)).all(),
         f"a pattern names a lane outside 0 to {config.lanes - 1}")


def check_row_loads(image: Image) -> None:
    """Check that the delay parameters of every row are there before it begins.

    While the steps of a row run, those of the next row are loaded; a run loads its first two.

    Raises
    ------
    ProgramError
    """
    least = step_minimum(image.config)
    if not any(table.size for table in image.params.values()):
        return
    for row, lengths in enumerate(image.rows[1:-1, ROW_GENERATE:ROW_PROMPT + 1].tolist(), start=1):
        for length in lengths:
            if 0 < length < least:
                raise ProgramError(f"profile {image.config.name!r}: row {row} has steps of "
                                   f"{length} cycles; loading the delay parameters of the next row "
                                   f"takes {least} in every step")


def _distinct(plan: StepPlan, positions: range) -> set:
    """Positions of a row that may differ in the words that are read before they are written."""
    shifts = {segment["index_shift"] for segment in plan.unit("kv") if segment["index"]}
    seen = {}
    for position in positions:
        seen.setdefault(tuple(position >> shift for shift in shifts), position)
    return {*seen.values(), positions[-1]}


def named(error: ScheduleError, plan: StepPlan, position: int) -> ScheduleError:
    """The same error, telling in which step it arose."""
    kind = "prompt" if plan.prompt else "generate"
    return ScheduleError(error.fault, error.cycle, error.queue,
                         f"{error.detail} ({kind} step at position {position})")


def _forget_cache(plans: list, written: Written, image: Image) -> None:
    """Words of zeros that run-time writes reach are a cache, though the image covers them."""
    for plan in plans:
        first = plan.row * image.config.columns
        for position in range(first, first + image.config.columns):
            for _, address, _ in weight_writes(plan, position, TOKEN):
                if address < len(image.weights) and not image.weights[address].any():
                    written.weights[address] = written.full[address] = False


def check_schedule(image: Image) -> None:
    """Check every row and both kinds of step; a kind with a length of 0 cycles is not used.

    A word counts as written if earlier positions write it whatever kind of step they are. A weight
    word that run-time writes reach does not count as loaded if the image has only zeros there.
    Positions behind the context of a model, if the image names one, are not checked.

    Raises
    ------
    ProgramError
        If the parts of the image do not fit the machine.
    ScheduleError
        For the first fault of the first step that has one; the message names the step.
    """
    check_shape(image)
    check_row_loads(image)
    config = image.config
    decoded = {queue: decode_program(image, queue) for queue in config.queues}
    written = Written(image)
    context = min(config.context, image.meta.get("context", config.context))
    plans = [[plan for plan in (StepPlan(image, row, prompt, decoded) for prompt in (False, True))
              if plan.length] for row in range(config.param_rows)]
    _forget_cache([plan for kinds in plans for plan in kinds], written, image)
    for row, kinds in enumerate(plans):
        positions = range(row * config.columns, min(context, (row + 1) * config.columns))
        if not kinds or not positions:
            continue
        distinct = [_distinct(plan, positions) for plan in kinds]
        for position in positions:
            for plan, chosen in zip(kinds, distinct):
                check = plan.check if position in chosen else plan.check_conflicts
                try:
                    check(position, TOKEN, written)
                except ScheduleError as error:
                    raise named(error, plan, position) from None
            writes = [set(weight_writes(plan, position, TOKEN)) for plan in kinds]
            written.write_weights(sorted(set.intersection(*writes)))
        written.mem |= kinds[0].writes_mem & kinds[-1].writes_mem
        written.accumulators |= kinds[0].starts & kinds[-1].starts
