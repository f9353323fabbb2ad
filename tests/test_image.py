"""The image file: round trips, its layout by hand, and every damage that is refused."""
import os
import struct
import zlib

import numpy as np
import pytest

from arch.config import profile
from arch.image import Image, ImageError, from_bytes, profile_of

TINY = profile("tiny")


def make():
    numbers = np.random.default_rng(3)
    return Image(
        TINY, {"vxm": [1, (1 << 80) + 5, 0], "red": []}, {"vxm": numbers.integers(0, 1024, (4, 3))},
        numbers.integers(0, 65536, (4, 6)), numbers.integers(-1, 8, (2, 8)),
        numbers.integers(-32768, 32768, (5, 8)).astype(np.int16),
        numbers.integers(-128, 128, (6, 4, 8)).astype(np.int8),
        {"vocabulary": 200, "name": "\u00e9"}, {"scale": numbers.normal(size=(2, 2))})


def test_round_trip():
    image = make()
    again = from_bytes(image.to_bytes(), TINY)
    assert again.program == image.program and again.meta == image.meta
    for name in ("rows", "patterns", "constants", "weights"):
        assert (getattr(again, name) == getattr(image, name)).all()
        assert getattr(again, name).shape == getattr(image, name).shape
    assert (again.params["vxm"] == image.params["vxm"]).all()
    assert (again.extra["scale"] == image.extra["scale"]).all()
    assert (again.rows.dtype, again.patterns.dtype, again.constants.dtype, again.weights.dtype) == (
        np.int64, np.int64, np.int16, np.int8)
    assert again.to_bytes() == image.to_bytes()


def test_head_and_end_by_hand():
    data = make().to_bytes()
    assert data[:8] == b"METRONOM" and struct.unpack_from("<I", data, 8) == (2,)
    assert data[12:20] == TINY.digest() and data[20:36] == b"tiny" + bytes(12)
    assert struct.unpack_from("<I", data, 36) == (5,) and data[40:44] == b"PROG"
    assert struct.unpack("<I", data[-4:]) == (zlib.crc32(data[:-4]),)
    assert profile_of(data) == "tiny"


def test_bytes_do_not_depend_on_the_order_of_names():
    image, other = make(), make()
    other.program = dict(reversed(other.program.items()))
    other.meta = dict(reversed(other.meta.items()))
    assert image.to_bytes() == other.to_bytes()


def resealed(data):
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def test_refused():
    data = make().to_bytes()
    for wrong in (b"", b"METRONO", b"GGUF" + data[4:]):
        with pytest.raises(ImageError, match="not a Metronome image"):
            from_bytes(wrong, TINY)
    newer = resealed(data[:8] + struct.pack("<I", 3) + data[12:])
    with pytest.raises(ImageError, match="image format 3 is not 2; compile the model again"):
        from_bytes(newer, TINY)
    with pytest.raises(ImageError, match="made for a profile 'tiny' that differs from this 'tiny'"):
        from_bytes(data, TINY.replace(vxm_stages=1))
    with pytest.raises(ImageError, match="profile 'tiny' that differs from this 'small'"):
        from_bytes(data, profile("small"))
    cut = resealed(data[:60] + data[-4:])
    with pytest.raises(ImageError, match="malformed"):
        from_bytes(cut, TINY)
    nameless = resealed(data.replace(b"PARM", b"PARK"))
    with pytest.raises(ImageError, match="malformed"):
        from_bytes(nameless, TINY)


def test_every_damaged_byte_is_noticed():
    data = make().to_bytes()
    for at in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        with pytest.raises(ImageError):
            from_bytes(bytes(damaged), TINY)


def test_save_is_all_or_nothing(tmp_path):
    path = tmp_path / "program.img"
    image = make()
    image.save(path)
    assert path.read_bytes() == image.to_bytes()
    assert os.stat(path).st_mode & 0o777 == 0o644
    image.meta["bad"] = object()
    with pytest.raises(TypeError):
        image.save(path)
    image.meta.pop("bad")
    assert path.read_bytes() == image.to_bytes()
    assert os.listdir(tmp_path) == ["program.img"]


def test_program_bytes_by_hand():
    # vxm of tiny: 59 bits, 8 bytes, three words; 12 parameters of 10 bits, 2 bytes each; 24 row
    # fields of 2 bytes.
    assert make().program_bytes == 3 * 8 + 12 * 2 + 24 * 2
