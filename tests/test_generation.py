"""Generation as people use it: top-k, top-p, stop tokens, prompts from files, text as it comes."""
import dataclasses
import io
import sys

import pytest

import metronome
from arch.hostmap import Register, Space
from arch.selection import STAGES
from compiler.errors import MetronomeError
from compiler.stop import stop_token
from compiler.tokenizer import Tokenizer
from scripts import cli
from sim import engine as engines
from tests.conftest import TINY

#: Characters; the euro sign comes in three tokens, one after the other.
EURO = [b"\xe2", b"\x82", b"\xac"]
PIECES = [b"<unk>", b"<s>", b"</s>", *EURO,
          *(bytes([code]) for code in range(ord("A"), ord("A") + TINY.vocab_size - 6))]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(PIECES, [0.0] * len(PIECES))


@pytest.fixture(scope="module")
def model(tiny_checkpoint, tokenizer):
    return metronome.Model(tiny_checkpoint, tokenizer, "tiny")


@pytest.fixture(scope="module")
def program(model):
    return metronome.compile(model, "tiny", sampling=["top-p", "top-k"])


@pytest.fixture(scope="module")
def plain(model):
    return metronome.compile(model, "tiny")


@pytest.fixture(scope="module")
def image(program, tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "choosy.img"
    program.save(str(path))
    return str(path)


@pytest.fixture
def run(capsysbinary):
    """Run a command; returns exit status, stdout and stderr."""
    def command(*arguments):
        status = cli.main(list(arguments))
        captured = capsysbinary.readouterr()
        return status, captured.out.decode(), captured.err.decode()
    return command


def complaint(result):
    """The one line on stderr of a command that refused its input."""
    status, out, err = result
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1 and err.startswith("metronome: ")
    return err


# Top-k and top-p.

@pytest.mark.parametrize("settings", [dict(top_k=3), dict(top_p=0.5), dict(top_k=9, top_p=0.7),
                                      dict()])
def test_machine_equals_reference(program, settings):
    """Tokens, every stored vector, what the sampler takes, and all cycles."""
    with metronome.Session(program, "machine") as machine, \
            metronome.Session(program, "reference") as reference:
        found = machine.generate("AB", 6, temperature=1.3, seed=4, check=True, **settings)
        expected = reference.generate("AB", 6, temperature=1.3, seed=4, **settings)
    assert found.difference is None and found.fault is None
    assert found.tokens == expected.tokens
    assert found.cycles == found.predicted == expected.cycles


def test_the_settings_are_those_of_the_run(program):
    """One program, any k and p: of one token to choose from, the best is drawn at any heat."""
    with metronome.Session(program, "machine") as session:
        greedy = session.generate("A", 5).tokens
        hot = session.generate("A", 5, temperature=50.0, seed=9).tokens
        assert session.generate("A", 5, temperature=50.0, seed=9, top_k=1).tokens == greedy
        assert session.generate("A", 5, temperature=0.5, seed=9, top_p=1e-6).tokens == greedy
        assert session.generate("A", 5, temperature=50.0, seed=9).tokens == hot != greedy


def test_greedy_is_that_of_a_plain_program(program, plain):
    with metronome.Session(program, "machine") as session:
        tokens = session.generate("AB", 6, top_k=5, top_p=0.9).tokens
    with metronome.Session(plain, "machine") as session:
        assert session.generate("AB", 6).tokens == tokens


def test_a_plain_program_is_not_longer(program, plain):
    assert plain.sampling == () and program.sampling == STAGES
    report = program.compiled.report()
    assert report["sampling"] == ["top-k", "top-p"] and "sampling" not in plain.compiled.report()
    for position, cycles in enumerate(report["selection_cycles"]):
        # All of the choice lies behind the last logit, and prompt steps have none of it.
        assert 0 < program.predicted(position, False) - cycles < plain.predicted(position, False)
        assert program.predicted(position, True) == plain.predicted(position, True)


@pytest.mark.parametrize("settings, words", [
    (dict(top_k=2), "compiled without top-k: compile it with sampling top-k"),
    (dict(top_p=0.5), "compiled without top-p: compile it with sampling top-p"),
    (dict(top_k=2, top_p=0.5), "compiled without top-k: compile it with sampling top-k,top-p"),
    (dict(top_k=-2), "top_k must be 0 (off) or a number of tokens, not -2"),
    (dict(top_p=2.0), "top_p must be above 0 and at most 1 (off), not 2.0"),
    (dict(temperature=0.01), "temperature must be 0 or 0.0625 to 100, not 0.01")])
def test_settings_that_cannot_be(plain, settings, words):
    with metronome.Session(plain, "reference") as session:
        with pytest.raises(MetronomeError) as error:
            session.generate("A", 2, **settings)
    assert str(error.value).endswith(words)


@pytest.mark.parametrize("said", [
    7, {}, {"stages": ["top-k"]}, {"stages": ["best"], "words": {}},
    {"stages": 3, "words": {}}, {"stages": ["top-k"], "words": {"top_q": 1}},
    {"stages": ["top-k"], "words": {"top_k": 1 << 40}}, {"stages": ["top-k"], "words": [1]},
    {"stages": ["top-k"], "words": {"top_k": "1"}}, {"stages": ["top-k"], "words": {"top_k": -1}}])
def test_an_image_that_says_nonsense(program, said, tmp_path):
    path = tmp_path / "bad.img"
    image = dataclasses.replace(program.image, meta=program.image.meta | {"sampling": said})
    image.save(path)
    with pytest.raises(MetronomeError) as error:
        metronome.load_program(str(path))
    assert str(error.value).endswith("is malformed: nothing is known of its sampling settings")


def test_unknown_stage(model):
    with pytest.raises(MetronomeError) as error:
        metronome.compile(model, "tiny", sampling=["top-q"])
    assert str(error.value) == "unknown sampling 'top-q'; there are top-k, top-p"


# Stop tokens.

def test_stop(program):
    with metronome.Session(program, "reference") as session:
        whole = session.generate("A", 20, temperature=1.0, seed=2, stop="")
        assert len(whole.tokens) == 20
        place = next(at for at, token in enumerate(whole.tokens) if token > 5 and at > 2
                     and token not in whole.tokens[:at])
        for stop in (whole.tokens[place], PIECES[whole.tokens[place]].decode()):
            short = session.generate("A", 20, temperature=1.0, seed=2, stop=stop)
            assert short.tokens == whole.tokens[:place + 1]


def test_stop_tokens(tokenizer):
    """By number, by text, none; the model's own by default."""
    find = lambda stop: stop_token(tokenizer, TINY.vocab_size, stop)  # noqa: E731
    assert (find(None), find(7), find(""), find("C")) == (1, 7, None, 8)
    for stop, words in ((43, "the stop token must be 0 to 42, not 43"),
                        (-1, "the stop token must be 0 to 42, not -1"),
                        ("AB", "the stop text 'AB' is no token of the model's vocabulary; give "
                         "one that is, or the number of a token")):
        with pytest.raises(MetronomeError) as error:
            find(stop)
        assert str(error.value) == words


def test_a_stop_text_that_is_two_tokens():
    twice = Tokenizer([b"<unk>", b"<s>", b"</s>", b"a", b"x", b"x"], [0.0] * 6)
    with pytest.raises(MetronomeError) as error:
        stop_token(twice, 6, "x")
    assert str(error.value) == "the stop text 'x' is each of the tokens 4, 5; give one number"


def test_stop_text_behind_a_space():
    """Of a byte-pair vocabulary: a word with its space, and a byte."""
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % value for value in range(256)),
              b" the", b"the", b"x"]
    tokenizer = Tokenizer(pieces, [0.0] * len(pieces))
    found = [stop_token(tokenizer, len(pieces), stop) for stop in (" the", "the", "\n")]
    assert found == [259, 260, 13]


# Text as it comes.

def test_characters_come_whole(plain, monkeypatch):
    """A character of three tokens is told with the last; one that has no end at the very end."""
    tokens = [6, *range(3, 6), 7, 3, 4]

    def sampled(keys, *_):
        return tokens[len(seen) - 1]
    seen, texts = [], []
    monkeypatch.setattr("sim.reference_engine.pick", sampled)
    with metronome.Session(plain, "reference") as session:
        result = session.generate("B", len(tokens), on_step=seen.append, on_text=texts.append)
    assert seen == [b"", b"A", *EURO, b"B", b"\xe2", b"\x82"]
    assert texts == ["A", "\u20ac", "B", "\ufffd"]
    assert result.text == "A\u20acB\ufffd"


class Enough(Exception):
    """Seen what there is to see."""


@pytest.mark.parametrize("engine", ["reference", "machine",
                                    pytest.param("verilator", marks=pytest.mark.slow)])
def test_text_comes_while_the_run_goes_on(plain, engine):
    """Who hears the text of a step hears it before the next but one is over."""
    if reason := engine != "reference" and engines.engine_class(engine).unavailable():
        pytest.skip(f"engine {engine} cannot run here: {reason}")
    steps = []

    def listen(_):
        steps.append(1)
        if len(steps) == 4:
            raise Enough
    with metronome.Session(plain, engine) as session:
        with pytest.raises(Enough):
            session.generate("AB", 20, temperature=1.0, stop="", on_step=listen)
        if engine == "machine":
            # Positions 0 to 3 have run; the first two were given.
            assert session.engine.read_space(Space.TOKENS, 5, 2).tolist() == [0, 0]
        elif engine == "verilator":
            place = session.engine.read_space(Space.REGISTERS, Register.POSITION, 1)
            assert 3 <= place[0] <= 5


# The command line.

def test_prompt_from_a_file(run, image, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"ABC")
    options = ["generate", "--image", image, "--engine", "machine", "--tokens", "4", "--top-k",
               "4", "--temperature", "1.5"]
    given = run(*options, "--prompt", "ABC")
    status, out, _ = run(*options, "--prompt-file", str(path))
    assert status == 0 and out == given[1] and out.startswith("ABC")


def test_prompt_from_standard_input(run, image, monkeypatch, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("CD")
    with open(path, "rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        status, out, _ = run("generate", "--image", image, "--engine", "machine", "--tokens", "2",
                             "--prompt-file", "-")
    assert status == 0 and out.startswith("CD")


def test_bad_prompts_are_one_line(run, image, tmp_path):
    command = ["generate", "--image", image, "--engine", "machine", "--prompt-file"]
    long, bad, huge = tmp_path / "long.txt", tmp_path / "bad.txt", tmp_path / "huge.txt"
    long.write_text("A" * 40)
    bad.write_bytes(b"A\xff")
    huge.write_bytes(b"A" * (1 << 20) + b"A")
    assert "the prompt has 41 tokens, the context holds 32" in complaint(run(*command, str(long)))
    assert "is not UTF-8 text (byte 1)" in complaint(run(*command, str(bad)))
    assert "too many for a prompt" in complaint(run(*command, str(huge)))
    assert "cannot be read: Is a directory" in complaint(run(*command, str(tmp_path)))
    assert "cannot be read: No such file" in complaint(run(*command, str(tmp_path / "none")))
    assert "exclude each other" in complaint(run(*command, str(bad), "--prompt", "A"))


def test_bad_settings_are_one_line(run, image):
    command = ["generate", "--image", image, "--engine", "machine"]
    assert "top_p must be above 0" in complaint(run(*command, "--top-p", "0"))
    assert "top_k must be 0 (off)" in complaint(run(*command, "--top-k", "-1"))
    assert "the stop token must be" in complaint(run(*command, "--stop", "43"))
    assert "is no token" in complaint(run(*command, "--stop", "zz"))
    assert "there are top-k, top-p, not 'best'" in complaint(
        run("compile", "--sampling", "top-k,best"))
