"""Scrub: whether the memories of a machine still hold what they should, while no step runs.

What was loaded is compared by CRCs that the machine computes (CHECK of `arch.hostmap`): a few bytes
travel for each part. What steps change, MEM and the KV cache, is read by the machine, which checks
the parity of all that it reads. Of the weights that the image gives, those words that are 0
count as KV cache.
"""
import numpy as np

from arch.config import Config
from arch.faults import Fault
from arch.hostmap import CLEAR, PROGRAM_CHUNKS, PROGRAM_PC_BITS, Register, Space, param_address
from arch.queues import QUEUES
from sim import hostlink
from sim.link import Link

#: Memories without parity, all of them small. A flipped bit changes what the machine does.
UNCHECKED = (Space.PROGRAM, Space.PARAMS, Space.ROWS, Space.PATTERNS)
#: Memories with parity, which is looked at wherever they are read.
CHECKED = (Space.CONSTANTS, Space.MEM, Space.WEIGHTS)


def forget_faults(link: Link) -> None:
    """Clear the fault register, so that the next fault shows."""
    link.write(Space.REGISTERS, Register.COMMAND, [CLEAR])


def parity_was_wrong(link: Link) -> bool:
    """Whether the first fault since `forget_faults` is a word with wrong parity."""
    return link.registers(Register.FAULT_CAUSE, 1)[0] == Fault.PARITY


def name_of(config: Config, space: Space, address: int) -> str:
    """A memory in words; of those that all queues have, that of the queue."""
    size = {Space.PROGRAM: PROGRAM_CHUNKS << PROGRAM_PC_BITS,
            Space.PARAMS: param_address(config, 1, 0, 0)}.get(space)
    if size is None:
        return space.name
    queue = next(name for name, queue in QUEUES.items() if queue.id == address // size)
    return f"{space.name} of queue {queue}"


def unchanging(config: Config, blocks: list) -> list:
    """The blocks without the weight words that are 0: those are the KV cache, which steps write."""
    parts, size = [], config.columns * config.pairs
    for space, address, words in blocks:
        if space != Space.WEIGHTS:
            parts.append((space, address, words))
            continue
        kept = np.repeat(words.reshape(-1, size).any(axis=1), size)
        edges = np.flatnonzero(np.diff(kept, prepend=False, append=False))
        parts += [(space, address + int(first), words[first:end])
                  for first, end in edges.reshape(-1, 2)]
    return parts


def scrub(link: Link, config: Config, blocks: list, spaces=UNCHECKED + CHECKED) -> list:
    """What is wrong with memories, a line for each; nothing if all is well.

    Parameters
    ----------
    blocks : list of tuple
        What was loaded, as `sim.hostlink.image_blocks` gives it.
    spaces : sequence of Space
        The memories to look at.
    """
    found, parts = [], unchanging(config, blocks)
    for space in spaces:
        end = 0
        if space in CHECKED:
            forget_faults(link)
        for _, address, words in (part for part in parts if part[0] == space):
            if space in CHECKED:
                link.touch(space, end, address - end)
            end = address + len(words)
            if link.differ(space, address, words):
                found.append(f"{name_of(config, space, address)} has changed since it was loaded")
        if space in CHECKED:
            # Those that were compared have been read by that.
            link.touch(space, end, hostlink.space_words(config, space) - end)
            if parity_was_wrong(link):
                found.append(f"a word of {space.name} has wrong parity")
    return found
