"""The command line: what it prints, its exit statuses, and its one-line complaints."""
import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import metronome
from arch.hostmap import Space
from compiler.checkpoint import Checkpoint, ModelConfig, random_checkpoint
from compiler.llama2c import save_checkpoint
from scripts import cli
from sim.evaluation import nats, windows

ROOT = pathlib.Path(__file__).parents[1]
GENERATE_KEYS = {"schema", "text", "prompt_tokens", "tokens", "cycles", "predicted", "engine",
                 "profile", "macs_per_cycle", "utilisation", "seconds", "simulated_hz"}
COMPILE_KEYS = {"schema", "macs_per_cycle", "image_bytes", "program_bytes", "weight_bytes",
                "kv_bytes", "constant_bytes", "sram_used", "sram_total", "cycles", "mac_cycles",
                "utilisation"}
PROGRAM = """\
.profile tiny
.row * generate=40 prompt=40
.const 0 1 -2 3 4 5 6 7 8
.queue const
  READ at=5 address=0
  END
.queue w2
  WRITE at=7 address=3 x=CONST halves={halves}
  END
"""


@pytest.fixture
def run(capsys):
    """Run a command; returns exit status, stdout and stderr."""
    def command(*arguments):
        status = cli.main(list(arguments))
        captured = capsys.readouterr()
        return status, captured.out, captured.err
    return command


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "model.bin"
    assert cli.main(["compile", "-o", str(path)]) == 0
    return str(path)


@pytest.fixture
def program(tmp_path):
    def write(halves=3):
        path = tmp_path / "program.asm"
        path.write_text(PROGRAM.format(halves=halves))
        return str(path)
    return write


def complaint(result):
    """The one line on stderr of a command that refused its input."""
    status, out, err = result
    assert (status, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("metronome: ")
    return lines[0]


# generate.

@pytest.mark.slow
def test_generate_json(run):
    status, out, _ = run("generate", "--engine", "machine", "--prompt", "ROMEO:", "--tokens", "9",
                         "--check", "--json")
    assert status == 0 and out.count("\n") == 1
    result = json.loads(out)
    assert set(result) == GENERATE_KEYS and result["schema"] == 1
    # BOS and six characters; the first six of these seven steps only read the prompt.
    assert len(result["prompt_tokens"]) == 7 and result["prompt_tokens"][0] == 1
    assert len(result["tokens"]) == 9 and len(result["text"]) == 9
    assert len(result["cycles"]) == 6 + 9 and result["cycles"] == result["predicted"]
    assert (result["engine"], result["profile"]) == ("machine", "ecp5_85k")
    assert result["macs_per_cycle"] == 128
    # Hand count: five layers of 64 x (64 + 32 + 32 + 64 + 3 x 172), 640 a position, 68 x 64 logits.
    useful = sum(226560 + 640 * (at + 1) + (68 * 64 if at >= 6 else 0) for at in range(15))
    assert result["utilisation"] == pytest.approx(useful / (128 * sum(result["cycles"])), rel=1e-12)


@pytest.mark.slow
def test_engines_agree_on_seeded_text(run):
    texts = []
    for engine in ("reference", "machine"):
        status, out, _ = run("generate", "--engine", engine, "--tokens", "12", "--temperature",
                             "0.8", "--seed", "0x123456789abcdef0", "--json")
        assert status == 0
        texts.append(json.loads(out)["tokens"])
    assert texts[0] == texts[1]
    _, out, _ = run("generate", "--engine", "reference", "--tokens", "12", "--temperature",
                    "0.8", "--seed", "1", "--json")
    assert json.loads(out)["tokens"] != texts[0]


def test_generate_streams_text(run, image):
    status, out, err = run("generate", "--image", image, "--engine", "machine", "--prompt", "A",
                           "--tokens", "5")
    assert status == 0 and out[0] == "A" and len(out) == 1 + 5 + 1
    assert "5 tokens" in err


@pytest.mark.slow
def test_image_gives_what_the_model_gives(run, image):
    results = []
    for source in (["--image", image], []):
        _, out, _ = run("generate", *source, "--engine", "machine", "--tokens", "6", "--json")
        results.append({key: value for key, value in json.loads(out).items()
                        if key not in ("seconds", "simulated_hz")})
    assert results[0] == results[1]


@pytest.mark.slow
def test_check_names_the_first_difference(run, monkeypatch):
    compile_ = metronome.compile

    def damaged(*arguments, **named):
        program = compile_(*arguments, **named)
        # One weight of the first layer's keys, queries or values, changed in the image only.
        program.image.weights[0, 0, 0] ^= 0x40
        return program
    monkeypatch.setattr(metronome, "compile", damaged)
    status, out, err = run("generate", "--engine", "machine", "--tokens", "3", "--check", "--json")
    assert status == 1 and set(json.loads(out)) == GENERATE_KEYS
    line = err.splitlines()[-1]
    assert "check failed: position 0: layer" in line
    assert "MEM bank" in line and "cycle" in line and "vector" in line


@pytest.mark.slow
def test_check_sees_a_wrong_cycle_count(run, monkeypatch):
    monkeypatch.setattr("compiler.pipeline.Compiled.predicted",
                        lambda self, position, prompt=False: 2541)
    status, _, err = run("generate", "--engine", "machine", "--tokens", "2", "--check", "--json")
    assert status == 1 and "cycles, predicted are 2541" in err


# Refusals.

@pytest.mark.parametrize("arguments, words", [
    ([], "required: COMMAND"),
    (["frobnicate"], "invalid choice: 'frobnicate'"),
    (["generate", "--profile", "huge"], "unknown profile 'huge'"),
    (["generate", "--engine", "abacus"], "invalid choice: 'abacus'"),
    (["generate", "--engine", "board"], "engine board needs the serial port of a board: --port DEV"),
    (["generate", "--engine", "machine", "--port", "x"], "--port belongs to engine board"),
    (["generate", "--engine", "machine", "--trace", "x.fst"], "--trace needs engine verilator"),
    (["generate", "--engine", "machine", "--tokens", "0"], "must be 1 or more"),
    (["generate", "--engine", "machine", "--tokens", "257"], "leaves room for 256"),
    (["generate", "--engine", "machine", "--seed", "-1"], "must be 0 to 2**64 - 1"),
    (["generate", "--engine", "machine", "--temperature", "0.01"], "temperature must be 0 or"),
    (["generate", "--engine", "machine", "--temperature", "nan"], "temperature must be 0 or"),
    (["generate", "--engine", "machine", "--prompt", "\u20ac"], "not in the model's vocabulary"),
    (["generate", "--engine", "machine", "--image", "/nowhere/x"], "/nowhere/x: cannot be read"),
    (["generate", "--engine", "machine", "--image", "a", "--model", "b"], "exclude each other"),
    (["generate", "--engine", "machine", "--model", "/nowhere/x"], "/nowhere/x: cannot be read"),
    (["generate", "--engine", "machine", "--image", __file__], "not a Metronome image"),
    (["compile", "-o", "/nowhere/x/y"], "/nowhere/x/y: cannot be written"),
    (["compile", "--profile", "tiny"], "the model needs"),
    (["eval", "--text", "/nowhere/x"], "/nowhere/x: cannot be read"),
    (["eval", "--text", sys.executable], "is not UTF-8 text"),
    (["eval", "--text", __file__, "--context", "300"], "the context must be at most 256"),
    (["disasm", "/nowhere/x"], "/nowhere/x: cannot be read"),
    (["asm", "/nowhere/x", "-o", "y"], "/nowhere/x: cannot be read"),
    (["run", __file__], "line 1:"),
    (["synth", "--unit", "nothing"], "unknown unit 'nothing'"),
    (["synth", "--seeds", "3"], "--seeds needs --pnr"),
])
def test_bad_input_is_one_line(run, arguments, words):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    lines = [line for line in err.splitlines()
             if not line.startswith(("metronome: compiling", "metronome: synthesising"))]
    assert len(lines) == 1 and lines[0].startswith("metronome: ") and words in lines[0]


def test_missing_tool_is_named(run, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "iverilog" in complaint(run("generate", "--engine", "icarus"))


def test_interrupt(run, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt
    monkeypatch.setattr("scripts.commands.info.run", interrupted)
    assert run("info") == (130, "", "metronome: interrupted\n")


def test_no_traceback_from_the_shell(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "scripts.cli", "compile", "--model", "nowhere"],
                          cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


# compile, eval, info.

def test_compile_json(run):
    status, out, _ = run("compile", "--json")
    result = json.loads(out)
    assert status == 0 and set(result) == COMPILE_KEYS
    assert len(result["cycles"]) == len(result["mac_cycles"]) == len(result["utilisation"]) == 256
    assert result["mac_cycles"][0] == math.ceil((226560 + 640 + 68 * 64) / 128)
    assert all(macs < cycles for macs, cycles in zip(result["mac_cycles"], result["cycles"]))


def test_windows_cover_the_text_once():
    assert windows([5, 6, 7, 8, 9], 2, 1, None) == [[1, 5, 6], [1, 7, 8], [1, 9]]
    assert windows([5, 6, 7, 8, 9], 2, None, 4) == [[5, 6], [7, 8]]
    assert windows([5, 6, 7], 2, None, None) == [[5, 6]]


def test_nats_by_hand():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])) + 7
    assert nats(logits, np.array([1, 2])) == pytest.approx(-math.log(0.25) - math.log(0.8))


@pytest.mark.parametrize("engine", ["float", "reference"])
def test_eval_json(run, tmp_path, engine):
    text = tmp_path / "text"
    text.write_text("ROMEO:\nWhat light through yonder window breaks?\n")
    status, out, _ = run("eval", "--text", str(text), "--engine", engine, "--json")
    result = json.loads(out)
    assert status == 0 and result["tokens"] == 48
    assert result["perplexity"] == pytest.approx(math.exp(result["nats_per_token"]))
    assert 0.5 < result["nats_per_token"] < 2.5


def test_eval_of_a_model_that_knows_nothing(run, tmp_path):
    """All logits equal: every token costs the logarithm of the vocabulary."""
    built_in = metronome.load_model()
    size = built_in.tokenizer.vocab_size
    config = ModelConfig(dim=8, hidden_dim=8, n_layers=1, n_heads=2, n_kv_heads=1,
                         vocab_size=size, seq_len=16, tied=True)
    random = random_checkpoint(config, 0)
    names = ("norm_att", "wq", "wk", "wv", "wo", "norm_ffn", "w1", "w2", "w3", "norm_final")
    nothing = np.zeros((size, 8), np.float32)
    save_checkpoint(tmp_path / "model.bin", Checkpoint(
        config=config, embedding=nothing, classifier=nothing,
        **{name: getattr(random, name) for name in names}))
    (tmp_path / "tokenizer.bin").write_bytes(built_in.tokenizer.to_bytes())
    (tmp_path / "text").write_text("to be or not to be")
    status, out, _ = run("eval", "--model", str(tmp_path / "model.bin"), "--tokenizer",
                         str(tmp_path / "tokenizer.bin"), "--text", str(tmp_path / "text"),
                         "--engine", "float", "--json")
    assert status == 0
    assert json.loads(out)["nats_per_token"] == pytest.approx(math.log(size))


def test_info_lists_engines_and_profiles(run):
    status, out, _ = run("info", "--json")
    result = json.loads(out)
    assert status == 0
    assert set(result["profiles"]) == {"tiny", "small", "ecp5_25k", "ecp5_85k", "sim_large"}
    assert result["engines"]["machine"] == {"available": True, "reason": None}
    assert set(result["engines"]) == {"reference", "machine", "verilator", "icarus", "pysim",
                                      "board"}
    status, out, _ = run("info")
    assert status == 0 and "ecp5_85k" in out


# Programs by hand.

def test_run_a_program(run, program, tmp_path):
    source, binary = program(), str(tmp_path / "program.bin")
    assert run("asm", source, "-o", binary)[0] == 0
    for path in (source, binary):
        status, out, _ = run("run", path, "--json")
        result = json.loads(out)
        assert status == 0 and result["cycles"] == result["predicted"] == [40]
        assert result["mem"] == {"m2[3]": [1, -2, 3, 4, 5, 6, 7, 8]} and result["writes"] == 1


def test_run_writes_only_the_chosen_half(run, program):
    _, out, _ = run("run", program(halves=2), "--json")
    assert json.loads(out)["mem"] == {"m2[3]": [0, 0, 0, 0, 5, 6, 7, 8]}


def test_illegal_program_fails(run, tmp_path):
    path = tmp_path / "late.asm"
    path.write_text(PROGRAM.format(halves=3).replace("at=7", "at=8"))
    status, out, err = run("run", str(path), "--json")
    assert status == 1
    assert json.loads(out)["fault"] == {"cause": "OPERAND", "queue": "w2", "cycle": 8,
                                        "position": 0}
    assert "OPERAND" in err.splitlines()[-1]


def test_disasm_reassembles(run, program, tmp_path):
    first, second = tmp_path / "1.bin", tmp_path / "2.bin"
    assert run("asm", program(), "-o", str(first))[0] == 0
    _, text, _ = run("disasm", str(first))
    (tmp_path / "again.asm").write_text(text)
    assert run("asm", str(tmp_path / "again.asm"), "-o", str(second))[0] == 0
    assert first.read_bytes() == second.read_bytes()


# The Python face.

@pytest.mark.slow
def test_session_reads_back_what_it_generated():
    program = metronome.compile(metronome.load_model())
    with metronome.Session(program, engine="machine") as session:
        result = session.generate("KING", 4)
        tokens = session.engine.read_space(Space.TOKENS, 0, 9).tolist()
    assert tokens == result.prompt_tokens + result.tokens
    assert result.text == program.tokenizer.decode(result.tokens)
