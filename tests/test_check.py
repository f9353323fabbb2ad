"""``generate --check`` on RTL: exit 0 for the machine as it is, 1 when any one thing is changed."""
import copy
import dataclasses
import json
import re
import shutil
import struct
import sys

import numpy as np
import pytest

import compiler.program
import metronome
from arch import image as image_format
from arch import isa
from arch.config import profile
from arch.timing import timing
from compiler.llama2c import save_checkpoint
from compiler.pipeline import compile_model
from scripts import cli
from sim import engine as engines
from sim import rtl as rtl_files
from sim import toolchain
from tests.conftest import TINY as MODEL
from tests.rtl import TINY, available

pytestmark = pytest.mark.slow
CHARACTERS = "\n abcdefghijklmnopqrstuvwxyzABCDEFGHIJKL"


@pytest.fixture(scope="module")
def files(tiny_checkpoint, tmp_path_factory):
    """The options that name a model of profile tiny, its tokenizer and a calibration text."""
    folder = tmp_path_factory.mktemp("model")
    pieces = [b"<unk>", b"<s>", b"</s>", *(character.encode() for character in CHARACTERS)]
    assert len(pieces) == MODEL.vocab_size
    tokenizer = struct.pack("<i", max(map(len, pieces)))
    for piece in pieces:
        tokenizer += struct.pack("<fi", 0.0, len(piece)) + piece
    save_checkpoint(folder / "model.bin", tiny_checkpoint)
    (folder / "tokenizer.bin").write_bytes(tokenizer)
    (folder / "text").write_text("all the worlds a stage and all the men")
    return ["--model", str(folder / "model.bin"), "--tokenizer", str(folder / "tokenizer.bin"),
            "--calibrate", str(folder / "text"), "--profile", "tiny"]


@pytest.fixture(scope="module")
def program(files):
    model = metronome.load_model(files[1], files[3])
    return metronome.compile(model, "tiny", open(files[5]).read())


@pytest.fixture
def generate(files, capsys, monkeypatch):
    """Run ``generate --check``; returns its status, its JSON and its last line on stderr."""
    # The search for a better order takes most of the time, and nothing here depends on it.
    monkeypatch.setattr(compiler.program, "compile_model",
                        lambda *args, **named: compile_model(*args, **named | {"tries": 0}))

    def command(engine="verilator", tokens=3, prompt="to"):
        available(engine)
        status = cli.main(["generate", *files, "--engine", engine, "--prompt", prompt, "--tokens",
                           str(tokens), "--check", "--json"])
        captured = capsys.readouterr()
        return status, json.loads(captured.out), captured.err.splitlines()[-1]
    return command


@pytest.fixture
def changed(program, monkeypatch):
    """Have the command line run a copy of the compiled program whose image is changed."""
    def change(function):
        copied = dataclasses.replace(program, image=copy.deepcopy(program.image))
        function(copied.image)
        monkeypatch.setattr(metronome, "compile", lambda *args, **named: copied)
    return change


def fails(result) -> None:
    status, report, line = result
    assert status == 1
    assert "check failed: position" in line or "fault " in line, line
    assert set(report) >= {"tokens", "cycles", "predicted"}


@pytest.mark.parametrize("engine, tokens, prompt", [
    ("machine", 4, "to"), ("verilator", 20, "to be"), ("icarus", 4, ""), ("pysim", 2, "")])
def test_unchanged(generate, engine, tokens, prompt):
    status, report, line = generate(engine, tokens, prompt)
    assert status == 0 and "check passed" in line
    assert report["cycles"] == report["predicted"]
    assert len(report["cycles"]) == len(report["prompt_tokens"]) - 1 + len(report["tokens"])


def test_three_counts_are_equal(program, tmp_path):
    """What the file says before any engine starts, what the harness and what the RTL count."""
    available("verilator")
    path = tmp_path / "image"
    program.save(path)
    image = image_format.from_bytes(path.read_bytes(), profile("tiny"))
    steps, prompt = 2 * TINY.columns + 3, [1, 5, 6]
    said = [int(image.rows[at // TINY.columns, 5 if at + 1 < len(prompt) else 4])
            for at in range(steps)]
    assert len(set(said)) >= 3
    with engines.create("verilator", TINY) as engine:
        engine.load(image)
        result = engine.run(prompt, steps, vocabulary=MODEL.vocab_size)
    assert result.cycles == said
    assert result.reported == said


#: Latencies between issue and stream, and one that is a least distance.
LATENCIES = [*((field, 1) for field in ("mem_read", "const_read", "drain", "read_out", "vxm",
                                        "perm", "reduce", "reduce_function", "sample_skew")),
             ("vxm", -1), ("matmul_to_drain", -1)]


@pytest.mark.parametrize("field, by", LATENCIES)
def test_one_latency(generate, monkeypatch, field, by):
    """The compiler believes in another table than the hardware."""
    def wrong(config):
        return dataclasses.replace(timing(config), **{field: getattr(timing(config), field) + by})
    users = [module for name, module in sys.modules.items()
             if name.startswith("compiler.") and getattr(module, "timing", None) is timing]
    assert len(users) >= 2
    for module in users:
        monkeypatch.setattr(module, "timing", wrong)
    fails(generate())


@pytest.mark.parametrize("queue", TINY.queues)
def test_one_issue_slot(generate, changed, queue):
    """The first operation of a queue issues one cycle later, and with it all behind it."""
    def shift(image):
        decoded = [isa.decode(queue, word, TINY) for word in image.program[queue]]
        place = next(number for number, instruction in enumerate(decoded)
                     if instruction.op not in isa.Control.__members__)
        if decoded[place]["wait_param"]:
            image.params[queue][:, decoded[place]["wait"]] += 1
            return
        decoded[place].fields["wait"] += 1
        image.program[queue][place] = isa.encode(queue, decoded[place], TINY)
    changed(shift)
    fails(generate())


@pytest.mark.parametrize("seed", range(6))
def test_one_weight_bit(generate, changed, program, seed):
    """One bit of one weight of the layers."""
    lowered = program.compiled.lowered
    words = MODEL.n_layers * lowered.program.strides["mxm"]
    used = np.argwhere(program.image.weights[:words])
    place = tuple(used[np.random.default_rng(seed).integers(len(used))])
    bit = 5 + seed % 3

    def flip(image):
        image.weights[place] ^= np.int8(np.uint8(1 << bit).view(np.int8))
    changed(flip)
    fails(generate())


#: Module of the RTL, and what becomes of its first line with that operator.
LINES = {"mxm.tile_1.product_1_1": ("+", "-"), "vxm.lane_5.U$12": ("+", "-")}


@pytest.fixture(scope="module")
def icarus_cache(tmp_path_factory):
    """A cache of their own for machines that nobody wants to keep."""
    available("icarus")
    home = tmp_path_factory.mktemp("cache")
    yield home
    shutil.rmtree(home)


@pytest.mark.parametrize("module", LINES)
def test_one_line_of_the_rtl(generate, monkeypatch, icarus_cache, module):
    """One operator in one line of the Verilog is another one."""
    made = rtl_files.generate(TINY, print)
    start = made.verilog.index(f"module \\{made.top}.{module} ")
    end = made.verilog.index("endmodule", start)
    before, after = LINES[module]
    line = re.search(rf"^  assign .* {re.escape(before)} .*;$", made.verilog[start:end], re.M)
    text = line[0].replace(f" {before} ", f" {after} ", 1)
    mutant = (made.verilog[:start] + made.verilog[start:end].replace(line[0], text, 1)
              + made.verilog[end:])
    assert sum(a != b for a, b in zip(made.verilog.splitlines(), mutant.splitlines())) == 1
    monkeypatch.setattr(rtl_files, "generate",
                        lambda *args: dataclasses.replace(made, verilog=mutant))
    monkeypatch.setattr(toolchain, "cache_folder", lambda: icarus_cache)
    fails(generate("icarus", tokens=1, prompt=""))
