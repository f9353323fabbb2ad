"""Tokenizers of Hugging Face: a ``tokenizer.json``, run by the library `tokenizers`.

The file is looked at before the library sees it: only known parts, none that makes text grow
without bounds or that draws random numbers. The library's panics are caught and kept off the
terminal.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from compiler.errors import ModelError
from compiler.files import one_line, parse_json, short

__all__ = ["HuggingFaceTokenizer"]

#: Bytes of a tokenizer.json at most; one of 128,000 tokens has 9 million.
LIMIT = 1 << 24
_MAGIC = b"HFTK"
_IDS = struct.Struct("<4s3i")
_PARTS = {
    "normalizer": {"Sequence", "Prepend", "Replace", "NFC", "NFD", "NFKC", "NFKD", "Lowercase",
                   "Strip"},
    "pre_tokenizer": {"Sequence", "ByteLevel", "Split", "Metaspace", "Whitespace",
                      "WhitespaceSplit", "Digits", "Punctuation"},
    "decoder": {"Sequence", "ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace",
                "BPEDecoder"},
    "model": {"BPE", "WordLevel", "Unigram"},
}
#: How many times longer the replacements of a normalizer may make a text.
_GROWTH = 64


@contextlib.contextmanager
def _library(what: str) -> Iterator[None]:
    """Turn whatever the library throws into a ModelError, and keep its panics off stderr."""
    try:
        saved = os.dup(2)
    except OSError:  # there is no stderr to keep clean
        saved = None
    try:
        if saved is not None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            os.close(null)
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # a panic is no Exception
        raise ModelError(f"{what}: {one_line(error)}") from None
    finally:
        if saved is not None:
            os.dup2(saved, 2)
            os.close(saved)


class HuggingFaceTokenizer:
    """A ``tokenizer.json`` with the interface of `compiler.tokenizer.Tokenizer`.

    Parameters
    ----------
    data : bytes
        Contents of the file.
    vocab_size : int
        Tokens of the model; the tokenizer may have fewer.
    bos_id, stop_id : int or None
        Token that begins a text, and token that ends one, as the model's configuration has them.

    Members
    -------
    bos_id : int or None
        The token that the file itself puts before a text, else that of the configuration.
    stop_id : int or None
    file : bytes
        The ``tokenizer.json``.

    Raises
    ------
    ModelError
        If the file is damaged, has a part that is not supported, or more tokens than the model.
    """

    def __init__(self, data: bytes, vocab_size: int, bos_id: int | None = None,
                 stop_id: int | None = None) -> None:
        values = parse_json(data, "tokenizer.json")
        _check(values)
        from tokenizers import Tokenizer
        with _library("is no valid tokenizer.json"):
            self._tokenizer = Tokenizer.from_str(data.decode())
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            count = self._tokenizer.get_vocab_size(with_added_tokens=False)
            lead = _lead(values)
            self._lead = None if lead is None else self._tokenizer.token_to_id(lead)
        if count > vocab_size:
            raise ModelError(f"has {count} tokens, the model has {vocab_size}; give the tokenizer "
                             "that belongs to the model")
        self.file, self.vocab_size = data, vocab_size
        self._configured = bos_id
        self._known: set[str] = set()
        self.bos_id = bos_id if self._lead is None else self._lead
        self.stop_id = stop_id
        for name in ("bos_id", "stop_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < vocab_size:
                raise ModelError(f"{name} must be 0 to {vocab_size - 1}, not {token}")

    def __repr__(self) -> str:
        return f"<HuggingFaceTokenizer: vocabulary of {self.vocab_size}>"

    @classmethod
    def from_bytes(cls, data: bytes, vocab_size: int) -> HuggingFaceTokenizer:
        """The tokenizer that `to_bytes` packed."""
        if len(data) < _IDS.size:
            raise ModelError("the packed tokenizer is too short")
        _, bos_id, stop_id, _ = _IDS.unpack_from(data)
        return cls(data[_IDS.size:], vocab_size, *(None if token < 0 else token
                                                   for token in (bos_id, stop_id)))

    @staticmethod
    def packed(data: bytes) -> bool:
        """Whether bytes were made by `to_bytes`."""
        return data.startswith(_MAGIC)

    def to_bytes(self) -> bytes:
        """File and special tokens in one."""
        ids = [-1 if token is None else token for token in (self._configured, self.stop_id)]
        return _IDS.pack(_MAGIC, *ids, 0) + self.file

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """The tokens of text.

        Parameters
        ----------
        bos : bool
            Whether to begin with the token that the file puts before a text, if it does; a text of
            no token begins with ``bos_id`` anyway.

        Raises
        ------
        ModelError
            If text holds a character that the vocabulary cannot express.
        """
        try:
            text = text.encode("utf-8", "surrogateescape").decode()
        except UnicodeError:
            raise ModelError("the text is not valid Unicode") from None
        with _library("the tokenizer cannot encode the text"):
            tokens = self._ids(text)
            lost = self._lost(text)
        if lost is not None:
            raise ModelError(f"text has {lost!r} (U+{ord(lost):04X}), which is not in the model's "
                             f"vocabulary of {self.vocab_size}; remove it")
        if tokens and max(tokens) >= self.vocab_size:
            raise ModelError(f"text has token {max(tokens)}, the model has {self.vocab_size}")
        if bos and self.bos_id is not None and (self._lead is not None or not tokens):
            tokens.insert(0, self.bos_id)
        return tokens

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _lost(self, text: str) -> str | None:
        """The first character that becomes no token at all; the library drops it in silence."""
        for character in dict.fromkeys(text):
            if character not in self._known and not character.isspace():
                if not self._ids(character):
                    return character
                self._known.add(character)
        return None

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; special ones are silent, broken UTF-8 becomes U+FFFD."""
        with _library("the tokenizer cannot decode tokens"):
            return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def stream(self, tokens: Iterable[int]) -> Callable[[int], bytes]:
        """A function from the next token after ``tokens`` to the bytes that it adds.

        A character of several tokens comes with its last one. Only the tokens since the last whole
        character but one are decoded each time.
        """
        kept = list(tokens)[-16:]
        # A character that the prompt leaves unfinished is shown when it is whole.
        shown = self.decode(kept).rstrip("\N{REPLACEMENT CHARACTER}")

        def add(token: int) -> bytes:
            nonlocal kept, shown
            kept.append(token)
            text = self.decode(kept)
            if text.endswith("\N{REPLACEMENT CHARACTER}") or not text.startswith(shown):
                return b""
            piece = text[len(shown):]
            if len(kept) > 32:
                kept = kept[-16:]
                text = self.decode(kept)
            shown = text
            return piece.encode()
        return add


def _check(values: dict[str, Any]) -> None:
    """Refuse parts that are not known, not deterministic, or that blow a text up."""
    growth = 1.0
    for kind, allowed in _PARTS.items():
        waiting = [values.get(kind)]
        while waiting:
            part = waiting.pop()
            if part is None and kind != "model":
                continue
            if not isinstance(part, dict):
                raise ModelError(f"is no valid tokenizer.json: {kind} must be an object, not "
                                 f"{short(part)}")
            name = part.get("type", "BPE" if kind == "model" else None)
            if name not in allowed if isinstance(name, str) else True:
                raise ModelError(f"{kind} {short(name)} is not supported, only "
                                 f"{', '.join(sorted(allowed))}")
            if name == "Sequence":
                inner = next((part[key] for key in ("normalizers", "pretokenizers", "decoders")
                              if isinstance(part.get(key), list)), [])
                waiting += inner
            if kind != "model":
                growth *= max(1, max((len(part[key]) for key in ("content", "prepend")
                                      if isinstance(part.get(key), str)), default=1))
    if growth > _GROWTH:
        raise ModelError("its replacements make a text longer than is supported "
                         f"({_GROWTH} times)")
    dropout = values["model"].get("dropout")
    if dropout not in (None, 0, 0.0):
        raise ModelError(f"dropout {short(dropout)} is not supported: the same text would not "
                         "always be the same tokens")


def _lead(values: dict[str, Any]) -> str | None:
    """The special token that the post-processor puts before a text."""
    waiting = [values.get("post_processor")]
    while waiting:
        part = waiting.pop(0)
        if not isinstance(part, dict):
            continue
        if isinstance(part.get("processors"), list):
            waiting += part["processors"]
        single = part.get("single")
        if part.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
            first = single[0].get("SpecialToken") if isinstance(single[0], dict) else None
            if isinstance(first, dict) and isinstance(first.get("id"), str):
                return first["id"]
    return None
