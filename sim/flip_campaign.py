"""Bits that flip in memories of the simulated hardware in the middle of a run: what tells of each.

Every flip is one bit of one memory on one cycle of the same run, of which all tokens, logits and
cycles are known. What happens to it is one of `OUTCOMES`.
"""
import collections
import dataclasses
import random

import numpy as np

from arch.faults import Fault
from arch.hostmap import Space
from arch.image import Image
from sim.engine import EngineError, RunResult
from sim.flip_memories import Memory, memories
from sim.machine import Machine
from sim.parity import MATMUL_PARITY, READ_OUT_PARITY, STREAM_PARITY, parity_faults, place_of
from sim.scrub import CHECKED, scrub

#: What may become of a flip. The last one must not occur.
PARITY, FAULT, DRIVER, HOST, SCRUB, SCRUB_LATE, GONE, SILENT = OUTCOMES = (
    "operand: fault PARITY", "operand: another fault", "told by the driver at the end of the run",
    "not an operand, told when the host read it", "not used, told by a scrub",
    "used, told by the scrub after the run", "gone or never read: all results equal",
    "silent: wrong results")
#: Cycles by which a memory that is read on a clock edge may see a flip earlier or later.
EDGE = 2


@dataclasses.dataclass
class Golden:
    """The run that nothing disturbs.

    Members
    -------
    began : cycle, counted as ``barriers``, on which flips can begin.
    barriers : the cycle before the first step, and the last one of each step.
    after : what all memories hold at its end.
    """
    result: RunResult
    began: int
    barriers: list
    after: dict


class FlipCampaign:
    """One run, again and again, with a flip in each.

    Parameters
    ----------
    engine : `sim.verilator.VerilatorEngine`
    image : Image
    prompt, steps, settings : as of `sim.engine.Engine.run`.
    seed : int

    Members
    -------
    outcomes : how many flips of each kind of memory had each outcome.
    latencies : cycles from flip to fault, by kind.
    read_latencies : cycles from the read to the fault, by kind and unit.
    causes : the faults and messages by which flips were told, by kind.
    """

    def __init__(self, engine, image: Image, prompt: list, steps: int, settings: dict, seed: int):
        self._engine, self._image, self._rng = engine, image, random.Random(seed)
        self._run = lambda: engine.run(prompt, steps, trace=True, **settings)
        self._prompt = prompt
        engine.load(image)
        self._memories = engine._memories()
        self._start = {name: words.copy() for name, words in self._memories.items()}
        self.outcomes = collections.defaultdict(collections.Counter)
        self.latencies = collections.defaultdict(list)
        self.read_latencies = collections.defaultdict(set)
        self.causes = collections.defaultdict(collections.Counter)
        self._golden = self._undisturbed()
        self._model = Machine(engine.config)
        self._model.load(image)
        self._kinds = self._places()

    @property
    def kinds(self) -> list:
        """The kinds of memory there are."""
        return list(self._kinds)

    def _undisturbed(self) -> Golden:
        began = []
        self.restore()
        result = self._with(lambda: began.append(self._now()))
        if result.fault:
            raise EngineError(f"without a flip: {result.fault}")
        after = {name: words.copy() for name, words in self._memories.items()}
        return Golden(result, began[0], self._engine._barriers().tolist(), after)

    def _now(self) -> int:
        engine = self._engine
        return engine._lib.machine_cycle(engine._machine) - engine._since

    def _with(self, action) -> RunResult:
        """Run, with ``action`` behind the request that starts it."""
        engine, collect = self._engine, self._engine._collect

        def collected(first, progress):
            action()
            return collect(first, progress)
        engine._collect = collected
        try:
            return self._run()
        finally:
            del engine._collect

    def _places(self) -> dict:
        """``(memory, words)`` by kind; of MEM and the KV cache the words that the run writes, of the
        noise the upper four octaves, from which nearly all of it comes."""
        kinds = collections.defaultdict(list)
        for memory in memories(self._image, self._start):
            words = memory.words
            if memory.kind in ("KV cache", "MEM"):
                changed = (self._start[memory.name] != self._golden.after[memory.name]).any(1)
                words = [word for word in words if changed[word]]
            elif memory.kind == "noise table":
                words = [word for word in words if word % 256 < 4 * 8]
            if words:
                kinds[memory.kind].append((memory, words))
        return dict(kinds)

    def restore(self) -> None:
        """All memories, and the tags of requests, as they were before the run."""
        self._engine.connect()
        for name, words in self._memories.items():
            words[:] = self._start[name]
        # Reads that were in flight pass by.
        self._engine.clock(8)

    def flip(self, kind: str) -> None:
        """Flip a random bit of a kind of memory on a random cycle, and find out what happens."""
        rng, golden = self._rng, self._golden
        memory, words = rng.choice(self._kinds[kind])
        word, bit = rng.choice(words), rng.randrange(memory.bits)
        offset = rng.randrange(golden.barriers[-1] - golden.began)
        self.restore()

        def act():
            self._engine.clock(offset)
            self._memories[memory.name][word, bit // 8] ^= 1 << bit % 8
        place = memory.space in CHECKED and place_of(
            self._engine.config, memory.space, memory.address(word, bit))
        try:
            result = self._with(act)
        except EngineError as error:
            self._note(kind, DRIVER, " ".join(str(error).split(":")[1].split()[:3]))
            return
        if result.fault:
            self._faulted(memory, result.fault, place, golden.began + offset)
            return
        self._unnoticed(memory, word, bit, place, self._same(result), golden.began + offset)

    def _note(self, kind: str, outcome: str, cause: str = "") -> None:
        self.outcomes[kind][outcome] += 1
        if cause:
            self.causes[kind][cause] += 1

    def _same(self, result) -> bool:
        """Whether a run gave what the undisturbed one gave."""
        wanted = self._golden.result
        return (result.tokens == wanted.tokens and result.cycles == wanted.cycles
                and result.logits.keys() == wanted.logits.keys()
                and all((result.logits[step] == wanted.logits[step]).all()
                        for step in wanted.logits))

    def _reads(self, place: tuple, at: int) -> list:
        """``(cycle of the fault, read latency, queue)`` of all reads of a word, from about ``at``
        on, in order."""
        golden, found = self._golden, []
        tokens = [*self._prompt, *golden.result.tokens]
        for position in range(len(golden.barriers) - 1):
            if golden.barriers[position + 1] < at - EDGE:
                continue
            prompt = position + 1 < len(self._prompt)
            plan = self._model.plan(position // self._engine.config.columns, prompt)
            for fault in parity_faults(plan, position, tokens[position], {place}):
                latency = latency_of(plan, place, fault.queue)
                cycle = golden.barriers[position] + 1 + fault.cycle
                if cycle - latency >= at - EDGE:
                    found.append((cycle, latency, fault.queue))
        return sorted(found)

    def _faulted(self, memory: Memory, fault, place, at: int) -> None:
        """A fault: of words with parity it must be PARITY, where the word is first read."""
        cycle = int(self._engine._barriers()[fault.position]) + 1 + fault.cycle
        self.latencies[memory.kind].append(cycle - at)
        if not place:
            outcome = PARITY if fault.cause == Fault.PARITY else FAULT
            self._note(memory.kind, outcome, fault.cause.name)
            return
        reads = self._reads(place, at)
        first = [read for read in reads if read[0] - read[1] <= at + EDGE]
        first += [read for read in reads if read not in first][:1]
        met = [read for read in first if read[0] == cycle and read[2] == fault.queue]
        if fault.cause != Fault.PARITY or not met:
            raise AssertionError(f"{memory.name}: {fault}, flipped on cycle {at}, read as {first}")
        self.read_latencies[memory.kind].add((fault.queue.rstrip("0123456789"), met[0][1]))
        self._note(memory.kind, PARITY, fault.cause.name)

    def _unnoticed(self, memory: Memory, word: int, bit: int, place, same: bool, at: int) -> None:
        """No fault: who reads the word now, and was it used?"""
        engine, kind = self._engine, memory.kind
        if memory.space is None:
            self._note(kind, GONE if same else SILENT)
            return
        address = memory.address(word, bit)
        if place:
            try:
                engine.read_space(memory.space, address, 1)
            except EngineError:
                if any(read[0] - read[1] > at + EDGE for read in self._reads(place, at)):
                    raise AssertionError(f"{memory.name}: word {word} was read and not told")
                self._note(kind, HOST if same else SILENT)
            else:
                self._note(kind, GONE if same else SILENT)
            return
        blocks = [block for block in engine._blocks
                  if block[0] == memory.space and block[1] <= address < block[1] + len(block[2])]
        if scrub(engine._link, engine.config, blocks, [memory.space]):
            self._note(kind, SCRUB if same else SCRUB_LATE)
        else:
            self._note(kind, GONE if same else SILENT)

    def scrub_cycles(self) -> dict:
        """Cycles of a scrub by memory, requests and answers at one byte a cycle included."""
        engine, cycles = self._engine, {}
        self.restore()
        for space in sorted({memory.space for places in self._kinds.values()
                             for memory, _ in places if memory.space not in (None, Space.TOKENS)}):
            began = engine._lib.machine_cycle(engine._machine)
            engine.scrub([space])
            cycles[space] = engine._lib.machine_cycle(engine._machine) - began
        return cycles


def latency_of(plan, place: tuple, queue: str) -> int:
    """Cycles from the read of a word to its fault, as `sim.parity` counts both."""
    times = plan.timing
    return {Space.MEM: times.mem_read + STREAM_PARITY,
            Space.CONSTANTS: times.const_read + STREAM_PARITY,
            Space.WEIGHTS: MATMUL_PARITY if queue == "mxm" else READ_OUT_PARITY}[place[0]]
