"""The host link under damage: raw frames, the driver over a bad line, a host that dies."""
import numpy as np
import pytest

from arch.config import profile
from arch.hostmap import RUN, Command, Register, Space
from sim import engine as engines
from sim.link import ATTEMPTS
from sim.link_campaign import RawCampaign, driver_campaign
from tests.rtl import available

TINY = profile("tiny")
SETTINGS = {"vocabulary": 43, "seed": 5, "inverse_temperature": 4096}


@pytest.fixture(scope="module")
def rtl():
    available("verilator")
    with engines.create("verilator", TINY) as engine:
        engine.read_space(Space.TOKENS, 0, 1)
        yield engine


def run(engine) -> tuple:
    result = engine.run([3, 1], 10, **SETTINGS)
    assert result.fault is None
    return result.tokens, result.reported


@pytest.mark.slow
def test_ten_thousand_damaged_frames(rtl):
    """Every intact frame is answered and done, no damaged one is; then the link is as before."""
    raw = RawCampaign(rtl, 11)
    raw.run(1000, 10_000)
    assert raw.counts["intact"] == raw.answers["OK"] == 1000
    assert sum(raw.counts.values()) == 11_000 and min(raw.counts.values()) > 700


@pytest.mark.slow
def test_the_driver_over_a_bad_line(rtl, tiny):
    """Right or an error; and after each session, killed at its end, everything is right again."""
    counts = driver_campaign(rtl, tiny.image, run, 3, seed=2)
    assert counts["bursts damaged"] > 5 and counts["requests repeated"] > 5


@pytest.mark.slow
def test_a_host_that_died_in_a_run(rtl, tiny):
    """The next one stops what it left behind, and does not take its events for its own."""
    rtl.connect()
    rtl.load(tiny.image)
    wanted = run(rtl)
    rtl._link.write(Space.REGISTERS, Register.LIMIT, [TINY.context])
    rtl._link.write(Space.REGISTERS, Register.COMMAND, [RUN])
    rtl.clock(3000)
    rtl._first_tag = 77
    rtl.connect()
    assert run(rtl) == wanted


class Silent:
    """A port that answers nothing, or the same noise for ever."""

    def __init__(self, answer):
        self.answer, self.sent = answer, 0

    def __call__(self, data, cycles, received):
        self.sent += bool(data)
        return self.answer[:received] if len(self.answer) < received else self.answer


@pytest.mark.parametrize("answer", [b"", b"\x6d" * 5000, bytes(range(256)) * 8])
def test_a_port_that_babbles_is_given_up(answer):
    from sim.link import Link
    port = Silent(answer)
    link = Link("board", port)
    with pytest.raises(engines.EngineError, match="no intact answer to READ of 4 words of TOKENS "
                       "from 2 on, sent 5 times"):
        link.read(Space.TOKENS, 2, 4)
    assert port.sent == ATTEMPTS == 5


@pytest.mark.slow
def test_a_flipped_token_is_noticed(rtl, tiny):
    """The token memory has no parity: it is compared after the run."""
    rtl.connect()
    rtl.load(tiny.image)
    memory = next(words for name, words in rtl._memories().items() if "tokens" in name)

    def flip(position, token, cycles):
        if position == 4:
            memory[3, 0] ^= 1
    with pytest.raises(engines.EngineError, match="the token at position 3 is .* a bit has flipped"):
        rtl.run([3, 1], 10, progress=flip, **SETTINGS)


@pytest.mark.slow
def test_what_is_loaded_is_compared(rtl, tiny):
    """A word that the memory does not keep is found before anything runs."""
    rtl.connect()
    write = rtl._link.write

    def worse(space, address, words):
        words = np.array(words)
        if space == Space.WEIGHTS:
            words[100] ^= 4
        write(space, address, words)
    rtl._link.write = worse
    with pytest.raises(engines.EngineError, match="WEIGHTS from 0 on does not hold what was"):
        rtl.load(tiny.image, backdoor=False)
    assert Command.CHECK in rtl._link._parser._commands.values()
