"""Seeded random programs that are legal: every queue, every operation and every field.

A program is a row of blocks. In a block instructions are placed backwards, consumers first, each
source being given by a producer that is issued so much earlier as it takes; they overlap freely.
A block may be a loop. Times are arrays over the rows, because counts may be count registers; waits
that differ between rows become delay parameters. The last blocks are for generate steps only.
"""
import dataclasses

import numpy as np

from arch.config import Config
from arch.image import Image
from arch.isa import UNITS, Index, Order, sources_of, unit_of
from arch.queues import Stream, mem_stream
from arch.timing import FIRST_ISSUE, LOOP_WAIT_MIN
from sim.random_placement import Block, Item, NoRoom, Pattern, Placer, Writer

#: Where in a block consumers are placed, at first; their producers stand before.
_WINDOW = (70, 110)


@dataclasses.dataclass(frozen=True)
class RandomProgram:
    """A program, and how to run it.

    Members
    -------
    image : Image
    tokens : list of int
        Given tokens, from position 0 on.
    first, steps, seed, inverse_temperature, vocabulary : int
        As for `sim.machine.Machine.run`.
    """
    image: Image
    tokens: list
    first: int
    steps: int
    seed: int
    inverse_temperature: int
    vocabulary: int


class Generator(Placer):
    """Draws one program: what is placed.

    Parameters
    ----------
    config : Config
    seed : int
    blocks : int
        Blocks between the one that fills the memories and those of generate steps only.
    tries : int
        Consumers tried in every block.
    """

    def __init__(self, config: Config, seed: int, blocks: int = 4, tries: int = 14):
        super().__init__(config, seed)
        self.tries = tries
        filled = self.filling()
        before = [self.random_block() for _ in range(blocks)]
        after = [self.random_block(), self.sampling_block()]
        self.blocks, self.tail = [filled, *before], after

    # Producers: a value on a stream on all cycles of a pattern.

    def source(self, start, pattern: Pattern, depth: int, unit: str, operand: str) -> int:
        """A stream that carries values from ``start`` on; places what makes them."""
        streams = sources_of(UNITS[unit].field(operand), self.config)
        producers = {"mem": (Stream.M0, 2), "none": (Stream.NONE, 2)}
        if pattern.flat:
            producers["const"] = (Stream.CONST, 2)
        if depth and pattern.flat:
            producers |= {"vxm": (Stream.VXM, 2), "drain": (Stream.ACC, 1)}
            if pattern.n1.most == 1 or pattern.d1 >= self.timing.perm_gap:
                producers["perm"] = (Stream.PERM, 1)
            if pattern.n1.most == 1:
                producers |= {"red": (Stream.RED, 2), "read_out": (Stream.ACC, 1)}
        choices = [name for name, (stream, weight) in producers.items() if stream in streams
                   for _ in range(weight)]
        self.random.shuffle(choices)
        for choice in choices[:4]:
            if choice == "none":
                return int(Stream.NONE)
            found = []
            produce = getattr(self, f"produce_{choice}")
            if self.attempt(lambda: found.append(produce(start, pattern, depth - 1))):
                return int(found[0])
        raise NoRoom

    def produce_mem(self, start, pattern, depth):
        bank = self.random.randrange(self.config.mem_banks)
        queue = f"r{bank}"
        fields = self.address(queue, self.config.mem_depth, pattern)
        self.put(queue, "READ", fields, pattern, start - self.timing.mem_read, self.timing.mem_read)
        return mem_stream(bank)

    def produce_const(self, start, pattern, depth):
        index, reach = self.index(self.config.const_depth // 2)
        fields = self.address("const", self.config.const_depth, pattern, reach) | index
        self.put("const", "READ", fields, pattern, start - self.timing.const_read,
                 self.timing.const_read)
        return Stream.CONST

    def produce_vxm(self, start, pattern, depth):
        issue = start - self.timing.vxm
        op = self.pick("MAC", "MAC", "MAX", "EXP2", "SILU", "GELU")
        fields = {"pre": self.random.randrange(16) if self.chance(0.4) else 0,
                  "post": self.random.randrange(32) if self.chance(0.5) else 0,
                  "b_float": int(self.chance(0.3)), "wide": int(self.chance(0.3)),
                  "mask": int(self.chance(0.3))}
        if op == "EXP2":
            fields["post"] = self.random.randrange(32)
        item = self.put("vxm", op, fields, pattern, issue, self.timing.vxm)
        for name in "abc":
            needed = op in ("MAC", "MAX") or name == "a" or name == "c" and op == "EXP2"
            item.fields[name] = self.source(issue, pattern, depth, "vxm", name) if needed else 0
        return Stream.VXM

    def produce_perm(self, start, pattern, depth):
        issue = start - self.timing.perm
        fields = {"pattern": self.random.randrange(self.config.patterns)} | self.index(1 << 20)[0]
        item = self.put("perm", "PERM", fields, pattern, issue, self.timing.perm)
        item.fields["x"] = self.source(issue, pattern, depth, "perm", "x")
        return Stream.PERM

    def produce_drain(self, start, pattern, depth):
        issue = start - self.timing.drain
        fields = {"accumulator": self.random.randrange(self.config.accumulators)}
        self.put("drain", "DRAIN", fields, pattern, issue, self.timing.drain)
        self.reserve(Stream.ACC, [start[row] + pattern.cycles(row) for row in range(len(start))])
        return Stream.ACC

    def produce_read_out(self, start, pattern, depth):
        groups = self.config.groups
        own = Pattern(self.fixed(groups), self.pick(1, 2), self.fixed(1), 1)
        index, reach = self.index(self.config.weight_depth // 2)
        fields = self.address("kv", self.config.weight_depth, own, reach) | index
        fields["half0"] = self.pick(0, 0, 1)
        self.put("kv", "READ_OUT", fields, own, start - self.timing.read_out - own.span,
                 self.timing.read_out)
        self.reserve(Stream.ACC, start[:, None])
        return Stream.ACC

    def produce_red(self, start, pattern, depth):
        op = self.pick("SUM", "MAX", "RECIP", "RSQRT")
        delay = self.timing.reduce_function if op.startswith("R") else self.timing.reduce
        own = self.pattern(False)
        first = start - delay - own.span
        post = self.random.randrange(64) if self.chance(0.3) else self.random.randrange(24)
        item = self.put("red", op, {"post": post}, own, first, delay)
        item.fields["x"] = self.source(first, own, max(depth, 1), "red", "x")
        self.reserve(Stream.RED, start[:, None])
        return Stream.RED

    # Consumers.

    def consume_mem(self, start):
        bank = self.random.randrange(self.config.mem_banks)
        pattern = self.pattern(False)
        fields = self.address(f"w{bank}", self.config.mem_depth, pattern)
        fields["halves"] = self.pick(1, 2, 3, 3, 3, 3, 0)
        item = self.put(f"w{bank}", "WRITE", fields, pattern, start, 1)
        item.fields["x"] = self.source(start, pattern, 3, "mem_write", "x")
        self.carry(item)

    def consume_mxm(self, start):
        pattern = self.pattern(True)
        order = self.pick(Order.K_INNER, Order.K_OUTER, Order.HOLD)
        fields = self.address("mxm", self.config.weight_depth, pattern)
        fields |= {"order": int(order), "start": int(self.chance(0.5)),
                   "half0": self.random.randrange(4), "shift": self.pick(0, 0, 3, 7, 8, 15),
                   "accumulator": self.random.randrange(self.config.accumulators)}
        item = self.put("mxm", "MATMUL", fields, pattern, start, self.timing.matmul_to_drain)
        given, groups = pattern, self.config.groups
        if order == Order.K_INNER and pattern.n1.register is None and self.chance(0.5):
            # One vector for all its parts.
            fields["half0"] = 0
            taken = -(-pattern.n1.most // groups)
            gap = groups * pattern.d1
            given = Pattern(self.fixed(taken), gap, pattern.n2,
                             int(pattern.period[0]) - (taken - 1) * gap)
        for name in ("x0", "x1"):
            item.fields[name] = self.source(start, given, 2, "mxm", name)

    def consume_kv(self, start):
        pattern = Pattern(self.count(4), self.pick(1, 2), self.fixed(1), 1)
        # The address is chosen when all matmuls of the block are known.
        item = self.put("kv", self.pick("WRITE_K", "WRITE_V"), {"half0": self.random.randrange(4)},
                 pattern, start, 2)
        item.fields["x"] = self.source(start, pattern, 2, "kv", "x")

    def consume_red(self, start):
        self.produce_red(start + self.timing.reduce_function + 12, self.single(), 2)

    def consume_vxm(self, start):
        self.produce_vxm(start + self.timing.vxm, self.pattern(False), 2)

    def consume_sample(self, start):
        pattern = Pattern(self.count(3), self.timing.sample_gap + self.pick(0, 0, 1, 4),
                          self.fixed(1), 1)
        issue = start - self.timing.sample_skew
        item = self.put("sample", "ARGMAX", {}, pattern, issue, self.timing.sample)
        item.fields["x"] = self.source(start, pattern, 2, "sample", "x")

    # Blocks.

    def filling(self) -> Block:
        """Writes every word of MEM and every accumulator."""
        config = self.config
        self.block = Block(self.fixed(1), {})
        most = 64
        for word in range(0, config.mem_depth, most):
            pattern = Pattern(self.fixed(min(most, config.mem_depth - word)), 1, self.fixed(1), 1)
            start = FIRST_ISSUE + word
            self.put("const", "READ", {"address": 5 * word // most, "s1": 1}, pattern, start, 4)
            for bank in range(config.mem_banks):
                self.put(f"w{bank}", "WRITE", {"x": int(Stream.CONST), "halves": 3,
                                               "address": word, "s1": 1},
                         pattern, start + self.timing.const_read, 1)
        start = self.block.items[-1].last + 5
        pattern = Pattern(self.fixed(config.accumulators), 1, self.fixed(1), 1)
        self.put("const", "READ", {"s1": 1, "address": 3}, pattern, start - self.timing.const_read)
        self.put("mxm", "MATMUL", {"x0": int(Stream.CONST), "x1": int(Stream.CONST), "start": 1,
                                   "order": int(Order.HOLD), "s2": 1}, pattern, start,
                 self.timing.matmul_to_drain)
        return self.block

    def random_block(self) -> Block:
        rounds = self.count(3) if self.chance(0.5) else self.fixed(1)
        steps = {queue: self.pick(0, 1, -1, 2) for queue in self.config.queues
                 if unit_of(queue).field("address") is not None}
        self.block = Block(rounds, steps)
        consumers = [self.consume_mem] * 4 + [self.consume_mxm] * 3 + [
            self.consume_kv, self.consume_red, self.consume_vxm]
        for _ in range(self.tries):
            start = self.random.randrange(*_WINDOW) * self.ones
            self.attempt(self.random.choice(consumers), start)
        if not self.block.items:
            self.put("const", "READ", {}, self.single(), FIRST_ISSUE, self.timing.const_read)
        self.place_kv()
        return self.block

    def sampling_block(self) -> Block:
        self.block = Block(self.fixed(1), {})
        while not self.attempt(self.consume_sample, 80 * self.ones):
            pass
        return self.block

    def place_kv(self) -> None:
        """Addresses of the run-time weight writes: where no matmul meets them, closely if lucky."""
        depth = self.config.weight_depth
        reads = {address for item in self.block.items if item.queue == "mxm"
                 for address in self.words(item)}
        for item in self.block.items:
            if item.op not in ("WRITE_K", "WRITE_V"):
                continue
            for trial in range(200):
                index, reach = self.index(depth // 4)
                fields = self.address("kv", depth, item.pattern, reach) | index
                if reads and trial < 20 and self.chance(0.7):
                    fields |= {"address": self.random.choice(sorted(reads)), "s1": 0, "index": 0}
                item.fields.update(fields)
                if self.free_of_conflict(item, reach):
                    break
            else:
                raise AssertionError("no place for a run-time weight write")

    def words(self, item: Item, reach: int = 0) -> set:
        """All addresses of an instruction, over rows, rounds and values of the index."""
        low, high = self.block.base(item.queue)
        n1, n2 = item.pattern.n1.most, item.pattern.n2.most
        i, j = np.mgrid[:n2, :n1]
        base = item.fields["address"] + i * item.fields.get("s2", 0) + j * item.fields["s1"]
        return {int(address) + more for address in base.ravel()
                for more in range(low, high + reach + 1)}

    def free_of_conflict(self, write: Item, reach: int) -> bool:
        """Whether no matmul reads a word of ``write`` near the cycle in which it is written."""
        if write.fields["index"] == Index.NONE:
            reach = 0
        words, depth = self.words(write, reach), self.config.weight_depth
        if min(words) < 0 or max(words) >= depth:
            return False
        apart = self.timing.weight_write - self.timing.weight_read
        wave = self.timing.matmul_to_kv_write + apart - 1
        for item in self.block.items:
            if item.queue != "mxm" or not words & self.words(item):
                continue
            for row in range(len(self.ones)):
                written = write.start[row] + write.pattern.cycles(row)
                read = item.start[row] + item.pattern.cycles(row)
                distance = written[:, None] + apart - read
                if ((distance >= 0) & (distance <= wave)).any():
                    return False
        return True

    # Instructions.

    def program(self) -> Image:
        """The image: waits from times, delay parameters where rows differ."""
        config = self.config
        begin, begins = 0 * self.ones, []
        for block in [*self.blocks, *self.tail]:
            period = block.length + self.random.randrange(4)
            begins.append((block, begin, period))
            # Behind a LOOP an END and the next block must wait.
            begin = begin + block.rounds.values * period + LOOP_WAIT_MIN + 1
        prompt = begins[len(self.blocks)][1]
        rows = np.zeros((config.param_rows, 6), np.int64)
        rows[:, :4], rows[:, 4], rows[:, 5] = self.counts, begin + 2, prompt + 2
        program, params = {}, {}
        for queue in config.queues:
            writer = Writer(self, queue)
            for number, (block, start, period) in enumerate(begins):
                if number == len(self.blocks) and any(other.of(queue) for other in self.tail):
                    writer.emit("END", {"n1": 2}, np.maximum(writer.last + LOOP_WAIT_MIN, FIRST_ISSUE))
                writer.block(block, start, period)
            writer.emit("END", {}, np.maximum(writer.last + LOOP_WAIT_MIN, FIRST_ISSUE))
            program[queue] = writer.words
            if writer.columns:
                params[queue] = np.array(writer.columns).T
        return Image(config, program, params, rows, *self.data())

    def data(self) -> tuple:
        """Patterns, constants (large and small ones) and weights."""
        config, numbers = self.config, np.random.default_rng(self.random.randrange(1 << 32))
        patterns = numbers.integers(-1, config.lanes, (config.patterns, config.lanes))
        constants = numbers.integers(-32768, 32768, (config.const_depth, config.lanes))
        constants >>= numbers.integers(0, 14, (config.const_depth, 1))
        shape = (config.weight_depth, config.rows, config.columns)
        return (patterns, constants.astype(np.int16),
                numbers.integers(-127, 128, shape).astype(np.int8))


def random_program(config: Config, seed: int, blocks: int = 4, tries: int = 14) -> RandomProgram:
    """A legal program with its run, the same for the same seed.

    Parameters
    ----------
    blocks, tries : int
        Size; see `Generator`.
    """
    for attempt in range(100):
        # A program with more instructions or delay parameters than a queue holds is drawn again.
        generator = Generator(config, seed + (attempt << 32), blocks, tries)
        try:
            image, draw = generator.program(), generator.random
            break
        except NoRoom:
            continue
    # The run begins at a row boundary or anywhere, and passes into the next row.
    first = draw.choice([0, 0, config.columns - 2, draw.randrange(config.context - 4)])
    given = first + draw.randrange(1, 4)
    tokens = [draw.randrange(config.vocab_max) for _ in range(given)]
    temperature = draw.choice([0, draw.randrange(1, 1 << 16)])
    return RandomProgram(image, tokens, first, 4, draw.getrandbits(64), temperature,
                         draw.randrange(1, config.vocab_max + 1))
