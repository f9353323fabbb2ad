"""The part of an engine that talks to the host port; what moves bytes and clock is a subclass.

Everything a person can do to a board through its byte stream is done here the same way: load,
set registers, run, collect events, read back.
"""
import abc
import time

import numpy as np

from arch.config import Config
from arch.hostmap import (CLEAR, NO_TOKEN, RUN, Command, EventFlag, Register, Space, Status,
                          constant_address)
from arch.image import Image
from sim import hostlink, rtl
from sim.engine import Engine, EngineError, RunResult, checked_run, fault_info

#: Cycles that the host port may take for one byte, and besides for any request.
BYTE_CYCLES, SPARE_CYCLES = 64, 4096
#: Step length assumed by the watchdog while no image tells a better one.
LONGEST_STEP = 1 << 20


class HostEngine(Engine):
    """An engine behind a byte stream.

    A subclass gives `_reset`, `_advance` and, where it can, `_poke_image` and `_writes`.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        self._parser = hostlink.Parser()
        self._tag = 0
        self._events = []
        self._longest = LONGEST_STEP
        self._ready = self._shows_logits = False

    # What a subclass provides.

    @abc.abstractmethod
    def _reset(self) -> None:
        """Start the simulation, in reset and out of it."""

    @abc.abstractmethod
    def _advance(self, data: bytes, cycles: int, received: int) -> bytes:
        """Clock until ``data`` is taken and ``received`` bytes have come, or ``cycles`` pass.

        Returns the bytes that came, possibly more than asked for.
        """

    @abc.abstractmethod
    def _poke_image(self, image: Image) -> None:
        """Write the memories directly."""

    @abc.abstractmethod
    def _start_counting(self, trace: bool) -> None:
        """Forget barriers and writes seen so far; from now on keep them (writes if ``trace``)."""

    @abc.abstractmethod
    def _counted(self) -> tuple:
        """Step lengths from barrier to barrier, cycles simulated, write log and logits or None.

        Step lengths are None where nothing but the machine itself can count.
        """

    # Requests.

    def _start(self) -> None:
        if not self._ready:
            self._reset()
            self._ready = True
            self._identify()

    def _identify(self) -> None:
        """Refuse to work with another machine than the one of ``config``."""
        digest = self._registers(Register.DIGEST0, 4).astype("<u2").tobytes()
        if digest != self.config.digest():
            raise EngineError(f"{self.name}: the simulated machine is not profile "
                              f"{self.config.name!r} as it is now; build it again")

    def _request(self, frame: bytes, command: int, count: int) -> hostlink.Reply:
        """Send one frame and wait for its reply; events that come between are kept."""
        wanted = hostlink.reply_bytes(command, Status.OK, count)
        limit = BYTE_CYCLES * (len(frame) + wanted) + SPARE_CYCLES
        data = self._advance(frame, limit, hostlink.reply_bytes(Command.WRITE, Status.OK, 0))
        while True:
            for found in self._parser.feed(data):
                if isinstance(found, hostlink.Reply):
                    return found
                self._events.append(found)
            data = self._advance(b"", limit, self._parser.needed)
            if not data:
                raise EngineError(f"{self.name}: the host port gave no answer in {limit} cycles")

    def _next_tag(self) -> int:
        self._tag = (self._tag + 1) & 0xFF
        return self._tag

    def _checked(self, reply: hostlink.Reply, tag: int, what: str) -> hostlink.Reply:
        if reply.tag != tag or reply.status != Status.OK or not reply.intact:
            raise EngineError(f"{self.name}: {what} was answered {reply.status.name} "
                              f"(tag {reply.tag}, expected {tag})")
        return reply

    def write_space(self, space: Space, address: int, words) -> None:
        """Write 16-bit words through the host port."""
        words = np.asarray(words)
        for start in range(0, len(words), hostlink.FRAME_WORDS):
            part = words[start:start + hostlink.FRAME_WORDS]
            tag = self._next_tag()
            frame = hostlink.write_request(tag, space, address + start, part)
            self._checked(self._request(frame, Command.WRITE, len(part)), tag,
                          f"a write of {len(part)} words to {space.name} {address + start}")

    def write_constant(self, address: int, lanes: np.ndarray) -> None:
        self._start()
        self.write_space(Space.CONSTANTS, constant_address(self.config, address, 0),
                         np.asarray(lanes, np.int64) & 0xFFFF)

    def read_space(self, space: Space, address: int, count: int) -> np.ndarray:
        self._start()
        parts = [np.zeros(0, np.uint16)]
        for start in range(0, count, hostlink.FRAME_WORDS):
            size = min(hostlink.FRAME_WORDS, count - start)
            tag = self._next_tag()
            self._parser.expect_read(tag)
            frame = hostlink.read_request(tag, space, address + start, size)
            reply = self._checked(self._request(frame, Command.READ, size), tag,
                                  f"a read of {size} words of {space.name} {address + start}")
            parts.append(reply.words)
        return np.concatenate(parts)

    def _registers(self, first: Register, count: int) -> np.ndarray:
        return self.read_space(Space.REGISTERS, int(first), count)

    # The engine's calls.

    def load(self, image: Image, backdoor: bool = True) -> None:
        if image.config.digest() != self.config.digest():
            raise EngineError(f"the image is for profile {image.config.name!r}, the engine for "
                              f"{self.config.name!r}; compile the model for this one")
        self._start()
        if backdoor:
            self._poke_image(image)
        else:
            for space, address, words in hostlink.image_blocks(image):
                self.write_space(space, address, words)
        self._shows_logits = rtl.shows_logits(image)
        self._longest = 2 * int(image.rows.max(initial=0)) + SPARE_CYCLES

    def run(self, prompt, steps, *, first=0, seed=0, inverse_temperature=0, stop=NO_TOKEN,
            vocabulary, progress=None, trace=False) -> RunResult:
        checked_run(self.config, prompt, steps, first)
        self._start()
        self.write_space(Space.REGISTERS, Register.COMMAND, [CLEAR])
        self.write_space(Space.TOKENS, 0, prompt)
        seeds = [seed >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
        self.write_space(Space.REGISTERS, Register.FIRST,
                         [first, len(prompt), first + steps, vocabulary, stop,
                          inverse_temperature, *seeds])
        self._events.clear()
        self._start_counting(trace)
        began = time.perf_counter()
        self.write_space(Space.REGISTERS, Register.COMMAND, [RUN])
        events = self._collect(progress)
        cycles, simulated, writes, logits = self._counted()
        seconds = time.perf_counter() - began
        fault = None
        if events[-1].flags & EventFlag.FAULT:
            cause, queue, low, high, position = self._registers(Register.FAULT_CAUSE, 5).tolist()
            fault = fault_info(cause, queue, high << 16 | low, position)
        reported = [event.cycles for event in events]
        return RunResult([event.token for event in events if event.flags & EventFlag.SAMPLED],
                         reported if cycles is None else cycles, reported, fault, writes, simulated,
                         seconds, logits if self._shows_logits else None)

    def _collect(self, progress) -> list:
        """Wait for the events of a run up to the last one."""
        events = []
        while True:
            for event in self._events:
                events.append(event)
                if progress:
                    sampled = event.flags & EventFlag.SAMPLED
                    progress(event.position, event.token if sampled else None, event.cycles)
            self._events.clear()
            if events and events[-1].flags & EventFlag.LAST:
                return events
            data = self._advance(b"", self._longest, self._parser.needed)
            if not data:
                raise EngineError(f"{self.name}: no event within {self._longest} cycles after "
                                  f"{len(events)} steps; the machine hangs")
            self._events += self._parser.feed(data)
