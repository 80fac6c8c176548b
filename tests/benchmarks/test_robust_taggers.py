"""Taggers under look-alikes: what cannot be seen changes nothing, what is missing does, and all read the same."""

import json
from pathlib import Path

import pytest

from benchmarks.robust_taggers import STRATA, TRIVIAL, main
from tests.tasks.tiny_tasks import run, treebank


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    return treebank(tmp_path_factory.mktemp("robust") / "bank")


@pytest.fixture(scope="module")
def models(bank, tmp_path_factory) -> Path:
    """Two seeds of a tagger of pixels, and one of bytes."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.report.draw_curve", lambda metrics, picture, axis: False)
        patch.setattr("train.sizing.measure_matmul_flops", lambda: 1e10)
        assert run(bank, folder / "pixel", "--seeds", "0-1", "--steps", "24", eval__patience=0, eval__every=12) == 0
        token = {"model__max_tokens": 64, "data__max_patches": 64, "model__num_layers": 1, "model__hidden_size": 32}
        from tests.train.conftest import overrides
        from train.cli import main as train

        fields = {name.replace("__", "."): value for name, value in token.items()}
        fields |= {"model.num_attention_heads": 2, "model.intermediate_size": 64, "data.rows_per_step": 8}
        fields |= {"schedule.warmup_steps": 1, "eval.every": 4}
        flags = ["--preset", "token-tiny-pos", "--data", str(bank), "--device", "cpu", "--steps", "4"]
        assert train([*flags, *overrides(fields), "--out", str(folder / "tokens")]) == 0
    return folder


def test_what_cannot_be_seen_changes_nothing(bank, models, tmp_path, capsys):
    test = next(bank.glob("*test*"))
    train = next(bank.glob("*train*"))
    argv = ["--model", f"pixel={models / 'pixel'}", "--model", f"bytes={models / 'tokens'}", "--data", str(test)]
    out, figure = tmp_path / "found.json", tmp_path / "curves.png"
    main([*argv, "--train", str(train), "--severity", "0.8", "--out", str(out), "--figure", str(figure)])
    found = json.loads(out.read_text())
    assert found["seeds"] == {"pixel": 2, "bytes": 1} and found["num_examples"] == 12
    by_name = {one["attack"]: one for one in found["conditions"]}
    assert list(by_name) == ["clean", *STRATA] and by_name["clean"]["words_changed"] == 0
    accuracy = {name: {key: value["mean"] for key, value in one["accuracy"].items()} for name, one in by_name.items()}
    assert accuracy["clean"]["pixel"] > 0.9, "the model that is attacked has learned"
    assert accuracy["confusables-unchanged"]["pixel"] == accuracy["clean"]["pixel"]
    assert by_name["confusables-unchanged"]["words_changed"] > 0
    assert accuracy["confusables-missing"]["pixel"] < accuracy["clean"]["pixel"]
    assert accuracy["confusables-unchanged"][TRIVIAL] < accuracy["clean"][TRIVIAL]
    for one in by_name.values():
        for values in one["accuracy"].values():
            assert values["low"] <= values["mean"] <= values["high"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("\n") == 2 + len(by_name)


@pytest.mark.parametrize(("given", "said"), [("pixel", "NAME=RUN"), ("bytes={}/tokens", "none of them reads pixels")])
def test_a_mistake_is_one_line(bank, models, given, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--model", given.format(models), "--data", str(next(bank.glob("*test*"))), "--train", "x.conllu"])
    assert end.value.code == 2 and said in capsys.readouterr().err
