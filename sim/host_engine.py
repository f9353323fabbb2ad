"""The part of an engine that talks to the host port; what moves bytes and clock is a subclass.

Everything a person can do to a board through its byte stream is done here the same way: load,
set registers, run, collect events, read back.
"""
import abc
import time

import numpy as np

from arch.config import Config
from arch.hostmap import (ABORT, CLEAR, NO_TOKEN, RUN, EventFlag, Register, Space,
                          constant_address)
from arch.image import Image
from sim import hostlink, rtl
from sim.engine import Engine, EngineError, RunResult, checked_run, fault_info
from sim.link import SPARE_CYCLES, Link
from sim.scrub import CHECKED, UNCHECKED, forget_faults, parity_was_wrong, scrub

#: Step length assumed by the watchdog while no image tells a better one.
LONGEST_STEP = 1 << 20
#: Times that a running machine is asked whether it has stopped.
PATIENCE = 1000


class ParityError(EngineError):
    """Words that were read have wrong parity; ``words`` are they, as they came."""

    def __init__(self, message: str, words: np.ndarray):
        super().__init__(message)
        self.words = words


class HostEngine(Engine):
    """An engine behind a byte stream.

    A subclass gives `_reset`, `_advance` and, where it can, `_poke_image` and `_writes`.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        self._link = None
        self._longest = LONGEST_STEP
        self._ready = self._shows_logits = False
        self._blocks = []  # what is loaded, as `hostlink.image_blocks`

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

    #: Tag that the first WRITE follows. A board may have seen others before.
    _first_tag = 0
    #: Whether bits can flip by themselves: memories without parity are compared after every run.
    _wears = False

    def _start(self) -> None:
        if not self._ready:
            self._reset()
            self.connect()

    def connect(self) -> None:
        """Begin to talk to the machine, whatever somebody else has left undone."""
        self._link = Link(self.name, lambda *arguments: self._advance(*arguments))
        self._link.open(self._first_tag)
        self._ready = True
        self._identify()
        self._rest()

    def _identify(self) -> None:
        """Refuse to work with another machine than the one of ``config``."""
        digest = np.array(self._link.registers(Register.DIGEST0, 4), "<u2").tobytes()
        if digest != self.config.digest():
            raise EngineError(f"{self.name}: the machine there is not profile {self.config.name!r} "
                              "as it is now: it is another one, or must be built again")

    def _rest(self) -> None:
        """Stop a run that somebody has left behind, and forget what it told."""
        for attempt in range(PATIENCE):
            # Events go before replies: with the last reply, all of them have come.
            if not self._link.registers(Register.STATUS, 1)[0] & 1:
                break
            if not attempt:
                self._link.write(Space.REGISTERS, Register.COMMAND, [ABORT])
        else:
            raise EngineError(f"{self.name}: a run does not stop; reset the machine")
        if self._link.events or attempt:
            self._link.registers(Register.STATUS, 1)
        self._link.events.clear()

    def write_space(self, space: Space, address: int, words) -> None:
        """Write 16-bit words through the host port."""
        self._start()
        self._link.write(space, address, words)
        for known, start, held in self._blocks:
            first, last = max(address, start), min(address + len(words), start + len(held))
            if known == space and first < last:
                held[first - start:last - start] = np.asarray(words)[first - address:last - address]

    def write_constant(self, address: int, lanes: np.ndarray) -> None:
        self.write_space(Space.CONSTANTS, constant_address(self.config, address, 0),
                         np.asarray(lanes, np.int64) & 0xFFFF)

    def read_space(self, space: Space, address: int, count: int) -> np.ndarray:
        self._start()
        if space not in CHECKED:
            return self._link.read(space, address, count)
        forget_faults(self._link)
        words = self._link.read(space, address, count)
        if parity_was_wrong(self._link):
            raise ParityError(f"{self.name}: a word of {space.name} among {count} from {address} on "
                              "has wrong parity: a bit has flipped; load the image again", words)
        return words

    def scrub(self, spaces=UNCHECKED + CHECKED) -> None:
        """Compare what is loaded, and have the parity of all else looked at (`sim.scrub`).

        Raises
        ------
        EngineError
            If a bit has flipped.
        """
        self._start()
        found = scrub(self._link, self.config, self._blocks, spaces)
        if found:
            raise EngineError(f"{self.name}: {'; '.join(found)}: a bit has flipped; load the image "
                              "again")

    # The engine's calls.

    def load(self, image: Image, backdoor: bool = True) -> None:
        if image.config.digest() != self.config.digest():
            raise EngineError(f"the image is for profile {image.config.name!r}, the engine for "
                              f"{self.config.name!r}; compile the model for this one")
        self._start()
        self._blocks = [(space, address, words.copy())
                        for space, address, words in hostlink.image_blocks(image)]
        if backdoor:
            self._poke_image(image)
        else:
            for block in self._blocks:
                self._link.write(*block)
            for space, address, words in self._blocks:
                if self._link.differ(space, address, words):
                    raise EngineError(f"{self.name}: {space.name} from {address} on does not hold "
                                      "what was loaded")
        self._shows_logits = rtl.shows_logits(image)
        self._longest = 2 * int(image.rows.max(initial=0)) + SPARE_CYCLES

    def run(self, prompt, steps, *, first=0, seed=0, inverse_temperature=0, stop=NO_TOKEN,
            vocabulary, progress=None, trace=False) -> RunResult:
        checked_run(self.config, prompt, steps, first)
        self._start()
        self._rest()
        link = self._link
        link.write(Space.REGISTERS, Register.COMMAND, [CLEAR])
        link.write(Space.TOKENS, 0, prompt)
        seeds = [seed >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
        link.write(Space.REGISTERS, Register.FIRST,
                   [first, len(prompt), first + steps, vocabulary, stop, inverse_temperature,
                    *seeds])
        self._start_counting(trace)
        began = time.perf_counter()
        link.write(Space.REGISTERS, Register.COMMAND, [RUN])
        events = self._collect(first, progress)
        cycles, simulated, writes, logits = self._counted()
        seconds = time.perf_counter() - began
        fault = None
        if events[-1].flags & EventFlag.FAULT:
            cause, queue, low, high, position = link.registers(Register.FAULT_CAUSE, 5)
            fault = fault_info(cause, queue, high << 16 | low, position)
        else:
            self._compare_tokens(prompt, events)
        if self._wears:
            self.scrub(UNCHECKED)
        reported = [event.cycles for event in events]
        return RunResult([event.token for event in events if event.flags & EventFlag.SAMPLED],
                         reported if cycles is None else cycles, reported, fault, writes, simulated,
                         seconds, logits if self._shows_logits else None)

    def _collect(self, first: int, progress) -> list:
        """Wait for the events of a run, one for each position from ``first`` on, to the last."""
        events, waiting, silent = [], self._link.events, 0
        while not events or not events[-1].flags & EventFlag.LAST:
            if not waiting:
                silent = 0 if self._link.wait(self._longest) else silent + 1
                if silent:
                    self._nothing_came(len(events), silent)
                continue
            event = waiting.pop(0)
            if event.position != first + len(events):
                raise EngineError(f"{self.name}: what the machine told of position "
                                  f"{first + len(events)} was lost on the line; run again")
            events.append(event)
            if progress:
                sampled = event.flags & EventFlag.SAMPLED
                progress(event.position, event.token if sampled else None, event.cycles)
        return events

    def _nothing_came(self, steps: int, silent: int) -> None:
        """Say why there is no event, again: it was lost, or the machine does nothing."""
        running = self._link.registers(Register.STATUS, 1)[0] & 1
        if self._link.events or running and silent < 3:
            return
        if running:
            raise EngineError(f"{self.name}: no event within {3 * self._longest} cycles after "
                              f"{steps} steps; the machine hangs")
        raise EngineError(f"{self.name}: the end of the run was lost on the line after {steps} "
                          "steps; run again")

    def _compare_tokens(self, prompt, events) -> None:
        """The token memory, which has no parity, must hold what went in and came out."""
        known = dict(enumerate(prompt)) | {
            event.position + 1: event.token for event in events if event.flags & EventFlag.SAMPLED}
        count = min(self.config.context, max(known) + 1)
        found = self._link.read(Space.TOKENS, 0, count)
        for place, token in known.items():
            if place < count and found[place] != token:
                raise EngineError(f"{self.name}: the token at position {place} is {found[place]} "
                                  f"in memory, and was {token}: a bit has flipped")
