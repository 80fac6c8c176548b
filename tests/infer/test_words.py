"""LAMBADA, bAbI and readability: a writer that knows is always right, another never, and baselines are counted."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infer.benchmarks import babi, lambada, next_word, readability
from infer.benchmarks.answers import answer, readers_of
from infer.benchmarks.babi import Story, generated, read_stories
from infer.benchmarks.drawn_words import drawn_words
from infer.benchmarks.intervals import share_of, wilson
from infer.benchmarks.next_word import WordItem, cut_words, fitting_prompts, same_word, score_words, write_words
from infer.benchmarks.word_list import read_word_list
from infer.benchmarks.word_reader import WordReader
from infer.write_strip import WriteConfig, Written
from pixelcore.errors import UserError
from render import Renderer
from tests.infer.tiny_pixar import CONFIG, RENDER, bernoulli, pixar, stored
from tests.infer.tiny_pixels import write_run

RENDERER = Renderer(RENDER)
ITEMS = [
    WordItem("Tom gave Mary the key, and then he asked", "Mary"),
    WordItem("The old fox saw the young fox and the bear asked the", "fox"),
    WordItem("It was a cold day", "outside"),
]
TEXT = "The old fox said that nobody knows why it did so again and again in the small town by the river. " * 20


def speaks(monkeypatch, words):
    """Let the model write these words behind the prompts, one after another, as the renderer draws them."""
    left = iter(words)

    def write(model, prompts, config):
        assert all(len(prompt) + config.max_patches <= model.config.max_patches for prompt in prompts)
        drawn = [drawn_words(RENDERER, CONFIG, "and", [next(left)], config.max_patches)[0] for _ in prompts]
        return [Written(patches=one.patches, ended=False, log_probability=0.0) for one in drawn]

    monkeypatch.setattr(next_word, "write", write)


# ------------------------------------------------------------------ the protocol


def test_a_writer_that_knows_is_always_right_and_another_one_never(monkeypatch):
    readers = readers_of([], RENDER)
    speaks(monkeypatch, [item.word for item in ITEMS])
    known = lambada.lambada(pixar(), RENDERER, "lambada", ITEMS, WriteConfig(), readers)
    assert known.answers.by_reader["own"].share == 1.0
    assert known.ceiling.share == 1.0
    speaks(monkeypatch, ["Tom"] * 3)
    wrong = lambada.lambada(pixar(), RENDERER, "lambada", ITEMS, WriteConfig(), readers)
    assert wrong.answers.by_reader["own"].share == 0.0
    assert (wrong.answers.most_common, wrong.answers.most_common_share) == ("Tom", 1.0)
    assert wrong.answers.nothing.hits == 0
    assert "lambada, 3 items" in lambada.as_text(wrong)


def test_a_word_is_right_by_the_union_if_any_reader_says_so(monkeypatch):
    class Says:
        def __init__(self, name, *words):
            self.name, self.words = name, list(words)

        def read(self, patches):
            return [self.words.pop(0) for _ in patches]

    readers = [Says("one", "Mary", "dog", ""), Says("two", "Tom", "fox", "")]
    found = answer(pixar(), RENDERER, ITEMS, WriteConfig(max_patches=2), readers)
    assert {name: share.hits for name, share in found.by_reader.items()} == {"one": 1, "two": 1}
    assert found.union is not None and found.union.hits == 2
    assert found.nothing.hits == 1
    assert all(len(patches) <= 2 for patches in found.patches)


def test_g_and_q_are_one_letter_only_when_asked_and_case_always_matters():
    assert not same_word("guiet", "quiet")
    assert same_word("guiet", "quiet", fold_gq=True)
    assert not same_word("mary", "Mary", fold_gq=True)


def test_long_prompts_lose_whole_words_on_the_left_and_no_more_than_needed():
    long = " ".join(f"word{n}" for n in range(60))
    prompts = fitting_prompts(RENDERER, CONFIG, [long, "a short one"], 4)
    assert prompts.num_cut == 1
    kept = prompts.contexts[0].split()
    assert long.endswith(prompts.contexts[0])
    assert len(prompts.patches[0]) <= CONFIG.max_patches - 4
    one_more = " ".join(long.split()[-len(kept) - 1 :])
    assert RENDERER(one_more, 1000).num_patches - 1 > CONFIG.max_patches - 4
    with pytest.raises(UserError, match="40 new patches leave no room in a context of 40"):
        fitting_prompts(RENDERER, CONFIG, ["a"], 40)


def test_a_shorter_context_leaves_the_last_words_of_a_prompt(monkeypatch):
    seen = []
    monkeypatch.setattr(next_word, "write_patches", lambda model, prompts, config: seen.extend(prompts) or prompts)
    long = " ".join(f"word{number}" for number in range(12))
    write_words(pixar(), RENDERER, [long], WriteConfig(max_patches=3), WordReader(RENDER), 12)
    [kept] = fitting_prompts(RENDERER, next_word.shortened(CONFIG, 12), [long], 3).contexts
    assert 0 < len(seen[0]) <= 9
    assert long.endswith(kept) and kept != long


def test_words_are_written_and_scored(monkeypatch):
    speaks(monkeypatch, ["Mary", "fxo", "outside"])
    written = write_words(pixar(), RENDERER, [item.context for item in ITEMS], WriteConfig(), WordReader(RENDER))
    assert written == ["Mary", "fxo", "outside"]
    score = score_words(written, [item.word for item in ITEMS], {"mary", "outside"})
    assert (score.count, score.right, score.legible) == (3, 2 / 3, 2 / 3)
    assert (score.right_low, score.right_high) == wilson(2, 3)
    assert score_words(["", ""], ["a", "b"]).legible is None


def test_what_is_written_does_not_depend_on_the_model_being_asked_in_parts(monkeypatch):
    config = WriteConfig(decode="sample", seed=3, max_patches=2)
    prompts = fitting_prompts(RENDERER, CONFIG, [item.context for item in ITEMS], 2).patches
    whole = next_word.write_patches(pixar(), prompts, config)
    monkeypatch.setattr(next_word, "_CHUNK", 2)
    for one, other in zip(whole, next_word.write_patches(pixar(), prompts, config), strict=True):
        np.testing.assert_array_equal(one, other)


# ------------------------------------------------------------------ items


def test_cuts_are_the_same_for_a_seed_spread_and_before_words_of_letters():
    texts = [TEXT, "Too short.", TEXT.replace("fox", "dog")]
    items = cut_words(texts, 40, 1, 5, 30)
    assert items == cut_words(texts, 40, 1, 5, 30) != cut_words(texts, 40, 2, 5, 30)
    assert items[:7] == cut_words(texts, 7, 1, 5, 30)
    assert sum("fox" in item.context for item in items) == pytest.approx(20, abs=4)
    for item in items:
        assert 5 <= len(item.context.split()) <= 30
        assert item.word.isalpha()
        assert item.context.startswith("The ")  # where a sentence begins
        assert f"{item.context} {item.word}" in TEXT or f"{item.context} {item.word}" in TEXT.replace("fox", "dog")
    with pytest.raises(UserError, match="no text has more than 50 words"):
        cut_words(["Too short."], 1, 0, 50, 120)


def test_both_forms_of_lambada_are_read_under_their_own_names(tmp_path: Path):
    records, lines = tmp_path / "a.jsonl", tmp_path / "b.txt"
    records.write_text('{"context": "He said:\\n\\n\\"No", "continuation": "way"}\n')
    lines.write_text("`` do n't , '' he said , `` it 's what we 're for '' . tom saw ( the ) fox\n\n")
    assert lambada.read_items(records) == ("lambada-openai", [WordItem('He said: "No', "way")])
    variant, [item] = lambada.read_items(lines)
    assert variant == "lambada"
    assert item == WordItem('" don\'t, " he said, " it\'s what we\'re for ". tom saw( the)', "fox")
    assert lambada.read_items(lines, "lambada-openai")[1][0].context.startswith("`` do n't ,")


@pytest.mark.slow
def test_the_baselines_of_lambada_on_the_whole_test_set(shared: Path):
    variant, items = lambada.read_items(shared / "data/lambada/lambada_openai.jsonl")
    assert (variant, len(items)) == ("lambada-openai", 5153)
    shares = {name: share.share for name, share in lambada.baselines(items).items()}
    assert shares["most frequent content word"] == pytest.approx(0.0999, abs=5e-4)
    assert shares["last name of the passage"] == pytest.approx(0.1358, abs=5e-4)


def test_baselines_on_items_made_by_hand():
    shares = {name: share.hits for name, share in lambada.baselines(ITEMS).items()}
    assert shares["most frequent content word"] == 1  # fox
    assert shares["last name of the passage"] == 1  # Mary
    assert shares["last content word"] == 0


def test_a_story_asks_its_last_question_behind_the_separator():
    [one] = generated(1, seed=5)
    assert one.item.context.endswith("? |")
    assert one.item.context.count("|") == 5
    assert one.lines[-1][1] == one.item.word
    assert generated(3, seed=5)[0] == one != generated(1, seed=6)[0]
    assert "?" not in one.statements and "|" not in one.statements


def test_baselines_of_stories():
    told = Story((("Mary went to the office.", None), ("Tom went to the garden.", None), ("Where is Tom?", "garden")))
    other = Story((("Mary went to the office.", None), ("Tom went to the garden.", None), ("Where is Mary?", "office")))
    shares = babi.baselines([told, other])
    assert shares["the one that was mentioned last"].hits == 1
    assert shares["always 'garden'"].hits == 1
    many = babi.baselines(generated(1500, 0))
    assert many["one of 6 answers at random"].low < 1 / 6 < many["one of 6 answers at random"].high
    assert many["the one that was mentioned last"].share == pytest.approx(0.48, abs=0.04)


def test_published_stories_end_with_their_last_question(tmp_path: Path):
    file = tmp_path / "qa1.txt"
    file.write_text(
        "1 Mary went home.\n2 Where is Mary? \thome\t1\n3 She left.\n1 Tom ate.\n2 Who ate?\tTom\t1\n3 Who?\tTom\t1\n"
    )
    assert [one.item for one in read_stories(file)] == [
        WordItem("Mary went home. Where is Mary? |", "home"),
        WordItem("Tom ate. Who ate? | Tom Who? |", "Tom"),
    ]
    file.write_text("1 Which way?\ts,w\t1\n")
    with pytest.raises(UserError, match="line 1: the answer 's,w' is not one word"):
        read_stories(file)
    file.write_text("1 Mary went home.\nMary left.\n")
    with pytest.raises(UserError, match="line 2: is no line of a story"):
        read_stories(file)


def test_word_lists_with_and_without_counts(tmp_path: Path):
    file = tmp_path / "words.txt"
    file.write_text("The 20\nfox 3\nFox 1\n")
    words = read_word_list(file)
    assert dict(words.counts) == {"the": 20, "fox": 4}
    assert str(words).startswith("words.txt, 2 words, SHA-256 ")
    file.write_text("The\n\nfox\n")
    assert not read_word_list(file).has_counts
    file.write_text("one two three\n")
    with pytest.raises(UserError, match="line 1: give one word in each line"):
        read_word_list(file)


def test_readability_counts_words_of_the_list_and_what_is_no_text(monkeypatch, tmp_path: Path):
    file = tmp_path / "words.txt"
    file.write_text("mary\nfox\nsaid\n")
    speaks(monkeypatch, ["Mary", "said", "fxo"])
    readers = readers_of(["own"], RENDER)
    words = read_word_list(file)
    found = readability.readability(pixar(), RENDERER, ITEMS, words, WriteConfig(), readers)
    assert (found.readable.hits, found.truth.hits, found.answers.by_reader["own"].hits) == (2, 2, 1)
    assert found.not_text.keys() == {"noise", "half noise", "columns shuffled", "random letters"}
    assert all(share.count == 3 for share in found.not_text.values())
    assert "words.txt, 3 words" in readability.as_text(found)


# ------------------------------------------------------------------ intervals


def test_wilson_has_known_values():
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    assert wilson(10, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)
    assert share_of([True, False]).share == 0.5


# ------------------------------------------------------------------ the commands


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", stored(bernoulli()))


def test_lambada_prints_ranks_and_shows_strips(command, run: Path, tmp_path: Path):
    data, words, strips = tmp_path / "l.jsonl", tmp_path / "words.txt", tmp_path / "w.png"
    data.write_text("".join(json.dumps({"context": i.context, "continuation": i.word}) + "\n" for i in ITEMS))
    words.write_text("mary 3\nfox 2\n")
    call = ["evaluate", "lambada", "--model", run, "--data", data, "--words", words, "--rank", "--patches", 2]
    status, out, _ = command(*call, "--strips", strips)
    assert status == 0
    assert out.startswith("test set                              lambada-openai, 3 items, 0 not of letters alone\n")
    assert "most frequent in the word list" in out and "of words.txt, 2 words" in out
    with Image.open(strips) as shown:
        assert shown.height > 3 * RENDER.height
    status, out, _ = command(*call, "--json", "--decode", "sample", "--seed", 1)
    report = json.loads(out)
    assert status == 0
    assert report["targets"] == ["Mary", "fox", "outside"]
    assert len(report["words"]["own"]) == 3
    assert report["ranking"]["present"]["hits"] == 2
    assert report["settings"]["decode"] == "sample"


def test_babi_and_readability_print_their_figures(command, run: Path, tmp_path: Path):
    status, out, _ = command("evaluate", "babi", "--model", run, "--count", 3, "--patches", 1)
    assert status == 0
    assert "task 1 from our generator, 3" in out and "prompts cut                           3 of 3" in out
    data, words = tmp_path / "text.txt", tmp_path / "words.txt"
    data.write_text(TEXT)
    words.write_text("fox\n")
    status, out, _ = command(
        "evaluate", "readability", "--model", run, "--data", data, "--words", words, "--count", 3, "--json"
    )
    report = json.loads(out)
    assert status == 0
    assert (report["count"], report["word_list"]["size"], report["not_text"]["noise"]["count"]) == (3, 1, 3)


def test_mistakes_are_one_line(refused, run: Path, tmp_path: Path):
    data = tmp_path / "l.jsonl"
    data.write_text('{"text": "no such key"}\n')
    call = ["evaluate", "lambada", "--model", run, "--data"]
    assert 'line 1: needs texts in "context" and "continuation"' in refused(*call, data)
    assert "cannot be read (No such file or directory)" in refused(*call, tmp_path / "absent.jsonl")
    data.write_text("\n")
    assert "is empty: give" in refused(*call, data)
    data.write_text("word\n")
    assert "line 1: a passage needs at least two words" in refused(*call, data)
    data.write_text("two words\n")
    assert "--variant openai: unknown; choose lambada-openai, lambada" in refused(*call, data, "--variant", "openai")
    assert "--count 0: must be at least 1" in refused(*call, data, "--count", 0)
    assert "--patches 0: must be at least 1" in refused(*call, data, "--patches", 0)
    assert "name end in .png" in refused(*call, data, "--strips", tmp_path / "w.jpg")
    assert "decode = mixture is for a mixture head" in refused(*call, data, "--decode", "mixture")
    assert "--reader ocr: unknown; choose own" in refused(*call, data, "--reader", "ocr")
    assert "--reader own: is given twice" in refused(*call, data, "--reader", "own", "--reader", "own")
    assert "--words" in refused(*call, data, "--words", tmp_path / "absent.txt")
