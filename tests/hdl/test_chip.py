"""The whole machine, `tiny`: a small program loaded, run and read back through the byte stream."""
import hashlib
import re
import subprocess
import sys

import numpy as np
from amaranth.sim import Simulator

from arch.config import profile
from arch.faults import Fault
from arch.hostmap import (CLEAR, NO_TOKEN, RUN, EventFlag, Register, Space, constant_address,
                          mem_address, param_address, program_address, row_address)
from arch.isa import Instruction, encode, unit_of, word_bits
from arch.queues import QUEUES, Stream
from arch.timing import timing
from hdl.chip import Chip
from tests.hdl.host_wire import Wire

CONFIG = profile("tiny")
TIMES = timing(CONFIG)
LANES = CONFIG.lanes
LENGTH = 40
#: Cycles of the issues of `program`.
READ, SECOND = 5, 9
X, Y = [np.arange(LANES) * 300 - 1000, np.arange(LANES) * -7 + 20]


def program():
    """Constants 3 and 4 to MEM banks 0 and 1; their product, plus the first, to bank 2.

    Everything that follows a producer issues ``timing`` cycles behind it.
    """
    end = Instruction("END", {"n1": 1})
    first = READ + TIMES.const_read
    multiply = SECOND + TIMES.const_read + TIMES.mem_write_to_read + TIMES.mem_read
    return {
        "const": [Instruction("READ", {"wait": READ, "address": 3, "n1": 2, "s1": 1,
                                       "d1": SECOND - READ}), end],
        "w0": [Instruction("WRITE", {"wait": first, "address": 10, "x": Stream.CONST,
                                     "halves": 3}), end],
        "w1": [Instruction("WRITE", {"wait": SECOND + TIMES.const_read, "address": 11,
                                     "x": Stream.CONST, "halves": 3}), end],
        # The wait of this one comes from the delay parameters.
        "r0": [Instruction("READ", {"wait": 2, "wait_param": 1, "address": 10}), end],
        "r1": [Instruction("READ", {"wait": multiply - TIMES.mem_read, "address": 11}), end],
        "vxm": [Instruction("MAC", {"wait": multiply, "a": Stream.M0, "b": Stream.M1,
                                    "c": Stream.M0, "post": 3}), end],
        "w2": [Instruction("WRITE", {"wait": multiply + TIMES.vxm, "address": 63,
                                     "x": Stream.VXM, "halves": 2}), end],
    }, multiply - TIMES.mem_read


async def load(wire, programs, parameter):
    """Programs (END for the queues left out), parameter 2 of r0, the rows, the constants."""
    end = [Instruction("END", {"n1": 1, "wait": 4})]
    for queue in CONFIG.queues:
        size = -(-word_bits(unit_of(queue), CONFIG) // 16)
        for pc, entry in enumerate(programs.get(queue, end)):
            word = encode(queue, entry, CONFIG)
            await wire.write(Space.PROGRAM, program_address(QUEUES[queue].id, pc, 0),
                             [word >> 16 * chunk & 0xFFFF for chunk in range(size)])
    await wire.write(Space.PARAMS, param_address(CONFIG, QUEUES["r0"].id, 0, 2), [parameter])
    await wire.write(Space.ROWS, row_address(0, 0), [1, 1, 1, 1, LENGTH, LENGTH + 3])
    await wire.write(Space.CONSTANTS, constant_address(CONFIG, 3, 0),
                     [int(value) & 0xFFFF for value in (*X, *Y)])


def simulate(testbench):
    """Run a testbench; returns barriers, issues by queue id, and the trace of MEM writes.

    Cycles count from the first barrier: cycle 0 of the first step is 0.
    """
    dut = Chip(config=CONFIG)
    barriers, issues, writes, vectors = [], [], [], []

    async def monitor(ctx):
        ports = [getattr(dut, f"trace_w{bank}_{name}") for bank in range(CONFIG.mem_banks)
                 for name in ("valid", "address", "halves", "data")]
        cycle = None
        async for _, _, barrier, issue, v_valid, v_data, *trace in ctx.tick().sample(
                dut.o_barrier, dut.trace_issue, dut.trace_v_valid, dut.trace_v_data, *ports):
            cycle = -1 if cycle is None and barrier else cycle
            if cycle is None:
                continue
            if barrier:
                barriers.append(cycle)
            issues.extend((cycle, number) for number in range(len(QUEUES)) if issue >> number & 1)
            for bank in range(CONFIG.mem_banks):
                valid, *write = trace[4 * bank:4 * bank + 4]
                if valid:
                    writes.append((cycle, bank, *write))
            if v_valid:
                vectors.append((cycle, v_data))
            cycle += 1

    async def run(ctx):
        await testbench(Wire(dut, ctx), ctx, dut)

    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    simulator.add_testbench(run)
    simulator.add_testbench(monitor, background=True)
    simulator.run()
    return barriers, issues, writes, vectors


def lanes_of(value):
    return np.frombuffer(int(value).to_bytes(2 * LANES, "little"), "<i2")


def test_program():
    """Three steps of hand-made arithmetic: cycles, trace, events, memory; then a fault."""
    programs, parameter = program()
    product = (X * Y + 4 >> 3) + X
    assert np.abs(product).max() < 32768

    async def testbench(wire, ctx, dut):
        await load(wire, programs, parameter)
        assert await wire.read(Space.PARAMS, param_address(CONFIG, QUEUES["r0"].id, 0, 2), 1) == [
            parameter]
        await wire.write(Space.TOKENS, 0, [1, 2])
        await wire.write(Space.REGISTERS, Register.FIRST, [0, 2, 3, 256, NO_TOKEN])
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN])
        assert ctx.get(dut.o_running)
        for position, cycles in enumerate((LENGTH + 3, LENGTH, LENGTH)):
            flags, at, _, length = await wire.event(1500)
            expected = EventFlag.SAMPLED if position else EventFlag(0)
            assert flags == expected | (EventFlag.LAST if position == 2 else 0)
            assert (at, length) == (position, cycles)
        assert not ctx.get(dut.o_running) and not ctx.get(dut.o_fault)
        for bank, word, expected in ((0, 10, X), (1, 11, Y)):
            found = await wire.read(Space.MEM, mem_address(CONFIG, bank, word, 0), LANES)
            assert found == [int(value) & 0xFFFF for value in expected]
        found = await wire.read(Space.MEM, mem_address(CONFIG, 2, 63, 0), LANES)
        assert found[LANES // 2:] == [int(value) & 0xFFFF for value in product[LANES // 2:]]
        assert found[:LANES // 2] == [0] * (LANES // 2)
        assert await wire.read(Space.CONSTANTS, constant_address(CONFIG, 3, 1), 1) == [
            int(X[1]) & 0xFFFF]
        # One cycle later the product is gone: OPERAND, named with its queue and cycle.
        late = encode("w2", Instruction("WRITE", programs["w2"][0].fields | {
            "wait": programs["w2"][0]["wait"] + 1}), CONFIG)
        await wire.write(Space.PROGRAM, program_address(QUEUES["w2"].id, 0, 0), [
            late >> 16 * chunk & 0xFFFF for chunk in range(4)])
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN])
        flags, _, _, _ = await wire.event(1500)
        assert flags == EventFlag.LAST | EventFlag.FAULT and ctx.get(dut.o_fault)
        assert await wire.read(Space.REGISTERS, Register.FAULT_CAUSE, 3) == [
            Fault.OPERAND, QUEUES["w2"].id, programs["w2"][0]["wait"] + 1]
        # And without it, after CLEAR, as before.
        await wire.write(Space.PROGRAM, program_address(QUEUES["w2"].id, 0, 0), [
            encode("w2", programs["w2"][0], CONFIG) >> 16 * chunk & 0xFFFF for chunk in range(4)])
        await wire.write(Space.REGISTERS, Register.COMMAND, [CLEAR])
        await wire.write(Space.REGISTERS, Register.LIMIT, [1])
        await wire.write(Space.REGISTERS, Register.COMMAND, [RUN])
        assert (await wire.event(1500))[0] == EventFlag.LAST

    barriers, issues, writes, vectors = simulate(testbench)
    assert np.diff(barriers[:4]).tolist() == [LENGTH + 3, LENGTH, LENGTH]
    assert np.diff(barriers[4:6]).tolist() == np.diff(barriers[6:]).tolist() == [LENGTH + 3]
    starts = [barrier + 1 for barrier in barriers[:3]]
    multiply, result = programs["vxm"][0]["wait"], programs["w2"][0]["wait"]
    expected = [(READ, "const"), (READ + TIMES.const_read, "w0"), (SECOND, "const"),
                (SECOND + TIMES.const_read, "w1"), (parameter, "r0"), (parameter, "r1"),
                (multiply, "vxm"), (result, "w2")]
    for start in starts:
        step = {(cycle - start, number) for cycle, number in issues
                if start <= cycle < start + LENGTH}
        assert step == {(cycle, QUEUES[queue].id) for cycle, queue in expected}
        assert [(cycle, *rest) for cycle, *rest in writes if start <= cycle < start + LENGTH] == [
            (start + cycle + 1, *write) for cycle, *write in [
                (READ + TIMES.const_read, 0, 10, 3, writes[0][4]),
                (SECOND + TIMES.const_read, 1, 11, 3, writes[1][4]),
                (result, 2, 63, 2, writes[2][4])]]
    for (_, _, _, _, data), values in zip(writes, (X, Y, product)):
        np.testing.assert_array_equal(lanes_of(data), values)
    assert [cycle for cycle, _ in vectors[:3]] == [start + result for start in starts]
    found = np.frombuffer(vectors[0][1].to_bytes(4 * LANES, "little"), "<i4")
    np.testing.assert_array_equal(found, product)


def test_ports_and_determinism():
    """The same text in two processes with different hash seeds; the ports that tools rely on."""
    script = ("from arch.config import profile; from hdl.verilog import to_rtlil; import sys; "
              "sys.stdout.write(to_rtlil(profile('tiny')))")
    texts = [subprocess.run([sys.executable, "-c", script], env={"PYTHONHASHSEED": seed},
                            capture_output=True, text=True, check=True).stdout
             for seed in ("1", "2")]
    assert len(texts[0]) > 100_000
    first, second = (hashlib.sha256(text.encode()).hexdigest() for text in texts)
    assert first == second
    assert "attribute \\src" not in texts[0]
    top = texts[0][texts[0].index("module \\metronome_tiny\n"):]
    body = top[:top.index("\nend\n")]
    ports = {name: (kind, int(width)) for width, kind, name in re.findall(
        r"wire width (\d+) (input|output) \d+ +\\(\S+)", body)}
    expected = {"clk": ("input", 1), "rst": ("input", 1), "rx__payload": ("input", 8),
                "rx__valid": ("input", 1), "rx__ready": ("output", 1),
                "tx__payload": ("output", 8), "tx__valid": ("output", 1),
                "tx__ready": ("input", 1), "o_barrier": ("output", 1),
                "o_running": ("output", 1), "o_fault": ("output", 1),
                "trace_issue": ("output", len(QUEUES)), "trace_v_valid": ("output", 1),
                "trace_v_data": ("output", 32 * LANES)}
    for bank in range(CONFIG.mem_banks):
        expected |= {f"trace_w{bank}_{name}": ("output", width) for name, width in {
            "valid": 1, "address": CONFIG.mem_address_bits, "halves": 2,
            "data": 16 * LANES}.items()}
    assert ports == expected
