"""Two hundred hostile files of each format: one clear line each, or a model that still works.

The changes are seeded. Each file goes the way of a user's: load, then quantise as compile does.
Memory is bounded in a process of its own, with sizes that a careless reader would believe.
"""
import json
import os
import random
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import metronome
from arch.config import profile
from compiler.checkpoint import ModelConfig, random_checkpoint
from compiler.errors import MetronomeError
from compiler.hf_export import save_folder
from compiler.llama2c import save_checkpoint
from compiler.prepare import prepare
from compiler.tokenizer import Tokenizer
from scripts.cli import main
from tests import hostile

COUNT = 200
SMALL = dict(dim=16, hidden_dim=12, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=280, seq_len=16,
             tied=False)
GPT2 = SMALL | {"n_kv_heads": 4, "family": "gpt2"}


def tokenizer() -> Tokenizer:
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % value for value in range(256)),
              *(piece.encode() for piece in "he lo l he hel o t a e h é!".split(" ")), b" ",
              *(b"x%d" % n for n in range(9))]
    return Tokenizer(pieces[:280], [-float(n) for n in range(280)])


def write(folder: Path, contents: dict) -> None:
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def llama2c(version: int):
    """Files of a llama2.c model and how to change them."""
    def make(folder: Path) -> dict:
        save_checkpoint(folder / "model.bin", random_checkpoint(ModelConfig(**SMALL), 1), version)
        (folder / "tokenizer.bin").write_bytes(tokenizer().to_bytes())
        return {"model.bin": lambda data, rng: hostile.bytes_of(data, rng, 48)}
    return make


def llama2c_tokenizer(folder: Path) -> dict:
    llama2c(0)(folder)
    return {"tokenizer.bin": lambda data, rng: hostile.bytes_of(data, rng, 64)}


def hugging_face(config: dict, dtype: str, *names: str, shards: int = 1):
    """Files of a folder, of which those named are changed."""
    changes = {"config.json": hostile.json_of, "tokenizer.json": hostile.json_of,
               "model.safetensors": hostile.safetensors_of,
               "model-00001-of-00002.safetensors": hostile.safetensors_of,
               "model.safetensors.index.json": hostile.index_of}

    def make(folder: Path) -> dict:
        save_folder(folder, random_checkpoint(ModelConfig(**config), 1), tokenizer(), dtype, shards)
        if shards > 1:
            os.symlink("loop.safetensors", folder / "loop.safetensors")
            os.mkfifo(folder / "pipe.safetensors")
            os.mkdir(folder / "folder.safetensors")
        return {name: changes[name] for name in names}
    return make


FORMATS = {
    "llama2.c version 0": llama2c(0),
    "llama2.c version 1": llama2c(1),
    "llama2.c version 2": llama2c(2),
    "llama2.c tokenizer": llama2c_tokenizer,
    "Llama configuration": hugging_face(SMALL, "float32", "config.json"),
    "Llama weights": hugging_face(SMALL, "float32", "model.safetensors"),
    "Llama weights, float16": hugging_face(SMALL, "float16", "model.safetensors"),
    "Llama index": hugging_face(SMALL, "bfloat16", "model.safetensors.index.json",
                                "model-00001-of-00002.safetensors", shards=2),
    "GPT-2": hugging_face(GPT2, "bfloat16", "config.json", "model.safetensors"),
    "tokenizer.json": hugging_face(SMALL, "float32", "tokenizer.json"),
}


def source(folder: Path) -> tuple:
    """What --model and --tokenizer get for the files in a folder."""
    if (folder / "model.bin").exists():
        return str(folder / "model.bin"), str(folder / "tokenizer.bin")
    return str(folder), None


def use(folder: Path) -> str | None:
    """Load what is in a folder and use it as compile does; the message of an error, if any."""
    try:
        model = metronome.load_model(*source(folder))
    except MetronomeError as error:
        assert str(folder) in str(error)
        return str(error)
    try:
        tokens = model.tokenizer.encode("he said: hello é!")
        model.tokenizer.decode(tokens)
        text = np.resize(np.array(tokens), (1, min(12, model.checkpoint.config.seq_len)))
        prepare(model.checkpoint, profile("small"), text % model.checkpoint.config.vocab_size)
        return None
    except MetronomeError as error:
        return str(error)


@pytest.mark.parametrize("name", FORMATS)
def test_two_hundred(tmp_path, name, capfd):
    changes = FORMATS[name](tmp_path)
    good = {file: (tmp_path / file).read_bytes() for file in changes}
    message = use(tmp_path)
    assert message is None, message
    refused = 0
    for seed in range(COUNT):
        rng = random.Random(f"{name} {seed}")
        write(tmp_path, good)
        file = rng.choice(sorted(changes))
        (tmp_path / file).write_bytes(changes[file](good[file], rng))
        began = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            message = use(tmp_path)
        assert time.monotonic() - began < 10, f"seed {seed}"
        if message is not None:
            refused += 1
            assert "\n" not in message and 10 < len(message) < 600, (seed, message)
    # Most changes matter; a few hit a spare byte or give another good model.
    assert refused > COUNT // 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", FORMATS)
def test_the_command_says_one_line(tmp_path, name, capfd):
    changes = FORMATS[name](tmp_path)
    good = {file: (tmp_path / file).read_bytes() for file in changes}
    (tmp_path / "text").write_text("hello")
    model, words = source(tmp_path), []
    words = ["eval", "--engine", "float", "--limit", "2", "--text", str(tmp_path / "text"),
             "--json", "--model", model[0], *(["--tokenizer", model[1]] if model[1] else [])]
    statuses = set()
    for seed in range(12):
        rng = random.Random(f"{name} {seed}")
        write(tmp_path, good)
        file = rng.choice(sorted(changes))
        (tmp_path / file).write_bytes(changes[file](good[file], rng))
        status = main(words)
        output = capfd.readouterr()
        assert status in (0, 2), (seed, output.err)
        if status == 2:
            assert output.out == "" and output.err.count("\n") == 1, (seed, output.err)
            assert output.err.startswith("metronome: ")
        else:
            assert json.loads(output.out)["tokens"] == 2 and output.err == ""
        statuses.add(status)
    assert 2 in statuses


@pytest.mark.parametrize("factor, names, refused", [
    (1e25, ("wq", "wk", "w1", "w2"), True), (1e38, ("norm_final",), True),
    (1e-20, ("embedding",), None), (0, ("embedding", "wo", "w2"), None), (0, ("w3",), None)])
def test_values_that_no_format_holds(factor, names, refused):
    """One line or a quantised model, no other error and no warning; overflow is refused."""
    checkpoint = random_checkpoint(ModelConfig(**SMALL), 1)
    with np.errstate(over="ignore"):
        change = {name: np.clip(getattr(checkpoint, name) * np.float32(factor), -3e38, 3e38)
                  for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            prepare(replace(checkpoint, **change), profile("small"))
            assert not refused
        except MetronomeError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("change, message", [
    ({"vocab_size": 40000}, "512 token ids, the model needs 40000, .*; it fits no pro"),
    ({"dim": 512, "n_layers": 11, "hidden_dim": 900}, " has 131072 weights, the model needs 24[0-9]{6}, "),
])
def test_models_that_no_profile_holds(change, message):
    with pytest.raises(MetronomeError, match=message):
        prepare(random_checkpoint(ModelConfig(**SMALL | change), 1), profile("small"))


BOMBS = """
import json, os, resource, struct, sys, time
sys.path.insert(0, {root!r})
import numpy, safetensors, tokenizers, metronome
from compiler.errors import MetronomeError
limit = 1 << 30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

def sparse(path, head, size):
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(size)

def config(**change):
    base = dict(architectures=["LlamaForCausalLM"], hidden_size=64, intermediate_size=64,
                num_hidden_layers=1, num_attention_heads=1, vocab_size=64)
    return json.dumps(base | change).encode()

ints = lambda *numbers: struct.pack("<%di" % len(numbers), *numbers)
huge = (65536, 262144, 1024, 4096, 4096, 131072, 131072)
fits = (512, 512, 1, 1, 1, 60000, 16)          # as many weights as may be read, all 0
v0 = 28 + 4 * (60000 * 512 + 2 * 512 + 7 * 512 * 512 + 512 + 16 * 512)
v1 = 256 + 4 * (60000 * 512 + 2 * 512 + 7 * 512 * 512 + 512)
os.chdir({folder!r})
sparse("a.bin", ints(*huge), 1 << 40)
sparse("b.bin", ints(*fits), v0)
sparse("c.bin", b"24ka" + ints(1, *fits) + b"\\1", v1)
sparse("d.bin", b"24ka" + ints(2, *huge) + b"\\1" + ints(64), 1 << 40)
sparse("e.bin", b"24ka" + ints(2, *fits) + b"\\1" + ints(1),
       v1 + (v1 - 256) // 4 - 3 * 512)
sparse("tok.bin", ints((1 << 31) - 1), 1 << 40)
sparse("tok2.bin", ints(1 << 20) + struct.pack("<fi", 0, 1 << 20), 1 << 23)
for number, (head, size, weights) in enumerate([
        (config(), 1 << 10, (struct.pack("<Q", 1 << 62), 1 << 40)),
        (config(), 1 << 10, (struct.pack("<Q", (1 << 22)), 1 << 27)),
        (config(), 1 << 10, (struct.pack("<Q", (1 << 22)) + b"[" * (1 << 22), 1 << 27)),
        (config(num_hidden_layers=1 << 30), 1 << 10, (b"", 0)),
        (config(), 1 << 40, (b"", 0)),
        (b"[" * (1 << 20), 1 << 20, (b"", 0)),
        (b"[[]," * (1 << 18), 1 << 20, (b"", 0))]):
    os.mkdir(str(number))
    sparse(str(number) + "/config.json", head, max(size, len(head)) if size < 1 << 40 else size)
    if size == 1 << 10:
        open(str(number) + "/config.json", "wb").write(head)
    sparse(str(number) + "/model.safetensors", *weights)
many = json.dumps({{"t%d" % n: dict(dtype="F32", shape=[0], data_offsets=[0, 0])
                   for n in range(60000)}}).encode()
os.mkdir("many")
open("many/config.json", "wb").write(config())
open("many/model.safetensors", "wb").write(struct.pack("<Q", len(many)) + many)
# The largest folder that may be read, all 0.
shapes = dict([("model.embed_tokens.weight", [60000, 512]), ("model.norm.weight", [512]),
               ("lm_head.weight", [1, 1])]
              + [("model.layers.0." + name + ".weight", [512, 512]) for name in (
                  "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                  "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")]
              + [("model.layers.0." + name + ".weight", [512])
                 for name in ("input_layernorm", "post_attention_layernorm")])
header, end = dict(), 0
for name, shape in shapes.items():
    begin, end = end, end + 4 * numpy.prod(shape, dtype=int).item()
    header[name] = dict(dtype="F32", shape=shape, data_offsets=[begin, end])
header = json.dumps(header).encode()
os.mkdir("large")
open("large/config.json", "wb").write(config(hidden_size=512, intermediate_size=512,
                                             vocab_size=60000, tie_word_embeddings=True))
sparse("large/model.safetensors", struct.pack("<Q", len(header)) + header, 8 + len(header) + end)
open("tok.json", "wb").write(b'{{"model": [' + b"[]," * 5000000 + b"[]]}}")
open("vocab.json", "wb").write(json.dumps(dict(model=dict(
    type="BPE", merges=[], vocab={{"%d" % n: 4294967295 - n for n in range(500000)}}))).encode())
paths = [(name, "tok2.bin") for name in ("a.bin", "b.bin", "c.bin", "d.bin", "e.bin")]
paths += [(name, None) for name in "0 1 2 3 4 5 6 many large".split()]
paths += [({model!r}, name) for name in ("tok.bin", "tok2.bin", "tok.json", "vocab.json")]
for path, tokenizer in paths:
    began = time.monotonic()
    try:
        metronome.load_model(path, tokenizer)
        said = "loaded"
    except MetronomeError as error:
        said = str(error)
    print(json.dumps([path, tokenizer, said, time.monotonic() - began]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_stays_below_a_gigabyte(tmp_path):
    """Sizes that a reader might believe, under a limit of the address space."""
    root = Path(__file__).parent.parent
    save_checkpoint(tmp_path / "good.bin", random_checkpoint(ModelConfig(**SMALL), 1))
    (tmp_path / "bombs").mkdir()
    script = BOMBS.format(root=str(root), folder=str(tmp_path / "bombs"),
                          model=str(tmp_path / "good.bin"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == 0, done.stderr
    *lines, peak = done.stdout.splitlines()
    said = {}
    for line in lines:
        path, _, said[path], seconds = json.loads(line)
        assert seconds < 10, line
        assert said[path] != "loaded" and "\n" not in said[path] and len(said[path]) < 600, line
    # The largest ones are read to their end: what follows is refused.
    for path in ("b.bin", "c.bin", "e.bin"):
        assert said[path] == "tok2.bin: has more than 131072 tokens, the model has 60000"
    assert "tensor 'lm_head.weight' must have shape [60000, 512], not [1, 1]" in said["large"]
    assert int(peak) < 1 << 20  # KiB
