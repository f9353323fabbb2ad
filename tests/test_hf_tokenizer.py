"""Tokenizers of Hugging Face: tokens by hand, streaming, export from llama2.c's, and refusals."""

from __future__ import annotations

import json
import random

import pytest

from compiler.errors import ModelError
from compiler.hf_export import tokenizer_json
from compiler.hf_tokenizer import HuggingFaceTokenizer
from compiler.load import load_tokenizer, unpack_tokenizer
from compiler.tokenizer import Tokenizer

#: GPT-2's way: bytes as letters, a space is Ġ (0x20 + 256), é is Ã (C3) and © (A9).
BYTE_LEVEL = {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
    "added_tokens": [{"id": 9, "content": "<|end|>", "single_word": False, "lstrip": False,
                      "rstrip": False, "normalized": False, "special": True}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                      "use_regex": True},
    "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False,
                       "use_regex": True},
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                "use_regex": True},
    "model": {"type": "BPE", "dropout": None, "unk_token": None,
              "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False,
              "byte_fallback": False,
              "vocab": {"a": 0, "b": 1, "Ġ": 2, "Ã": 3, "©": 4, "ab": 5, "Ġab": 6, "aa": 7,
                        "<|end|>": 9},
              "merges": ["a b", "Ġ ab", "a a"]}}
#: Llama 2's way: ▁ before the text and for spaces, bytes for what is no piece.
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)),
          "▁", "a", "b", "ab", "▁ab"]
SENTENCE = {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [{"id": token, "content": PIECES[token], "single_word": False,
                      "lstrip": False, "rstrip": False, "normalized": False, "special": True}
                     for token in range(3)],
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "pre_tokenizer": None,
    "post_processor": {
        "type": "TemplateProcessing", "pair": [],
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>",
              "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
              "byte_fallback": True, "vocab": {piece: at for at, piece in enumerate(PIECES)},
              "merges": ["a b", "▁ ab"]}}
ID = {piece: token for token, piece in enumerate(PIECES)}


def changed(base: dict, path: str, value) -> dict:
    """A copy of a tokenizer with the entry at a dotted path replaced."""
    copy = json.loads(json.dumps(base))
    *way, last = path.split(".")
    place = copy
    for key in way:
        place = place[key]
    place[last] = value
    return copy


def make(value: dict, vocab_size: int = 300, **ids) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(json.dumps(value).encode(), vocab_size, **ids)


@pytest.mark.parametrize("text, expected", [
    ("ab", [5]), (" ab", [6]), ("aab", [0, 5]), ("aaab", [7, 5]), ("é", [3, 4]),
    ("b ab", [1, 6]), ("", []),
])
def test_byte_level_by_hand(text, expected):
    tokenizer = make(BYTE_LEVEL, stop_id=9)
    assert tokenizer.encode(text) == expected
    assert tokenizer.decode(expected) == text
    assert tokenizer.decode([*expected, 9]) == text
    assert (tokenizer.bos_id, tokenizer.stop_id) == (None, 9)


def test_sentence_pieces_by_hand():
    tokenizer = make(SENTENCE)
    assert tokenizer.bos_id == 1
    assert tokenizer.encode("ab ab") == [1, ID["▁ab"], ID["▁ab"]]
    assert tokenizer.encode("ab", bos=False) == [ID["▁ab"]]
    # U+20AC is E2 82 AC.
    euro = [0xE2 + 3, 0x82 + 3, 0xAC + 3]
    assert tokenizer.encode("a€") == [1, ID["▁"], ID["a"], *euro]
    assert tokenizer.decode([1, ID["▁"], ID["a"], *euro]) == "a€"
    assert tokenizer.encode("") == [1]


def test_what_begins_a_text():
    # The file's own token wins; without one the configuration's begins only an empty text.
    assert make(SENTENCE, bos_id=7).bos_id == 1
    gpt2 = make(BYTE_LEVEL, bos_id=9)
    assert gpt2.bos_id == 9 and gpt2.encode("ab") == [5] and gpt2.encode("") == [9]
    assert gpt2.encode("", bos=False) == []
    for ids in ({"bos_id": 300}, {"stop_id": -1}):
        with pytest.raises(ModelError, match="_id must be 0 to 299, not"):
            make(BYTE_LEVEL, **ids)


@pytest.mark.parametrize("value, tokens", [
    (BYTE_LEVEL, [0, 3, 4, 6, 5, 9, 1]),
    (SENTENCE, [ID["a"], 0xE2 + 3, 0x82 + 3, 0xAC + 3, ID["▁ab"], ID["b"], 2]),
])
def test_stream_gives_whole_characters(value, tokens):
    tokenizer = make(value)
    prompt = tokenizer.encode("ab")
    for times in (1, 12):
        add = tokenizer.stream(prompt)
        pieces = [add(token) for token in tokens * times]
        text = b"".join(pieces).decode()
        assert text == tokenizer.decode(prompt + tokens * times)[2:]
        for piece in pieces:
            piece.decode()
    assert pieces[1] == b""


def test_stream_after_a_prompt_that_ends_within_a_character():
    tokenizer = make(BYTE_LEVEL)
    add = tokenizer.stream([0, 3])
    assert [add(4), add(1)] == ["é".encode(), b"b"]


def test_packed_and_unpacked():
    for ids in ({}, {"bos_id": 9, "stop_id": 0}):
        tokenizer = make(BYTE_LEVEL, **ids)
        again = unpack_tokenizer(tokenizer.to_bytes(), 300)
        assert (again.bos_id, again.stop_id) == (tokenizer.bos_id, tokenizer.stop_id)
        assert again.encode(" ab") == [6]
    with pytest.raises(ModelError, match="too short"):
        unpack_tokenizer(b"HFTK", 300)


def test_padding_and_truncation_are_off():
    value = changed(BYTE_LEVEL, "padding", {
        "strategy": {"Fixed": 1 << 31}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "a"})
    value = changed(value, "truncation", {"direction": "Right", "max_length": 1,
                                          "strategy": "LongestFirst", "stride": 0})
    assert make(value).encode("ab ab") == [5, 6]


@pytest.mark.parametrize("text, character", [("aéz", "z"), ("z", "z"), ("ab €", "€"),
                                             ("a\nb", None)])
def test_characters_of_no_token(text, character):
    if character is None:
        make(BYTE_LEVEL).encode(text)
        return
    with pytest.raises(ModelError, match=f"text has '{character}' .* not in the model's vocabulary"):
        make(BYTE_LEVEL).encode(text)


@pytest.mark.parametrize("value, message", [
    (changed(BYTE_LEVEL, "model.type", "WordPiece"), "model 'WordPiece' is not supported, only"),
    (changed(BYTE_LEVEL, "model.type", 3), "model 3 is not supported"),
    (changed(BYTE_LEVEL, "model", None), "model must be an object, not None"),
    (changed(BYTE_LEVEL, "pre_tokenizer.type", "BertPreTokenizer"),
     "pre_tokenizer 'BertPreTokenizer' is not supported"),
    (changed(SENTENCE, "normalizer.normalizers", [{"type": "StripAccents"}]),
     "normalizer 'StripAccents' is not supported"),
    (changed(SENTENCE, "decoder.decoders", [{"type": "CTC"}]), "decoder 'CTC' is not supported"),
    (changed(BYTE_LEVEL, "model.dropout", 0.1), "dropout 0.1 is not supported"),
    (changed(SENTENCE, "normalizer.normalizers", [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaa"}] * 3),
     "its replacements make a text longer than is supported"),
    (changed(BYTE_LEVEL, "model.merges", ["a z"]), "is no valid tokenizer.json: .*out of vocab"),
    (changed(BYTE_LEVEL, "model.vocab", {"a": -1}), "is no valid tokenizer.json"),
    (changed(BYTE_LEVEL, "model.vocab", {"a": 1 << 32}), "is no valid tokenizer.json"),
    (changed(BYTE_LEVEL, "model.vocab",
             BYTE_LEVEL["model"]["vocab"] | {str(n): n for n in range(10, 303)}),
     "has 302 tokens, the model has 300; give the tokenizer that belongs"),
    # The library panics over this one.
    (changed(changed(BYTE_LEVEL, "model.continuing_subword_prefix", "##"), "model.merges",
             ["a b"]),
     "is no valid tokenizer.json"),
])
def test_refused(value, message, capfd):
    with pytest.raises(ModelError, match=message) as caught:
        make(value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_panic_of_the_library_is_one_line(capfd):
    value = changed(BYTE_LEVEL, "pre_tokenizer", {
        "type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False})
    tokenizer = make(value)
    with pytest.raises(ModelError, match="cannot encode the text: .*retry-limit"):
        tokenizer.encode("a" * 40 + "b")
    assert capfd.readouterr() == ("", "")


def test_files(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(BYTE_LEVEL))
    assert load_tokenizer(path, 300, 9, 9).encode("") == [9]
    path.write_text('{"model": ')
    with pytest.raises(ModelError, match="tokenizer.json: is no tokenizer.json: not valid JSON"):
        load_tokenizer(path, 300)
    path.write_text('{"a":' * 100000)
    with pytest.raises(ModelError, match="tokenizer.json: is nested too deep"):
        load_tokenizer(path, 300)
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match="has 1099511627776 bytes, at most 16777216 can be read"):
        load_tokenizer(path, 300)


def test_export_encodes_as_llama2c_does():
    """Byte-pair vocabularies with falling scores, as sentencepiece numbers its pieces."""
    special = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    special += [(b"<0x%02X>" % value, 0.0) for value in range(256)]
    rng = random.Random(5)
    for _ in range(10):
        pieces = {"".join(rng.choices("ab é", k=rng.randint(2, 4))) for _ in range(25)}
        listed = [*sorted(pieces - set("ab é"), key=len), *" abé"]
        vocabulary = special + [(piece.encode(), -float(at)) for at, piece in enumerate(listed)]
        ours = Tokenizer(*zip(*vocabulary))
        theirs = HuggingFaceTokenizer(tokenizer_json(ours), len(vocabulary), 1, 1)
        for _ in range(20):
            text = "".join(rng.choices("ab éx€\n", k=rng.randint(0, 30)))
            tokens = ours.encode(text)
            assert theirs.encode(text) == tokens
            assert theirs.decode(tokens) == ours.decode(tokens) == text


def test_export_keeps_a_tokenizer_json():
    tokenizer = make(SENTENCE)
    assert tokenizer_json(tokenizer) == tokenizer.file
