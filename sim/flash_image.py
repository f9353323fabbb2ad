"""A compiled model as bytes for a board's flash, from which it speaks at power-up (`arch.flash`)."""
from collections.abc import Iterator

import numpy as np

from arch import flash
from arch.flash import IMAGE_OFFSET
from arch.hostmap import NO_TOKEN, Command, Register, Space, constant_address
from arch.numerics import inverse_temperature
from compiler.errors import MetronomeError
from compiler.load import AnyTokenizer
from compiler.program import Program
from compiler.stop import stop_token
from sim import hostlink

__all__ = ["IMAGE_OFFSET", "flash_image"]

#: A terminal needs both.
NEW_LINE = b"\r\n"


def flash_image(program: Program, temperature: float = 0.0, top_k: int = 0,
                top_p: float = 1.0) -> bytes:
    """What to write to a flash at `arch.flash.IMAGE_OFFSET`.

    Parameters
    ----------
    program : Program
    temperature, top_k, top_p : as in `sim.session.Session.generate`; the seed is always a new one.

    Raises
    ------
    MetronomeError
        If the model does not fit, or the settings are not possible.
    """
    writes = list(_writes(program, temperature, top_k, top_p))
    parts = [(space, address + start, words[start:start + hostlink.FRAME_WORDS])
             for space, address, words in writes
             for start in range(0, len(words), hostlink.FRAME_WORDS)]
    # The tag of the last write is 0: the board goes on from there.
    first = -len(parts) & 0xFF
    frames = [hostlink.request(Command.OPEN, first)]
    frames += [hostlink.write_request((first + 1 + number) & 0xFF, *part)
               for number, part in enumerate(parts)]
    texts = token_texts(program.tokenizer, program.image.meta["vocabulary"])
    typed = {text[0]: token for token, text in enumerate(texts) if len(text) == 1}
    if NEW_LINE in texts:
        typed[NEW_LINE[-1]] = texts.index(NEW_LINE)
    try:
        return flash.contents(frames, typed, texts)
    except flash.FlashError as error:
        raise MetronomeError(str(error)) from None


def _writes(program: Program, temperature: float, top_k: int, top_p: float) -> Iterator[tuple]:
    """Everything to load and to set, as ``(space, address, words)``."""
    image = program.image
    yield from hostlink.image_blocks(image)
    chosen = program.selection(temperature, top_k, top_p)
    register = inverse_temperature(temperature)
    if program.sampling:
        register = chosen.register
        words = image.meta["sampling"]["words"]
        for address, lanes in chosen.rows(words, program.config.lanes).items():
            yield (Space.CONSTANTS, constant_address(program.config, address, 0),
                   np.asarray(lanes, np.int64) & 0xFFFF)
    end = stop_token(program.tokenizer, image.meta["vocabulary"], None)
    yield Space.TOKENS, 0, np.array(program.encode("")[:1])
    yield Space.REGISTERS, Register.FIRST, np.array([
        0, 1, image.meta["context"], image.meta["vocabulary"],
        NO_TOKEN if end is None else end, register, 0, 0, 0, 0])


def token_texts(tokenizer: AnyTokenizer, vocabulary: int) -> list:
    """What every token shows on a terminal, as bytes; nothing where it is silent."""
    count = min(vocabulary, tokenizer.vocab_size)
    # Behind some text, because the first token of a text may lose a space.
    before = next((token for token in range(count) if tokenizer.stream(())(token)), 0)
    return [tokenizer.stream((before,))(token).replace(b"\n", NEW_LINE)
            for token in range(count)]
