"""The instruction queues against an expansion of the issue rule in plain Python."""
import random

import pytest
from amaranth.sim import Simulator

from arch.config import profile
from arch.faults import Fault
from arch.hostmap import Space, program_address
from arch.isa import Instruction, encode, reserved_fields, unit_of, word_bits
from arch.queues import QUEUES
from tb.hosted_queue import HostedQueue

CONFIG = profile("tiny")


def expand(program, params, counts, prompt, index=(0, 0, 0)):
    """Issues ``(cycle, pc, i, j, address)`` and the cycle of END, straight from `arch.isa`."""
    issues, at, pc, base, rounds, override = [], 0, 0, 0, 0, None
    while True:
        entry = program[pc]

        def count(name):
            value = entry[name]
            return counts[value] if entry[f"{name}_param"] else value

        def delay():
            return params[entry["wait"]] if entry["wait_param"] else entry["wait"]
        if entry.op == "LOOP":
            rounds += 1
            if rounds < count("n1"):
                override, base, pc = delay(), base + entry["s1"], pc - entry["d1"]
            else:
                rounds, base, pc = 0, 0, pc + 1
            continue
        at += delay() if override is None else override
        override = None
        if entry.op == "END":
            if entry["n1"] == 1 or prompt:
                return issues, at
        elif entry.op != "NOP":
            first = at
            for i in range(count("n2")):
                for j in range(count("n1")):
                    address = (entry["address"] + base + i * entry["s2"] + j * entry["s1"]
                               + (index[entry["index"]] >> entry["index_shift"]))
                    issues.append((at, pc, i, j, address))
                    at += entry["d1"]
                at += entry["d2"] - entry["d1"]
            at -= entry["d2"]
            assert at >= first
        pc += 1


class Bench:
    """One queue in the simulator, loaded through its host port."""

    def __init__(self, queue, config=CONFIG):
        self.queue, self.config = queue, config
        self.dut = HostedQueue(config=config, queue=queue)
        self.words = {}

    def run(self, testbench):
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-8)
        simulator.add_testbench(testbench)
        simulator.run()

    async def access(self, ctx, space, address, word=None):
        """One write or, without a word, one read over the bus."""
        host = self.dut.host
        ctx.set(host.space, int(space))
        ctx.set(host.address, address)
        ctx.set(host.w_data, word or 0)
        ctx.set(host.r_en if word is None else host.w_en, 1)
        await ctx.tick()
        ctx.set(host.r_en, 0)
        ctx.set(host.w_en, 0)
        for _ in range(24):
            if ctx.get(host.ack):
                result = ctx.get(host.r_data)
                await ctx.tick()
                assert not ctx.get(host.ack) and not ctx.get(host.r_data)
                return result
            await ctx.tick()
        raise AssertionError(f"no answer for {space!r} {address}")

    async def load(self, ctx, program, params=()):
        """Write encoded instructions, or plain words, and parameter rows."""
        number = QUEUES[self.queue].id
        chunks = -(-word_bits(unit_of(self.queue), self.config) // 16)
        for pc, entry in enumerate(program):
            word = entry if isinstance(entry, int) else encode(self.queue, entry, self.config)
            for chunk in range(chunks):
                await self.access(ctx, Space.PROGRAM, program_address(number, pc, chunk),
                                  word >> 16 * chunk & 0xFFFF)
        for row, values in enumerate(params):
            await self.load_row(ctx, row % 2, values)

    async def load_row(self, ctx, half, values):
        """Put the delay parameters of a row into one half of the queue's memory."""
        load = self.dut.load
        ctx.set(load.half, half)
        ctx.set(load.queue, 1 << QUEUES[self.queue].id)
        for column, value in enumerate(values):
            ctx.set(load.column, column)
            ctx.set(load.value, value)
            await ctx.tick()
        ctx.set(load.queue, 0)

    async def barrier(self, ctx):
        """Restart; afterwards it is cycle 0 of the step."""
        ctx.set(self.dut.restart, 1)
        await ctx.tick()
        ctx.set(self.dut.restart, 0)

    async def step(self, ctx, length, last=True, settings=()):
        """Cycles 0 to length - 1, then the barrier of the next step unless ``last``. Pairs of a
        setting of the step and its value come on cycle 1.

        Returns the issues (every port of the issue), the first cycle of ``ended``, and faults as
        ``(event cycle, causes)``.
        """
        dut, issues, end, faults = self.dut, [], None, []
        members = [name for name in dut.issue.signature.members if name != "valid"]
        for cycle in range(length):
            if cycle == 1:
                for name, value in settings:
                    ctx.set(getattr(dut, name), value)
            if ctx.get(dut.issue.valid):
                issues.append({"cycle": cycle}
                              | {name: ctx.get(getattr(dut.issue, name)) for name in members})
            if ctx.get(dut.ended) and end is None:
                end = cycle
            if ctx.get(dut.fault.causes):
                faults.append((cycle - 1, ctx.get(dut.fault.causes)))
            if not last and cycle == length - 1:
                ctx.set(dut.restart, 1)
            await ctx.tick()
            ctx.set(dut.restart, 0)
        return issues, end, faults


def check(bench, program, issues, expected, counts):
    """Compare every issue: cycle, indices, flags, address and payload."""
    assert [issue["cycle"] for issue in issues] == [entry[0] for entry in expected]
    for issue, (_, pc, i, j, address) in zip(issues, expected):
        entry = program[pc]
        n1, n2 = (counts[entry[name]] if entry[f"{name}_param"] else entry[name]
                  for name in ("n1", "n2"))
        assert (issue["i"], issue["j"]) == (i, j)
        flags = tuple(issue[name] for name in ("i_first", "i_last", "j_first", "j_last"))
        assert flags == (i == 0, i == n2 - 1, j == 0, j == n1 - 1)
        if "address" in issue:
            width = len(bench.dut.issue.address)
            assert issue["address"] == address % (1 << width)
        for name in issue:
            if name in entry.fields and name not in ("i", "j", "address", "op"):
                assert issue[name] == entry[name], name


def random_program(queue, rng, config=CONFIG):
    """A legal program of up to 30 words with every feature of the format, dense in time."""
    unit = unit_of(queue)
    names = {field.name for field in unit.fields}
    widths = {field.name: field.bits(config) for field in unit.fields}

    def wait(fields, least, column=None):
        if rng.random() < 0.3:
            column = rng.randrange(8) if least < 4 else rng.randrange(8, 16)
            return fields | {"wait": column, "wait_param": 1}
        return fields | {"wait": rng.choice([least, least, least, least + 1, least + 5])}

    def operation(least):
        if rng.random() < 0.15:
            return Instruction("NOP", wait({}, least))
        fields = {}
        for name, gap in (("n1", "d1"), ("n2", "d2")):
            if gap in names and rng.random() < 0.5:
                fields[name] = rng.randrange(1, 5)
                if rng.random() < 0.4:
                    fields |= {name: rng.randrange(4), f"{name}_param": 1}
                fields[gap] = rng.choice([1, 1, 2, 7])
        fields |= {name: rng.randrange(-(1 << widths[name] - 1), 1 << widths[name] - 1)
                   for name in ("s1", "s2") if name in names}
        for name in sorted(names - {"op", "wait", "wait_param", "n1", "n1_param", "d1", "n2",
                                    "n2_param", "d2", "s1", "s2", *reserved_fields(unit)}):
            fields[name] = rng.randrange(3 if name == "index" else 1 << widths[name])
        return Instruction(rng.choice(unit.ops).name, wait(fields, least))

    program = [operation(4)]
    while len(program) < 22:
        kind, least = rng.random(), 4 if program[-1].op == "LOOP" else 1
        if kind < 0.1:
            program.append(Instruction("END", wait({"n1": 2}, least)))
        elif kind < 0.35:
            body = [operation(least), *(operation(1) for _ in range(rng.randrange(3)))]
            fields = {"n1": rng.randrange(1, 5), "d1": len(body)}
            if rng.random() < 0.4:
                fields |= {"n1": rng.randrange(4), "n1_param": 1}
            if "s1" in names:
                fields["s1"] = rng.randrange(-4, 5)
            program += [*body, Instruction("LOOP", wait(fields, 4))]
        else:
            program.append(operation(least))
    return program + [Instruction("END", {"n1": 1, "wait": 4})]


@pytest.mark.parametrize("queue", CONFIG.queues)
def test_random_programs(queue):
    rng = random.Random(queue)
    bench = Bench(queue)

    async def testbench(ctx):
        for _ in range(3):
            program = random_program(queue, rng)
            params = [[rng.randrange(1, 6) for _ in range(8)]
                      + [rng.randrange(4, 9) for _ in range(8)] for _ in range(2)]
            await bench.load(ctx, program, params)
            await bench.barrier(ctx)
            for step in range(5):
                row, prompt = rng.randrange(2), rng.random() < 0.4
                counts = [rng.randrange(1, 4) for _ in range(4)]
                position, token = rng.randrange(CONFIG.context), rng.randrange(CONFIG.vocab_max)
                settings = (("half", row), ("counts", counts), ("prompt", prompt),
                            ("position", position), ("token", token))
                expected, end = expand(program, params[row], counts, prompt, (0, position, token))
                issues, ended, faults = await bench.step(ctx, end + 1, step == 4, settings)
                assert faults == []
                check(bench, program, issues, expected, counts)
                assert ended == end
    bench.run(testbench)


def run_once(queue, program, length=40, params=(), **inputs):
    """One step of a program; returns issues, end and faults."""
    bench, result = Bench(queue), []

    async def testbench(ctx):
        await bench.load(ctx, program, params)
        for name, value in inputs.items():
            ctx.set(getattr(bench.dut, name), value)
        await bench.barrier(ctx)
        result.extend(await bench.step(ctx, length))
    bench.run(testbench)
    return result


def cycles(issues):
    return [issue["cycle"] for issue in issues]


def op(queue="const", **fields):
    return Instruction(unit_of(queue).ops[0].name, fields)


END = Instruction("END", {"n1": 1})


def causes(*faults):
    return sum(1 << fault - 1 for fault in faults)


def test_by_hand():
    """The example of the issue rule, counted by hand."""
    program = [op("r0", wait=4, n1=2, d1=3, n2=2, d2=5, address=10, s1=1, s2=-2),
               Instruction("NOP", {"wait": 6}), op("r0", wait=1, address=1),
               op("r0", wait=1, address=2), END]
    issues, end, faults = run_once("r0", program)
    assert [(issue["cycle"], issue["address"]) for issue in issues] == [
        (4, 10), (7, 11), (12, 8), (15, 9), (22, 1), (23, 2)]
    assert (end, faults) == (24, [])


def test_loop_by_hand():
    program = [op(wait=5, address=0), op(wait=2, address=20),
               Instruction("LOOP", {"n1": 3, "d1": 2, "wait": 4, "s1": 3}),
               op(wait=4, address=40), END]
    issues, end, faults = run_once("const", program)
    assert [(issue["cycle"], issue["address"]) for issue in issues] == [
        (5, 0), (7, 20), (11, 3), (13, 23), (17, 6), (19, 26), (23, 40)]
    assert (end, faults) == (24, [])


@pytest.mark.parametrize("program, expected", [
    # A wait that is too short counts as the shortest legal one.
    ([op(wait=3), END], (4, Fault.UNDERRUN)),
    ([op(wait=2), END], (4, Fault.UNDERRUN)),
    ([op(wait=1), END], (4, Fault.UNDERRUN)),
    ([Instruction("NOP", {"wait": 3}), END], (4, Fault.UNDERRUN)),
    ([op(wait=6), Instruction("LOOP", {"n1": 2, "d1": 1, "wait": 3}), END], (10, Fault.UNDERRUN)),
    ([op(wait=6), Instruction("LOOP", {"n1": 2, "d1": 1, "wait": 2}), END], (10, Fault.UNDERRUN)),
    ([op(wait=6), Instruction("LOOP", {"n1": 2, "d1": 1, "wait": 1}), END], (10, Fault.UNDERRUN)),
    ([op(wait=6), Instruction("LOOP", {"n1": 1, "d1": 1, "wait": 1}), op(wait=3), END],
     (10, Fault.UNDERRUN)),
    ([op(wait=2, index=3), END], (4, Fault.ENCODING)),
    ([op(wait=6), op(wait=5, n1=4, n1_param=1), END], (11, Fault.ENCODING)),
    ([op(wait=6), Instruction("LOOP", {"n1": 9, "n1_param": 1, "d1": 1, "wait": 2}), END],
     (10, Fault.ENCODING)),
    ([op(wait=6), op(wait=3, n1=2, n1_param=1), END], (9, Fault.UNDERRUN)),
    ([op(wait=6), Instruction("LOOP", {"n1": 2, "n1_param": 1, "d1": 1, "wait": 5}), END],
     (11, Fault.UNDERRUN)),
    ([op(wait=6), op(wait=0, wait_param=1), END], (7, Fault.UNDERRUN)),
    ([op(wait=6), 0], (7, Fault.ENCODING)),
    ([op(wait=6)], (7, Fault.ENCODING)),
    ([op(wait=6), 5 | 9 << 5], (15, Fault.ENCODING)),
    ([op(wait=6), op(wait=9, index=3)], (15, Fault.ENCODING)),
    ([op(wait=6), Instruction("END", {"n1": 3, "wait": 2})], (8, Fault.ENCODING)),
    ([op(wait=6), Instruction("LOOP", {"n1": 2, "d1": 2, "wait": 7}), END], (13, Fault.ENCODING)),
    ([Instruction("LOOP", {"n1": 2, "d1": 1, "wait": 7}), END], (7, Fault.ENCODING)),
    ([op(wait=6), op(wait=40, wait_param=1), END], (7, Fault.ENCODING)),
], ids=lambda value: "")
def test_faults(program, expected):
    """One fault, on its scheduled cycle; the queue neither issues again nor ends."""
    issues, end, faults = run_once("const", program, length=60)
    cycle, cause = expected
    assert faults == [(cycle, causes(cause))]
    assert end is None
    assert cycles(issues) == ([6] if program[0]["wait"] == 6 else [])


@pytest.mark.parametrize("fields, cause", [({"n2": 2}, Fault.UNDERRUN), ({"n2": 9}, Fault.ENCODING)])
def test_outer_counts_of_registers(fields, cause):
    """A register that is 0, and one that does not exist."""
    program = [op("r0", wait=6), op("r0", wait=3, n2_param=1, **fields), END]
    issues, end, faults = run_once("r0", program)
    assert cycles(issues) == [6] and end is None and faults == [(9, causes(cause))]


def test_gap_of_zero():
    """Unused gaps may be 0, used ones not."""
    word = encode("const", op(wait=4, n1=3, address=1, s1=1), CONFIG) & ~(0x7F << 25)
    field = unit_of("const").field("d1")
    assert field.bits(CONFIG) == 7 and word & 0xF == 4
    issues, _, faults = run_once("const", [word, END])
    assert issues == [] and faults == [(4, causes(Fault.UNDERRUN))]
    single = encode("const", op(wait=4, address=1), CONFIG) & ~(0x7F << 25)
    issues, end, faults = run_once("const", [single, END])
    assert cycles(issues) == [4] and end == 5 and faults == []


def test_end_of_the_program_memory():
    """A program that fills the memory may end on its last word; one that does not, faults."""
    depth = CONFIG.depth_of("red")
    body = [op("red", wait=4, x=1)] + [op("red", wait=1, x=1)] * (depth - 2)
    issues, end, faults = run_once("red", [*body, END], length=depth + 10)
    assert cycles(issues) == list(range(4, depth + 3)) and end == depth + 3 and not faults
    issues, end, faults = run_once("red", [*body, op("red", wait=1, x=1)], length=depth + 10)
    assert cycles(issues) == list(range(4, depth + 4)) and end is None
    assert faults == [(depth + 4, causes(Fault.ENCODING))]


def test_restart_and_stop_in_flight():
    """A restart forgets repeats, a loop and its base; a stop silences the queue."""
    bench = Bench("kv")
    program = [op("kv", wait=4, n1=4, d1=3, address=7, s1=1, x=1),
               Instruction("LOOP", {"n1": 5, "d1": 1, "s1": 100, "wait": 4}),
               Instruction("END", {"n1": 1, "wait": 4})]

    async def testbench(ctx):
        await bench.load(ctx, program)
        await bench.barrier(ctx)
        reference = await bench.step(ctx, 100)
        assert len(reference[0]) == 20
        for length in range(1, 40):
            await bench.barrier(ctx)
            issues, _, _ = await bench.step(ctx, length, last=False)
            assert issues == [issue for issue in reference[0] if issue["cycle"] < length]
            assert await bench.step(ctx, 50) == (
                [issue for issue in reference[0] if issue["cycle"] < 50], None, [])
            ctx.set(bench.dut.stop, 1)
            await ctx.tick()
            ctx.set(bench.dut.stop, 0)
            assert await bench.step(ctx, 30) == ([], None, [])
    bench.run(testbench)


def test_read_back():
    """The program reads back as written; unused chunks and other queues do not answer."""
    bench, rng = Bench("vxm"), random.Random(1)
    number, depth = QUEUES["vxm"].id, CONFIG.depth_of("vxm")
    width = word_bits(unit_of("vxm"), CONFIG)

    async def testbench(ctx):
        words = {pc: rng.getrandbits(width) for pc in (0, 1, 2, 63, 64, depth - 1)}
        for pc, word in words.items():
            for chunk in range(8):
                await bench.access(ctx, Space.PROGRAM, program_address(number, pc, chunk),
                                   word >> 16 * chunk & 0xFFFF)
        for pc, word in words.items():
            for chunk in range(8):
                value = await bench.access(ctx, Space.PROGRAM, program_address(number, pc, chunk))
                assert value == word >> 16 * chunk & 0xFFFF
        with pytest.raises(AssertionError, match="no answer"):
            await bench.access(ctx, Space.PROGRAM, program_address(number + 1, 0, 0))
    bench.run(testbench)
