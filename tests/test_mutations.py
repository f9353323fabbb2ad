"""One latency, one issue slot or one stored bit off: the comparison or the checker must notice."""
import copy
import dataclasses
import random

import numpy as np
import pytest

import compiler.lower
import compiler.passes
import compiler.schedule
import sim.legality
import sim.machine
from arch import isa
from arch.config import profile
from arch.faults import ScheduleError
from arch.timing import timing
from compiler.checkpoint import ModelConfig, random_checkpoint
from compiler.pipeline import compile_model, compile_quantised
from sim.compare import Mismatch
from sim.machine import Machine
from tests.lockstep import lockstep

NOTICED = (ScheduleError, Mismatch)
PROMPT, STEPS = [1, 5], 3


def changed_image(compiled, change):
    """A copy of the image of ``compiled``, changed in place by ``change``."""
    image = copy.deepcopy(compiled.image)
    change(image)
    return image


def run(compiled, image):
    machine = Machine(compiled.config)
    machine.load(image)
    return lockstep(compiled, PROMPT, STEPS, 4096, machine)


@pytest.fixture(scope="module")
def near():
    """A model whose scores wait for nothing but the newest key, as those of `tiny` do not."""
    config = ModelConfig(dim=16, hidden_dim=24, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=64,
                         seq_len=32, tied=True)
    return compile_model(random_checkpoint(config, 1), profile("tiny"))


def test_unchanged(tiny, near):
    for compiled in (tiny, near):
        assert run(compiled, changed_image(compiled, lambda image: None)) > 0


# Latencies.

#: Latencies between issue and stream: the machine must have exactly the compiler's.
EXACT = ("mem_read", "const_read", "drain", "read_out", "vxm", "perm", "reduce",
         "reduce_function", "sample_skew")
#: Least distances: the machine must not need more than the compiler grants.
LEAST = ("mem_write_to_read", "matmul_to_drain", "kv_write_to_matmul", "sample")


def off_by(field, by):
    return lambda config: dataclasses.replace(timing(config),
                                              **{field: getattr(timing(config), field) + by})


@pytest.mark.parametrize("field, by", [*((field, by) for field in EXACT for by in (-1, 1)),
                                       ("matmul_to_drain", 1), ("sample", 1)])
def test_a_machine_with_another_latency(tiny, monkeypatch, field, by):
    for module in (sim.legality, sim.machine):
        monkeypatch.setattr(module, "timing", off_by(field, by))
    with pytest.raises(NOTICED):
        run(tiny, tiny.image)


@pytest.mark.parametrize("field, by", [*((field, by) for field in EXACT for by in (-1, 1)),
                                       *((field, -1) for field in LEAST)])
def test_a_compiler_with_another_latency(tiny, near, monkeypatch, field, by):
    """Compiled for another machine: the checks must refuse it, or the vectors differ."""
    right = near if field == "kv_write_to_matmul" else tiny
    for module in (compiler.passes, compiler.schedule):
        monkeypatch.setattr(module, "timing", off_by(field, by))
    compiled = compile_quantised(right.model, right.config, tries=0)
    with pytest.raises(NOTICED):
        run(compiled, compiled.image)


def test_the_pace_of_the_sampler(untied, monkeypatch):
    """Of `untied`, whose classifier has fewer steps than the sampler needs between vectors."""
    assert -(-untied.model.config.dim // untied.config.rows) < timing(untied.config).sample_gap
    with monkeypatch.context() as patch:
        patch.setattr(sim.legality, "timing", off_by("sample_gap", 1))
        with pytest.raises(ScheduleError, match="less than 5 cycles ago"):
            run(untied, untied.image)
    monkeypatch.setattr(compiler.passes, "timing", off_by("sample_gap", -1))
    # At this pace the longer lags would need more accumulators than there are.
    monkeypatch.setattr(compiler.lower, "LOGIT_LAGS", (0,))
    compiled = compile_quantised(untied.model, untied.config, tries=0)
    with pytest.raises(ScheduleError, match="less than 4 cycles ago"):
        run(compiled, compiled.image)


@pytest.mark.parametrize("field", ["mem_stages", "const_stages", "mxm_stages", "drain_stages",
                                   "vxm_stages", "perm_stages", "reduce_stages"])
def test_a_machine_with_another_pipeline(tiny, field):
    """An image for another number of stages is refused, and its program would not run."""
    config = profile("tiny").replace(**{field: 1})
    with pytest.raises(ValueError, match="differs from this machine's"):
        Machine(config).load(tiny.image)
    machine = Machine(config)
    machine.load(dataclasses.replace(tiny.image, config=config))
    with pytest.raises(NOTICED):
        lockstep(tiny, PROMPT, STEPS, 0, machine)


# Issue slots.

def slots(image):
    """``(queue, place)`` of every instruction whose own time matters: all but END ALWAYS, and no
    NOP or END that nothing follows."""
    for queue, words in image.program.items():
        decoded = [isa.decode(queue, word, image.config) for word in words]
        for place, instruction in enumerate(decoded):
            behind = [other.op for other in decoded[place:]]
            if any(op not in ("NOP", "END", "LOOP") for op in behind):
                yield queue, place


@pytest.mark.parametrize("queue", profile("tiny").queues)
@pytest.mark.parametrize("by", [-1, 1])
def test_one_issue_slot_off(tiny, queue, by):
    """Up to four instructions of every queue, each a cycle early or late."""
    places = [place for owner, place in slots(tiny.image) if owner == queue]
    assert places
    for place in random.Random(queue).sample(places, min(4, len(places))):
        def shift(image, place=place):
            instruction = isa.decode(queue, image.program[queue][place], image.config)
            if instruction["wait_param"]:
                image.params[queue][:, instruction["wait"]] += by
                return
            instruction.fields["wait"] += by
            image.program[queue][place] = isa.encode(queue, instruction, image.config)
        try:
            image = changed_image(tiny, shift)
        except isa.IsaError as error:
            assert by == -1 and str(error).endswith("wait must be at least 1, not 0")
            continue
        with pytest.raises(NOTICED):
            run(tiny, image)


def test_a_step_that_ends_early(tiny):
    """The steps of the image have no cycle to spare but those that the queues see their END in."""
    for kind in (4, 5):
        def shorten(image, kind=kind):
            image.rows[:, kind] -= 1
        with pytest.raises(NOTICED):
            run(tiny, changed_image(tiny, shorten))


# Bits.

@pytest.mark.parametrize("bit", [4, 5, 6, 7])
def test_one_weight_bit(tiny, bit):
    """One bit of one weight that meets an activation; all logits and vectors are looked at."""
    rng = np.random.default_rng(bit)
    lowered = tiny.lowered
    used = np.argwhere(tiny.image.weights)
    layers = used[used[:, 0] < 2 * lowered.program.strides["mxm"]]
    for word, row, column in layers[rng.choice(len(layers), 6, replace=False)]:
        def flip(image, at=(word, row, column)):
            image.weights[at] ^= np.int8(np.uint8(1 << bit).view(np.int8))
        with pytest.raises(NOTICED):
            run(tiny, changed_image(tiny, flip))


def test_one_classifier_bit(tiny):
    """The embedding of a token that is never the input shows in its logit alone."""
    config, token = tiny.config, 37
    tiles = -(-tiny.model.config.vocab_size // config.columns)

    def flip(image):
        # The embedding is placed last, and its words run over the tiles first.
        word = len(image.weights) - tiles + token // config.columns
        image.weights[word, 1, token % config.columns] ^= 64
    with pytest.raises(Mismatch, match="logit of token 37 is"):
        run(tiny, changed_image(tiny, flip))


@pytest.mark.parametrize("bit", [3, 9, 14])
def test_one_constant_bit(tiny, bit):
    """Multipliers of the layers. The scores' ones meet a score in lanes of seen positions only."""
    rng = np.random.default_rng(bit)
    layers = 2 * tiny.lowered.program.strides["const"]
    used = np.argwhere(tiny.image.constants[:layers, :STEPS - 2])
    for word, lane in used[rng.choice(len(used), 4, replace=False)]:
        def flip(image, at=(word, lane)):
            image.constants[at] ^= np.int16(1 << bit)
        with pytest.raises(NOTICED):
            run(tiny, changed_image(tiny, flip))


@pytest.mark.parametrize("pattern", range(4))
def test_one_pattern_lane(tiny, pattern):
    def move(image):
        image.patterns[pattern, 3] ^= 1
    if pattern == 3:
        # The broadcast of the embedding's multiplier.
        assert (tiny.image.patterns[pattern] == 0).all()
    with pytest.raises(NOTICED):
        run(tiny, changed_image(tiny, move))
