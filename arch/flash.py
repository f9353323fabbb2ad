"""The model in a board's configuration flash: what a board reads at power-up to speak by itself.

From `IMAGE_OFFSET` on, all numbers little-endian:

- 0: magic (4 bytes), bytes of all frames (4), number of frames (2), rest 0.
- `BYTE_TABLE`: 256 numbers of two bytes, the token of a typed byte, `NO_TOKEN` where there is none.
- `TEXTS`: `TEXT_BYTES` per token: how many bytes its text has, then those bytes.
- `FRAMES`: write requests of `arch.hostmap`, taken as if a host had sent them; each must be answered
  OK.

The addresses are chosen so that hardware joins bits and never adds.
"""
import struct

from arch.hostmap import NO_TOKEN

MAGIC = b"MTN1"
#: Where a model begins in the flash: behind the largest bitstream.
IMAGE_OFFSET = 0x200000
BYTE_TABLE, TEXTS, FRAMES = 0x0200, 0x4000, 0x8000
TEXT_BYTES = 16
TOKENS_MAX = (FRAMES - TEXTS) // TEXT_BYTES
#: Bits of an address from `IMAGE_OFFSET` on, which has none of them.
OFFSET_BITS = 20
HEADER = struct.Struct("<4sIH")


class FlashError(ValueError):
    """The model cannot be put into a flash."""


def contents(frames: list, tokens: dict, texts: list) -> bytes:
    """The bytes to write to a flash.

    Parameters
    ----------
    frames : list of bytes
        Write requests.
    tokens : dict of int to int
        Token of a typed byte.
    texts : list of bytes
        Of every token; longer ones are cut.

    Raises
    ------
    FlashError
        If there are more tokens than there is room for, or too many frames.
    """
    if len(texts) > TOKENS_MAX:
        raise FlashError(f"the flash has room for {TOKENS_MAX} tokens, not {len(texts)}")
    size = sum(map(len, frames))
    if size > (1 << OFFSET_BITS) - FRAMES or len(frames) >= 1 << 16:
        raise FlashError(f"the model has {size} bytes, too many to read at power-up")
    out = bytearray(b"\xFF" * FRAMES)
    out[:BYTE_TABLE] = bytes(BYTE_TABLE)
    HEADER.pack_into(out, 0, MAGIC, size, len(frames))
    table = [tokens.get(byte, NO_TOKEN) for byte in range(256)]
    struct.pack_into("<256H", out, BYTE_TABLE, *table)
    for token, text in enumerate(texts):
        cut = text[:TEXT_BYTES - 1]
        at = TEXTS + TEXT_BYTES * token
        out[at:at + 1 + len(cut)] = bytes([len(cut)]) + cut
    return bytes(out) + b"".join(frames)
