"""Inputs that set slices to work where random ones hardly do: programs, runs and frames.

For `sim.pair.Pairs.run`: rows ``(cycle, input, value)``, by cycle. An input holds the value from
that cycle on, or is drawn at random again where it is None. Nobody says here what must come out, so
nothing has to be legal. Each kind of work is followed by some time without any orders.
"""
import functools
import random

from arch.config import Config
from arch.hostmap import CLEAR, HEADER_BYTES, ROW_WORDS, RUN, Command, Register, Space, row_address
from arch.isa import (COUNT_REGISTERS, Instruction, encode, layout, reserved_fields, unit_of,
                      word_bits)
from arch.queues import QUEUES
from sim import hostlink

#: Cycles of about a step, cycles without orders, and cycles after which an access is over.
STEP, PAUSE, ANSWERED = 250, 400, 35


class Orders:
    """Rows under way: ``cycle`` is that of the next one."""

    def __init__(self):
        self.cycle, self.rows, self._held = 0, [], set()

    def hold(self, **values) -> None:
        """Inputs keep these values from now on."""
        self.rows += [(self.cycle, name, value) for name, value in values.items()]
        self._held |= set(values)

    def pulse(self, **values) -> None:
        """Inputs have these values for one cycle, then 0."""
        self.hold(**values)
        self.cycle += 1
        self.hold(**dict.fromkeys(values, 0))

    def free(self, *names) -> None:
        """Inputs are random again."""
        self.rows += [(self.cycle, name, None) for name in names]
        self._held -= set(names)

    def release(self) -> None:
        """All of them are, for some time."""
        self.free(*sorted(self._held))
        self.cycle += PAUSE


def orders(unit: str, config: Config, cycles: int, seed: int = 1) -> list:
    """Rows for a unit of `scripts.synthesis.units`; none where random inputs do."""
    rng, made = random.Random(seed), Orders()
    work = _WORK.get(unit)
    if unit.startswith("icu_"):
        work = functools.partial(_program, unit.removeprefix("icu_"))
    while work and made.cycle < cycles:
        work(config, rng, made)
        made.release()
    return [row for row in made.rows if row[0] < cycles]


def _program(queue: str, config: Config, rng, made: Orders) -> None:
    """A queue: its program and delay parameters are loaded, then some steps run."""
    made.hold(program__park=0, program__rewind=0, program__w_en=0, load__queue=0, restart=0)
    for column in range(config.param_columns):
        for half in range(2):
            made.pulse(load__queue=1 << QUEUES[queue].id, load__half=half, load__column=column,
                       load__value=rng.randrange(4, 9))
    width = word_bits(unit_of(queue), config)
    for pc in range(config.depth_of(queue)):
        word = _word(queue, config, rng, pc)
        for chunk in range(-(-width // 16)):
            made.pulse(program__w_en=1, program__address=pc, program__w_chunk=chunk,
                       program__w_data=word >> 16 * chunk & 0xFFFF)
    made.hold(stop=0, idle=0)
    for _ in range(6):
        made.pulse(restart=1)
        made.hold(counts=sum(rng.randrange(1, 4) << config.count_bits * register
                             for register in range(COUNT_REGISTERS)))
        made.cycle += rng.randrange(STEP)


#: Values that keep a queue at work. The waits are legal everywhere, and columns of parameters; the
#: counts are numbers of registers too.
_USUAL = {"wait": (4, 4, 4, 5, 9), "wait_param": (0, 0, 1), "index": (0, 1, 2),
          **{f"n{level}": (1, 2, 3) for level in (1, 2)},
          **{f"n{level}_param": (0, 0, 0, 1) for level in (1, 2)},
          **{f"d{level}": (1, 1, 2, 7) for level in (1, 2)}}


def _word(queue: str, config: Config, rng, pc: int) -> int:
    """An instruction, rarely an illegal one."""
    unit, kind = unit_of(queue), rng.random()
    if kind < 0.01:
        return rng.getrandbits(word_bits(unit, config))
    op, values = rng.choice(unit.ops).name, {}
    for name, (_, width, signed) in layout(unit, config).items():
        values[name] = rng.choice(_USUAL.get(name) or (rng.randrange(1 << width)
                                                       - (signed << width - 1),))
    values |= dict.fromkeys(reserved_fields(unit), 0)
    del values["op"]
    if kind < 0.06:
        op, values = "END", values | {"n1": rng.choice((1, 2)), "n1_param": 0}
    elif kind < 0.2 and pc > 2:
        op, values = "LOOP", values | {"d1": rng.randrange(1, 4)}
    return encode(queue, Instruction(op, values), config)


def _run(config: Config, rng, made: Orders) -> None:
    """The sequencer: registers, rows and tokens are written, then RUN; a fault may come."""
    made.hold(host__w_en=0, host__r_en=0, causes=0, ended=(1 << len(QUEUES)) - 1, loading=0,
              event__ready=1)

    def write(space, address, word):
        made.hold(host__space=space, host__address=address, host__w_data=word)
        made.pulse(host__w_en=1)
        made.cycle += 2
    first = rng.randrange(config.context)
    # Those that are not named hold any number.
    registers = {register: rng.getrandbits(16) for register in Register
                 if register <= Register.SEED3}
    registers |= {Register.COMMAND: CLEAR, Register.FIRST: first,
                  Register.PROMPT: rng.randrange(config.context),
                  Register.LIMIT: rng.randrange(first, config.context) + 1,
                  Register.STOP: rng.randrange(config.vocab_max)}
    for register, word in registers.items():
        write(Space.REGISTERS, register, word)
    for row in range(config.param_rows):
        for field in range(ROW_WORDS):
            write(Space.ROWS, row_address(row, field), rng.randrange(10, 40))
    for position in range(config.context):
        write(Space.TOKENS, position, rng.randrange(config.vocab_max))
    write(Space.REGISTERS, Register.COMMAND, RUN)
    made.free("host__r_en", "host__space", "host__address")
    made.cycle += rng.randrange(4 * STEP)
    made.pulse(causes=rng.choice((0, 1 << rng.randrange(64))))
    made.cycle += STEP


def _frames(config: Config, rng, made: Orders) -> None:
    """The host port: an OPEN, then some requests, a damaged one now and then."""
    made.hold(rx__valid=0, tx__ready=1, busy=0)
    tag = rng.randrange(256)
    frames = [hostlink.request(Command.OPEN, tag)]
    for _ in range(4):
        command = rng.choice((Command.WRITE, Command.WRITE, Command.READ, Command.CHECK))
        words = [rng.getrandbits(16) for _ in range(rng.randrange(4))]
        tag = (tag + (command == Command.WRITE)) % 256
        frames.append(hostlink.request(command, tag, rng.choice(list(Space)), rng.randrange(24),
                                       len(words), words if command == Command.WRITE else None))
    for frame in frames:
        damaged = rng.randrange(10 * len(frame))
        for place, byte in enumerate(frame):
            made.pulse(rx__valid=1, rx__payload=byte ^ 4 * (place == damaged))
            # A word that is written may wait for its answer.
            made.cycle += 3 if place < HEADER_BYTES else ANSWERED
        made.cycle += STEP


def _accesses(port: str, space: Space, config: Config, rng, made: Orders) -> None:
    """A memory: the host writes its first words and reads them, then whatever comes."""
    count = 8 * config.lanes
    made.hold(**{f"{port}__space": space, f"{port}__w_en": 0, f"{port}__r_en": 0})
    for enable in ("w_en", "r_en"):
        for address in range(count):
            made.hold(**{f"{port}__address": address, f"{port}__w_data": rng.getrandbits(16)})
            made.pulse(**{f"{port}__{enable}": 1})
            made.cycle += 4
    made.free(*(f"{port}__{name}" for name in ("address", "w_data", "w_en", "r_en")))
    made.cycle += 4 * STEP


_WORK = {"sequencer": _run, "host": _frames,
         "const": functools.partial(_accesses, "host", Space.CONSTANTS),
         "mem": functools.partial(_accesses, "host", Space.MEM),
         "perm": functools.partial(_accesses, "bus", Space.PATTERNS)}
