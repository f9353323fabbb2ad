"""Top-k and top-p behind the logits: tasks for the passes of `arch.selection`.

A program without them sends its logits to the sampler as they come. With them, logits go to MEM,
stages narrow the choice, and the sampler gets scaled logits at the end. What a user may change from
run to run are three constants, whose addresses are in the image.

Buffers, four banks in parallel: relative logits, then powers, then shares of the target in bank 3;
scaled logits in bank 0; indicators in bank 1; masses in bank 2.
"""
import numpy as np

from arch import selection
from arch.numerics import MASKED
from arch.queues import Stream
from arch.selection import Selection
from compiler.passes import Const, Mem, TaskBuilder
from compiler.tasks import Section


def buffers(low) -> None:
    """Take the MEM words; the lowering's own ones are taken."""
    take, tiles = low.mem.take, low.v_tiles
    # The logits are written while the last buffers of the model are read.
    low.x_logits = take("logits", 3, tiles, "end")
    names = {"relative": 3, "scaled": 0, "chosen": 1, "mass": 2}
    words = {"peak": 0, "excess": 0, "target": 0, "full": 1, "low": 1, "lowest": 1,
             "temperature": 1, "state": 2, "bound": 2}
    low.select = {name: take(name, bank, tiles, "select") for name, bank in names.items()}
    low.select |= {name: take(name, bank, 1, "select") for name, bank in words.items()}
    assert low.select["relative"].base == low.x_logits.base


def place(low) -> None:
    """Constants: what the run sets, and what the passes need."""
    constants, lanes = low.constants, low.config.lanes
    whole = lambda value: constants.place(np.full((1, lanes), value))  # noqa: E731
    settings = {"top-k": ("top_k",), "top-p": ("top_p", "top_p_start")}
    names = ["temperature", *(name for stage in low.sampling for name in settings[stage])]
    addresses = {name: whole(0) for name in names}
    for address, row in Selection().rows(addresses, lanes).items():
        constants.rows[address] = row
    low.setting = addresses
    low.fixed = {name: whole(value) for name, value in (
        ("full", selection.FULL), ("bound", selection.BOUND), ("lowest", MASKED),
        ("log2e", selection.LOG2E), ("top_k_start", selection.start(selection.BASE, "top-k")))}
    if low.dims.vocab_size % lanes:
        beyond = np.arange(lanes) >= low.dims.vocab_size % lanes
        low.fixed["zero"] = whole(0)
        low.fixed["beyond"] = constants.place(np.where(beyond, MASKED, 0)[None])
    # The steps of one stage are the last steps of the other.
    steps = max((selection.STEPS[stage] for stage in low.sampling), key=len)
    table = constants.place(np.repeat(np.array(steps)[:, None], lanes, 1))
    for stage in low.sampling:
        low.fixed[stage] = table + len(steps) - len(selection.STEPS[stage])
        assert steps[-len(selection.STEPS[stage]):] == selection.STEPS[stage]


def _word(low, name) -> Mem:
    return Mem(low.select[name], stride=0)


def _load(low, name, address, label=None) -> None:
    """A constant to a word of MEM, from where it is there for every round."""
    task = TaskBuilder(low.config, f"{name} word")
    task.store(task.operand(Const(address), 0, 1), [_word(low, name)], 0, 1, label=label or name)
    low.tasks.append(task.done())


def _masking(low, task, at, gap, **fields) -> None:
    """A MAC over all vectors of logits that masks the lanes behind the vocabulary."""
    tiles, last = low.v_tiles, low.v_tiles - 1
    if "beyond" in low.fixed:
        if last:
            task.operand(Const(low.fixed["zero"], stride=0), at, last, gap)
        fields["c"] = int(task.operand(Const(low.fixed["beyond"]), at + last * gap, 1))
    task.use("vxm", "MAC", at, tiles, d1=gap, **fields)


def load(low) -> None:
    """Words that wait for the logits."""
    _load(low, "temperature", low.setting["temperature"])
    for name in ("full", "lowest"):
        _load(low, name, low.fixed[name])
    if "top-k" in low.sampling:
        _load(low, "target", low.setting["top_k"])


def keep_logits(low, task, at, gap, **fields) -> None:
    """End of the logits' task: requantise from cycle ``at`` on, store, and find the largest."""
    _masking(low, task, at, gap, **fields)
    at += task.timing.vxm
    task.store(Stream.VXM, [Mem(low.x_logits)], at, low.v_tiles, gap, "logits")
    task.use("red", "MAX", at, low.v_tiles, d1=gap, x=int(Stream.VXM))
    at += (low.v_tiles - 1) * gap + task.timing.reduce
    task.store(Stream.RED, [_word(low, "peak")], at, 1, label="peak")


def tail(low) -> tuple:
    """Sections behind the epilogue: scaling, then a bisection and a mask per stage."""
    low.tasks, sections, buffer, tiles = [], [], low.select, low.v_tiles
    low.pass_("relative logits", "MAC", tiles, _word(low, "peak"),
              Const(low.fixed["lowest"], stride=0), Mem(buffer["relative"]), post=15,
              into=[Mem(buffer["relative"])], label="relative")
    if "top-k" in low.sampling and "beyond" in low.fixed:
        # Far below zero is not far below the largest logit.
        last = Mem(buffer["relative"], tiles - 1)
        low.pass_("relative lanes", "MAC", 1, last, None, Const(low.fixed["beyond"]), into=[last],
                  label="relative lanes")
    task = TaskBuilder(low.config, "scaled logits")
    operands = {"a": Mem(buffer["relative"]), "b": _word(low, "temperature")}
    fields = {name: int(task.operand(source, 0, tiles)) for name, source in operands.items()}
    _masking(low, task, 0, 1, b_float=1, post=selection.TEMPERATURE_POST, **fields)
    task.store(Stream.VXM, [Mem(buffer["scaled"])], task.timing.vxm, tiles, label="scaled")
    low.tasks.append(task.done())
    for stage in low.sampling:
        values = buffer["relative" if stage == "top-k" else "scaled"]
        begin = low.fixed["top_k_start"] if stage == "top-k" else low.setting["top_p_start"]
        _load(low, "state", begin, f"{stage} start")
        if stage == "top-p":
            _masses(low)
        sections.append(Section(tuple(low.tasks)))
        low.tasks = []
        (_count if stage == "top-k" else _weigh)(low, stage)
        _decide(low, stage)
        sections.append(Section(tuple(low.tasks), len(selection.STEPS[stage]), {"const": 1}))
        low.tasks = []
        _mask(low, stage, values, last=stage == low.sampling[-1])
    return (*sections, Section(tuple(low.tasks)))


def _masses(low) -> None:
    """exp of the scaled logits, and of each what the target takes."""
    buffer, tiles = low.select, low.v_tiles
    low.pass_("powers", "MAC", tiles, Mem(buffer["scaled"]), Const(low.fixed["log2e"], stride=0),
              post=selection.LOG2E_POST, into=[Mem(buffer["relative"])], label="powers")
    low.pass_("mass", "EXP2", tiles, Mem(buffer["relative"]), post=selection.MASS_POST,
              into=[Mem(buffer["mass"])], label="mass")
    low.pass_("share", "MAC", tiles, Mem(buffer["mass"]), Const(low.setting["top_p"], stride=0),
              post=selection.SHARE_BITS, into=[Mem(buffer["relative"])], label="share")


def _count(low, stage) -> None:
    """Logits at or above the threshold, less the target, in one pass and one sum."""
    buffer, tiles = low.select, low.v_tiles
    task = TaskBuilder(low.config, f"{stage} count")
    a = task.operand(Mem(buffer["relative"]), 0, tiles)
    c = task.operand(_word(low, "state"), 0, tiles)
    task.use("vxm", "EXP2", 0, tiles, a=int(a), c=int(c), post=selection.INSIDE_POST)
    task.use("vxm", "MAC", tiles, 1, a=int(task.operand(_word(low, "target"), tiles, 1)))
    task.reduce("SUM", task.timing.vxm, tiles + 1, _word(low, "excess"), label=f"{stage} excess")
    low.tasks.append(task.done())


def _weigh(low, stage) -> None:
    """Masses at or above the threshold, less the target."""
    buffer, tiles = low.select, low.v_tiles
    low.pass_(f"{stage} inside", "EXP2", tiles, Mem(buffer["scaled"]), None, _word(low, "state"),
              post=selection.INSIDE_POST, into=[Mem(buffer["chosen"])], label=f"{stage} inside")
    low.pass_(f"{stage} weigh", "MAC", tiles, Mem(buffer["chosen"]), Mem(buffer["mass"]),
              Mem(buffer["relative"]),
              reduce=dict(op="SUM", target=_word(low, "excess"), label=f"{stage} excess"))


def _decide(low, stage) -> None:
    """The next state: `arch.selection.next_state`."""
    table = low.fixed[stage]
    low.pass_(f"{stage} low", "MAC", 1, Const(table), _word(low, "lowest"), _word(low, "state"),
              post=16, into=[_word(low, "low")], label=f"{stage} low")
    task = TaskBuilder(low.config, f"{stage} decide")
    a, b = (task.operand(_word(low, name), 0, 1) for name in ("excess", "full"))
    task.use("vxm", "MAX", 0, 1, a=int(a), b=int(b))
    at = task.timing.vxm
    b, c = task.operand(Const(table), at, 1), task.operand(_word(low, "low"), at, 1)
    task.use("vxm", "MAC", at, 1, a=int(Stream.VXM), b=int(b), c=int(c),
             post=selection.DECISION_POST)
    task.store(Stream.VXM, [_word(low, "state")], at + task.timing.vxm, 1, label=f"{stage} state")
    low.tasks.append(task.done())


def _mask(low, stage, values, last) -> None:
    """Scaled logits below the threshold become the lowest number; the last ones are sampled."""
    buffer, tiles = low.select, low.v_tiles
    low.pass_(f"{stage} bound", "MAC", 1, _word(low, "state"), None, Const(low.fixed["bound"]),
              into=[_word(low, "bound")], label=f"{stage} bound")
    low.pass_(f"{stage} outside", "EXP2", tiles, _word(low, "bound"), None, Mem(values),
              post=selection.INSIDE_POST, into=[Mem(buffer["chosen"])], label=f"{stage} outside")
    operands = (Mem(buffer["chosen"]), Const(low.fixed["lowest"], stride=0), Mem(buffer["scaled"]))
    if not last:
        low.pass_(f"{stage} mask", "MAC", tiles, *operands, into=[Mem(buffer["scaled"])],
                  label=f"{stage} masked")
        return
    task = TaskBuilder(low.config, "sample")
    gap = task.timing.sample_gap
    a, b, c = (int(task.operand(source, 0, tiles, gap)) for source in operands)
    task.use("vxm", "MAC", 0, tiles, d1=gap, a=a, b=b, c=c)
    task.use("sample", "ARGMAX", task.timing.vxm - task.timing.sample_skew, tiles, d1=gap,
             x=int(Stream.VXM))
    low.tasks.append(task.done())
