"""The tokenizer: equal to the published one, lossless, and the same text whether decoded whole or as a stream."""

import json
import pickle
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelcore.errors import UserError
from pixelcore.tokenizer import MAX_LINE_BYTES, Tokenizer, byte_tokenizer, train_tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog thinks about the fox.\n  It barks.",
    "def add(first, second):\n\treturn first + second  # the sum",
    "नमस्ते दुनिया। यह एक छोटा वाक्य है।",
    "مرحبا بالعالم، هذه جملة قصيرة.",
    "你好，世界。这是一个短句。",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(CORPUS * 4, 600)


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden" / "decoder_tiny_bundle"


def streamed(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> str:
    decoder = tokenizer.stream(prompt)
    return "".join([decoder.push(id) for id in ids]) + decoder.finish()


def test_published_cases_are_equal(golden: Path):
    tokenizer = Tokenizer.load(golden / "pixel_tokenizer.model")
    for case in json.loads((golden / "reference.json").read_text())["tokenizer_cases"]:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.pieces(case["ids"]) == case["pieces"]
        assert tokenizer.decode(case["ids"]) == streamed(tokenizer, [0], case["ids"]) == case["decoded"]
    assert tokenizer.vocab_text().encode() == (golden / "pixel_tokenizer.vocab").read_bytes()


def test_special_and_byte_ids(tokenizer: Tokenizer):
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert tokenizer.pieces(range(4)) == ["<s>", "</s>", "<pad>", "<unk>"]
    assert tokenizer.pieces(range(4, 260)) == [f"<0x{byte:02X}>" for byte in range(256)]
    assert tokenizer.encode("♥")[-3:] == [byte + 4 for byte in "♥".encode()]
    assert set(tokenizer.encode("<s></s>")).isdisjoint({0, 1})


@pytest.mark.parametrize("text", [*CORPUS, "", " ", "  two  spaces ", "\r\n\t", "😀👩‍👧", "\0", "a<s>b"])
def test_text_survives_the_round_trip(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == streamed(tokenizer, [], ids) == text
    assert tokenizer.encode_batch([text, "x"]) == [ids, tokenizer.encode("x")]


@given(
    st.lists(
        st.one_of(st.integers(0, 340), st.integers(132, 259), st.sampled_from([228, 168, 193, 241, 163])), max_size=20
    )
)
def test_a_stream_equals_decoding_the_whole(tokenizer: Tokenizer, ids: list[int]):
    assert streamed(tokenizer, [], ids) == tokenizer.decode(ids)
    prompt = [0, *tokenizer.encode("The dog")]
    assert tokenizer.decode(prompt) + streamed(tokenizer, prompt, ids) == tokenizer.decode(prompt + ids)


def test_a_stream_gives_text_as_soon_as_it_is_certain(tokenizer: Tokenizer):
    decoder = tokenizer.stream(tokenizer.encode("the"))
    assert [decoder.push(byte + 4) for byte in "€".encode()] == ["", "", "€"]
    assert decoder.push(tokenizer.encode("the fox")[-1]).startswith(" ") or tokenizer.encode("the fox")[-1] < 260
    assert decoder.finish() == ""


def test_a_prompt_that_ends_within_a_character_is_continued(tokenizer: Tokenizer):
    ids = [byte + 4 for byte in "€".encode()]
    assert streamed(tokenizer, ids[:2], ids[2:]) == "€"


def test_training_is_deterministic_and_stops_when_merges_run_out(tokenizer: Tokenizer):
    again = train_tokenizer(iter(CORPUS * 4), 600)
    assert again.model_bytes == tokenizer.model_bytes
    assert again == tokenizer
    assert again.sha256 == tokenizer.sha256
    assert hash(again) == hash(tokenizer)
    assert train_tokenizer(["ab ab"], 5000).vocab_size < 270
    assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer


def test_long_lines_and_reserved_characters_are_learned_from():
    long_line = "zebra giraffe " * 1000
    assert len(long_line) > MAX_LINE_BYTES
    assert len(train_tokenizer([long_line], 400).encode("zebra giraffe")) == 2
    assert len(train_tokenizer(["▅ walrus walrus", "▅ walrus"], 400).encode("walrus")) == 1
    read: list[int] = []
    train_tokenizer(["ab€", "c"], 300, progress=read.append)
    assert read == [5, 1]


def test_a_large_text_is_sampled_evenly():
    words = [f"{random.Random(number).randrange(10**6)} common" for number in range(4000)]
    sampled = train_tokenizer(words, 300, max_bytes=8000)
    assert sampled == train_tokenizer(words[::8], 300)


@pytest.mark.parametrize(("texts", "size", "message"), [
    ([], 300, "no text to learn from"),
    ([" \n", "\t"], 300, "no text to learn from"),
    (["text"], 260, "must be more than 260"),
    (["many different letters"], 262, "cannot hold the characters of this text: ask for more than 27"),
])  # fmt: skip
def test_impossible_training_is_refused(texts: list[str], size: int, message: str):
    with pytest.raises(UserError, match=message):
        train_tokenizer(texts, size)


def test_bad_models_are_named(tokenizer: Tokenizer, tmp_path: Path):
    file = tmp_path / "a.model"
    for content in (b"", b"no model", tokenizer.model_bytes[:-1], tokenizer.model_bytes[:100]):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.model: not a SentencePiece model, or damaged"):
            Tokenizer.load(file)
    file.write_text(' {"type": "simple-byte", "vocab_size": 260}')
    with pytest.raises(UserError, match=r"a\.model: this is the JSON byte tokenizer"):
        Tokenizer.load(file)
    with pytest.raises(UserError, match="no tokenizer can be read here"):
        Tokenizer.load(tmp_path / "absent.model")


# ------------------------------------------------------------------ bytes


@settings(max_examples=50)
@given(st.text())
def test_the_byte_tokenizer_gives_the_bytes_of_any_text_and_takes_them_back(text: str):
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text)
    assert ids == [byte + 4 for byte in text.encode()]
    assert tokenizer.decode(ids) == streamed(tokenizer, [], ids) == streamed(tokenizer, [0], ids) == text


@pytest.mark.parametrize(
    "text", [" ", "  two  spaces ", "\u2581 \u2581", "\u2585", "\0\r\n\t", "\ufeff", "<s></s><0x41>", "e\u0301"]
)
def test_the_byte_tokenizer_changes_nothing_that_a_trained_one_would(text: str):
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) == len(text.encode())


def test_the_byte_tokenizer_has_260_pieces_and_is_always_the_same():
    tokenizer = byte_tokenizer()
    assert tokenizer.vocab_size == 260
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert tokenizer.pieces(range(4)) == ["<s>", "</s>", "<pad>", "<unk>"]
    assert tokenizer.pieces(range(4, 260)) == [f"<0x{byte:02X}>" for byte in range(256)]
    assert tokenizer == byte_tokenizer() == pickle.loads(pickle.dumps(tokenizer))
    assert tokenizer.decode([0, 4 + 0xE2, 4 + 0x41, 1]) == "\ufffdA"
    assert tokenizer.vocab_text().count("\n") == 260
