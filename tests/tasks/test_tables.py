"""Tables of texts: every layout comes down to examples, and what is wrong with a file is said with its line."""

import gzip
import json
import logging
from pathlib import Path

import pytest

from pixelcore.errors import UserError
from pixelcore.tasks import classify
from pixelcore.tasks.classify import ClassifyOptions
from pixelcore.tasks.detokenise import detokenised
from pixelcore.tasks.tables import read_table
from train.config_tasks import TaskDataConfig
from train.data.task_corpus import read_corpus

COLUMNS = ClassifyOptions()


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def read(path: Path, layout: str = "columns", **changes):
    return classify.read(path, ClassifyOptions(layout=layout, **changes))


def triples(examples) -> list[tuple]:
    return [(one.text, one.second, one.label) for one in examples]


# ------------------------------------------------------------------ the forms of known sets


MNLI = "index\tpromptID\tpairID\tgenre\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label"
PAIRS = "index\tsentence1\tsentence2\t"
# the lines of a file, and what its last row comes to
GLUE_FILES = {
    "cola": (["gj04\t1\t\tThey drank.", "bc01\t0\t*\tThey drank the pub."], ("They drank the pub.", None, "0")),
    "sst2": (["sentence\tlabel", 'a "fine" film\t1'], ('a "fine" film', None, "1")),
    "mrpc": (["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", '1\t7\t8\tHe "\tShe'], ('He "', "She", "1")),
    "stsb": ([PAIRS + "score", "0\tA plane.\tA jet.\t4.750"], ("A plane.", "A jet.", 4.75)),
    "qqp": (["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\tWhy?\tHow?\t0"], ("Why?", "How?", "0")),
    "mnli": ([MNLI, "0\t1\t1n\tg\t( a )\tA cat.\tA pet.\tneutral\tentailment"], ("A cat.", "A pet.", "entailment")),
    "qnli": (["index\tquestion\tsentence\tlabel", "0\tWho?\tHe.\tnot_entailment"], ("Who?", "He.", "not_entailment")),
    "rte": ([PAIRS + "label", "0\tIt rains.\tIt is wet.\tentailment"], ("It rains.", "It is wet.", "entailment")),
    "wnli": ([PAIRS + "label", "0\tHe fell.\tThe man fell.\t1"], ("He fell.", "The man fell.", "1")),
}
GLUE_RECORDS = {
    "cola": ({"sentence": "a", "label": 0, "idx": 0}, ("a", None, "0")),
    "stsb": ({"sentence1": "a", "sentence2": "b", "label": 2.5}, ("a", "b", 2.5)),
    "mnli": ({"premise": "a", "hypothesis": "b", "label": 2}, ("a", "b", "contradiction")),
    "qnli": ({"question": "a", "sentence": "b", "label": 1}, ("a", "b", "not_entailment")),
    "mrpc": ({"sentence1": "a", "sentence2": "b", "label": 1}, ("a", "b", "1")),
}


@pytest.mark.parametrize("name", GLUE_FILES)
def test_each_task_of_glue_is_read_from_its_tsv(tmp_path: Path, name: str):
    lines, expected = GLUE_FILES[name]
    assert triples(read(write(tmp_path / "train.tsv", *lines), f"glue:{name}"))[-1] == expected


@pytest.mark.parametrize("name", GLUE_RECORDS)
def test_tasks_of_glue_are_read_from_the_jsonl_of_a_hub(tmp_path: Path, name: str):
    record, expected = GLUE_RECORDS[name]
    assert triples(read(write(tmp_path / "train.jsonl", json.dumps(record)), f"glue:{name}")) == [expected]


def test_the_test_file_of_cola_has_a_header_and_no_labels(tmp_path: Path):
    path = write(tmp_path / "test.tsv", "index\tsentence", "0\tBill whistled past the house.")
    assert triples(read(path, "glue:cola")) == [("Bill whistled past the house.", None, None)]


def test_a_folder_of_mnli_has_two_dev_files_and_no_test_file(tmp_path: Path):
    row = "0\t1\t1n\tg\t( a )\tA cat.\tA pet.\tneutral\tentailment"
    for name in ("train", "dev_matched", "dev_mismatched", "test_matched"):
        write(tmp_path / f"{name}.tsv", MNLI, row)
    found = classify.find_splits(tmp_path, ClassifyOptions(layout="glue:mnli"))
    assert set(found) == {"train", "valid"} and found["train"] == tmp_path / "train.tsv"
    assert isinstance(found["valid"], tuple)
    assert [read(path, "glue:mnli")[0].group for path in found["valid"]] == ["matched", "mismatched"]


def test_damaged_lines_are_left_out_only_where_a_set_is_known_for_them(tmp_path: Path, caplog):
    header, row = "id\tquestion1\tquestion2\tis_duplicate", "0\tWhy?\tHow?\t0"
    path = write(tmp_path / "train.tsv", header, row, "1\tWhy", row, row)
    with caplog.at_level(logging.WARNING):
        assert len(read(path, "glue:qqp")) == 3
    assert "left out 25.00 %: 0 without a label, 1 damaged lines" in caplog.text
    with pytest.raises(UserError, match=r"train.tsv:3: 2 fields, and the header has 4 \(id, question1"):
        read(path, text="question1", label="is_duplicate")


def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path, caplog):
    rows = ['{"gold_label": "neutral", "sentence1": "a", "sentence2": "b"}']
    path = write(tmp_path / "snli_1.0_dev.jsonl", *rows, rows[0].replace("neutral", "-"), *rows)
    with caplog.at_level(logging.WARNING):
        assert len(read(path, "snli")) == 2
    assert "33.33 %: 1 without a label" in caplog.text
    # a file in which none has one is to be predicted
    path = write(tmp_path / "test.jsonl", '{"premise": "a", "hypothesis": "b", "label": -1}')
    assert triples(read(path, "snli")) == [("a", "b", None)]


def test_xnli_knows_languages_by_column_and_by_name(tmp_path: Path):
    dev = write(
        tmp_path / "xnli.dev.tsv",
        "language\tgold_label\tsentence1\tsentence2",
        "ar\tneutral\ta\tb",
        "de\tcontradiction\tc\td",
    )
    assert [(one.group, one.label) for one in read(dev, "xnli")] == [("ar", "neutral"), ("de", "contradiction")]
    assert [one.text for one in read(dev, "xnli", groups=("de",))] == ["c"]
    with pytest.raises(UserError, match=r"groups = \['fr'\], and there are only ar, de"):
        read(dev, "xnli", groups=("fr",))
    for code in ("de", "fr"):
        write(tmp_path / f"multinli.train.{code}.tsv", "premise\thypo\tlabel", "a\tb\tcontradictory")
    found = classify.find_splits(tmp_path, ClassifyOptions(layout="xnli"))
    assert isinstance(found["train"], tuple) and len(found["train"]) == 2
    assert [(one.group, one.label) for path in found["train"] for one in read(path, "xnli")] == [
        ("de", "contradiction"),
        ("fr", "contradiction"),
    ]


def test_sib_is_read_by_language_or_all_at_once(tmp_path: Path):
    for code in ("eng_Latn", "tam_Taml"):
        for role in ("train", "dev", "test"):
            write(tmp_path / code / f"{role}.tsv", "index_id\tcategory\ttext", '7\ttravel\t"He said ""go"""')
    options = ClassifyOptions(layout="sib200")
    one = classify.find_splits(tmp_path / "tam_Taml", options)
    assert one["test"] == tmp_path / "tam_Taml" / "test.tsv"
    both = classify.find_splits(tmp_path, options)
    assert isinstance(both["train"], tuple) and len(both["train"]) == 2
    example = read(both["train"][1], "sib200")[0]
    assert (example.id, example.group, example.text) == ("tam_Taml:7", "tam_Taml", 'He said "go"')
    (tmp_path / "nothing" / "here").mkdir(parents=True)
    with pytest.raises(UserError, match="neither a train file nor folders of languages"):
        classify.find_splits(tmp_path / "nothing", options)


def test_sib_of_the_shared_data_has_its_sizes(shared: Path):
    folder = shared / "data" / "sib200" / "tam_Taml"
    options = ClassifyOptions(layout="sib200")
    splits = classify.find_splits(folder, options)
    sizes = {role: len(read(path, "sib200")) for role, path in splits.items() if isinstance(path, Path)}
    assert sizes == {"train": 701, "valid": 99, "test": 204}


# ------------------------------------------------------------------ tables with named columns


def test_columns_are_read_from_tsv_csv_and_jsonl_plain_and_gzipped(tmp_path: Path):
    expected = [('say "no", now', "b", "x"), ("c", "d", "y")]
    options = {"text": "first", "second": "other", "label": "kind"}
    tsv = write(tmp_path / "a.tsv", "first\tother\tkind", 'say "no", now\tb\tx', "c\td\ty")
    csv = write(tmp_path / "a.csv", "kind,first,other", 'x,"say ""no"", now",b', "y,c,d")
    records = [dict(zip(("first", "other", "kind"), one)) for one in expected]
    jsonl = write(tmp_path / "a.jsonl", *map(json.dumps, records))
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(jsonl.read_bytes()))
    for path in (tsv, csv, jsonl, packed):
        assert triples(read(path, **options)) == expected


def test_a_row_of_csv_may_go_over_several_lines(tmp_path: Path):
    path = write(tmp_path / "a.csv", "text,label", '"one', 'two",x', "three,y,z")
    with pytest.raises(UserError, match="a.csv:4: 3 fields, and the header has 2"):
        read(path)
    path = write(tmp_path / "b.csv", "text,label", '"one', 'two",x')
    assert read(path)[0].text == "one\ntwo"


def test_a_group_is_a_column(tmp_path: Path):
    path = write(tmp_path / "a.tsv", "text\tlabel\tsource", "a\tx\tmail", "b\ty\tweb")
    assert [one.group for one in read(path, group="source")] == ["mail", "web"]


@pytest.mark.parametrize(
    ("name", "lines", "expected"),
    [
        ("a.tsv", (), "a.tsv: no row in it: give"),
        ("a.tsv", ("text\tlabel",), "a.tsv: no row in it but the header"),
        (
            "a.tsv",
            ("body\tlabel", "a\tb"),
            "no column 'text'; there are body, label: name one with --set objective.text",
        ),
        (
            "a.csv",
            ("Text,label", "a,b"),
            "no column 'text'; there are Text, label (did you mean 'Text'?): name one with --set objective.text",
        ),
        ("a.jsonl", ('{"body": "a", "label": "b"}',), "a.jsonl: no column 'text'; there are body, label: name one"),
        ("a.tsv", ("text\ttext", "a\tb"), "a.tsv:1: column 'text' stands twice"),
        ("a.tsv", ("text\tlabel", "a\tb", "alone"), "a.tsv:3: 1 fields, and the header has 2 (text, label)"),
        ("a.tsv", ("text\tlabel", "a\tx", " \ty"), "a.tsv:3: column 'text' is empty"),
        ("a.tsv", ("text\tlabel", "a\tx", "b\t"), "a.tsv:3: the label is empty"),
        ("a.csv", ("text,label", '"a"b,x'), "a.csv:2: not CSV"),
        ("a.jsonl", ('{"text": "a", "label": "x"}', '{"text": "b"}'), "a.jsonl:2: no field 'label'"),
        ("a.jsonl", ('{"text": "a"', ""), "a.jsonl:1: not JSON"),
        ("a.jsonl", ("[1]",), "a.jsonl:1: a list, and a row is a JSON object"),
        ("a.xml", ("x",), "a.xml: a table must end in .tsv, .csv, .jsonl, .txt"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_its_line(tmp_path: Path, name: str, lines: tuple, expected: str):
    with pytest.raises(UserError) as caught:
        read(write(tmp_path / name, *lines))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "name", "lines", "expected"),
    [
        ("sib200", "a.tsv", ("id\tcategory\tbody", "1\tx\ty"), "no column 'text'; there are id, category, body: "),
        ("glue:qqp", "a.tsv", ("question1\tlabel", "a\t1"), "no column 'question2'; there are question1, label (did"),
        (
            "glue:mrpc",
            "a.jsonl",
            ('{"s1": "a"}',),
            "no column 'sentence1' or '#1 String'; there are s1: objective.layout",
        ),
    ],
)
def test_columns_of_a_known_set_that_are_missing_are_named_with_those_that_are_there(
    tmp_path: Path, layout: str, name: str, lines: tuple, expected: str
):
    with pytest.raises(UserError) as caught:
        read(write(tmp_path / name, *lines), layout)
    assert expected in str(caught.value) and f"objective.layout = '{layout}' asks for it" in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "name", "lines", "expected"),
    [
        (
            "columns",
            "a.tsv",
            ("text\tlabels", "a\tx"),
            "no column 'label'; there are text, labels (did you mean 'labels'?): name one with --set objective.label=",
        ),
        ("columns", "a.csv", ("text,topic", "a,x"), "no column 'label'; there are text, topic: name one with --set"),
        ("columns", "a.jsonl", ('{"text": "a", "topic": "x"}',), "no column 'label'; there are text, topic: name one"),
        ("sib200", "a.tsv", ("index_id\ttext", "1\ta"), "no column 'category'; there are index_id, text: objective"),
        (
            "glue:mrpc",
            "a.tsv",
            ("#1 String\t#2 String", "a\tb"),
            "no column 'label' or 'Quality'; there are #1 String, #2 String: objective.layout = 'glue:mrpc' asks",
        ),
    ],
)
def test_a_file_without_labels_can_be_read_and_not_be_learned_from(
    tmp_path: Path, layout: str, name: str, lines: tuple, expected: str, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        found = read(write(tmp_path / name, *lines), layout)
    assert found[0].label is None and "so these are texts without labels" in caplog.text
    with pytest.raises(UserError) as caught:
        classify.inventory(found, ClassifyOptions(layout=layout))
    assert expected in str(caught.value) and "nothing to train on" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dev_file_without_a_column_of_labels_says_what_it_has(tmp_path: Path):
    train = write(tmp_path / "train.tsv", "text\tlabel", "a\tx", "b\ty")
    dev = write(tmp_path / "dev.tsv", "text\ttopic", "a\tx")
    with pytest.raises(UserError) as caught:
        read_corpus(TaskDataConfig(paths=(str(train),), valid=(str(dev),)), COLUMNS)
    assert "dev.tsv: no column 'label'; there are text, topic: name one with --set" in str(caught.value)
    assert "the dev file is scored" in str(caught.value)


def test_labels_must_be_those_of_the_set_and_numbers_in_regression(tmp_path: Path):
    path = write(tmp_path / "a.tsv", "index\tquestion\tsentence\tlabel", "0\ta\tb\tmaybe")
    with pytest.raises(UserError, match="a.tsv:2: label 'maybe' is none of entailment, not_entailment"):
        read(path, "glue:qnli")
    path = write(tmp_path / "b.tsv", "text\tlabel", "a\tmuch")
    with pytest.raises(UserError, match="b.tsv:2: label 'much' is no number"):
        read(path, regression=True)


def test_bytes_that_are_no_text_are_named(tmp_path: Path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"text\tlabel\nok\tx\n\xff\tx\n")
    with pytest.raises(UserError, match="not UTF-8"):
        read_table(path)


# ------------------------------------------------------------------ detokenising


def test_spaces_of_a_tokeniser_are_taken_out():
    text = "He said , \" I do n't know ( yet ) . \" It 's late !"
    assert detokenised(text, "tokenised") == "He said, \"I don't know (yet).\" It's late!"
    # as the original does it, quotes stick to both sides
    assert detokenised(text, "pixel") == "He said,\"I don't know (yet).\"It's late!"
    clean = 'She asked, "Why?" and left (early).'
    assert detokenised(clean, "tokenised") == clean
    assert detokenised(clean, "pixel") == 'She asked,"Why?"and left (early).'


def test_sets_are_detokenised_as_asked(tmp_path: Path):
    path = write(tmp_path / "train.tsv", "sentence1\tsentence2\tlabel", "It 's .\tYes .\t1")
    texts = {way: read(path, "glue:mrpc", detokenise=way)[0].text for way in ("none", "pixel", "tokenised")}
    assert texts == {"none": "It 's .", "pixel": "It's.", "tokenised": "It's."}
    assert read(path, "glue:wnli", detokenise="tokenised")[0].text == "It 's ."  # its files hold no tokens
