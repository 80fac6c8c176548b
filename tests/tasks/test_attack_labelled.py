"""Attacks on the words of examples and files: what they do, that labels stay, and that nothing depends on order."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infer.task_attacks import ATTACKS, TaskAttack, attack_of, attacked
from pixelcore.errors import UserError
from pixelcore.tasks.conllu import read_sentences
from pixelcore.tasks.examples import QuestionExample, TextExample, WordsExample
from tests.tasks.tiny_tasks import conllu

TEXT = "Her ferry begins to sink; nobody waits, and the clock turns."
ON_WORDS = [name for name in ATTACKS if name != "segmentation"]


@pytest.fixture(scope="module")
def attack():
    strata = attack_of("confusables:1", 0).strata  # its look-alikes are drawn once

    def make(name: str, severity: float = 1.0, seed: int = 0) -> TaskAttack:
        return TaskAttack(name=name, severity=severity, seed=seed, strata=strata)

    return make


def only(attack: TaskAttack, word: str, number: int = 0) -> str:
    return attack.on_words([word], number)[0]


def test_each_attack_does_what_it_is_called(attack):
    assert (
        sorted(only(attack("full-swap"), "ferry")) == sorted("ferry") and only(attack("full-swap"), "ferry") != "ferry"
    )
    inner = only(attack("inner-swap"), "begins")
    assert (inner[0], inner[-1]) == ("b", "s") and sorted(inner) == sorted("begins") and inner != "begins"
    assert only(attack("disemvowel"), "begins") == "bgns" and only(attack("disemvowel"), "to") == "to"
    assert only(attack("disemvowel"), "aeiou") == "aeiou"  # something must be left
    assert only(attack("truncate"), "ferry") == "ferr" and only(attack("truncate"), "the") == "the"
    typo = only(attack("keyboard-typo"), "Q")
    assert typo in ("W", "A")
    intruded = only(attack("intrude"), "don't")
    assert len(intruded) == len("don't") + 2 and len(set(intruded) - set("don't")) <= 1
    assert only(attack("confusables"), "ferry") != "ferry"
    assert attack("segmentation").on_text(TEXT, 0) == TEXT.replace(" ", "")


@pytest.mark.parametrize("name", ON_WORDS)
def test_words_stay_words_and_a_severity_of_nothing_does_nothing(attack, name: str):
    words = [*TEXT.split(), "12", "?", "ferry-boat", "किताब", "家"]
    found = attack(name).on_words(words, 3)
    assert len(found) == len(words) and all(word and not word.isspace() for word in found)
    assert attack(name, 0.0).on_words(words, 3) == tuple(words)
    assert attack(name, 0.0).on_text(TEXT, 3) == TEXT


@pytest.mark.parametrize("name", ON_WORDS)
def test_a_higher_severity_goes_on_where_a_lower_one_stopped(attack, name: str):
    words = TEXT.split() * 5
    low, high = attack(name, 0.2).on_words(words, 0), attack(name, 0.7).on_words(words, 0)
    changed = [sum(a != b for a, b in zip(words, found, strict=True)) for found in (low, high)]
    assert 0 < changed[0] < changed[1] or name == "confusables-unchanged"
    if name not in ("intrude", *(one for one in ATTACKS if one.startswith("confusables"))):
        assert all(one == other for word, one, other in zip(words, low, high, strict=True) if one != word)


def test_of_running_text_a_share_of_the_words_is_changed(attack):
    for severity, count in ((0.2, 2), (0.5, 6)):  # of eleven
        found = attack("full-swap", severity).on_text(TEXT, 0)
        assert sum(a != b for a, b in zip(TEXT.split(), found.split(), strict=True)) == count
    # words that an attack cannot change make room for others
    assert attack("truncate", 0.2).on_text("to a ferry in it", 0) == "to a ferr in it"


def test_what_an_example_becomes_depends_on_seed_and_number_alone(attack):
    examples = [WordsExample(id=str(number), words=tuple(TEXT.split()), labels=("X",) * 11) for number in range(12)]
    one = attack("keyboard-typo", 0.5)
    alone = [attacked(one, example, number) for number, example in enumerate(examples)]
    order = list(range(12))
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(3) as workers:
        found = dict(
            zip(order, workers.map(lambda number: attacked(one, examples[number], number), order), strict=True)
        )
    assert [found[number] for number in range(12)] == alone
    assert len({example.words for example in alone}) == 12 and all(example.labels == ("X",) * 11 for example in alone)
    other = attack("keyboard-typo", 0.5, seed=1)
    assert attacked(other, examples[0], 0) != alone[0]


def test_both_texts_of_a_pair_are_attacked_and_of_a_question_the_context_is_not(attack):
    pair = attacked(attack("full-swap"), TextExample(id="1", text=TEXT, second=TEXT, label="a"), 0)
    assert pair.label == "a" and TEXT not in (pair.text, pair.second) and pair.text != pair.second
    question = QuestionExample(id="1", question=TEXT, context=TEXT, answers=(("ferry", 4),))
    asked = attacked(attack("full-swap"), question, 0)
    assert asked.question != TEXT and (asked.context, asked.answers) == (TEXT, (("ferry", 4),))


@pytest.mark.parametrize(
    "given, message",
    [
        ("full-swap", "not of the form NAME:SEVERITY"),
        ("full-swap:2", "a severity from 0 to 1"),
        ("full-swap:nan", "a severity from 0 to 1"),
        ("fullswap:1", "did you mean full-swap"),
        ("phonetic:0.5", "left out, it needs a table of pronunciations"),
        ("natural-typo:0.5", "left out, it needs a table of people's spelling mistakes"),
    ],
)
def test_what_is_no_attack_is_refused(given: str, message: str):
    with pytest.raises(UserError, match=message):
        attack_of(given, 0)


# ------------------------------------------------------------------ files


def test_an_attacked_treebank_keeps_its_labels_and_trees(command, tiny_treebank: Path, tmp_path: Path):
    data = tiny_treebank / "xx_tiny-ud-test.conllu"
    words = ("attack", "--data", data, "--attack", "confusables-drawn:0.5", "--seed", 3)
    status, _, log = command(*words, "--out", tmp_path / "a.conllu")
    assert status == 0 and "of 48 words changed" in log
    command(*words, "--out", tmp_path / "b.conllu.gz")
    before, after = read_sentences(data), read_sentences(tmp_path / "a.conllu")
    assert [one.lines for one in after] == [one.lines for one in read_sentences(tmp_path / "b.conllu.gz")]
    for gold, hit in zip(before, after, strict=True):
        assert all(gold.column(name) == hit.column(name) for name in ("upos", "head", "deprel"))
    assert [one.column("form") for one in before] != [one.column("form") for one in after]


def test_an_attacked_file_is_what_evaluate_attacks(command, tagger: Path, tiny_treebank: Path, tmp_path: Path):
    data = tiny_treebank / "xx_tiny-ud-test.conllu"
    command("attack", "--data", data, "--attack", "full-swap:0.6", "--seed", 5, "--out", tmp_path / "hit.conllu")
    evaluate = ("evaluate", "tag", "--model", tagger, "--json")
    clean = json.loads(command(*evaluate, "--data", data, "--attack", "full-swap:0.6", "--seed", 5)[1])
    hit = json.loads(command(*evaluate, "--data", tmp_path / "hit.conllu")[1])
    everything = clean["attacks"][0]["strata"][0]
    assert everything["attacked"] == hit["figures"] and everything["clean"] == clean["figures"]
    assert clean["attacks"][0]["loss"] == hit["loss"]


def test_strata_say_what_became_of_the_pixels(command, tagger: Path, tiny_treebank: Path):
    data = tiny_treebank / "xx_tiny-ud-test.conllu"
    attacks = [word for name in ("unchanged", "drawn", "missing") for word in ("--attack", f"confusables-{name}:0.4")]
    found = json.loads(command("evaluate", "tag", "--model", tagger, "--data", data, *attacks, "--json")[1])
    names = []
    for one in found["attacks"]:
        everything, *strata = one["strata"]
        names.append({stratum["name"] for stratum in strata})
        assert sum(stratum["examples"] for stratum in strata) == everything["examples"] == 12
        for stratum in strata:
            if stratum["name"] == "pixels unchanged":
                assert stratum["clean"] == stratum["attacked"]
    assert names[0] == {"pixels unchanged"} and "drawn, different" in names[1] and "not drawable" in names[2]


def test_columns_tables_and_questions_keep_their_form(command, tmp_path: Path):
    def hit(name: str, content: str, *more: object) -> str:
        (tmp_path / name).write_text(content)
        out = tmp_path / f"hit-{name}"
        words = ("attack", "--data", tmp_path / name, "--attack", "truncate:1", "--out", out)
        assert command(*words, *more)[0] == 0
        return out.read_text()

    columns = "-DOCSTART- -X- O\n\nHelsinki NNP B-LOC\nwaits VBZ O\n\nHelsinki NNP B-LOC\n"
    assert hit("a.conll", columns) == columns.replace("Helsinki", "Helsink").replace("waits", "wait")
    numbered = "# sent_id = 1\n1\tHelsinki\tB-LOC\t-\n2\t#a\tO\t-\n\n"
    assert hit("b.iob2", numbered) == numbered.replace("Helsinki", "Helsink")
    assert hit("c.tsv", "text\tlabel\nthe ferry\tyes\n", "--field", "text") == "text\tlabel\nthe ferr\tyes\n"
    assert hit("d.tsv", "yes\tthe ferry\n", "--field", "2") == "yes\tthe ferr\n"
    table = 'text,label\n"the ferry, and\nthe clock",yes\n'
    assert hit("e.csv", table, "--field", "text") == table.replace("ferry", "ferr").replace("clock", "cloc")
    records = '{"premise": "the ferry", "label": 1}\n'
    assert hit("f.jsonl", records, "--field", "premise") == records.replace("ferry", "ferr")
    squad = {"data": [{"paragraphs": [{"context": "ferry", "qas": [{"id": "1", "question": "which ferry?"}]}]}]}
    assert json.loads(hit("g.json", json.dumps(squad)))["data"][0]["paragraphs"][0] == {
        "context": "ferry",
        "qas": [{"id": "1", "question": "whic ferr?"}],
    }


def test_files_that_cannot_be_attacked_are_refused(refused, tmp_path: Path):
    (tmp_path / "a.conllu").write_text(conllu(range(1)))
    (tmp_path / "a.tsv").write_text("text\tlabel\nferry\tyes\n")
    (tmp_path / "story.txt").write_text("1 Mary moved.\n2 John went to the hallway.\n")
    out = ("--out", tmp_path / "out.conllu")

    def error(name: str, *more: object, attack: str = "truncate:1") -> str:
        return refused("attack", "--data", tmp_path / name, "--attack", attack, *more)

    assert "must end in .conllu like --data" in error("a.conllu", "--out", tmp_path / "out.txt")
    assert "is the file of --data" in error("a.conllu", "--out", tmp_path / "a.conllu")
    assert "each word has a label of its own" in error("a.conllu", *out, attack="segmentation:1")
    assert "--field: names columns of tables" in error("a.conllu", *out, "--field", "text")
    assert "--field: is needed" in error("a.tsv", "--out", tmp_path / "out.tsv")
    assert "--field txt: no such column" in error("a.tsv", "--out", tmp_path / "out.tsv", "--field", "txt")
    assert "story.txt:2: 6 columns" in error("story.txt", "--out", tmp_path / "out.txt")
    assert "--font: tells look-alikes apart" in error("a.conllu", *out, "--font", "x.ttf")
    assert "--font: " in error("a.conllu", *out, "--font", "absent.ttf", attack="confusables-drawn:1")
    assert "--confusables is for" in error("a.conllu", *out, "--confusables", "x.txt")
    assert "a file of a task must end in" in error("a.docx", "--out", tmp_path / "out.docx")
