"""The Python face: what it returns, how it shows itself; and the command line needs no more."""
import ast
import inspect
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import metronome
from compiler import notebook
from compiler.checkpoint import random_checkpoint
from sim.float_model import FloatModel
from tests.conftest import TINY

COMMANDS = Path(__file__).parent.parent / "scripts" / "commands"
#: Placement is a tool of the repository, not of the API.
OWN = {"synth.py": {"sim", "compiler"}, "bitstream.py": {"sim"}, "flash.py": {"sim"}}


@pytest.fixture(scope="module")
def model():
    """An untrained model of 43 tokens with the first characters of the built-in vocabulary."""
    tokenizer = metronome.load_model().tokenizer
    pieces = tokenizer.pieces[:43]
    return metronome.Model(random_checkpoint(TINY, 1),
                           type(tokenizer)(pieces, [0.0] * 43), "untrained")


@pytest.fixture(scope="module")
def program(model):
    return metronome.compile(model, "tiny")


@pytest.mark.parametrize("path", sorted(COMMANDS.glob("*.py")), ids=lambda path: path.name)
def test_commands_use_only_this_module(path):
    """Of our packages they import metronome and scripts, nothing behind them."""
    inner = {"arch", "compiler", "hdl", "sim", "tb", "tests"} - OWN.get(path.name, set())
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else [
            name.name for name in getattr(node, "names", []) if isinstance(node, ast.Import)]
        for name in names:
            assert name.split(".")[0] not in inner, f"{path.name} imports {name}"


def test_public_functions_are_typed_and_told():
    for name in metronome.__all__:
        thing = getattr(metronome, name)
        if inspect.isfunction(thing):
            assert inspect.getdoc(thing), name
            signature = inspect.signature(thing)
            for parameter in signature.parameters.values():
                assert parameter.annotation is not inspect.Parameter.empty, (name, parameter.name)


def test_evaluate_is_the_mean_over_windows(model):
    text = "".join(piece.decode() for piece in model.tokenizer.pieces[3:30])
    tokens, expected = list(range(3, 30)), 0.0
    for window in (tokens[:10], tokens[10:20], tokens[20:25]):
        logits = FloatModel(model.checkpoint, dtype=np.float64).logits([1, *window[:-1]])
        for row, target in zip(logits, window):
            expected += math.log(sum(math.exp(value) for value in row)) - row[target]
    seen = []
    result = metronome.evaluate(model, text, "float", context=10, limit=25,
                                progress=lambda done, total: seen.append((done, total)))
    assert (result.tokens, result.engine, result.context) == (25, "float", 10)
    assert result.nats_per_token == pytest.approx(expected / 25, abs=1e-5)
    assert result.perplexity == pytest.approx(math.exp(expected / 25), rel=1e-4)
    assert seen == [(10, 25), (10, 25), (5, 25)]


def test_evaluate_takes_the_machine_s_windows(model):
    text = "".join(piece.decode() for piece in model.tokenizer.pieces[3:40]) * 2
    results = [metronome.evaluate(model, text, engine, "tiny") for engine in ("float", "reference")]
    assert [result.context for result in results] == [32, 32]
    assert results[0].nats_per_token == pytest.approx(results[1].nats_per_token, abs=0.2)
    assert results[0].nats_per_token != results[1].nats_per_token


@pytest.mark.parametrize("settings, message", [
    ({"text": ""}, "the text has no token to score"),
    ({"context": 33}, "the context must be at most 32, not 33"),
])
def test_evaluate_refuses(model, settings, message):
    with pytest.raises(metronome.MetronomeError, match=message):
        metronome.evaluate(model, **{"text": "\n", "engine": "float", "config": "tiny"} | settings)


def test_evaluate_of_weights_too_large(model):
    large = replace(model.checkpoint, norm_final=np.full(32, 3e38, np.float32))
    with pytest.raises(metronome.MetronomeError, match="logits are not finite"):
        metronome.evaluate(replace(model, checkpoint=large), "\n\n", "float", "tiny")


def test_what_objects_look_like(model, program):
    assert repr(model) == f"<Model untrained: llama of {model.checkpoint.config.weights:,} weights>"
    assert repr(program).startswith("<Program for tiny: ") and "32 positions" in repr(program)
    with metronome.Session(program, "reference") as session:
        generation = session.generate([1], 4)
    evaluation = metronome.Evaluation(3, 1.0, 2.72, "float", 8)
    for thing in (model, program, generation, evaluation):
        page = thing._repr_html_()
        ElementTree.fromstring(f"<html>{page}</html>")  # well-formed
    assert "<td>43</td>" in model._repr_html_()
    assert f"{generation.cycles[0]}" in generation._repr_html_()
    assert program.cycles() == [program.predicted(at, False) for at in range(32)]
    assert program.report()["cycles"] == program.cycles()


def test_text_in_a_page_is_escaped():
    assert "<script>" not in notebook.passage("<script>", "&") + notebook.table("<script>", {
        "<script>": "<script>"})
    assert "0,96.0" in notebook.curve("", [0, 5, 10]) and "480.0,0.0" in notebook.curve("", [0, 10])


def test_an_image_of_a_model_needs_no_model(program, tmp_path):
    program.save(str(tmp_path / "model.img"))
    again = metronome.load_program(str(tmp_path / "model.img"))
    assert again.cycles() == program.cycles() and repr(again) == repr(program)
    with pytest.raises(metronome.MetronomeError, match="a report needs the model"):
        again.report()


@pytest.mark.parametrize("form", metronome.FORMATS)
def test_export(model, tmp_path, form):
    written = metronome.export(model, str(tmp_path / "out"), form)
    again = metronome.load_model(*written)
    np.testing.assert_allclose(again.checkpoint.wq, model.checkpoint.wq, rtol=0, atol=0.01)
    assert again.tokenizer.encode("\n !") == model.tokenizer.encode("\n !")


def test_export_refuses(model, tmp_path):
    with pytest.raises(metronome.MetronomeError, match="format must be one of llama2c-v0, "):
        metronome.export(model, str(tmp_path / "out"), "gguf")
    metronome.export(model, str(tmp_path / "folder"), "hf-float32")
    folder = metronome.load_model(str(tmp_path / "folder"))
    with pytest.raises(metronome.MetronomeError, match="cannot be written as a llama2.c tokenizer"):
        metronome.export(folder, str(tmp_path / "out"), "llama2c-v1")


def test_a_program_that_is_no_model():
    image = metronome.assemble((COMMANDS.parent.parent / "programs" / "softmax.asm").read_text())
    run = metronome.run_image(image)
    assert run.failure is None and run.cycles == run.predicted and run.memory
    assert metronome.is_image(image.to_bytes()[:8]) and not metronome.is_image(b"softmax ")
    # The text is that of the same program.
    again = metronome.assemble(metronome.disassemble(image))
    assert again.program == image.program
