"""The internal bus between the host port and everything that it can read or write."""
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

ADDRESS_BITS = 24
SPACE_BITS = 4


class BusSignature(wiring.Signature):
    """One access at a time to a 16-bit word of an address space of `arch.hostmap`.

    The host port drives the outputs and holds ``space``, ``address`` and ``w_data`` from the
    request to the answer. Whoever owns the address answers with one cycle of ``ack`` one or more
    cycles later; everybody else keeps ``ack`` and ``r_data`` at 0, so that answers are ORed.

    Members
    -------
    space, address : what is accessed.
    w_en, r_en : high on the one cycle that requests a write or a read.
    w_data : word to write.
    ack : the access is done; ``r_data`` is the word read, 0 after a write.
    """

    def __init__(self):
        super().__init__({"space": Out(SPACE_BITS), "address": Out(ADDRESS_BITS),
                          "w_en": Out(1), "r_en": Out(1), "w_data": Out(16),
                          "r_data": In(16), "ack": In(1)})


def bits_of(count: int) -> int:
    """Width of an unsigned field that holds ``0 .. count - 1``; 0 for a single value."""
    return (count - 1).bit_length()
