"""The disassembler: image to text that `compiler.asm` turns into the very same image."""
import base64
import dataclasses
import json

import numpy as np

from arch.config import PROFILES, Config
from arch.image import Image
from arch.isa import COUNT_REGISTERS, DEFAULTS, IsaError, decode, encode, unit_of
from compiler.asm import END_NAMES, NAMES

#: Fields that mark another one as a parameter, and how the other is written then.
_MARKS = {"wait_param": ("wait", "$P"), "n1_param": ("n1", "#"), "n2_param": ("n2", "#")}


def disassemble(image: Image) -> str:
    """Text of an image. Assembling it gives an image of the same bytes."""
    lines = [_machine(image.config)]
    lines += [f".meta {key} {json.dumps(value, sort_keys=True)}"
              for key, value in image.meta.items()]
    for row, values in enumerate(image.rows.tolist()):
        lines.append(f".row {row} counts={','.join(map(str, values[:4]))} generate={values[4]} "
                     f"prompt={values[5]}")
    for queue, table in image.params.items():
        lines += [_words(f".param {queue} {row}", values) for row, values in enumerate(table)]
    for entry, lanes in enumerate(image.patterns):
        lines.append(_words(f".pattern {entry}", ["z" if lane < 0 else lane for lane in lanes]))
    lines += [_words(f".const {word}", lanes) for word, lanes in enumerate(image.constants)]
    if set(image.config.queues) - set(image.program):
        lines.append(".bare")
    for queue, words in image.program.items():
        lines += ["", f".queue {queue}", *_queue(queue, words, image.config)]
    lines.append("")
    for word, table in enumerate(image.weights):
        lines.append(f".weights {word} \\")
        lines += [_words("   ", row) + (" \\" if number < len(table) - 1 else "")
                  for number, row in enumerate(table)]
    for name, array in image.extra.items():
        array = np.asarray(array)
        shape = ",".join(map(str, array.shape)) or ","
        data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode() or "="
        lines.append(f".extra {name} {array.dtype.str} {shape} {data}")
    return "\n".join(lines) + "\n"


def _words(head: str, values) -> str:
    return " ".join([head, *map(str, values)])


def _machine(config: Config) -> str:
    known = config.name in PROFILES
    base = PROFILES[config.name] if known else Config(name=config.name)
    words = [".profile" if known else ".config", config.name]
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if value == getattr(base, field.name):
            continue
        if field.name == "program_depth":
            words += [f"{queue}={depth}" for queue, depth in value]
        else:
            words.append(f"{field.name}={value}")
    return " ".join(words)


def _queue(queue: str, words: list, config: Config) -> list:
    texts = [_instruction(queue, int(word), config) for word in words]
    return [f"    {text}" for text in texts]


def _instruction(queue: str, word: int, config: Config) -> str:
    try:
        instruction = decode(queue, word, config)
        counts = [instruction[name] for name in ("n1", "n2") if instruction[f"{name}_param"]]
        if encode(queue, instruction, config) != word or max(counts, default=0) >= COUNT_REGISTERS:
            raise IsaError("bits that no text stands for")
    except IsaError:
        return f".word {word:#x}"
    marks = {_MARKS[name][0]: _MARKS[name][1] for name in _MARKS if instruction[name]}
    parts = [instruction.op]
    for field in unit_of(queue).fields:
        value = instruction[field.name]
        if field.name == "op" or field.name in _MARKS:
            continue
        if field.name in marks:
            parts.append(f"{field.name}={marks[field.name]}{value}")
        elif value != DEFAULTS.get(field.name, 0):
            parts.append(f"{field.name}={_value(instruction.op, field.name, value)}")
    return " ".join(parts)


def _value(op: str, field: str, value: int) -> str:
    if op == "END" and field == "n1":
        return next((name for name, code in END_NAMES.items() if code == value), str(value))
    if field in NAMES and value in {int(member) for member in NAMES[field]}:
        return NAMES[field](value).name
    return str(value)
