"""Tokenizers: a literal transcription of run.c is the oracle, on hand-made vocabularies."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from compiler.errors import ModelError
from compiler.load import load_tokenizer
from compiler.tokenizer import Tokenizer

BUILT_IN = Path(__file__).parent.parent / "models" / "shakespeare_tokenizer.bin"

Vocabulary = list[tuple[bytes, float]]

SPECIAL: Vocabulary = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
BYTES: Vocabulary = [(b"<0x%02X>" % value, 0.0) for value in range(256)]
# Ids from 259; scores fall with the id, as sentencepiece numbers its pieces.
PIECES = ["he", "ll", " t", "lo", "hell", "hello", " th", " the", "aa", "é!",
          " ", "h", "e", "l", "o", "t", "a", "é", "!", "\n"]
BYTE_PAIR = SPECIAL + BYTES + [(p.encode(), -float(i)) for i, p in enumerate(PIECES)]
ID = {piece: 259 + i for i, piece in enumerate(PIECES)}
CHARACTER = [(b"<unk>", 0.0), (b"<s>", 0.0), (b"</s>", 0.0),
             *((c.encode(), 0.0) for c in "\n ab<s>é")]


def make(vocabulary: Vocabulary) -> Tokenizer:
    return Tokenizer([piece for piece, _ in vocabulary], [score for _, score in vocabulary])


def file_bytes(vocabulary: Vocabulary) -> bytes:
    data = struct.pack("<i", max(len(piece) for piece, _ in vocabulary))
    for piece, score in vocabulary:
        data += struct.pack("<f", score) + struct.pack("<i", len(piece)) + piece
    return data


def put(folder: Path, data: bytes) -> Path:
    path = folder / "tokenizer.bin"
    path.write_bytes(data)
    return path


def run_c_encode(vocabulary: Vocabulary, text: str, bos: bool = True) -> list[int]:
    """Encode as run.c does, line by line, in quadratic time."""
    pieces = [piece for piece, _ in vocabulary]
    tokens = [1] if bos else []
    if text:
        tokens.append(pieces.index(b" "))
    data, buffer = text.encode() + b"\0", b""
    for i, byte in enumerate(data[:-1]):
        if byte & 0xC0 != 0x80:
            buffer = b""
        buffer += bytes([byte])
        if data[i + 1] & 0xC0 == 0x80 and len(buffer) < 4:
            continue
        if buffer in pieces:
            tokens.append(pieces.index(buffer))
        else:
            tokens += [b + 3 for b in buffer]
        buffer = b""
    while True:
        best_score, best_id, best_index = -1e10, -1, -1
        for i in range(len(tokens) - 1):
            pair = pieces[tokens[i]] + pieces[tokens[i + 1]]
            if pair in pieces and vocabulary[pieces.index(pair)][1] > best_score:
                best_id = pieces.index(pair)
                best_score, best_index = vocabulary[best_id][1], i
        if best_index < 0:
            return tokens
        tokens[best_index:best_index + 2] = [best_id]


@pytest.mark.parametrize("text, expected", [
    ("", []),
    ("hello", [" ", "hello"]),
    ("the", [" the"]),
    # "he" scores best, so it is merged before " t" can become " th".
    ("thello", [" t", "hello"]),
    # Leftmost first: of three a, the first two.
    ("aaa", [" ", "aa", "a"]),
    ("é!", [" ", "é!"]),
])
def test_encode_by_hand(text, expected):
    assert make(BYTE_PAIR).encode(text) == [1, *(ID[piece] for piece in expected)]


def test_encode_falls_back_to_bytes():
    # U+20AC is E2 82 AC, and z is 7A.
    expected = [1, ID[" "], 0xE2 + 3, 0x82 + 3, 0xAC + 3, 0x7A + 3]
    assert make(BYTE_PAIR).encode("€z") == expected
    assert make(BYTE_PAIR).encode("€z", bos=False) == expected[1:]


def test_encode_keeps_bytes_that_are_no_utf8():
    tokens = make(BYTE_PAIR).encode(b"a\xff\x80".decode("utf-8", "surrogateescape"))
    assert tokens == [1, ID[" "], ID["a"], 0xFF + 3, 0x80 + 3]
    # The space before the text stays a token of its own.
    tokens = make(BYTE_PAIR).encode(b"\x80a".decode("utf-8", "surrogateescape"))
    assert tokens == [1, ID[" "], 0x80 + 3, ID["a"]]
    with pytest.raises(ModelError, match=r"text has a lone surrogate \(U\+D800\) at character 2"):
        make(BYTE_PAIR).encode("ab\ud800")


@pytest.mark.parametrize("scores", ["falling", "random", "equal", "rising", "very low"])
def test_encode_equals_run_c(scores):
    rng = random.Random(scores)
    for _ in range(40):
        pieces = {"".join(rng.choices("ab é", k=rng.randint(2, 5))) for _ in range(25)}
        listed = sorted(pieces | set("ab é"))
        rng.shuffle(listed)
        score = {"falling": lambda i: -i, "random": lambda i: rng.choice([-3.0, 0.5, 2.0]),
                 "equal": lambda i: 0.0, "rising": lambda i: i,
                 "very low": lambda i: rng.choice([-1e10, -2e10, 0.0])}[scores]
        vocabulary = SPECIAL + BYTES + [(p.encode(), float(score(i)))
                                        for i, p in enumerate(listed)]
        tokenizer = make(vocabulary)
        for _ in range(10):
            text = "".join(rng.choices("ab éx€\n", weights=[8, 8, 4, 2, 1, 1, 1],
                                       k=rng.randint(0, 40)))
            tokens = tokenizer.encode(text)
            assert tokens == run_c_encode(vocabulary, text)
            assert tokenizer.encode(text, bos=False) == run_c_encode(vocabulary, text, bos=False)
            assert tokenizer.decode(tokens) == text


def test_bos_takes_part_in_merges_as_in_run_c():
    vocabulary = BYTE_PAIR + [(b"\n<s>\n ", 5.0)]
    assert make(vocabulary).encode("a") == run_c_encode(vocabulary, "a") == [279, ID["a"]]


def test_encode_of_a_long_text_is_fast():
    tokens = make(BYTE_PAIR).encode("hello the " * 20000)
    assert len(tokens) == 1 + 60001


@pytest.mark.parametrize("prev, token, expected", [
    (1, ID[" the"], b"the"),
    (5, ID[" the"], b" the"),
    (1, ID[" "], b""),
    (1, ID["he"], b"he"),
    (5, 0xE2 + 3, b"\xe2"),
    (1, 0x20 + 3, b" "),
    (5, 0 + 3, b"\0"),
    (5, 0, b"<unk>"),
])
def test_decode_piece(prev, token, expected):
    assert make(BYTE_PAIR).decode_piece(prev, token) == expected


@pytest.mark.parametrize("token", [-1, 279])
def test_decode_refuses_unknown_tokens(token):
    with pytest.raises(ValueError, match=f"token must be from 0 to 278, not {token}"):
        make(BYTE_PAIR).decode_piece(1, token)


def test_decode():
    tokenizer = make(BYTE_PAIR)
    assert tokenizer.decode([1, ID[" the"], ID[" the"], 2]) == "the the"
    assert tokenizer.decode([ID[" the"]]) == " the"
    assert tokenizer.decode([0xE2 + 3, 0x82 + 3, 0xAC + 3]) == "€"
    assert tokenizer.decode([0xE2 + 3, ID["a"]]) == "\ufffda"
    assert tokenizer.decode([]) == ""


def test_character_vocabulary():
    tokenizer = make(CHARACTER)
    assert not tokenizer.has_bytes
    text = " a b\né"
    tokens = tokenizer.encode(text)
    assert tokens == [1, 4, 5, 4, 6, 3, 10]
    assert tokenizer.decode(tokens) == text
    assert tokenizer.decode_piece(1, 4) == b" "
    # The text "<s>" is three characters, never the begin token.
    assert tokenizer.encode("<s>", bos=False) == [7, 8, 9]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)


@pytest.mark.parametrize("text, message", [
    ("ab#", r"text has '#' \(U\+0023\) at character 2, which is not in the model's vocabulary"),
    ("é€", r"text has '€' \(U\+20AC\) at character 1"),
    ("\U0001d11e", r"text has '\U0001d11e' \(U\+1D11E\) at character 0"),
    ("\0", r"text has '\\x00' \(U\+0000\) at character 0"),
])
def test_character_vocabulary_names_unknown_characters(text, message):
    with pytest.raises(ModelError, match=message):
        make(CHARACTER).encode(text)


@pytest.mark.parametrize("vocabulary", [BYTE_PAIR, CHARACTER])
def test_load(tmp_path, vocabulary):
    tokenizer = load_tokenizer(put(tmp_path, file_bytes(vocabulary)), len(vocabulary))
    assert tokenizer.vocab_size == len(vocabulary)
    for token, (piece, _) in enumerate(vocabulary):
        if not 3 <= token < 259 or vocabulary is CHARACTER:
            assert tokenizer.decode_piece(-1, token) == piece
    text = "aé"
    assert tokenizer.encode(text) == make(vocabulary).encode(text)


def test_load_reads_scores(tmp_path):
    base = SPECIAL + BYTES + [(c, 0.0) for c in (b" ", b"a", b"b")]
    low, high = [(b"aa", -2.5), (b"ab", -2.25)], [(b"aa", -2.25), (b"ab", -2.5)]
    path = put(tmp_path, file_bytes(base + low))
    assert load_tokenizer(path, 264).encode("aab") == [1, 259, 260, 263]
    path = put(tmp_path, file_bytes(base + high))
    assert load_tokenizer(path, 264).encode("aab") == [1, 259, 262, 261]


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [BYTE_PAIR, CHARACTER])
def test_truncation_at_every_offset(tmp_path, vocabulary):
    data = file_bytes(vocabulary)
    for size in range(len(data)):
        with pytest.raises(ModelError, match="tokenizer.bin: (has|is)"):
            load_tokenizer(put(tmp_path, data[:size]), len(vocabulary))


@pytest.mark.parametrize("vocab_size", [1, 9, 12, 512])
def test_wrong_vocabulary_size(tmp_path, vocab_size):
    path = put(tmp_path, file_bytes(CHARACTER))
    with pytest.raises(ModelError, match=f"has 11 tokens, the model has {vocab_size}; give the"):
        load_tokenizer(path, vocab_size)


@pytest.mark.parametrize("offset, word, message", [
    (0, struct.pack("<i", 0), "is no llama2.c tokenizer: its longest token would have 0 bytes"),
    (0, struct.pack("<i", -5), "is no llama2.c tokenizer"),
    (0, struct.pack("<i", 1 << 30), "is no llama2.c tokenizer"),
    (8, struct.pack("<i", -1), "is damaged: token 0 would have -1 bytes, the longest has 5"),
    (8, struct.pack("<i", 6), "is damaged: token 0 would have 6 bytes, the longest has 5"),
    (4, struct.pack("<f", float("nan")), "score of token 0 must be a number, not NaN"),
])
def test_damaged_file(tmp_path, offset, word, message):
    data = file_bytes(CHARACTER)
    with pytest.raises(ModelError, match=f"tokenizer.bin: {message}"):
        load_tokenizer(put(tmp_path, data[:offset] + word + data[offset + 4:]), len(CHARACTER))


def test_trailing_bytes(tmp_path):
    with pytest.raises(ModelError, match="is truncated: it ends within token 11"):
        load_tokenizer(put(tmp_path, file_bytes(CHARACTER) + b"abc"), len(CHARACTER))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ModelError, match="none.bin: cannot be read: No such file"):
        load_tokenizer(tmp_path / "none.bin", 5)
    with pytest.raises(ModelError, match="/dev/null: is not a regular file"):
        load_tokenizer("/dev/null", 5)


def test_vocabulary_refuses():
    with pytest.raises(ModelError, match="vocabulary must have more than 3 tokens, not 3"):
        make(SPECIAL)
    with pytest.raises(ModelError, match="scores must be one for each of 3 pieces, not 2"):
        Tokenizer([b"a", b"b", b"c"], [0.0, 0.0])
    with pytest.raises(ModelError, match="token 6 must be '<0x03>' in a vocabulary that has"):
        make(SPECIAL + BYTES[:3] + BYTES[4:])
    with pytest.raises(ModelError, match="token 258 must be '<0xFF>'"):
        make(SPECIAL + BYTES[:255])


def test_built_in_tokenizer():
    tokenizer = load_tokenizer(BUILT_IN, 68)
    assert not tokenizer.has_bytes
    # In ASCII order the text's characters are: newline, space, ! $ & ' , - . 3 : ; ? A-Z a-z.
    tokens = tokenizer.encode("\n !$&',-.3:;?AZaz")
    assert tokens == [1, *range(3, 16), 16, 41, 42, 67]
    assert tokenizer.decode(tokens) == "\n !$&',-.3:;?AZaz"
    with pytest.raises(ModelError, match="not in the model's vocabulary of 68"):
        tokenizer.encode("4")


def test_decode_takes_bytes_as_sscanf_does():
    odd = [b"<0x4", b"<0x41 rest", b"<0xz", b"a<0x41>"]
    vocabulary = BYTE_PAIR + [(piece, 0.0) for piece in odd]
    tokenizer, first = make(vocabulary), len(BYTE_PAIR)
    assert [tokenizer.decode_piece(5, first + at) for at in range(4)] == [
        b"\x04", b"A", b"<0xz", b"a<0x41>"]
