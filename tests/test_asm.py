"""The assembler and the disassembler: what text means, exact round trips, every error."""
import random
import re
from pathlib import Path

import numpy as np
import pytest

from arch.config import PROFILES, Config, profile
from arch.image import Image, from_bytes
from arch.isa import DEFAULTS, UNITS, Control, Instruction, decode, encode, unit_of, word_bits
from arch.timing import FIRST_ISSUE, timing
from compiler.asm import AsmError, assemble
from compiler.disasm import disassemble
from compiler.errors import MetronomeError
from tests import vectors

PROGRAMS = sorted((Path(__file__).parent.parent / "programs").glob("*.asm"))


def one(text, queue="vxm"):
    """Decoded instructions of a queue, without fields that have their default."""
    image = assemble(f".profile tiny\n.queue {queue}\n{text}\n")
    found = []
    for word in image.program[queue]:
        instruction = decode(queue, word, image.config)
        found.append((instruction.op, {name: value for name, value in instruction.fields.items()
                                       if value != DEFAULTS.get(name, 0)}))
    return found


@pytest.mark.parametrize("queue, text, expected", [
    ("vxm", "MAC wait=5 n1=4 a=ACC b=CONST post=12",
     ("MAC", {"wait": 5, "n1": 4, "a": 6, "b": 5, "post": 12})),
    ("vxm", "EXP2 a=M3 c=VXM mask=1 ; a comment", ("EXP2", {"a": 4, "c": 7, "mask": 1})),
    ("vxm", "MAC wait=$P3 n1=#2 a=0x5 d1=0b11",
     ("MAC", {"wait": 3, "wait_param": 1, "n1": 2, "n1_param": 1, "a": 5, "d1": 3})),
    ("r1", "READ n1=#0 n2=#2 d2=0b11 s2=-4",
     ("READ", {"n1": 0, "n1_param": 1, "n2": 2, "n2_param": 1, "d2": 3, "s2": -4})),
    ("mxm", "MATMUL order=HOLD x0=PERM x1=RED s1=-3", ("MATMUL", {
        "order": 2, "x0": 8, "x1": 10, "s1": -3})),
    ("const", "READ index=TOKEN index_shift=4", ("READ", {"index": 2, "index_shift": 4})),
    ("const", "END", ("END", {})),
    ("const", "END n1=PROMPT", ("END", {"n1": 2})),
    ("w2", "WRITE x=LINK1 halves=2", ("WRITE", {"x": 11, "halves": 2})),
    ("kv", "READ_OUT n1=2 half0=1", ("READ_OUT", {"n1": 2, "half0": 1})),
    ("perm", "NOP wait=1023", ("NOP", {"wait": 1023})),
])
def test_instructions(queue, text, expected):
    assert one(text, queue) == [expected]


def test_labels_give_the_length_of_the_body():
    text = "NOP wait=4\nagain:\nMAC\nother: MAX\nLOOP n1=5 d1=again wait=4\n" \
           "LOOP n1=#1 d1=other wait=$P0"
    assert one(text)[3:] == [("LOOP", {"n1": 5, "d1": 2, "wait": 4}), (
        "LOOP", {"n1_param": 1, "d1": 2, "wait_param": 1, "wait": 0})]


def test_at_follows_repeats_and_loops():
    text = """
        READ at=10 n1=3 d1=2 n2=2 d2=5  ; 10 12 14  19 21 23
        NOP at=30
        again:
        READ at=40                      ; 40, and 10 after 45: 55, 70
        READ at=45
        LOOP n1=3 d1=again wait=10      ; the last is on 75
        END at=80
    """
    waits = [fields.get("wait", 1) for _, fields in one(text, "r0")]
    assert waits == [10, 7, 10, 5, 10, 5]


def test_tables():
    image = assemble(r"""
        .profile tiny vxm_stages=1 perm=32
        .meta title "a; b"
        .meta sizes [1, 2]
        .row * counts=1,2 generate=100 prompt=90
        .row 2 counts=9 generate=120
        .param red * 5
        .param red 3 6 7
        .pattern 1 7 6 z 4
        .const 2 -5 6
        .weights 1 1 2 3 \
                   -128   ; the rest is 0
        .extra table <i4 2,2 AQAAAAIAAAADAAAABAAAAA==
    """)
    assert image.config == profile("tiny").replace(
        vxm_stages=1, program_depth=(("*", 64), ("vxm", 96), ("perm", 32)))
    assert image.meta == {"title": "a; b", "sizes": [1, 2]}
    assert image.rows.tolist() == [[1, 2, 0, 0, 100, 90], [1, 2, 0, 0, 100, 90],
                                   [9, 2, 0, 0, 120, 90], [1, 2, 0, 0, 100, 90]]
    assert image.params["red"].tolist() == [[5, 0], [5, 0], [5, 0], [6, 7]]
    assert image.patterns.tolist() == [list(range(8)), [7, 6, -1, 4, 4, 5, 6, 7]]
    assert image.constants.tolist() == [[0] * 8, [0] * 8, [-5, 6, 0, 0, 0, 0, 0, 0]]
    assert image.weights.shape == (2, 4, 8) and not image.weights[0].any()
    assert image.weights[1].ravel()[:5].tolist() == [1, 2, 3, -128, 0]
    assert image.extra["table"].tolist() == [[1, 2], [3, 4]]


def test_queues_without_text_end_at_once():
    image = assemble(".profile tiny\n.queue red\nEND wait=9\n")
    assert set(image.program) == set(image.config.queues)
    assert decode("perm", image.program["perm"][0], image.config).op == "END"
    assert decode("perm", image.program["perm"][0], image.config)["wait"] == 4
    bare = assemble(".profile tiny\n.bare\n.queue red\nEND wait=9\n")
    assert set(bare.program) == {"red"}


@pytest.mark.parametrize("text, line, message", [
    ("", 1, "put .profile NAME first; there are tiny"),
    (".row 0", 1, "put .profile NAME first"),
    (".profile huge", 1, "unknown profile 'huge'; there are tiny"),
    (".profile tiny lanes=3", 1, "no machine field 'lanes'; there are rows"),
    (".profile tiny rows=3", 1, "rows must be 2, 4, 8, 16 or 32, not 3"),
    (".profile tiny\n.profile tiny", 2, "a second .profile"),
    (".profile", 1, r".profile takes 1 or more words, not 0"),
    (".profile tiny\n\n.rov 0", 3, "no directive .rov; there are .profile"),
    (".profile tiny\nMAC", 2, "an instruction outside a queue; put .queue NAME before it"),
    (".profile tiny\nagain:", 2, "an instruction outside a queue"),
    (".profile tiny\n.queue alu", 2, "there is no queue 'alu'; there are mxm"),
    (".profile tiny mem_banks=2\n.queue r3", 2, "the machine has no queue 'r3'; it has mxm"),
    (".profile tiny\n.queue vxm\n.queue vxm", 3, "queue vxm appears twice"),
    (".profile tiny\n.queue vxm\nDIV", 3, "vxm has no operation 'DIV'; it has MAC, MAX, EXP2"),
    (".profile tiny\n.queue vxm\nMAC x=M0", 3, "vxm: MAC has no field 'x'"),
    (".profile tiny\n.queue vxm\nMAC a=M7", 3, "a must be one of NONE, M0, .* not M7"),
    (".profile tiny\n.queue vxm\nMAC post=32", 3, "vxm: MAC: post must be 0 to 31, not 32"),
    (".profile tiny\n.queue vxm\nMAC post=1x", 3, "post must be an integer, not '1x'"),
    (".profile tiny\n.queue vxm\nMAC post", 3, "'post' must be FIELD=VALUE"),
    (".profile tiny\n.queue vxm\nMAC post=1 post=2", 3, "post is given twice"),
    (".profile tiny\n.queue vxm\nMAC n1=0", 3, "n1 must be at least 1, not 0"),
    (".profile tiny\n.queue vxm\nMAC wait=0", 3, "wait must be at least 1, not 0"),
    (".profile tiny\n.queue vxm\nMAC n1=#4", 3, "count register must be 0 to 3, not 4"),
    (".profile tiny\n.queue vxm\nMAC wait=4 at=4", 3, "wait and at exclude each other"),
    (".profile tiny\n.queue vxm\nMAC at=4 n1=3\nMAC at=6", 4,
     "cycle 6 is too early, the instruction before issues last on cycle 6"),
    (".profile tiny\n.queue vxm\nMAC wait=$P0\nMAC at=6", 4, "at needs a known cycle"),
    (".profile tiny\n.queue vxm\nMAC wait=4 n1=#0\nMAC at=6", 4, "at needs a known cycle"),
    (".profile tiny\n.queue vxm\nMAC\nLOOP d1=up", 4,
     "no label 'up' before this line in queue vxm"),
    (".profile tiny\n.queue vxm\nup:\nMAC\nup:", 5, "label 'up' appears twice in queue vxm"),
    (".profile tiny vxm=4\n.queue vxm\nMAC\nMAC\nMAC\nMAC\nMAC", 7,
     "queue vxm is full: its program memory holds 4 instructions"),
    (".profile tiny\n.queue vxm\n.word 0x" + "f" * 30, 3, "word must be 0 to"),
    (".profile tiny\n.row 4 prompt=1", 2, "row must be 0 to 3, not 4"),
    (".profile tiny\n.row 0 length=1", 2, "no row field 'length'; there are counts, generate"),
    (".profile tiny\n.row 0 counts=1,2,3,4,5", 2, "5 values, 4 fit"),
    (".profile tiny\n.row 0 prompt=65536", 2, "prompt must be 0 to 65535, not 65536"),
    (".profile tiny\n.param vxm", 2, ".param takes 2 or more words, not 1"),
    (".profile tiny\n.param vxm 0 -1", 2, "delay must be 0 to 65535, not -1"),
    (".profile tiny\n.pattern 8 0", 2, "pattern must be 0 to 7, not 8"),
    (".profile tiny\n.pattern 0 8", 2, "lane must be -1 to 7, not 8"),
    (".profile tiny\n.const 128 0", 2, "word must be 0 to 127, not 128"),
    (".profile tiny\n.const 0 1 2 3 4 5 6 7 8 9", 2, "9 values, 8 fit"),
    (".profile tiny\n.const 0 32768", 2, "constant must be -32768 to 32767, not 32768"),
    (".profile tiny\n.weights 0 128", 2, "weight must be -128 to 127, not 128"),
    (".profile tiny\n.weights 0 \\\n 1 \\\n 200", 2, "weight must be -128 to 127, not 200"),
    (".profile tiny\n.meta title", 2, ".meta takes a name and a JSON value"),
    (".profile tiny\n.const 0 1 \\", 2, "the text ends in the middle of a line that goes on"),
    (".profile tiny\n.extra a <i4 2 AQ==", 2, "cannot reshape|buffer size"),
])
def test_errors(text, line, message):
    with pytest.raises(AsmError, match=message) as caught:
        assemble(text)
    assert caught.value.line == line
    assert isinstance(caught.value, MetronomeError)
    assert str(caught.value).startswith(f"line {line}: ") and "\n" not in str(caught.value)


def same(image):
    """Assert that text and image are the same thing, byte for byte."""
    text = disassemble(image)
    again = assemble(text)
    assert again.to_bytes() == image.to_bytes()
    assert disassemble(again) == text


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_round_trip_of_programs(path):
    same(assemble(path.read_text()))


def test_round_trip_of_vectors():
    for vector in vectors.load():
        same(assemble(vector.source))


def random_image(rng, config):
    program = {}
    for queue in rng.sample(config.queues, rng.randrange(len(config.queues) + 1)):
        # Words of every kind: most random bits are no instruction that the text can name.
        bits = word_bits(unit_of(queue), config)
        words = [rng.getrandbits(bits) for _ in range(rng.randrange(4))]
        for _ in range(rng.randrange(10)):
            unit = unit_of(queue)
            fields = {}
            for field in unit.fields[1:]:
                width = field.bits(config)
                low = -(1 << width - 1) if field.signed else int(field.name in ("n1", "n2", "d1",
                                                                               "d2", "wait"))
                high = 1 if field.reserved else 1 << width - field.signed
                fields[field.name] = rng.randrange(low, high)
            for mark, name in (("n1_param", "n1"), ("n2_param", "n2")):
                if fields.get(mark):
                    fields[name] = rng.randrange(4)
            op = rng.choice([op.name for op in unit.ops] + list(Control.__members__))
            words.append(encode(queue, Instruction(op, fields), config))
        program[queue] = words
    array = np.random.default_rng(rng.randrange(1 << 30))
    params = {queue: array.integers(0, 1024, (rng.randrange(1, config.param_rows + 1),
                                              rng.randrange(config.param_columns + 1)))
              for queue in rng.sample(config.queues, 3)}
    return Image(config, program, params, array.integers(0, 65536, (config.param_rows, 6)),
                 array.integers(-1, config.lanes, (rng.randrange(config.patterns), config.lanes)),
                 array.integers(-32768, 32768, (5, config.lanes)).astype(np.int16),
                 array.integers(-128, 128, (3, config.rows, config.columns)).astype(np.int8),
                 {"note": "x; y \\", "value": [1.5, None]},
                 {"m": array.normal(size=(2, 3)), "scalar": np.array(7), "none": np.zeros((0, 4))})


@pytest.mark.parametrize("seed", range(20))
def test_round_trip_of_random_images(seed):
    rng = random.Random(seed)
    config = profile(rng.choice(["tiny", "small", "ecp5_85k"]))
    if seed % 3 == 0:
        config = config.replace(vxm_stages=2, mem_banks=3, program_depth=(("*", 40), ("red", 20)))
    if seed % 5 == 0:
        config = Config(name="own", rows=2, columns=4, tile_columns=1, context=16)
    image = random_image(rng, config)
    same(image)
    assert from_bytes(image.to_bytes(), config).program == image.program


def test_the_text_is_readable():
    text = disassemble(assemble(vectors.load()[0].source))
    assert ".profile tiny\n" in text
    assert "    WRITE wait=5 n1=2 d1=2 address=10 s1=2 x=CONST halves=3\n" in text
    assert "\n    END\n" in text and ".const 1 -1 -2 -3 -4 -5 -6 -7 -8\n" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_every_operation_has_a_name_of_its_own():
    for unit in UNITS.values():
        names = [op.name for op in unit.ops] + list(Control.__members__)
        codes = [op.code for op in unit.ops] + [int(control) for control in Control]
        assert len(set(names)) == len(names) and len(set(codes)) == len(codes) and 0 not in codes
    assert "tiny" in PROFILES


def test_sums_of_names_and_latencies():
    """By hand for tiny: const_read and vxm come from the table, x is first_issue + const_read."""
    source = """
        .profile tiny{}
        .let x first_issue+const_read
        .row * generate=x+vxm+3 prompt=20-1
        .param const * x-1
        .queue vxm
            MAC at=x n1=2+1
            MAC at=x+vxm-1
            END"""
    for stages in (0, 2):
        image = assemble(source.format(f" const_stages={stages} vxm_stages={stages}"))
        times = timing(image.config)
        first, second, _ = (decode("vxm", word, image.config) for word in image.program["vxm"])
        x = FIRST_ISSUE + times.const_read
        assert (first["wait"], first["n1"], second["wait"]) == (x, 3, times.vxm - 3)
        assert image.rows[0, 4:].tolist() == [x + times.vxm + 3, 19]
        assert image.params["const"][0, 0] == x - 1


@pytest.mark.parametrize("line, message", [
    (".let vxm 3", "'vxm' has a meaning already"),
    (".let 3x 3", ".let needs a name, not '3x'"),
    (".let x y+1", "x: no name 'y'; .let makes one"),
    (".let x 1++2", "x must be an integer or a sum, not '1++2'"),
    (".let x 1+", "x must be an integer or a sum, not '1+'"),
])
def test_sums_that_are_none(line, message):
    with pytest.raises(AsmError, match=re.escape(message)):
        assemble(f".profile tiny\n{line}\n")
