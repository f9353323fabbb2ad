"""Tokenizers in llama2.c's format: byte-pair vocabularies and character vocabularies.

Ref: llama2.c, run.c (build_tokenizer, encode, decode).
"""

from __future__ import annotations

import heapq
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence

from compiler.errors import ModelError

__all__ = ["Tokenizer"]

_ENTRY = struct.Struct("<fi")
_FIRST_BYTE = 3
# What run.c's sscanf takes for a byte.
_BYTE_PIECE = re.compile(rb"<0x([0-9A-Fa-f]{1,2})")
# A code point as run.c cuts it: any byte, then at most three continuation bytes.
_CODE_POINT = re.compile(rb"[\x00-\xff][\x80-\xbf]{0,3}", re.DOTALL)
_LOWEST_SCORE = -1e10
#: More tokens than any model has.
_MOST = 1 << 17


class Tokenizer:
    """A vocabulary with llama2.c's greedy byte-pair encoding.

    A vocabulary with the 256 byte pieces '<0x00>' to '<0xFF>' at ids 3 to 258 encodes any text: a
    space is put before it, and characters without a piece become bytes. Any other vocabulary is
    a character vocabulary: nothing is added to the text, and unknown characters are an error.

    Parameters
    ----------
    pieces : sequence of bytes
        The token strings; ids 0, 1 and 2 are unknown, begin (BOS) and end (EOS).
    scores : sequence of float
        Merge priority of each piece; the highest is merged first, the leftmost of equals.

    Members
    -------
    bos_id, eos_id : int
        1 and 2.
    stop_id : int
        The token that ends a text: BOS, as in run.c.
    vocab_size : int
    pieces, scores : list of bytes, list of float
    has_bytes : bool
        Whether the vocabulary has byte pieces; if not, it is a character vocabulary.

    Raises
    ------
    ModelError
        If the vocabulary is too small, has incomplete byte pieces or a NaN for a score.
    """

    unk_id = 0
    bos_id = stop_id = 1
    eos_id = 2

    def __init__(self, pieces: Sequence[bytes], scores: Sequence[float]) -> None:
        if len(pieces) != len(scores):
            raise ModelError(f"scores must be one for each of {len(pieces)} pieces, "
                             f"not {len(scores)}")
        if len(pieces) <= _FIRST_BYTE:
            raise ModelError(f"vocabulary must have more than {_FIRST_BYTE} tokens, "
                             f"not {len(pieces)}")
        for token, score in enumerate(scores):
            if math.isnan(score):
                raise ModelError(f"score of token {token} must be a number, not NaN")
        self.pieces = [bytes(piece) for piece in pieces]
        self.scores = [float(score) for score in scores]
        self._ids: dict[bytes, int] = {}
        for token, piece in enumerate(self.pieces):
            self._ids.setdefault(piece, token)
        self.has_bytes = self.pieces[_FIRST_BYTE] == b"<0x00>"
        if self.has_bytes:
            for value in range(256):
                token, piece = _FIRST_BYTE + value, b"<0x%02X>" % value
                if self.pieces[token:token + 1] != [piece]:
                    raise ModelError(f"token {token} must be '{piece.decode()}' in a vocabulary "
                                     "that has '<0x00>' as token 3")

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.pieces)

    def __repr__(self) -> str:
        kind = "byte-pair" if self.has_bytes else "character"
        return f"<Tokenizer: {kind} vocabulary of {self.vocab_size}>"

    @classmethod
    def from_bytes(cls, data: bytes, vocab_size: int) -> Tokenizer:
        """Read the contents of a llama2.c tokenizer file.

        Raises
        ------
        ModelError
            If they are damaged or have another number of tokens than the model.
        """
        return cls(*_parse(data, vocab_size))

    def to_bytes(self) -> bytes:
        """Contents of a llama2.c tokenizer file with this vocabulary."""
        longest = max(1, *map(len, self.pieces))
        return struct.pack("<i", longest) + b"".join(
            _ENTRY.pack(score, len(piece)) + piece
            for piece, score in zip(self.pieces, self.scores))

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Return the tokens of text, after BOS unless bos is false.

        Raises
        ------
        ModelError
            If text holds a character that the vocabulary cannot express, or no valid text.
        """
        tokens = [self.bos_id] if bos else []
        if text:
            tokens += self._split(text)
        return self._merge(tokens)

    def decode_piece(self, prev: int, token: int) -> bytes:
        """Return the bytes that token adds after prev, as run.c prints them.

        After BOS the leading space of a byte-pair vocabulary is dropped: encoding put it there.

        Raises
        ------
        ValueError
            If token is not in the vocabulary.
        """
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token must be from 0 to {self.vocab_size - 1}, not {token!r}")
        piece = self.pieces[token]
        if not self.has_bytes:
            return piece
        if prev == self.bos_id and piece.startswith(b" "):
            piece = piece[1:]
        match = _BYTE_PIECE.match(piece)
        return bytes([int(match[1], 16)]) if match else piece

    def stream(self, tokens: Iterable[int]) -> Callable[[int], bytes]:
        """A function from the next token after ``tokens`` to the bytes that it adds."""
        prev = [-1, *tokens][-1]

        def add(token: int) -> bytes:
            nonlocal prev
            silent = token in (self.bos_id, self.eos_id)
            piece = b"" if silent else self.decode_piece(prev, token)
            prev = token
            return piece
        return add

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens; BOS and EOS are silent, broken UTF-8 becomes U+FFFD."""
        add = self.stream(())
        data = b"".join(add(token) for token in tokens)
        return data.decode("utf-8", "replace")

    def _split(self, text: str) -> Iterator[int]:
        """Yield the tokens of text before merging: one per code point, or its bytes."""
        try:
            # Bytes of a command line that are not UTF-8 arrive as surrogates; keep them as bytes.
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise ModelError(f"text has a lone surrogate (U+{ord(text[error.start]):04X}) at "
                             f"character {error.start}; give valid Unicode text") from None
        # The space before the text is a token of its own, whatever bytes follow.
        points = [b" "] * self.has_bytes + _CODE_POINT.findall(data)
        for place, point in enumerate(points):
            token = self._ids.get(point)
            if token is not None:
                yield token
            elif self.has_bytes:
                yield from (byte + _FIRST_BYTE for byte in point)
            else:
                char = point.decode("utf-8", "backslashreplace")
                code = f" (U+{ord(char):04X})" if len(char) == 1 else ""
                raise ModelError(f"text has {char!r}{code} at character {place}, which is not in "
                                 f"the model's vocabulary of {self.vocab_size}; remove it")

    def _merge(self, tokens: list[int]) -> list[int]:
        """Merge the best-scoring adjacent pair, leftmost first, until no pair is a piece.

        The same result as run.c's search of all pairs for each merge, in O(n log n): candidates
        wait in a heap, and one that names a token since merged is dropped when it surfaces.
        """
        count = len(tokens)
        current: list[int | None] = [*tokens]
        left, right = list(range(-1, count - 1)), list(range(1, count + 1))
        heap: list[tuple[float, int, int, int, int]] = []

        def consider(i: int) -> None:
            if i < 0 or right[i] >= count:
                return
            a, b = current[i], current[right[i]]
            merged = self._ids.get(self.pieces[a] + self.pieces[b])
            if merged is not None and self.scores[merged] > _LOWEST_SCORE:
                heapq.heappush(heap, (-self.scores[merged], i, a, b, merged))

        for i in range(count):
            consider(i)
        while heap:
            _, i, a, b, merged = heapq.heappop(heap)
            if current[i] != a or right[i] >= count or current[right[i]] != b:
                continue
            gone = right[i]
            current[i], current[gone] = merged, None
            right[i] = right[gone]
            if right[i] < count:
                left[right[i]] = i
            consider(left[i])
            consider(i)
        return [token for token in current if token is not None]


def _parse(data: bytes, vocab_size: int) -> tuple[list[bytes], list[float]]:
    """Return pieces and scores of a tokenizer file that has exactly vocab_size tokens."""
    if len(data) < 4:
        raise ModelError(f"has {len(data)} bytes, too few for a llama2.c tokenizer; "
                         "copy or download it again")
    (longest,) = struct.unpack_from("<i", data)
    if not 0 < longest <= len(data):
        raise ModelError(f"is no llama2.c tokenizer: its longest token would have {longest} bytes; "
                         "export it with llama2.c's tokenizer.py")
    pieces: list[bytes] = []
    scores: list[float] = []
    offset = 4
    while offset < len(data):
        start, offset = offset, min(offset + _ENTRY.size, len(data))
        score, length = 0.0, 0
        whole = offset - start == _ENTRY.size
        if whole:
            score, length = _ENTRY.unpack_from(data, start)
        if not 0 <= length <= longest:
            raise ModelError(f"is damaged: token {len(pieces)} would have {length} bytes, the "
                             f"longest has {longest}; copy or download it again")
        if not whole or offset + length > len(data):
            raise ModelError(f"is truncated: it ends within token {len(pieces)}, the model has "
                             f"{vocab_size} tokens; copy or download it again")
        if len(pieces) == _MOST:
            raise ModelError(f"has more than {_MOST} tokens, the model has {vocab_size}")
        pieces.append(data[offset:offset + length])
        scores.append(score)
        offset += length
    if len(pieces) != vocab_size:
        raise ModelError(f"has {len(pieces)} tokens, the model has {vocab_size}; "
                         "give the tokenizer that belongs to the model")
    return pieces, scores
