"""The board: self-test and text over a pseudo-terminal, with every bit of the serial line simulated."""
import json
import types
import xml.etree.ElementTree as xml

import numpy as np
import pytest

import metronome
from arch.config import profile
from arch.hostmap import Space, mem_address
from sim import engine, selftest
from sim.virtual_board import VirtualBoard

TINY = profile("tiny")


@pytest.fixture(scope="module")
def virtual():
    """A running virtual board of profile tiny."""
    reason = VirtualBoard.unavailable()
    if reason:
        pytest.skip(reason)
    with VirtualBoard(TINY) as board:
        yield board


@pytest.mark.slow
def test_the_board_generates_what_the_machine_model_does(virtual, tiny):
    runs = []
    for name, options in (("board", {"port": virtual.port}), ("machine", {})):
        with engine.create(name, TINY, **options) as running:
            running.load(tiny.image)
            runs.append(running.run([3, 1], 10, vocabulary=43, seed=5, inverse_temperature=4096))
    board, machine = runs
    assert board.tokens == machine.tokens and len(board.tokens) == 9
    assert board.cycles == machine.cycles == [tiny.predicted(at, at == 0) for at in range(10)]
    assert virtual.lamps == {"alive": virtual.lamps["alive"], "running": False, "fault": False,
                             "line": False, "speaking": False}


@pytest.mark.slow
def test_selftest_from_the_command_line(virtual, tmp_path, capsys):
    from scripts.cli import main
    status = main(["selftest", "--port", virtual.port, "--profile", "tiny", "--json",
                   "--junit", str(tmp_path / "report.xml")])
    report = json.loads(capsys.readouterr().out)
    assert status == 0 and report["passed"], report
    names = [check["name"] for check in report["checks"]]
    assert names == ["identity", "time base", "march MEM", "march CONSTANTS", "march TOKENS",
                     "march WEIGHTS", "fault", "load", "generate", "scrub"]
    suite = xml.parse(tmp_path / "report.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("10", "0")
    assert [case.get("name") for case in suite] == names


@pytest.mark.slow
def test_selftest_with_an_image_alone(virtual, tiny):
    """Without the model, the machine model says what is to come: the tokens of the reference."""
    outcomes = selftest.run_model(tiny.image, None, virtual.port, lambda outcome: None, print)
    assert [outcome.failure for outcome in outcomes] == [None] * 10


@pytest.mark.slow
def test_what_is_wrong_is_found(virtual, tiny):
    """A flipped word, another token, another cycle, another profile: each by its own check."""
    with engine.create("board", TINY, port=virtual.port) as board:
        board.load(tiny.image)
        flipped = np.array(board.read_space(Space.WEIGHTS, 40, 1)) ^ 4
        settings = {"vocabulary": 43}
        tokens = board.run([1], 4, **settings).tokens
        cycles = [tiny.predicted(at) for at in range(4)]
        selftest.generate(board, [1], tokens, cycles, **settings)
        with pytest.raises(selftest.Failed, match="cycles .*, predicted"):
            selftest.generate(board, [1], tokens, [*cycles[:3], cycles[3] + 1], **settings)
        with pytest.raises(selftest.Failed, match="tokens .*, expected"):
            selftest.generate(board, [1], [*tokens[:3], tokens[3] ^ 1], cycles, **settings)
        stored = board.read_space

        def damaged(space, address, count):
            words = np.array(stored(space, address, count))
            if space == Space.WEIGHTS and address <= 40 < address + count:
                words[40 - address] = flipped[0]
            return words
        board.read_space = damaged
        with pytest.raises(selftest.Failed, match="1 words of WEIGHTS came back different, first "
                           "at 40"):
            selftest.load(board, tiny.image)
    other = TINY.replace(vxm_stages=1)
    with engine.create("board", other, port=virtual.port) as board:
        with pytest.raises(engine.EngineError, match="is not profile 'tiny' as it is now"):
            board.read_space(Space.MEM, mem_address(other, 0, 0, 0), 1)


@pytest.mark.slow
def test_an_image_for_another_machine(virtual, untied, monkeypatch, capsys):
    """The self-test says that the board is not what the image is for, and touches nothing."""
    from scripts.cli import main
    monkeypatch.setattr(metronome, "load_program", lambda path: types.SimpleNamespace(
        config=untied.config, image=untied.image, compiled=untied))
    status = main(["selftest", "--port", virtual.port, "--image", "small.image", "--json"])
    out, err = capsys.readouterr()
    (check,) = json.loads(out)["checks"]
    assert status == 1 and check["name"] == "identity"
    assert check["failure"].startswith("board: the machine there is not profile 'small' as it is")
    assert err.splitlines()[-1] == f"metronome: self-test failed: identity: {check['failure']}"


def test_a_port_that_is_none():
    with engine.create("board", TINY, port="/dev/no-such-port") as board:
        with pytest.raises(engine.EngineError, match="cannot open port /dev/no-such-port"):
            board.read_space(Space.MEM, 0, 1)


@pytest.mark.parametrize("arguments, message", [
    (["selftest"], "selftest needs either --port DEV or --virtual"),
    (["selftest", "--port", "x", "--virtual"], "selftest needs either --port DEV or --virtual"),
    (["generate", "--engine", "board"], "engine board needs the serial port of a board"),
    (["generate", "--engine", "machine", "--port", "x"], "--port belongs to engine board"),
    (["generate", "--engine", "board", "--port", "x", "--check"], "use metronome selftest"),
])
def test_arguments(arguments, message, capsys):
    from scripts.cli import main
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
