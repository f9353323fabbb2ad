"""Files that a stranger or a broken disk might hand over, made from good ones with a seed."""
import json
import random
import struct

#: Numbers that a header or a field may hold where a small count belongs.
WORDS = (0, 1, 2, 3, 4, 7, 8, 16, 64, 65, 128, 255, 256, 1 << 10, 1 << 16, 1 << 20, 1 << 24,
         (1 << 31) - 1, -1, -2, -64, -(1 << 31))
FLOATS = (float("nan"), float("inf"), float("-inf"), 3.4e38, -3.4e38, 1e-45, -0.0, 1e20)
#: Values where JSON should hold something else.
VALUES = (None, True, False, 0, -1, 1, 2, 3, 7, 64, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 64,
          10**400, -(1 << 63), 0.0, -0.5, 1e-300, 1e308, float("nan"), float("inf"), "", "a",
          "F16", "I8", "../../etc/passwd", "/dev/zero", "\0", "\u2581" * 50, "x" * 100000, [],
          [[]], {}, {"a": 1}, [-1], [1 << 62, 8], [0], {"type": "Sequence"},
          {"type": "ByteLevel"}, {"String": ""}, {"Regex": "(a*)*b"})


def bytes_of(data: bytes, rng: random.Random, head: int) -> bytes:
    """One change of a binary file; half of the changes hit its first ``head`` bytes."""
    kind = rng.randrange(9)
    end = len(data) if rng.random() < 0.5 else min(head, len(data))
    at = rng.randrange(max(1, end))
    if kind == 0:
        return data[:rng.randrange(len(data))]
    if kind == 1:
        return data + rng.randbytes(rng.choice([1, 3, 4, 100, 4096]))
    if kind == 2:
        flipped = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8, 64])):
            flipped[rng.randrange(max(1, end))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind in (3, 4):
        word = struct.pack("<i", rng.choice(WORDS)) if kind == 3 else struct.pack(
            "<f", rng.choice(FLOATS))
        at -= at % 4
        return data[:at] + word + data[at + 4:]
    if kind == 5:
        return data[:at] + data[at + rng.choice([1, 4, 16]):]
    if kind == 6:
        return data[:at] + rng.randbytes(rng.choice([1, 4, 16])) + data[at:]
    if kind == 7:
        size = rng.choice([4, 16, 256])
        return data[:at] + bytes([rng.choice([0, 0xFF, 0x7F, 0x80])]) * size + data[at + size:]
    return rng.randbytes(rng.choice([0, 1, 7, 28, 256, 5000]))


def _places(value, way=()):
    """Every place in a JSON value, as the keys that lead to it."""
    yield way
    if isinstance(value, dict):
        for key in value:
            yield from _places(value[key], (*way, key))
    elif isinstance(value, list):
        for key in range(len(value)):
            yield from _places(value[key], (*way, key))


def json_of(data: bytes, rng: random.Random) -> bytes:
    """One change of a JSON text: a value, a key, its nesting, or its bytes."""
    kind = rng.randrange(8)
    if kind == 0:
        return bytes_of(data, rng, 200)
    if kind == 1:
        opening = rng.choice([b"[", b'{"a":', b'{"model":', b'{"weight_map":{"a":'])
        return opening * rng.choice([100, 1000, 100000])
    value = json.loads(data)
    places = [way for way in _places(value) if way]
    # Most entries of a vocabulary are alike: prefer what lies near the root.
    *way, last = min(rng.choices(places, k=3), key=len)
    place = value
    for key in way:
        place = place[key]
    if kind == 2:
        del place[last]
    elif kind == 3 and isinstance(place, dict):
        place[rng.choice(["x", "", last + "x", "\0", "../x"])] = place.pop(last)
    elif kind == 4:
        nested: list | dict = place[last]
        for _ in range(rng.choice([1, 3, 300])):
            nested = [nested] if rng.random() < 0.5 else {"a": nested}
        place[last] = nested
    else:
        place[last] = rng.choice(VALUES)
    return json.dumps(value).encode()


def safetensors_of(data: bytes, rng: random.Random) -> bytes:
    """One change of a safetensors file: its header's length or entries, or any bytes."""
    (size,) = struct.unpack_from("<Q", data)
    kind = rng.randrange(4)
    if kind == 0:
        return bytes_of(data, rng, 8 + size)
    if kind == 1:
        length = rng.choice([0, 1, size - 1, size + 1, len(data), 1 << 32, 1 << 63, (1 << 64) - 1])
        return struct.pack("<Q", length) + data[8:]
    if kind == 2:
        header = json.loads(data[8:8 + size])
        names = [name for name in header if name != "__metadata__"]
        one, other = rng.choice(names), rng.choice(names)
        change = rng.randrange(6)
        if change == 0:
            header[one]["shape"] = rng.choice([[], [0], [-1, 8], [1 << 62, 4], [8, 8, 8], [10**30],
                                               header[one]["shape"][::-1], ["8"], 8, None])
        elif change == 1:
            header[one]["dtype"] = rng.choice(["F64", "I8", "BF16", "F16", "F4", "BOOL", "", 3,
                                               None, "f32"])
        elif change == 2:
            begin, end = header[one]["data_offsets"]
            header[one]["data_offsets"] = rng.choice([
                [end, begin], [begin, end + 4], [begin + 4, end], [0, 1 << 60], [-4, end], [begin],
                header[other]["data_offsets"], None])
        elif change == 3:
            header[rng.choice(["extra", "", "x" * 10000, other])] = header.pop(one)
        elif change == 4:
            del header[one]
        else:
            header[one], header[other] = header[other], header[one]
        text = json.dumps(header).encode()
    else:
        text = json_of(data[8:8 + size], rng)
    return struct.pack("<Q", len(text)) + text + data[8 + size:]


def index_of(data: bytes, rng: random.Random) -> bytes:
    """One change of an index of weight files, a path trick more often than not."""
    if rng.random() < 0.4:
        return json_of(data, rng)
    index = json.loads(data)
    names = index["weight_map"]
    tricks = ["../model.safetensors", "/etc/passwd", "/dev/zero", "/dev/stdin", "..", ".", "",
              "a/../../b.safetensors", "~/x.safetensors", "file:///x.safetensors", "\0.safetensors",
              "..\\x.safetensors", "model.safetensors/", "x" * 5000 + ".safetensors",
              "none.safetensors", "config.json", "loop.safetensors", "pipe.safetensors",
              "folder.safetensors", 7, None, ["model.safetensors"], {"a": "b"}]
    for tensor in rng.sample(sorted(names), rng.choice([1, 1, len(names)])):
        names[tensor] = rng.choice(tricks)
    return json.dumps(index).encode()
