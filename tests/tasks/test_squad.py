"""Files of questions: SQuAD's form and bAbI's, answers that stand elsewhere or nowhere, and what is no such file."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from benchmarks import babi_files
from pixelcore.errors import UserError
from pixelcore.tasks import answer
from pixelcore.tasks.answer import AnswerOptions
from pixelcore.tasks.babi_questions import read_questions
from pixelcore.tasks.examples import QuestionExample
from pixelcore.tasks.squad import NOWHERE, place_of, read_squad

CONTEXT = "Rain fell on Oslo. Rain fell on Bergen in May."

BABI = """\
1 Mary moved to the bathroom.
2 John went to the hallway with Mary Ann.
3 Where is Mary? \tbathroom\t1
4 Mary went back to the hallway.
5 Where is Mary? \thallway\t2 4
6 Is Mary in the hallway? \tyes\t4
7 Who is in the bathroom?\tmary\t1
1 Sandra got the hall pass.
3 What has Sandra?\tpass
"""


def squad(path: Path, *questions: dict[str, Any], context: str = CONTEXT) -> Path:
    """A file with one paragraph."""
    content = {"version": "1.1", "data": [{"title": "x", "paragraphs": [{"context": context, "qas": list(questions)}]}]}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def asked(*answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    listed = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": "q1", "question": "Where did rain fall?", "answers": listed, **more}


# ------------------------------------------------------------------ SQuAD


def test_questions_answers_and_their_places_are_read(tmp_path: Path):
    path = squad(tmp_path / "a.json", asked(("Oslo", 13), ("Bergen", 32)), {"question": "When?", "id": 7})
    first, second = read_squad(path)
    assert first == QuestionExample(
        id="q1", question="Where did rain fall?", context=CONTEXT, answers=(("Oslo", 13), ("Bergen", 32))
    )
    assert second.id == "7" and second.answers == () and not second.is_impossible
    packed = tmp_path / "b.json.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + path.read_bytes()))
    assert answer.read(packed, AnswerOptions()) == [first, second]


def test_the_other_key_of_an_answer_and_spaces_around_it_are_read(tmp_path: Path):
    given = {"question": "?", "answers": [{"answer_text": " Oslo ", "answer_start": 12}]}
    (example,) = read_squad(squad(tmp_path / "a.json", given))
    assert example.answers == (("Oslo", 13),)
    assert example.id.endswith("a.json: data[0].paragraphs[0].qas[0]")


def test_answers_that_stand_elsewhere_are_moved_and_those_that_stand_nowhere_are_kept_and_both_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = squad(tmp_path / "a.json", asked(("Rain", 17), ("Oslo", 13), ("Bergen", 999), ("Paris", 0)))
    with caplog.at_level(logging.INFO, logger="pixelcore"):
        (example,) = read_squad(path)
    assert example.answers == (("Rain", 19), ("Oslo", 13), ("Bergen", 32), ("Paris", NOWHERE))
    assert "of 4 answers 50.00 % stood elsewhere in the context and were moved, 25.00 % do not stand" in caplog.text
    assert place_of("a", "banana", 4) == 3 and place_of("", "banana", 0) == NOWHERE
    assert place_of("b", "banana", -3) == 0


def test_impossible_questions_need_the_option_that_says_so(tmp_path: Path):
    plausible = [{"text": "Oslo", "answer_start": 13}]
    path = squad(tmp_path / "a.json", asked(is_impossible=True, plausible_answers=plausible), asked(("Oslo", 13)))
    with pytest.raises(UserError, match="objective.no_answer = false: --set objective.no_answer=true"):
        answer.read(path, AnswerOptions())
    examples = answer.read(path, AnswerOptions(no_answer=True))
    assert [example.is_impossible for example in examples] == [True, False] and examples[0].answers == ()
    # an empty list alone says nothing, unless there are such questions
    bare = squad(tmp_path / "b.json", asked())
    assert not answer.read(bare, AnswerOptions())[0].is_impossible
    assert answer.read(bare, AnswerOptions(no_answer=True))[0].is_impossible


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "a.json:1: no JSON"),
        ('{"data": [\n{"paragraphs": [}]}', "a.json:2: no JSON"),
        ("[]", "a.json: a list; a file in SQuAD's format is an object"),
        ('{"rows": []}', "a.json: no list 'data' in it, only 'rows'"),
        ('{"data": []}', "a.json: no question in it"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', "a.json: data[0].paragraphs[0]: no text 'context' in it, only"),
        ('{"data": [{"paragraphs": [{"context": " ", "qas": []}]}]}', "paragraphs[0]: an empty context"),
        ('{"data": [{"paragraphs": [{"context": "a", "qas": [3]}]}]}', "qas[0]: no text 'question' in it, only a numb"),
        ('{"data": [{"paragraphs": [{"context": "a"}]}]}', "paragraphs[0]: no list 'qas' in it, only 'context'"),
    ],
)
def test_what_is_no_such_file_is_told_with_its_place(tmp_path: Path, content: str, expected: str):
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_squad(path)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ({"question": "?", "answers": {"text": ["a"]}}, "qas[0]: no list 'answers' in it"),
        ({"question": "?", "answers": [{"answer_start": 0}]}, "answers[0]: no text 'text' in it, only 'answer_start'"),
        ({"question": "?", "answers": [{"text": "a", "answer_start": "0"}]}, "answers[0]: answer_start = '0' must be"),
        ({"question": "?", "answers": [], "is_impossible": 1}, "qas[0]: is_impossible = 1 must be true or false"),
    ],
)
def test_what_is_no_such_question_is_told_with_its_place(tmp_path: Path, question: dict[str, Any], expected: str):
    with pytest.raises(UserError) as caught:
        read_squad(squad(tmp_path / "a.json", question))
    assert expected in str(caught.value)


def test_every_answer_of_xquad_is_where_it_is_said_to_be(shared: Path):
    for language in ("en", "hi", "zh"):
        examples = answer.read(shared / "data" / "xquad" / f"xquad.{language}.json", AnswerOptions())
        assert len(examples) == 1190
        for example in examples:
            ((text, start),) = example.answers
            assert example.context.startswith(text, start)


def test_splits_are_found(tmp_path: Path):
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (tmp_path / name).touch()
    assert sorted(answer.find_splits(tmp_path, AnswerOptions())) == ["train", "valid"]


# ------------------------------------------------------------------ bAbI


def test_stories_become_contexts_and_answers_stand_in_the_last_fact(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "qa.txt"
    path.write_text(BABI, encoding="utf-8")
    with caplog.at_level(logging.INFO, logger="pixelcore"):
        found = answer.read(path, AnswerOptions())
    assert "4 questions; 1 others (20.0 %)" in caplog.text
    assert [example.id for example in found] == ["qa.txt:3", "qa.txt:5", "qa.txt:7", "qa.txt:9"]
    assert found[0].question == "Where is Mary?"
    assert found[0].context == "Mary moved to the bathroom. John went to the hallway with Mary Ann."
    assert [example.answers[0] for example in found] == [
        ("bathroom", 18),
        ("hallway", found[1].context.rindex("hallway")),
        ("Mary", 0),
        ("pass", 20),  # as a word, and without a fact anywhere in the story
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 Mary moved.\nwho?\n", "qa.txt:2: 'who?' is no line of a story"),
        ("1 Mary moved.\n1\n", "qa.txt:2: '1' is no line of a story"),
        ("1 Mary moved.\n2 John ran.\n2 Who ran?\tJohn\t2\n", "qa.txt:3: number 2 after 2"),
        ("1 Mary moved.\n2 Who?\tMary\t4\n", "qa.txt:2: statement 4 is not in the story"),
        ("1 Mary moved.\n2 Did she?\tyes\t1\n", "qa.txt: no question that a word of its story answers (1 others)"),
        ("", "qa.txt: no question that a word of its story answers (0 others)"),
    ],
)
def test_what_is_no_story_is_told_with_its_line(tmp_path: Path, text: str, expected: str):
    path = tmp_path / "qa.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_questions(path)
    assert expected in str(caught.value)


def test_published_stories_are_read(shared: Path):
    folder = shared / "data" / "babi" / "en"
    assert len(read_questions(folder / "qa1_single-supporting-fact_train.txt")) == 1000
    assert len(read_questions(folder / "qa8_lists-sets_test.txt")) == 597
    with pytest.raises(UserError, match="1000 others"):
        read_questions(folder / "qa7_counting_test.txt")


def test_written_stories_are_different_and_their_facts_answer(tmp_path: Path):
    assert babi_files.main(["--out", str(tmp_path), "--stories", "30"]) == 0
    splits = answer.find_splits(tmp_path, AnswerOptions())
    read = {role: answer.read(path, AnswerOptions()) for role, path in splits.items()}
    assert {role: len(examples) for role, examples in read.items()} == {"train": 150, "valid": 15, "test": 15}
    contexts = [{example.context for example in examples} for examples in read.values()]
    assert not contexts[0] & contexts[2]
    for example in read["train"]:
        ((text, start),) = example.answers
        name = example.question.removeprefix("Where is ").rstrip("?")
        assert example.context[start:].startswith(text)
        assert name in example.context[:start].split(". ")[-1] and name not in example.context[start:]
