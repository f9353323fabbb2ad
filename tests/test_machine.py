"""The machine model: instruction vectors, faults with their cycles, and how a run goes."""
import numpy as np
import pytest

from arch.faults import Fault, ScheduleError
from arch.isa import Control, Instruction, encode, unit_of
from arch.queues import Stream
from compiler.asm import assemble
from sim import engine as engines
from sim.checker import ProgramError, check_schedule, check_shape
from sim.machine import Machine
from tests import vectors

VECTORS = vectors.load()
HEAD, FAULTS = vectors.load_faults()
CASE = pytest.mark.parametrize("case", FAULTS, ids=[case.name for case in FAULTS])


def machine(source):
    image = assemble(source)
    loaded = Machine(image.config)
    loaded.load(image)
    return loaded


@pytest.mark.parametrize("vector", VECTORS, ids=[vector.name for vector in VECTORS])
def test_vectors(vector):
    loaded = machine(vector.source)
    records = loaded.run(vector.prompt, vector.steps, first=vector.first,
                         vocabulary=vector.vocabulary)
    vectors.check(vector, [record.cycles for record in records],
                  [record.token for record in records if record.token is not None],
                  [(step, *write[:3]) for step, record in enumerate(records)
                   for write in record.writes], loaded.read_mem)


def test_vectors_through_the_engine():
    config = assemble(VECTORS[0].source).config
    with engines.create("machine", config) as engine:
        for vector in VECTORS:
            vectors.check_engine(vector, engine)


def test_vectors_cover_every_operation():
    text = " ".join(vector.source for vector in VECTORS)
    for unit in {unit_of(queue).name: unit_of(queue) for queue in vectors.CONFIG.queues}.values():
        assert all(f" {op.name} " in text for op in unit.ops), unit.name
    assert all(f"{control}" in text for control in Control.__members__)


@CASE
def test_fault(case):
    loaded = machine(HEAD + case.source)
    with pytest.raises(ScheduleError) as caught:
        loaded.run([5], 1)
    error = caught.value
    assert (error.fault, error.cycle, error.queue) == (case.fault, case.cycle, case.queue), error
    assert "generate step at position 0" in str(error)


@CASE
def test_checker_refuses_the_same(case):
    image = assemble(HEAD + case.source)
    if case.name == "address_by_token":
        # The token is data; see `sim.checker.TOKEN`.
        check_schedule(image)
        return
    with pytest.raises(ScheduleError) as caught:
        check_schedule(image)
    error = caught.value
    assert (error.fault, error.cycle, error.queue) == (case.fault, case.cycle, case.queue), error


def test_every_static_fault_has_a_case():
    assert {case.fault for case in FAULTS} == set(Fault) - {Fault.NONE, Fault.PARITY}


# Legal by one cycle: the neighbours of the faults above.
LEGAL = {
    "kv_write_to_matmul": """
        .queue const
            READ at={f} n1={v+8}
            END
        .queue vxm
            MAC at={f+c} a=CONST
            END
        .queue mxm
            MATMUL at={f+c+v+kw} start=1 x0=CONST x1=CONST address=0
            END
        .queue kv
            WRITE_K at={f+c+v} x=VXM address=0
            END""",
    "matmul_to_kv_write": """
        .queue const
            READ at={f} n1={v+8}
            END
        .queue vxm
            MAC at={f+c+mk} n1=2 a=CONST
            END
        .queue mxm
            MATMUL at={f+c+v} start=1 x0=CONST x1=CONST address=0
            END
        .queue kv
            WRITE_K at={f+c+v+mk} x=VXM address=0
            WRITE_V wait=1 x=VXM address=0
            END""",
    "matmul_to_drain": """
        .queue const
            READ at={f}
            END
        .queue mxm
            MATMUL at={f+c} start=1 x0=CONST x1=CONST
            END
        .queue drain
            DRAIN at={f+c+md}
            END""",
    "sampler": """
        .queue vxm
            MAC at={f+sk-v} n1=2 d1={sg}
            END
        .queue sample
            ARGMAX at={f} n1=2 d1={sg} x=VXM
            END""",
    "last_cycle": """
        .queue const
            READ at={59-c}
            END wait={c}
        .queue w0
            WRITE at=59 x=CONST halves=3
            END n1=ALWAYS wait=1""",
    "rounds": """
        .queue const
            READ at={f}
            LOOP n1=2 d1=1 wait={lw}
            END wait={lw}""",
}


@pytest.mark.parametrize("name", LEGAL)
def test_legal(name):
    body = vectors.timed(LEGAL[name])
    if name == "last_cycle":
        # END of the second queue would be on cycle 60.
        with pytest.raises(ScheduleError):
            check_schedule(assemble(HEAD + body))
        body = vectors.timed(LEGAL[name].replace("59", "58"))
    image = assemble(HEAD + body)
    check_schedule(image)
    loaded = Machine(image.config)
    loaded.load(image)
    assert [record.cycles for record in loaded.run([0, 0], 3)] == [60, 60, 60]


KV_ORDER = """
.profile tiny
.row * generate=60 prompt=60
.const 0 1 2 3 4 5 6 7 8
.queue const
    READ at=4 n1=40
    END
.queue vxm
    MAC at=6 n1=30 a=CONST
    END
.queue kv
    WRITE_{} at={} x=VXM address=10 index=POSITION index_shift={}
    END
.queue mxm
    MATMUL at=20 n1={} s1=1 start=1 x0=CONST x1=CONST address=10
    END
"""


def test_v_words_of_the_row_may_be_read_before_they_are_written():
    # Positions 0 to 3 write row 0 to 3 of word 10, positions 4 to 7 those of word 11: at position 0
    # word 11 was never written, and its activations are 0 in a program that means well.
    image = assemble(KV_ORDER.format("V", 14, 2, 2).replace(".row *", ".row 0"))
    check_schedule(image)
    loaded = Machine(image.config)
    loaded.load(image)
    loaded.run([0], 8)
    assert loaded.read_weights(11).tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]] * 4
    # Word 12 belongs to the next row.
    with pytest.raises(ScheduleError, match="never written"):
        check_schedule(assemble(KV_ORDER.format("V", 14, 2, 3).replace(".row *", ".row 0")))


@pytest.mark.parametrize("kind, shift", [("K", 3), ("V", 2)])
def test_read_before_the_write_of_this_step(kind, shift):
    with pytest.raises(ScheduleError, match="later in this step") as caught:
        check_schedule(assemble(KV_ORDER.format(kind, 30, shift, 1)))
    assert caught.value.fault is Fault.UNWRITTEN


def test_a_cache_of_zeros_in_the_image_does_not_count_as_written():
    covered = KV_ORDER.format("K", 30, 3, 1) + ".weights 14 1\n"
    with pytest.raises(ScheduleError, match="later in this step"):
        check_schedule(assemble(covered))
    check_schedule(assemble(covered + ".weights 10 1\n.weights 11 1\n.weights 12 1\n"
                            ".weights 13 1\n"))


WAVE = """
.profile PROFILE
.row 0 generate=80 prompt=80
.const 0 9 9 9 9 9 9 9 9
.weights 0 WEIGHTS
.queue const
    READ at={f} n1=20
    END
.queue mxm
    MATMUL at=20 start=1 x0=CONST x1=CONST
    END
.queue kv
    WRITE_KIND at=CYCLE x=VXM
    END
.queue drain
    DRAIN at=40
    END
.queue vxm
    MAC at={f+c} n1=20 a=CONST
    MAC at={40+d} a=ACC
    END
.queue w0
    WRITE at={40+d+v} x=VXM halves=3
    END
"""


def wave(profile, kind, cycle, position):
    """Accumulators of a MATMUL issued on 20 over ones, with a write of nines; None in a conflict."""
    ones = " ".join("1" * 64 if profile == "small" else "1" * 32)
    source = WAVE.replace("PROFILE", profile).replace("WEIGHTS", ones)
    loaded = machine(vectors.timed(source.replace("KIND", kind).replace("CYCLE", str(cycle))))
    try:
        loaded.run([0] * (position + 1), 1, first=position)
    except ScheduleError as error:
        assert (error.fault, error.cycle) == (Fault.CONFLICT, cycle + 4)
        return None
    return loaded.read_mem(0, 0).tolist()


@pytest.mark.parametrize("position, results", [
    # Writes issued on 16, 17, 18, 19 land four cycles later. Column 0 (tile 0) of both pairs is read
    # on 21 and 22, column 2 (tile 1) on 22 and 23, column 6 as column 2.
    (0, [9, None, None, 1]), (2, [9, 9, None, None, 1]), (6, [9, 9, None, None, 1])])
def test_a_wave_meets_write_k(position, results):
    for cycle, result in enumerate(results, 16):
        expected = [36] * 8
        if result is not None:
            expected[position] = 36 * result
        assert wave("tiny", "K", cycle, position) == (expected if result else None), cycle


@pytest.mark.parametrize("profile, position, results", [
    # tiny: row 1 (pair 0) is read on 21 and 22, row 3 (pair 1) on 22 and 23.
    ("tiny", 1, [9, None, None, 1]), ("tiny", 3, [9, 9, None, None, 1]),
    # small has 4 pairs and 1 tile: row 7 (pair 3) is read on 24, four cycles after the issue.
    ("small", 7, [9, 9, 9, 9, None, 1]), ("small", 0, [9, None, 1])])
def test_a_wave_meets_write_v(profile, position, results):
    rows = 8 if profile == "small" else 4
    for cycle, result in enumerate(results, 16):
        expected = None if result is None else [9 * (rows - 1 + result)] * 8
        assert wave(profile, "V", cycle, position) == expected, cycle


def test_a_late_write_into_a_word_that_is_there_already():
    # Position 0 (a prompt step) wrote column 0; position 1 reads the word before it writes column 1.
    body = KV_ORDER.format("K", 30, 3, 1).replace("MATMUL at=20", "END n1=PROMPT wait=4\n"
                                                  "MATMUL at=20")
    loaded = machine(body)
    with pytest.raises(ScheduleError, match="later in this step .generate step at position 1"):
        loaded.run([0, 0], 2)


def test_addresses_that_depend_on_the_token_are_checked_when_it_is_known():
    loaded = machine(HEAD + """
        .queue const
            READ at=4 index=TOKEN
            END""")
    loaded.run([0, 1], 2)
    with pytest.raises(ScheduleError, match="constant 2 is not loaded"):
        loaded.run([2], 1)


def test_state_survives_between_runs():
    source = HEAD + """
        .queue const
            READ at=4 index=POSITION
            END
        .queue w0
            WRITE at=6 x=CONST halves=3
            END n1=PROMPT
            END
        .queue r0
            READ at=8
            END"""
    loaded = machine(source)
    loaded.run([0, 0], 2)
    assert loaded.read_mem(0, 0).tolist() == [1] * 8
    assert loaded.read_mem(0, 1).tolist() == [0] * 8


SAMPLER = HEAD + vectors.timed("""
    .queue const
        READ at={f+sk-v-c+6} n1=2 d1={sg} address=0
        END
    .queue vxm
        MAC at={f+sk-v+6} n1=2 d1={sg} a=CONST
        END
    .queue sample
        NOP wait={f}
        END n1=PROMPT wait=1
        ARGMAX wait=5 n1=2 d1={sg} x=VXM
        END
""")


def test_run_feeds_tokens_back_and_stops():
    loaded = machine(SAMPLER)
    records = loaded.run([3, 9, 4], 6, vocabulary=16)
    assert [(record.position, record.token_in, record.prompt, record.token)
            for record in records] == [(0, 3, True, None), (1, 9, True, None), (2, 4, False, 7),
                                       (3, 7, False, 7), (4, 7, False, 7), (5, 7, False, 7)]
    assert len(loaded.run([3, 9, 4], 6, vocabulary=16, stop=7)) == 3
    assert len(loaded.run([3], 100, vocabulary=16)) == 32
    assert records[2].logits.tolist() == [1, 2, 3, 4, 5, 6, 7, 8] * 2


def test_sampling_with_noise_follows_the_seed():
    loaded = machine(SAMPLER)
    drawn = [loaded.run_step(position, 0, seed=1 << 40 | 7, inverse_temperature=4096,
                             vocabulary=16).token for position in range(32)]
    assert len(set(drawn)) > 8
    again = [loaded.run_step(position, 0, seed=1 << 40 | 7, inverse_temperature=4096,
                             vocabulary=16).token for position in range(32)]
    assert drawn == again
    other = [loaded.run_step(position, 0, seed=1 << 41 | 7, inverse_temperature=4096,
                             vocabulary=16).token for position in range(32)]
    assert drawn != other


def test_write_log_and_watched_streams():
    loaded = machine(VECTORS[0].source)
    record = loaded.run_step(0, 0, watch=(Stream.CONST,))
    cycle, bank, address, halves, lanes = record.writes[1]
    assert (cycle, bank, address, halves) == (vectors.cycle_of("f+1+c"), 0, 2, 2)
    assert lanes.dtype == np.int16 and lanes.tolist() == [0, 0, 0, 0, -5, -6, -7, -8]
    assert [(cycle, stream) for cycle, stream, _ in record.streams] == [
        (vectors.cycle_of("f+c") + cycle, Stream.CONST) for cycle in (0, 1, 6, 8, 13, 15)]
    assert record.streams[0][2].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("change, message", [
    ({"program": {"r7": [0]}}, "has no queue 'r7'"),
    ({"program": {"perm": [0] * 65}},
     "queue perm has 65 instructions, its program memory holds 64"),
    ({"program": {"perm": [1 << 100]}}, "queue perm has a word of more than"),
    ({"params": {"perm": np.zeros((5, 2), int)}}, "delay parameters of perm are 5 x 2"),
    ({"params": {"send": np.zeros((1, 2), int)}}, "delay parameters for a queue 'send'"),
    ({"rows": np.zeros((5, 6), int)}, "rows are 5 x 6, at most 4 x 6 fit"),
    ({"constants": np.zeros((129, 8), np.int16)}, "constants are 129 x 8, at most 128 x 8 fit"),
    ({"weights": np.zeros((1, 8, 8), np.int8)}, "weights are 1 x 8 x 8"),
    ({"patterns": np.full((1, 8), 8)}, "a pattern names a lane outside 0 to 7"),
])
def test_an_image_that_does_not_fit(change, message):
    image = assemble(HEAD)
    for name, value in change.items():
        setattr(image, name, value)
    with pytest.raises(ProgramError, match=message):
        check_shape(image)


def test_load_refuses_another_machine():
    image = assemble(HEAD)
    with pytest.raises(ValueError, match="differs from this machine's 'tiny'"):
        Machine(image.config.replace(vxm_stages=1)).load(image)


@pytest.mark.parametrize("stages, cycle", [("const_stages=1", 7), ("const_stages=3", 9)])
def test_extra_stages_delay_results(stages, cycle):
    source = HEAD.replace("tiny", f"tiny {stages}") + f"""
        .queue const
            READ at=4
            END
        .queue w0
            WRITE at={cycle} x=CONST halves=3
            END"""
    check_schedule(assemble(source))
    with pytest.raises(ScheduleError):
        check_schedule(assemble(source.replace(f"at={cycle}", f"at={cycle - 1}")))


def test_a_program_without_end():
    with pytest.raises(ScheduleError, match="cycle 5, const: encoding: .*has no END here"):
        machine(HEAD + ".queue const\nREAD at=4\n").run([0], 1)


def test_reserved_opcode_keeps_its_wait():
    word = encode("const", Instruction("NOP", {"wait": 9}), assemble(HEAD).config) & ~15
    with pytest.raises(ScheduleError) as caught:
        machine(HEAD + f".queue const\n.word {word:#x}\n").run([0], 1)
    assert (caught.value.fault, caught.value.cycle) == (Fault.ENCODING, 9)


@pytest.mark.parametrize("row, length, refused", [(1, 32, True), (1, 33, False), (2, 20, True),
                                                  (0, 20, False), (3, 20, False)])
def test_steps_leave_time_to_load_the_next_row(row, length, refused):
    """16 queues of 16 parameters and 4 cycles more, over the 8 steps of a row: 32.5 cycles each.

    The first row, whose successor is loaded before the run, and the last may be shorter.
    """
    lengths = [length if number == row else 60 for number in range(4)]
    rows = "".join(f".row {number} generate={cycles} prompt={cycles}\n"
                   for number, cycles in enumerate(lengths))
    image = assemble(f".profile tiny\n{rows}.param const * 9\n.queue const\n"
                     "READ wait=$P0 address=0\nEND\n.const 0 1 1 1 1 1 1 1 1\n")
    if refused:
        with pytest.raises(ProgramError, match=f"row {row} has steps of {length} cycles"):
            check_schedule(image)
    else:
        check_schedule(image)
