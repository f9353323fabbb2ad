"""The scrub in the driver: what it asks the machine for, and what it makes of the answers."""
import numpy as np
import pytest

from arch.config import profile
from arch.faults import Fault
from arch.hostmap import CLEAR, Register, Space
from sim.hostlink import image_blocks
from sim.scrub import CHECKED, UNCHECKED, scrub

TINY = profile("tiny")


class Asked:
    """A link that keeps what is asked; ``changed`` words have changed, reading ``odd`` is a fault."""

    def __init__(self, changed=(), odd=()):
        self.changed, self.odd, self.cause = set(changed), set(odd), 0
        self.compared, self.touched = set(), set()

    def write(self, space, address, words):
        assert (space, address, list(words)) == (Space.REGISTERS, Register.COMMAND, [CLEAR])
        self.cause = 0

    def registers(self, first, count):
        assert (first, count) == (Register.FAULT_CAUSE, 1)
        return [self.cause]

    def _read(self, space, address, count) -> set:
        words = {(space, at) for at in range(address, address + count)}
        if words & self.odd:
            self.cause = int(Fault.PARITY)
        return words

    def differ(self, space, address, words):
        read = self._read(space, address, len(words))
        assert not read & self.compared
        self.compared |= read
        return bool(read & self.changed)

    def touch(self, space, address, count):
        self.touched |= self._read(space, address, count)


def test_all_of_every_memory_is_looked_at(tiny):
    """What is loaded is compared, and all else that has parity is read. By hand: `tiny` has 1,024
    words of weights of 8 columns and 2 row pairs, 4 banks of 64 vectors, 128 constants, 8 lanes.
    The KV cache of a layer has 16 words of keys, 4 KV heads of 4 channels at 32 positions, and as
    many of values; those of both layers lie among the weights."""
    link, blocks = Asked(), list(image_blocks(tiny.image))
    assert scrub(link, TINY, blocks) == []
    loaded = {(space, address + at) for space, address, words in blocks for at in range(len(words))}
    cache = {(Space.WEIGHTS, 16 * word + at) for first in (236, 504)
             for word in range(first, first + 32) for at in range(16)}
    assert link.compared == loaded - cache
    sizes = {Space.WEIGHTS: 1024 * 8 * 2, Space.MEM: 4 * 64 * 8, Space.CONSTANTS: 128 * 8}
    assert link.touched == {(space, at) for space, size in sizes.items()
                            for at in range(size)} - (loaded - cache)


@pytest.mark.parametrize("place, message", [
    # 16 chunks of 512 instructions a queue: queue 3 is the VXM.
    ((Space.PROGRAM, 3 * 16 * 512 + 37), "PROGRAM of queue vxm has changed since it was loaded"),
    # 4 rows of 16 columns a queue: queue 0 is the MXM.
    ((Space.PARAMS, 63), "PARAMS of queue mxm has changed since it was loaded"),
    ((Space.ROWS, 5), "ROWS has changed since it was loaded"),
    ((Space.PATTERNS, 9), "PATTERNS has changed since it was loaded"),
    ((Space.CONSTANTS, 11), "CONSTANTS has changed since it was loaded")])
def test_what_has_changed_is_named(tiny, place, message):
    assert scrub(Asked(changed=[place]), TINY, list(image_blocks(tiny.image))) == [message]


@pytest.mark.parametrize("space", CHECKED)
def test_wrong_parity_is_named_once(tiny, space):
    """Of the last word of a memory, which nobody loads; the memory behind it is not blamed."""
    last = {Space.WEIGHTS: 16383, Space.MEM: 2047, Space.CONSTANTS: 1023}[space]
    link = Asked(odd=[(space, last)])
    assert scrub(link, TINY, list(image_blocks(tiny.image))) == [
        f"a word of {space.name} has wrong parity"]


def test_some_memories_alone(tiny):
    link = Asked()
    scrub(link, TINY, list(image_blocks(tiny.image)), UNCHECKED)
    assert {space for space, _ in link.compared} == set(UNCHECKED) and not link.touched


def test_what_the_host_writes_is_what_must_be_there(tiny):
    """An engine expects the words that were written last, over the edge of two parts."""
    from sim.host_engine import HostEngine

    class Bare(HostEngine):
        _reset = _advance = _poke_image = _start_counting = _counted = unavailable = None

        def _start(self):
            self._link = type("Link", (), {"write": lambda *arguments: None})()
    engine = Bare(TINY)
    engine._blocks = [(Space.PARAMS, 0, np.zeros(4, np.uint16)),
                      (Space.PARAMS, 4, np.zeros(4, np.uint16)),
                      (Space.ROWS, 0, np.zeros(8, np.uint16))]
    engine.write_space(Space.PARAMS, 3, [7, -1])
    assert [words.tolist() for _, _, words in engine._blocks] == [
        [0, 0, 0, 7], [0xFFFF, 0, 0, 0], [0] * 8]
