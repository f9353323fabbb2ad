"""Bench of the instruction queues: every issue, END and fault on the cycle of the issue rule.

The rule is expanded by `sim.queue_model`, the part of the machine model that knows the queues; a
few programs are worked out by hand.
"""
import cocotb
import numpy as np

from arch.faults import Fault
from arch.hostmap import Space, program_address
from arch.isa import Control, Instruction, encode, layout, unit_of
from arch.queues import QUEUES as ALL_QUEUES
from arch.timing import FIRST_ISSUE, LOOP_WAIT_MIN
from tb.bench import bench_test
from tb.icu import IcuBench, Step, random_params, random_program, random_step
from tb.top import CONFIG, QUEUES



def end(wait=1):
    return Instruction("END", {"n1": 1, "wait": wait})


def operation(queue, wait, **fields):
    return Instruction(unit_of(queue).ops[0].name, {"wait": wait, **fields})


@bench_test
@cocotb.parametrize(queue=QUEUES)
async def quiet_after_reset(dut, queue):
    """Nothing issues before the first barrier, nor behind one that is stopped at once."""
    bench = IcuBench(dut, queue)
    await bench.start()
    await bench.load([operation(queue, FIRST_ISSUE), end()])
    await bench.run(20)
    await bench.steps([])
    await bench.finish()


@bench_test
@cocotb.parametrize(queue=QUEUES)
async def latency(dut, queue):
    """The first issue FIRST_ISSUE cycles behind the barrier, the next one cycle on; a loop jumps in
    LOOP_WAIT_MIN. One cycle less is UNDERRUN, on the first cycle that is legal."""
    bench = IcuBench(dut, queue)
    await bench.start()
    for first, again in ((FIRST_ISSUE, LOOP_WAIT_MIN), (FIRST_ISSUE - 1, LOOP_WAIT_MIN),
                         (FIRST_ISSUE, LOOP_WAIT_MIN - 1), (1, 1), (FIRST_ISSUE, 1)):
        await bench.load([operation(queue, first), operation(queue, 1),
                          Instruction("LOOP", {"n1": 3, "d1": 2, "wait": again}), end(7)])
        # By hand, on purpose without the model.
        legal = 6 if min(first, again) >= 4 else 0 if first < 4 else 2
        before = bench.issues.seen, bench.faults.seen
        await bench.steps([Step(length=40)])
        assert bench.issues.seen - before[0] == legal
        assert bench.faults.seen - before[1] == (legal < 6)
    await bench.finish()


@bench_test
async def by_hand(dut):
    """A count with a stride, a loop with a step of the base, and the position."""
    bench = IcuBench(dut, "kv")
    await bench.start()
    fields = {"address": 10, "s1": 1, "n1": 2, "d1": 3, "index": 1, "index_shift": 1}
    loop = Instruction("LOOP", {"n1": 2, "d1": 1, "wait": 6, "s1": 100})
    await bench.load([operation("kv", 4, **fields), loop,
                      Instruction("END", {"n1": 2, "wait": 4}), end(7)])
    at = bench.cycle + 4
    # Issues on 4, 7, then 6 cycles on again; position 9, halved, is added.
    for cycle, address in zip((4, 7, 13, 16), (14, 15, 114, 115)):
        j = address % 2
        bench.issues.expect(at + cycle, {
            "issue__valid": 1, "issue__i": 0, "issue__j": j, "issue__i_first": 1,
            "issue__i_last": 1, "issue__j_first": 1 - j, "issue__j_last": j, "issue__op": 4,
            "issue__half0": 0, "issue__x": 0, "issue__address": address})
    bench.ended.high.update(range(at + 27, at + 50))
    bench.driver.pulse(at - 1, bench.port("restart"), 1, 0)
    bench.driver.set(at + 1, bench.port("position"), 9)
    bench.driver.pulse(at + 49, bench.port("stop"), 1, 0)
    await bench.run(60)
    await bench.finish()
    assert bench.issues.seen == 4


@bench_test
async def repeats_by_hand(dut):
    """Two nested counts with strides."""
    bench = IcuBench(dut, "r0")
    await bench.start()
    fields = {"address": 10, "s1": 1, "s2": 20, "n1": 2, "d1": 3, "n2": 2, "d2": 5}
    await bench.load([operation("r0", 4, **fields), end(7)])
    at = bench.cycle + 4
    for cycle, address in zip((4, 7, 12, 15), (10, 11, 30, 31)):
        i, j = address // 20, address % 2
        bench.issues.expect(at + cycle, {
            "issue__valid": 1, "issue__i": i, "issue__j": j, "issue__i_first": 1 - i,
            "issue__i_last": i, "issue__j_first": 1 - j, "issue__j_last": j, "issue__op": 4,
            "issue__address": address})
    bench.ended.high.update(range(at + 22, at + 50))
    bench.driver.pulse(at - 1, bench.port("restart"), 1, 0)
    bench.driver.pulse(at + 49, bench.port("stop"), 1, 0)
    await bench.run(60)
    await bench.finish()
    assert bench.issues.seen == 4


@bench_test
@cocotb.parametrize(queue=QUEUES)
async def random(dut, queue):
    """Random legal programs, several steps each."""
    bench, rng = IcuBench(dut, queue), np.random.default_rng(ALL_QUEUES[queue].id)
    await bench.start()
    params = random_params(rng)
    for _ in range(5):
        await bench.load(random_program(queue, rng), params)
        await bench.steps([random_step(rng) for _ in range(5)])
    await bench.finish()
    assert bench.issues.seen > 300 and bench.faults.seen == 0


def with_field(queue, word, name, value) -> int:
    """An instruction, or its word, with a field set to what `encode` would refuse."""
    if isinstance(word, Instruction):
        word = encode(queue, word, CONFIG)
    offset, bits, _ = layout(unit_of(queue), CONFIG)[name]
    return word & ~((1 << bits) - 1 << offset) | (value & (1 << bits) - 1) << offset


def damaged(queue, program, rng) -> list:
    """The words of a program with one to three fields wrong or different."""
    words, fields = list(program), layout(unit_of(queue), CONFIG)
    choices = [("op", int(code)) for code in range(16) if code != Control.LOOP]
    choices += [("wait", wait) for wait in range(5)] * 2 + [("n1", 0), ("n1", 2), ("d1", 0)]
    if "d2" in fields:
        choices += [("n2", 0), ("d2", 0)]
    for _ in range(rng.integers(1, 4)):
        pc, (name, value) = int(rng.integers(len(words))), choices[rng.integers(len(choices))]
        words[pc] = with_field(queue, words[pc], name, value)
    return words


@bench_test
@cocotb.parametrize(queue=QUEUES)
async def damaged_programs(dut, queue):
    """Programs with wrong fields and counts of 0: the cause and cycle of the fault, and a queue
    that starts anew with the next step."""
    bench, rng = IcuBench(dut, queue), np.random.default_rng(100 + ALL_QUEUES[queue].id)
    await bench.start()
    program = random_program(queue, rng)
    await bench.load(program, random_params(rng))
    for _ in range(12):
        await bench.load(damaged(queue, program, rng))
        await bench.steps([random_step(rng, 100, least=0) for _ in range(2)],
                          stop_with_restart=bool(rng.random() < 0.5))
    await bench.finish()
    assert bench.faults.seen > 8


def wrong_programs(queue) -> dict:
    """One program for every way to go wrong, by fault; the schedule is by hand: on cycle 8."""
    fields, good, last = layout(unit_of(queue), CONFIG), operation(queue, 4), operation(queue, 4)
    reserved = set(range(16)) - {int(code) for code in Control}
    reserved -= {op.code for op in unit_of(queue).ops}
    encoding = [("op", code) for code in sorted(reserved)]
    encoding += [("index", 3)] if "index" in fields else []
    underrun = [("n1", 0)]
    underrun += [("n2", 0)] if "d2" in fields else []
    programs = {Fault.ENCODING: [[good, with_field(queue, last, *wrong)] for wrong in encoding],
                Fault.UNDERRUN: [[good, with_field(queue, last, *wrong)] for wrong in underrun]}
    for name, value in (("n1", 0), ("n1", 3), ("n1_param", 1)):
        programs[Fault.ENCODING].append([good, with_field(queue, end(4), name, value)])
    for gap, count in (("d1", "n1"), ("d2", "n2")):
        if gap in fields:
            programs[Fault.UNDERRUN].append(
                [good, with_field(queue, operation(queue, 4, **{count: 2}), gap, 0)])
    loop = Instruction("LOOP", {"n1": 2, "d1": 1, "wait": 4})
    programs[Fault.UNDERRUN] += [[operation(queue, 7), with_field(queue, last, "wait", 0)],
                                 [good, with_field(queue, loop, "wait", 0)],
                                 [good, with_field(queue, loop, "n1", 0)],
                                 [good, with_field(queue, loop, "d1", 0)]]
    return programs


@bench_test
@cocotb.parametrize(queue=QUEUES)
async def faults(dut, queue):
    """Each way to go wrong by itself; an operation of the queue before it is issued."""
    bench = IcuBench(dut, queue)
    await bench.start()
    for fault, programs in wrong_programs(queue).items():
        for program in programs:
            await bench.load([*program, end()])
            before = bench.issues.seen, bench.faults.seen
            at = bench.cycle + 4
            bench.faults.expect(at + 8, {fault})
            bench.issues.expect(at + program[0]["wait"], bench.members(program[0]))
            bench.driver.pulse(at - 1, bench.port("restart"), 1, 0)
            bench.driver.pulse(at + 20, bench.port("stop"), 1, 0)
            await bench.until(at + 22)
            assert (bench.issues.seen, bench.faults.seen) == (before[0] + 1, before[1] + 1), program
    await bench.finish()


@bench_test
@cocotb.parametrize(queue=QUEUES)
async def host(dut, queue):
    """Programs are read back; other queues and spaces are left alone."""
    bench, rng = IcuBench(dut, queue), np.random.default_rng(5)
    await bench.start()
    program, params = random_program(queue, rng), random_params(rng)
    await bench.load(program, params)
    number = ALL_QUEUES[queue].id
    for pc in (0, 1, len(program) - 1):
        word = encode(queue, program[pc], CONFIG)
        for chunk in range(8):
            got = await bench.host.read(Space.PROGRAM, program_address(number, pc, chunk))
            assert got == word >> 16 * chunk & 0xFFFF
    for other in (number ^ 1, number ^ 4):
        assert await bench.host.is_ignored(Space.PROGRAM, program_address(other, 0, 0))
    for space in set(Space) - {Space.PROGRAM}:
        assert await bench.host.is_ignored(space, program_address(number, 0, 0))
    # What was read and what was ignored has changed nothing.
    await bench.steps([random_step(rng)])
    await bench.finish()
