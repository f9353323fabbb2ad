"""The image: everything that is loaded into a machine, in one checked file.

Layout, little-endian: magic, format version (4 bytes), digest of the `Config` (8), profile name
(16, zero-padded), section count (4); per section a tag (4), a length (4) and the bytes; at the end
the CRC-32 of all that comes before. Ref: the container is our own; CRC-32 as in IEEE 802.3.
"""
import dataclasses
import io
import json
import os
import struct
import tempfile
import zlib

import numpy as np

from arch.config import Config
from arch.hostmap import PROGRAM_CHUNKS
from arch.isa import PARAM_BITS, unit_of, word_bits

MAGIC, VERSION = b"METRONOM", 2
_HEAD = struct.Struct("<8sI8s16sI")


class ImageError(ValueError):
    """The file is no image, is damaged, or was made for another machine."""


@dataclasses.dataclass
class Image:
    """A compiled program with its data.

    Parameters
    ----------
    config : Config
        The machine it is for.
    program : dict of str to list of int
        Instruction words by queue.
    params : dict of str to int array, [rows, columns]
        Delay parameters by queue.
    rows : int array, [rows, 6]
        Four count registers, cycles of a generate step, cycles of a prompt step.
    patterns : int array, [patterns, lanes]
        Source lanes; -1 where the result is 0.
    constants : int16 array, [words, lanes]
    weights : int8 array, [words, rows, columns]
        From word 0; the rest of the banks (the KV cache) is not loaded.
    meta : dict
        Plain values for people and tools; the machine never sees them.
    extra : dict of str to array
        Arrays for the host (quantised model); the machine never sees them.
    """
    config: Config
    program: dict
    params: dict
    rows: np.ndarray
    patterns: np.ndarray
    constants: np.ndarray
    weights: np.ndarray
    meta: dict = dataclasses.field(default_factory=dict)
    extra: dict = dataclasses.field(default_factory=dict)

    @property
    def program_bytes(self) -> int:
        """Bytes of all instruction words, delay parameters and rows, each rounded up to bytes."""
        total = sum(len(words) * -(-word_bits(unit_of(queue), self.config) // 8)
                    for queue, words in self.program.items())
        total += sum(table.size * -(-PARAM_BITS // 8) for table in self.params.values())
        return total + self.rows.size * 2

    def to_bytes(self) -> bytes:
        """The file, byte for byte reproducible."""
        def arrays(named):
            stream = io.BytesIO()
            for name, array in sorted(named.items()):
                body = io.BytesIO()
                np.lib.format.write_array(body, np.ascontiguousarray(array), (1, 0), False)
                stream.write(struct.pack("<H", len(name)) + name.encode()
                             + struct.pack("<I", body.tell()) + body.getvalue())
            return stream.getvalue()
        program = {queue: np.array([list(word.to_bytes(2 * PROGRAM_CHUNKS, "little")) for word in words],
                                   np.uint8).reshape(-1, 2 * PROGRAM_CHUNKS)
                   for queue, words in self.program.items()}
        sections = {
            b"PROG": arrays(program),
            b"PARM": arrays({queue: table.astype("<u2") for queue, table in self.params.items()}),
            b"DATA": arrays({"rows": self.rows.astype("<u2"),
                             "patterns": self.patterns.astype("<i2"),
                             "constants": self.constants.astype("<i2"),
                             "weights": self.weights.astype("i1")}),
            b"META": json.dumps(self.meta, sort_keys=True).encode(),
            b"XTRA": arrays(self.extra),
        }
        out = bytearray(_HEAD.pack(MAGIC, VERSION, self.config.digest(),
                                   self.config.name.encode(), len(sections)))
        for tag, data in sections.items():
            out += tag + struct.pack("<I", len(data)) + data
        return bytes(out) + struct.pack("<I", zlib.crc32(out))

    def save(self, path) -> None:
        """Write the file in one piece: a reader sees the old one or the whole new one."""
        folder = os.path.dirname(os.path.abspath(path))
        handle, temporary = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self.to_bytes())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def _arrays(data: bytes) -> dict:
    named, at = {}, 0
    while at < len(data):
        (length,) = struct.unpack_from("<H", data, at)
        name = data[at + 2:at + 2 + length].decode()
        at += 2 + length
        (size,) = struct.unpack_from("<I", data, at)
        named[name] = np.lib.format.read_array(io.BytesIO(data[at + 4:at + 4 + size]),
                                               allow_pickle=False)
        at += 4 + size
    return named


def profile_of(data: bytes) -> str:
    """Profile name in the header of an image.

    Raises
    ------
    ImageError
        If the bytes are no image of this version, or are damaged.
    """
    if len(data) < _HEAD.size + 4 or data[:8] != MAGIC:
        raise ImageError("not a Metronome image (it does not begin with METRONOM)")
    _, version, _, name, _ = _HEAD.unpack_from(data)
    if version != VERSION:
        raise ImageError(f"image format {version} is not {VERSION}; compile the model again")
    if struct.unpack_from("<I", data, len(data) - 4)[0] != zlib.crc32(data[:-4]):
        raise ImageError("the image is damaged (its CRC does not match); compile it again")
    return name.rstrip(b"\0").decode()


def from_bytes(data: bytes, config: Config) -> Image:
    """Read an image made for ``config``.

    Raises
    ------
    ImageError
        If the bytes are no image, are damaged, or were made for another machine.
    """
    name = profile_of(data)
    if _HEAD.unpack_from(data)[2] != config.digest():
        raise ImageError(f"the image was made for a profile {name!r} that differs from this "
                         f"{config.name!r}; compile it again")
    sections, at = {}, _HEAD.size
    try:
        for _ in range(_HEAD.unpack_from(data)[4]):
            tag, (size,) = data[at:at + 4], struct.unpack_from("<I", data, at + 4)
            sections[tag] = data[at + 8:at + 8 + size]
            at += 8 + size
        program = {queue: [int.from_bytes(bytes(row), "little") for row in table]
                   for queue, table in _arrays(sections[b"PROG"]).items()}
        fixed = _arrays(sections[b"DATA"])
        return Image(config, program,
                     {queue: table.astype(np.int64)
                      for queue, table in _arrays(sections[b"PARM"]).items()},
                     fixed["rows"].astype(np.int64), fixed["patterns"].astype(np.int64),
                     fixed["constants"].astype(np.int16), fixed["weights"].astype(np.int8),
                     json.loads(sections[b"META"]), _arrays(sections[b"XTRA"]))
    except (KeyError, ValueError, struct.error) as error:
        raise ImageError(f"the image is malformed ({error}); compile it again") from None
