"""Bench of the sequencer: the cycles of every step, what it tells the queues, and its registers.

The queues restart on the cycle before a barrier.
"""
import dataclasses

import cocotb
import numpy as np

from arch.faults import Fault
from arch.hostmap import ABORT, CLEAR, NO_TOKEN, RUN, EventFlag, Register, Space, row_address
from arch.queues import QUEUES
from tb.bench import Bench, bench_test
from tb.checker import Mismatch
from tb.hostbus import HostBus
from tb.monitors import number
from tb.top import CONFIG
from tb.wire import Receiver

CAUSES = len(Fault) - 1
ALL_ENDED = (1 << len(QUEUES)) - 1
ROWS = [(1, 2, 3, 4, 20, 31), (5, 6, 7, 8, 41, 12), (9, 10, 11, 12, 33, 44),
        (511, 0, 256, 1, 25, 16)]


@dataclasses.dataclass(frozen=True)
class Step:
    """One step as the contract has it."""
    position: int
    prompt: bool
    token: int
    length: int
    sampled: int
    last: bool


def predict(first, prompt, limit, stop, tokens, sampled) -> list:
    """Steps of a run (`arch.hostmap.Register`); ``sampled`` gives the token of a position."""
    steps, token, position = [], tokens.get(first, 0), first
    while True:
        given = position + 1 < prompt
        length = ROWS[position // CONFIG.columns][5 if given else 4]
        after = position + 1
        last = after >= min(limit, CONFIG.context) or not given and sampled(position) == stop
        steps.append(Step(position, given, token, length, sampled(position), last))
        if last:
            return steps
        token = tokens.get(after, 0) if given else sampled(position)
        position = after


class StateMonitor:
    """Values of the ports of a step, on every cycle; ``states`` by cycle."""
    NAMES = ("barrier", "restart", "stop", "busy", "row", "counts", "prompt", "position", "token")

    def __init__(self, bench):
        self._handles = {name: bench.port(name) for name in self.NAMES}
        self.states = {}

    def sample(self, cycle: int) -> None:
        self.states[cycle] = {name: number(handle, cycle)
                              for name, handle in self._handles.items()}


class SeqBench(Bench):
    """The sequencer; queues and sampler are played by the bench."""

    def __init__(self, dut, pace=lambda: True):
        super().__init__(dut, "seq")
        self.host, self.state = HostBus(self), StateMonitor(self)
        self.monitors.append(self.state)
        self.driver.set(0, self.port("ended"), ALL_ENDED)
        self.driver.set(0, self.port("causes"), 0)
        self.driver.set(0, self.port("sampled"), 0)
        self.driver.set(0, self.port("loading"), 0)
        self.events = Receiver(tuple(self.port(f"event__{name}")
                                     for name in ("payload", "valid", "ready")), pace)
        self.drivers.append(self.events)
        self.handshakes.append(self.events)
        # Events are words here, not bytes.
        self.events.data = []

    async def prepare(self, tokens, **registers):
        """Reset, rows, tokens by position, registers."""
        await self.start()
        await self.run(2)
        for row, fields in enumerate(ROWS):
            for field, word in enumerate(fields):
                await self.host.write(Space.ROWS, row_address(row, field), word)
        for position, token in tokens.items():
            await self.host.write(Space.TOKENS, position, token)
        await self.set(**registers)

    async def set(self, **registers):
        for name, word in registers.items():
            await self.host.write(Space.REGISTERS, Register[name], word)

    async def get(self, *names):
        return [await self.host.read(Space.REGISTERS, Register[name]) for name in names]

    async def first_barrier(self) -> int:
        """Start a run; returns the cycle of its first barrier."""
        await self.set(COMMAND=RUN)
        for _ in range(100):
            if self.state.states[self.cycle]["barrier"]:
                return self.cycle
            await self.run(1)
        raise Mismatch("no barrier")

    def play(self, barrier, steps, ended=True) -> int:
        """Give the sampled tokens, each on the last cycle of its step, junk beside. While a step
        runs its queues end one by one. Returns the cycle of the last barrier."""
        for step in steps:
            begins, barrier = barrier + 1, barrier + step.length
            self.driver.set(begins, self.port("sampled"), (step.sampled + 1) % CONFIG.vocab_max)
            self.driver.set(barrier, self.port("sampled"), step.sampled)
            self.driver.set(begins, self.port("ended"), 0)
            self.driver.set(begins + 2, self.port("ended"), ALL_ENDED >> 4)
            self.driver.set(barrier, self.port("ended"), ALL_ENDED if ended else ALL_ENDED >> 1)
        return barrier

    def check(self, barrier, steps):
        """Every state port on every cycle of a run that is over."""
        barriers, now = {barrier}, barrier
        for step in steps:
            row = step.position // CONFIG.columns
            counts = sum(count << 9 * place for place, count in enumerate(ROWS[row][:4]))
            for cycle in range(now + 1, now + step.length + 1):
                state = self.state.states[cycle]
                # Counts are one cycle ahead.
                state = state | {"counts": self.state.states[cycle - 1]["counts"]}
                for name, value in (("row", row), ("counts", counts), ("token", step.token),
                                    ("prompt", step.prompt), ("position", step.position)):
                    if state[name] != value:
                        raise Mismatch(f"{step}: cycle {cycle - now - 1}: {name} {state[name]}")
            now += step.length
            barriers.add(now)
        for cycle in range(barrier - 1, now + 20):
            state = self.state.states[cycle]
            wanted = {"barrier": cycle in barriers, "restart": cycle + 1 in barriers,
                      "stop": cycle == now + 2, "busy": cycle <= now + 1}
            for name, value in wanted.items():
                if state[name] != value:
                    raise Mismatch(f"cycle {cycle - barrier} of the run: {name} is {state[name]}")

    def take_events(self, steps, fault=False):
        """One event per step, in order."""
        assert len(self.events.data) == len(steps)
        for word, step in zip(self.events.data, steps):
            flags = EventFlag(0 if step.prompt else EventFlag.SAMPLED)
            if step.last:
                flags |= EventFlag.LAST | (EventFlag.FAULT if fault else 0)
            low, wanted = 0, 0
            for value, bits in ((flags, 3), (step.position, CONFIG.position_bits),
                                (0 if step.prompt else step.sampled, CONFIG.token_bits),
                                (step.length, 16)):
                wanted |= int(value) << low
                low += bits
            if word != wanted:
                raise Mismatch(f"event {word:#x}, not {wanted:#x}, of {step}")
        self.events.data.clear()


TOKENS = {position: 100 + position for position in range(12)}
SETTINGS = {"FIRST": 0, "PROMPT": 1, "LIMIT": CONFIG.context, "STOP": NO_TOKEN, "VOCABULARY": 99,
            "TEMPERATURE": 4096, "SEED0": 1, "SEED1": 2, "SEED2": 3, "SEED3": 4}


async def run_through(bench, sampled=lambda position: 50 + position, **changes):
    """A whole run with some settings changed, compared on every cycle; returns its steps."""
    settings = SETTINGS | changes
    await bench.set(**settings)
    # What is sampled is stored: the next run finds it.
    steps = predict(settings["FIRST"], settings["PROMPT"], settings["LIMIT"], settings["STOP"],
                    bench.tokens, sampled)
    barrier = await bench.first_barrier()
    end = bench.play(barrier, steps)
    await bench.until(end + 30)
    bench.check(barrier, steps)
    bench.take_events(steps)
    bench.tokens |= {step.position + 1: step.sampled for step in steps
                     if not step.prompt and step.position + 1 < CONFIG.context}
    status = await bench.get("STATUS", "POSITION", "CYCLES0", "CYCLES1")
    assert status == [0, steps[-1].position, steps[-1].length, 0]
    return steps


async def started(dut, **registers):
    bench = SeqBench(dut)
    bench.tokens = dict(TOKENS)
    await bench.prepare(TOKENS, **registers)
    return bench


@bench_test
async def quiet_after_reset(dut):
    bench = SeqBench(dut)
    await bench.start()
    await bench.finish(60)
    for state in bench.state.states.values():
        assert not state["barrier"] and not state["stop"] and not state["busy"]
    assert not bench.events.data


@bench_test
async def prompt_and_generation(dut):
    """A prompt beyond a row, then generation up to LIMIT; what was sampled is stored."""
    bench = await started(dut)
    steps = await run_through(bench, PROMPT=11, LIMIT=19)
    assert [step.prompt for step in steps] == [True] * 10 + [False] * 9
    for position in range(20):
        wanted = 100 + position if position < 11 else 50 + position - 1
        assert await bench.host.read(Space.TOKENS, position) == wanted
    await bench.finish()


@bench_test
async def ends(dut):
    """LIMIT, STOP, the end of the context; a prompt token equal to STOP does not count."""
    bench = await started(dut)
    assert len(await run_through(bench, FIRST=2, LIMIT=3)) == 1
    assert len(await run_through(bench, PROMPT=4, STOP=53)) == 4
    assert len(await run_through(bench, FIRST=3, PROMPT=9, STOP=53, LIMIT=8)) == 5
    last = CONFIG.context - 2
    assert len(await run_through(bench, FIRST=last, LIMIT=0xFFFF)) == 2
    await bench.finish()


@bench_test
async def abort(dut):
    """ABORT acts at the next barrier, once; the next run is not touched."""
    bench = await started(dut)
    await bench.set(**SETTINGS)
    steps = predict(0, 1, 3, NO_TOKEN, bench.tokens, lambda position: 7)
    steps[1] = dataclasses.replace(steps[1], last=True)
    barrier = await bench.first_barrier()
    end = bench.play(barrier, steps[:2])
    await bench.until(barrier + steps[0].length + 2)
    await bench.set(COMMAND=ABORT)
    await bench.until(end + 30)
    bench.check(barrier, steps[:2])
    bench.take_events(steps[:2])
    bench.tokens |= {1: 7, 2: 7}
    await run_through(bench, LIMIT=3)
    await bench.finish()


@bench_test
@cocotb.parametrize(at=(0, 1, 7, 19))
async def faults(dut, at):
    """The first cycle with a fault, of it the lowest cause, of that the lowest queue; the run ends
    with the step. CLEAR forgets."""
    bench = await started(dut, **SETTINGS)

    def lines(*events):
        return sum(1 << QUEUES[queue].id * CAUSES + fault - 1 for queue, fault in events)
    # An event on the last cycle shows in the next step, which is then the last.
    steps = predict(0, 1, 2, NO_TOKEN, {0: 100}, lambda position: 7)
    steps = steps if at == steps[0].length - 1 else [dataclasses.replace(steps[0], last=True)]
    barrier = await bench.first_barrier()
    # The causes of an event are high one cycle later.
    now = barrier + 1 + at + 1
    bench.driver.pulse(now, bench.port("causes"), lines(
        ("w1", Fault.ADDRESS), ("r2", Fault.ADDRESS), ("mxm", Fault.PARITY)), 0)
    bench.driver.pulse(now + 3, bench.port("causes"), lines(("mxm", Fault.OPERAND)), 0)
    end = bench.play(barrier, steps)
    await bench.until(end + 30)
    bench.check(barrier, steps)
    bench.take_events(steps, fault=True)
    registers = await bench.get("STATUS", "FAULT_CAUSE", "FAULT_QUEUE", "FAULT_CYCLE0",
                                "FAULT_CYCLE1")
    assert registers == [2, Fault.ADDRESS, QUEUES["r2"].id, at, 0]
    assert bench.port("fault").value == 1
    await bench.set(COMMAND=CLEAR)
    assert await bench.get("STATUS", "FAULT_CAUSE", "FAULT_QUEUE") == [0, Fault.NONE, 0xFF]
    bench.tokens |= {step.position + 1: 7 for step in steps}
    await run_through(bench, LIMIT=2)
    await bench.finish()


@bench_test
async def length_fault(dut):
    """A queue that has not ended on the last cycle: LENGTH, with that cycle and queue."""
    bench = await started(dut, **SETTINGS)
    step = predict(0, 1, 1, NO_TOKEN, {0: 100}, lambda position: 7)[0]
    barrier = await bench.first_barrier()
    end = bench.play(barrier, [step], ended=False)
    await bench.until(end + 30)
    bench.check(barrier, [step])
    bench.take_events([step], fault=True)
    registers = await bench.get("STATUS", "FAULT_CAUSE", "FAULT_QUEUE", "FAULT_CYCLE0")
    assert registers == [2, Fault.LENGTH, len(QUEUES) - 1, step.length - 1]
    await bench.finish()


@bench_test
async def registers(dut):
    """Settings reach the sampler and are read back; the identity; registers that are read only."""
    bench = await started(dut, **SETTINGS)
    assert await bench.get(*SETTINGS) == list(SETTINGS.values())
    for name, value in (("vocabulary", 99), ("temperature", 4096),
                        ("seed", 0x0004_0003_0002_0001)):
        assert bench.port(name).value == value
    digest = np.frombuffer(CONFIG.digest(), "<u2").tolist()
    identity = ("MAGIC", "PROTOCOL", "DIGEST0", "DIGEST1", "DIGEST2", "DIGEST3")
    assert await bench.get(*identity) == [0x4D45, 2, *digest]
    # A token is kept with as many bits as tokens have.
    await bench.host.write(Space.TOKENS, 3, 0xA55A)
    assert await bench.host.read(Space.TOKENS, 3) == 0xA55A % CONFIG.vocab_max == 0x5A
    await bench.set(MAGIC=0, STATUS=3, POSITION=9)
    assert await bench.get("MAGIC", "STATUS", "POSITION") == [0x4D45, 0, 0]
    for space in set(Space) - {Space.REGISTERS, Space.ROWS, Space.TOKENS}:
        assert await bench.host.is_ignored(space, 0)
    before, at = await bench.get("TIME0"), bench.cycle
    after, now = await bench.get("TIME0"), bench.cycle
    assert after[0] - before[0] == now - at
    await bench.finish()


@bench_test
async def slow_host(dut):
    """Events of a whole context wait; nothing is lost, and the next run waits for them."""
    bench = SeqBench(dut, pace=lambda: bench.cycle > 2200)
    bench.tokens = dict(TOKENS)
    await bench.prepare(TOKENS, **SETTINGS)
    steps = predict(0, 1, CONFIG.context, NO_TOKEN, bench.tokens, lambda position: position)
    barrier = await bench.first_barrier()
    end = bench.play(barrier, steps)
    await bench.until(end + 30)
    bench.check(barrier, steps)
    assert end < 2000 and not bench.events.data
    await bench.set(LIMIT=1, COMMAND=RUN)
    await bench.until(2200)
    assert bench.state.states[bench.cycle]["busy"] and not any(
        state["barrier"] for cycle, state in bench.state.states.items() if cycle > end)
    # Once all are taken, one every two cycles, the second run begins: one step more.
    await bench.until(2200 + 2 * CONFIG.context + steps[0].length + 20)
    bench.events.data, more = bench.events.data[:CONFIG.context], bench.events.data[CONFIG.context:]
    bench.take_events(steps)
    assert len(more) == 1
    await bench.finish()
