"""Answers from a context: units and text, windows, the best pair, no answer, and figures that are SQuAD's."""

import random
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import babi_files
from infer.task_rows import Strips, TaskRows
from pixelcore.errors import UserError
from pixelcore.ops import IGNORED
from pixelcore.tasks import answer
from pixelcore.tasks.answer import AnswerOptions, AnswerPrediction, Candidate
from pixelcore.tasks.answer_figures import exact_match_and_f1, last_word_of_the_likest_sentence, normal
from pixelcore.tasks.answer_spans import Places, trimmed, words_of
from pixelcore.tasks.examples import QuestionExample
from pixelcore.tasks.labels import Labels
from pixelcore.tasks.squad import NOWHERE
from pixelcore.tasks.task import Layout, score
from render import RenderConfig, Renderer
from tests.tasks.tiny_tasks import TINY
from tests.train.conftest import lines, marks, overrides
from train.cli import main

PLAIN = AnswerOptions()
KNOWN = Labels(("start", "end"))
LAYOUTS: dict[str, dict[str, Any]] = {
    "default": {},
    "continuous": {"layout": "continuous", "pad": 2},
    "as published": {"layout": "continuous", "pad": 2, "baseline": "line", "overflow": "clip"},
    "bigrams as published": {"layout": "bigrams", "unit": "code-point", "word_gap": "none", "overflow": "clip"},
}
CONTEXT = (
    "The ferry left Bergen at 8.30 with (about) 308 passengers; the captain, Anna Lie, had slept well. It met no ice, "
    "and 12% of the crew saw the \u201cgreen ray\u201d of Tromsø. "
)

# "The ferry left the harbour with thirty passengers"
HEBREW = (
    "\u05d4\u05de\u05e2\u05d1\u05d5\u05e8\u05ea \u05d9\u05e6\u05d0\u05d4 "
    "\u05de\u05e0\u05de\u05dc \u05d7\u05d9\u05e4\u05d4 "
    "\u05e2\u05dd \u05e9\u05dc\u05d5\u05e9\u05d9\u05dd "
    "\u05e0\u05d5\u05e1\u05e2\u05d9\u05dd"
)
ARABIC = (
    "\u0627\u0644\u0639\u0628\u0627\u0631\u0629 \u063a\u0627\u062f\u0631\u062a "
    "\u0645\u064a\u0646\u0627\u0621 \u0627\u0644\u0645\u062f\u064a\u0646\u0629 "
    "\u0645\u0639 \u062b\u0644\u0627\u062b\u064a\u0646 "
    "\u0645\u0633\u0627\u0641\u0631\u0627"
)


def question(text: str, context: str = CONTEXT, **more: Any) -> QuestionExample:
    """An example whose answer is `text`."""
    return QuestionExample(
        id="q", question="Who was it?", context=context, answers=((text, context.index(text)),), **more
    )


def rows_of(example: QuestionExample, options: AnswerOptions = PLAIN, patches: int = 400, **config: Any) -> TaskRows:
    return TaskRows(answer, [example], Strips(Renderer(RenderConfig(**config)), patches), KNOWN, options)


def places_of(rows: TaskRows, number: int = 0) -> Places:
    """Where the context of a row stands."""
    spans = rows.row(number).layout.char_spans
    assert spans is not None
    return Places(spans, 1)


def said(rows: TaskRows, scores: dict[int, tuple[Any, Any]] | None = None) -> AnswerPrediction:
    """What scores predict that are 0 but for those given: by row (start scores, end scores), each by unit; by default
    those of a perfect model."""
    found = []
    for number in range(len(rows)):
        layout = rows.row(number).layout
        start, end = np.zeros((2, 1, layout.num_units + 1), np.float32)
        if scores is None:
            wanted = rows.targets(number)
            start[0, int(wanted["start_positions"])] = end[0, int(wanted["end_positions"])] = 9
        else:
            for row, given in zip((start, end), scores.get(number, ({}, {}))):
                for unit, value in given.items():
                    row[0, unit] = value
        given = {"start_logits": start, "end_logits": end}
        found += answer.decode(given, [rows.example(number)], [layout], KNOWN, rows.options)
    return answer.join(rows.examples[0], found)


# ------------------------------------------------------------------ characters and units


def test_words_stand_between_spaces_and_punctuation_and_letters_of_unspaced_scripts_alone():
    def cut(text: str) -> list[str]:
        return [text[begin:end] for begin, end in words_of(text)]

    assert cut("A 12% (third-rate) \u201cray\u201d, $5!") == ["A", "12%", "third", "rate", "ray", "$5"]
    assert cut("हिन्दी में।") == ["हिन्दी", "में"]
    assert cut("约翰·埃尔维 24次") == ["约", "翰", "埃", "尔", "维", "24", "次"]
    assert cut("ไม่มี") == ["ไ", "ม่", "มี"]
    assert cut("서울은") == ["서", "울", "은"] and cut(" .,;") == [] and cut("") == []
    assert trimmed(" (Oslo). ", (0, 9)) == (2, 6) and trimmed("...", (0, 3)) == (0, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_phrase_has_units_and_they_mean_its_words(layout: str):
    rows = rows_of(question("ferry"), **LAYOUTS[layout])
    places = places_of(rows, 0)
    words = words_of(CONTEXT)
    same = total = 0
    for first in range(len(words)):
        for last in range(first, min(first + 4, len(words))):
            span = words[first][0], words[last][1]
            units = places.units_of(span)
            assert units is not None and units[0] <= units[1]
            found = places.text_of(units, CONTEXT)
            assert found is not None
            # other words may have the same units, but never others than those that touch them
            assert places.units_of(found) == units
            same += found == span
            total += 1
    assert same / total > (0.85 if layout in ("continuous", "as published") else 0.97)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("text", [HEBREW, ARABIC], ids=["Hebrew", "Arabic"])
def test_text_from_right_to_left_has_its_first_unit_on_the_left(shared: Path, layout: str, text: str):
    names = ("NotoSans-Regular.ttf", "NotoSansHebrew-Regular.ttf", "NotoSansArabic-Regular.ttf")
    fonts = tuple(str(shared / "fonts" / "noto" / name) for name in names)
    words = [(match.start(), match.end()) for match in re.finditer(r"\S+", text)]
    renderer = Renderer(RenderConfig(**LAYOUTS[layout], fonts=fonts))
    same = total = 0
    for first in range(len(words)):
        for last in range(first, len(words)):
            span = words[first][0], words[last][1]
            example = question(text[slice(*span)], text)
            rows = TaskRows(answer, [example], Strips(renderer, 400), KNOWN, PLAIN)
            wanted = rows.targets(0)
            spans = rows.row(0).layout.char_spans
            assert spans is not None
            start, end = int(wanted["start_positions"]), int(wanted["end_positions"])
            assert start <= end and spans[start, 2] > span[1] - 3 and spans[end, 1] < span[0] + 3
            same += said(rows).text == text[slice(*span)]
            total += 1
    assert same / total >= 0.9


def test_gold_units_mean_the_answer_in_nearly_all_of_xquad(shared: Path):
    # of all 1,190 questions: docs/finetuning.md
    fonts = [shared / "fonts" / "noto" / name for name in ("NotoSans-Regular.ttf", "NotoSansDevanagari-Regular.ttf")]
    fonts.append(Path(f"{shared / 'fonts' / 'noto' / 'NotoSansCJK-Regular.ttc'}#2"))
    renderer = Renderer(RenderConfig.named("pixel", fonts=list(map(str, fonts))))
    for language, least in (("en", 0.97), ("hi", 0.94), ("zh", 0.85)):
        examples = answer.read(shared / "data" / "xquad" / f"xquad.{language}.json", PLAIN)[::24]
        rows = TaskRows(answer, examples, Strips(renderer, 400), KNOWN, PLAIN)
        found: list[list[AnswerPrediction]] = [[] for _ in examples]
        for number, (example, _) in enumerate(rows.places):
            none = np.zeros((1, rows.row(number).layout.num_units + 1), np.float32)
            one = AnswerOptions(n_best=1)
            given = {"start_logits": none, "end_logits": none}
            found[example] += answer.decode(given, [examples[example]], [rows.row(number).layout], KNOWN, one)
        predictions = [answer.join(example, row) for example, row in zip(examples, found, strict=True)]
        assert score(answer, examples, predictions, PLAIN)["ceiling"] >= least, language


# ------------------------------------------------------------------ targets


def test_targets_are_the_units_of_the_answer_and_cls_stands_behind_the_padding():
    rows = rows_of(question("308 passengers"))
    wanted = rows.targets(0)
    spans = rows.row(0).layout.char_spans
    assert spans is not None and answer.num_targets(wanted) == 2
    start, end = int(wanted["start_positions"]), int(wanted["end_positions"])
    begin = CONTEXT.index("308")
    assert spans[start, 1] <= begin < spans[start, 2] and spans[end, 1] < begin + 14 <= spans[end, 2]
    impossible = QuestionExample(id="q", question="Who?", context=CONTEXT, is_impossible=True)
    nowhere = QuestionExample(id="q", question="Who?", context=CONTEXT, answers=(("Paris", NOWHERE),))
    unlabelled = QuestionExample(id="q", question="Who?", context=CONTEXT)
    found = [wanted, *(rows_of(example).targets(0) for example in (impossible, nowhere, unlabelled))]
    batch = answer.collate(found, 500)
    assert batch["start_positions"].tolist() == [start, 500, IGNORED, IGNORED]
    assert batch["end_positions"].tolist() == [end, 500, IGNORED, IGNORED]
    assert list(map(answer.num_targets, found)) == [2, 2, 0, 0]


def test_the_first_answer_that_can_be_learned_is():
    example = QuestionExample(id="q", question="Who?", context=CONTEXT, answers=(("Paris", NOWHERE), ("ferry", 4)))
    assert answer.num_targets(rows_of(example).targets(0)) == 2


def test_answers_that_cannot_be_learned_are_said_and_if_none_can_it_is_an_error(caplog: pytest.LogCaptureFixture):
    nowhere = QuestionExample(id="q7", question="Who?", context=CONTEXT, answers=(("Paris", NOWHERE),))
    assert answer.inventory([question("ferry"), nowhere], PLAIN) == KNOWN
    assert "1 of 2 questions (50.00 %)" in caplog.text
    with pytest.raises(UserError, match="none of the 1 questions"):
        answer.inventory([nowhere], PLAIN)
    with pytest.raises(UserError, match="question q8: has no answer to train on"):
        answer.inventory([QuestionExample(id="q8", question="Who?", context=CONTEXT)], PLAIN)


# ------------------------------------------------------------------ windows


@pytest.mark.parametrize("layout", LAYOUTS)
def test_windows_repeat_the_question_and_one_of_them_shows_every_answer(layout: str):
    options = AnswerOptions(stride=16, question_max=24)
    words = words_of(CONTEXT * 3)
    rows = rows_of(question("ferry", CONTEXT * 3), options, 64, **LAYOUTS[layout])
    assert len(rows) > 2 and rows.shares()["truncated"] == 0
    firsts = []
    for number in range(len(rows)):
        spans = rows.row(number).layout.char_spans
        assert spans is not None and len(spans) <= 64
        firsts.append(spans[spans[:, 0] == 0].tolist())
    assert all(one == firsts[0] for one in firsts)
    places = [places_of(rows, number) for number in range(len(rows))]
    for word in words:
        assert any(place.units_of(word) for place in places), (CONTEXT * 3)[slice(*word)]
    shown = [int(rows.targets(number)["start_positions"]) >= 0 for number in range(len(rows))]
    assert shown[0] and not shown[-1]
    assert said(rows).text == "ferry" == said(rows).read_back


def test_a_long_question_is_cut_so_that_the_context_has_room_and_it_is_counted():
    options = AnswerOptions(stride=8, question_max=12)
    example = QuestionExample(id="q", question="Who " * 99, context=CONTEXT, answers=(("ferry", 4),))
    rows = rows_of(example, options, 40)
    spans = rows.row(0).layout.char_spans
    assert spans is not None and 8 <= (spans[:, 0] == 0).sum() <= 12
    assert (spans[:, 0] == 1).sum() > 20 and rows.shares()["truncated"] == 1.0
    with pytest.raises(UserError, match="example q: cannot be drawn: stride = 60 patches are as many as"):
        rows_of(example, AnswerOptions(stride=60, question_max=12), 40)


def test_the_best_window_answers_and_the_one_that_denies_least_decides_whether():
    options = AnswerOptions(stride=8, question_max=24, no_answer=True, no_answer_threshold=1.0)
    example = question("ferry", CONTEXT * 2)
    rows = rows_of(example, options, 60, layout="words")
    cls = [rows.row(number).layout.num_units for number in range(2)]
    one, other = (next(iter(places_of(rows, number).spans)) + 5 for number in range(2))

    def scores(first_denied: float, second_denied: float) -> dict[int, tuple[Any, Any]]:
        rest = {number: ({rows.row(number).layout.num_units: 50.0}, {}) for number in range(2, len(rows))}
        return rest | {
            0: ({one: 2.0, cls[0]: first_denied}, {one: 2.0}),
            1: ({other: 3.0, cls[1]: second_denied}, {other: 3.0}),
        }

    found = said(rows, scores(8.0, 6.0))
    assert found.no_answer == 5.0 and found.candidates[0].score == 6.0 and found.text == found.candidates[0].text
    assert found.text and len(found.candidates) == options.n_best
    assert said(rows, scores(8.0, 7.5)).text == ""
    ignoring = TaskRows(answer, [example], rows.inputs, KNOWN, AnswerOptions(stride=8, question_max=24))
    denied = said(ignoring, scores(8.0, 7.5))
    assert denied.no_answer is None and denied.text == found.text


# ------------------------------------------------------------------ decoding


def test_only_units_of_the_context_answer_in_order_and_not_too_many():
    options = AnswerOptions(max_answer=4)
    rows = rows_of(question("ferry"), options)
    layout = rows.row(0).layout
    places = places_of(rows)
    units = list(places.spans)
    last = layout.num_units - 1
    assert layout.char_spans is not None and last not in units and layout.char_spans[last, 0] == -1
    nothing = said(rows, {0: ({0: 99.0, last: 99.0}, {1: 99.0, last: 99.0})})  # the question, the end patch
    assert all(candidate.score < 9 for candidate in nothing.candidates)
    backwards = said(rows, {0: ({units[9]: 5.0}, {units[3]: 5.0})})
    assert backwards.candidates[0].score == 5.0
    too_long = said(rows, {0: ({units[3]: 5.0}, {units[9]: 4.0})})
    assert too_long.candidates[0].score == 5.0
    allowed = said(rows, {0: ({units[3]: 5.0}, {units[6]: 4.0})})
    assert allowed.candidates[0].score == 9.0
    assert len({(one.begin, one.text) for one in allowed.candidates}) == len(allowed.candidates) <= 20
    assert [one.score for one in allowed.candidates] == sorted((one.score for one in allowed.candidates), reverse=True)


def test_the_best_pairs_are_those_of_trying_them_all():
    rows = rows_of(question("ferry"))
    layout = rows.row(0).layout
    places = places_of(rows)
    generator = np.random.default_rng(3)
    for _ in range(5):
        start, end = generator.normal(size=(2, 1, layout.num_units + 1)).astype(np.float32)
        given = {"start_logits": start, "end_logits": end}
        (found,) = answer.decode(given, rows.examples, [layout], KNOWN, PLAIN)
        pairs = [
            (float(start[0, i]) + float(end[0, j]), places.text_of((i, j), CONTEXT))
            for i in places.spans
            for j in places.spans
            if 0 <= j - i < 30
        ]
        best, span = max((pair for pair in pairs if pair[1]), key=lambda pair: pair[0])
        assert found.candidates[0].score == pytest.approx(best)
        assert span is not None and found.text == CONTEXT[slice(*span)]


def test_a_window_without_words_predicts_nothing():
    layout = Layout(4, char_spans=np.array([[0, 0, 2], [-1] * 3, [1, 0, 1], [-1] * 3], np.int32))
    example = QuestionExample(id="q", question="Hm", context="-")
    none = np.zeros((1, 5), np.float32)
    (found,) = answer.decode({"start_logits": none, "end_logits": none}, [example], [layout], KNOWN, PLAIN)
    assert found.candidates == () and answer.join(example, [found]).text == ""
    empty = Layout(2, char_spans=np.full((2, 3), -1, np.int32))
    (found,) = answer.decode({"start_logits": none, "end_logits": none}, [example], [empty], KNOWN, PLAIN)
    assert found.text == ""


def test_a_record_holds_what_came_close():
    example = question("ferry")
    found = said(rows_of(example))
    written = answer.record(example, found)
    assert written["predicted"] == "ferry" and written["answers"] == ["ferry"] and "no_answer_score" not in written
    assert written["n_best"][0] == {"text": "ferry", "begin": 4, "score": 18.0}
    assert answer.lines(example, AnswerPrediction(candidates=(Candidate(text="a\n b", begin=0, score=1),)), PLAIN) == [
        "a b"
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [("stride", -1), ("question_max", 0), ("n_best", 0), ("max_answer", 0), ("no_answer_threshold", 1.0), ("f1", "x")],
)
def test_options_that_make_no_sense_are_refused(field: str, value: Any):
    with pytest.raises(ValueError, match=field):
        AnswerOptions(**{field: value})


# ------------------------------------------------------------------ figures


def slow_normal(text: str) -> list[str]:
    """The words of an answer by the definition, letter by letter: lower case, no punctuation, no articles."""
    kept = ""
    for character in text:
        for lower in character.lower():
            if lower not in string.punctuation:
                kept += lower
    words, word = [], ""
    for character in kept + " ":
        if character.isspace():
            words += [word] if word else []
            word = ""
        else:
            word += character
    return [word for word in words if word not in ("a", "an", "the")]


def slow_f1(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    left = list(right)
    common = 0
    for word in said:
        if word in left:
            left.remove(word)
            common += 1
    if common == 0:
        return 0.0
    precision, recall = common / len(said), common / len(right)
    return 2 * precision * recall / (precision + recall)


def test_figures_are_those_of_the_definition():
    generator = random.Random(5)
    pieces = ["The", "a", "an", "Oslo", "oslo,", "(Bergen)", "12%", "the", "A.", "ray", "ray", "--", "then", "\n", "Ä"]
    for _ in range(3000):
        texts = [" ".join(generator.choices(pieces, k=generator.randrange(6))) for _ in range(4)]
        said, gold = texts[0], texts[1 : generator.randint(1, 4)]
        right = [words for words in map(slow_normal, gold) if words] or [[]]
        expected = float(slow_normal(said) in right), max(slow_f1(slow_normal(said), words) for words in right)
        assert exact_match_and_f1(said, gold, "words") == pytest.approx(expected), (said, gold)


@pytest.mark.parametrize(
    ("said", "gold", "units", "exact", "f1"),
    [
        ("the Broncos", ["Denver Broncos", "Broncos"], "words", 1, 1),
        ("Carolina Panthers team", ["Carolina Panthers"], "words", 0, 0.8),
        ("to to to", ["to be"], "words", 0, 0.4),
        ("a.m.", ["am"], "words", 1, 1),
        ("24–10", ["2410"], "words", 0, 0),  # a dash that ASCII has not
        ("", [], "words", 1, 1),
        ("Oslo", [], "words", 0, 0),
        ("", ["Oslo"], "words", 0, 0),
        ("", ["the"], "words", 1, 1),  # nothing is left of the gold answer: as the program of SQuAD 2
        ("북한산 국립공원", ["북한산국립공원"], "characters", 0, 1),
        ("《서울》", ["서울"], "characters", 1, 1),
        ("서울은", ["서울"], "characters", 0, 0.8),
        ("the 서울", ["서울"], "characters", 0, 4 / 7),  # articles are kept
    ],
)
def test_committed_cases(said: str, gold: list[str], units: str, exact: float, f1: float):
    assert exact_match_and_f1(said, gold, units) == pytest.approx((exact, f1))


def test_articles_inside_words_stay():
    assert normal("Theatre an-d A a.", "words") == "theatre and"


def test_figures_of_a_file_and_of_questions_without_an_answer():
    options = AnswerOptions(no_answer=True)
    impossible = QuestionExample(id="n", question="?", context=CONTEXT, is_impossible=True)
    examples = [question("Anna Lie"), question("ferry"), impossible, impossible]
    texts = [("Anna", "Anna Lie"), ("the ferry", None), ("", None), ("ice", None)]
    predictions = [
        AnswerPrediction(candidates=(Candidate(text=text, begin=0, score=0),), read_back=read_back)
        for text, read_back in texts
    ]
    found = score(answer, examples, predictions, options)
    assert found == pytest.approx(
        {"exact_match": 0.5, "f1": (2 / 3 + 1 + 1) / 4, "ceiling": 0.75, "no_answer_accuracy": 0.5}
    )
    assert set(score(answer, [], [], PLAIN)) == {"exact_match", "f1", "ceiling"}
    assert answer.select(PLAIN) in found
    with pytest.raises(UserError, match="question x: has no answer to compare with"):
        answer.counts([QuestionExample(id="x", question="?", context="a")], predictions[:1], PLAIN)


def test_baselines_take_no_reading(shared: Path):
    example = QuestionExample(
        id="q", question="Where is Mary?", context="Mary went to the hallway. John went to the garden. Mary left."
    )
    assert last_word_of_the_likest_sentence(example) == "left"
    folder = shared / "data" / "babi" / "en"
    train, test = (answer.read(folder / f"qa1_single-supporting-fact_{role}.txt", PLAIN) for role in ("train", "test"))
    found = answer.baselines(train, test, PLAIN)
    assert found["most frequent answer"] == {"exact_match": 0.187, "f1": 0.187}
    assert found["last word of the sentence most like the question"]["f1"] == 1.0  # which is all that qa1 asks for
    denied = answer.baselines(train, test, AnswerOptions(no_answer=True))["no answer"]
    assert denied["f1"] == 0


# ------------------------------------------------------------------ a run


def test_sixteen_questions_are_learned_by_heart(tmp_path: Path):
    stories = babi_files.different(0, questions=1)
    for role, count in (("train", 16), ("dev", 4)):
        told = [line for _ in range(count) for line in next(stories)]
        (tmp_path / f"{role}.txt").write_text("\n".join(told), encoding="utf-8")
    fields = TINY | {"model.num_patches": 64, "data.max_patches": 64, "eval.patience": 0, "eval.every": 70}
    fields |= {"objective.stride": 16, "objective.question_max": 20}
    flags = ["--preset", "pixel-tiny-babi", "--data", str(tmp_path), "--device", "cpu", *overrides(fields)]
    learned = str(tmp_path / "train.txt")
    assert main([*flags, "--valid", learned, "--out", str(tmp_path / "run"), "--steps", "140"]) == 0
    found = marks(tmp_path / "run")
    assert found["valid_exact_match"] > 0.9 and found["valid_ceiling"] == 1.0
    losses = [row["loss"] for row in lines(tmp_path / "run") if "loss" in row]
    assert losses[-1] < 0.2 * losses[0]
