"""Trying out strengths and steps of stage 2: what is trained, what is measured, and how a sweep goes on."""

import json
from pathlib import Path
from typing import Any

import pytest

from pixelcore.checkpoint import read_stored
from pixelcore.errors import UserError
from tests.train.conftest import overrides
from tests.train.tiny_adversarial import TINY, stage_one
from tests.train.tiny_adversarial import run as run_stage_two
from train import sweep
from train.cli import main
from train.continuations import NextWords
from train.job import Job
from train.sweep import Plan, read_plan, table

LOOKING = {"eval.words": 3, "data.row_patches": 64}


@pytest.fixture(scope="module")
def long_rows(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage-1 run whose rows are long enough for next words."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    return stage_one(text, folder, data__row_patches=64, model__max_patches=64)


def flags(data: Path, init: Path, out: Path, **plan: str) -> list[str]:
    asked = [part for name, value in plan.items() for part in (f"--{name}", value)]
    shared = ["--data", str(data), "--init", str(init), "--out", str(out), "--device", "cpu"]
    return ["sweep", *shared, *asked, *overrides(TINY | LOOKING)]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int, int, int]]:
    """What is trained from now on: strength, seed, from which step to which."""
    seen: list[tuple[float, int, int, int]] = []
    original = sweep.train

    def watched(job: Job, stop_at: int) -> dict[str, Any]:
        strength = job.settings.objective.strength  # pyright: ignore[reportAttributeAccessIssue]
        seen.append((strength, job.settings.run.seed, job.step, stop_at))
        return original(job, stop_at)

    monkeypatch.setattr(sweep, "train", watched)
    return seen


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Shares of right words that the next evaluations find; then the true ones."""
    given: list[float] = []
    original = NextWords.score

    def score(words: NextWords, model: Any) -> dict[str, float]:
        found = original(words, model)
        return found | ({"words_right": given.pop(0)} if given else {})

    monkeypatch.setattr(NextWords, "score", score)
    return given


def test_sweep_looks_at_a_run_and_at_what_it_began_with(
    text: Path, long_rows: Path, tmp_path: Path, trained: list[Any], capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sweep, "draw", lambda rows, picture: False)
    out = tmp_path / "sweep"
    assert main(flags(text, long_rows, out, at="0,1", strengths="2", seeds="0")) == 0
    assert trained == [(2.0, 0, 0, 1)]
    first, second = json.loads((out / "sweep.json").read_text())["points"]
    assert (first["strength"], first["step"], second["strength"], second["step"]) == (None, 0, 2.0, 1)
    assert second["bits_per_patch"] != first["bits_per_patch"] and second["words_count"] == 3
    assert "best by right words on held-out text" in capsys.readouterr().out


@pytest.mark.slow
def test_sweep_trains_every_arm_once_and_names_the_best(
    text: Path, long_rows: Path, tmp_path: Path, trained: list[Any], scores: list[float], capsys: Any
):
    scores += [0.1, 0.3, 0.2]  # the model to begin with, strength 2 at step 1 and at step 2
    out = tmp_path / "sweep"
    assert main([*flags(text, long_rows, out, at="0,1,2", strengths="2", seeds="0"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert trained == [(2.0, 0, 0, 1), (2.0, 0, 1, 2)]
    assert [(row["strength"], row["step"], row["words_right"]) for row in summary["rows"]] == [
        (None, 0, 0.1),
        (2.0, 1, 0.3),
        (2.0, 2, 0.2),
    ]
    assert (summary["best"]["strength"], summary["best"]["step"]) == (2.0, 1)
    assert read_stored(summary["best"]["model"]).step == 1
    assert read_stored(out / "strength-2-seed-0").step == 1, "the run reads as its best step"
    assert (out / "sweep.png").exists()

    more = flags(text, long_rows, out, at="0,1,2", strengths="2", seeds="0,3")
    scores += [0.5, 0.2]
    assert main(more) == 0
    assert trained[2:] == [(2.0, 3, 0, 1), (2.0, 3, 1, 2)], "what is there is not trained again"
    printed = capsys.readouterr().out
    assert "best by right words on held-out text: strength 2, step 1" in printed and "40.00 % +- " in printed
    assert "strength-2-seed-3/checkpoints/step_00000001" in printed, "of the runs of the best row, the one with most"
    record = json.loads((out / "sweep.json").read_text())
    assert len(record["points"]) == 5 and {"bits_per_patch", "words_legible_low"} <= record["points"][0].keys()

    assert main(flags(text, long_rows, out, at="0,1,3", strengths="2", seeds="0")) == 2
    assert "holds a sweep with another at" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_stopped_sweep_goes_on_where_it_was(
    text: Path, long_rows: Path, tmp_path: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch
):
    asked = flags(text, long_rows, tmp_path / "b", at="1,3", strengths="2", seeds="0")
    assert main(flags(text, long_rows, tmp_path / "a", at="1,3", strengths="2", seeds="0")) == 0
    original = NextWords.score
    calls = 0

    def stopped(words: NextWords, model: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(words, model)

    monkeypatch.setattr(NextWords, "score", stopped)
    assert main(asked) == 130
    assert main(asked) == 0
    assert trained == [(2.0, 0, 0, 1), (2.0, 0, 1, 3)] * 2 + [(2.0, 0, 3, 3)], "only looked at again"
    whole, parts = (json.loads((tmp_path / name / "sweep.json").read_text())["rows"] for name in "ab")
    assert whole == parts


@pytest.mark.slow
def test_arm_of_a_sweep_is_the_run_of_its_strength(text: Path, long_rows: Path, tmp_path: Path):
    assert main(flags(text, long_rows, tmp_path / "sweep", at="2,3", strengths="2", seeds="1")) == 0
    changes = {name.replace(".", "__"): value for name, value in LOOKING.items()} | {"objective__strength": 2.0}
    assert run_stage_two(text, long_rows, tmp_path / "run", "--steps", "3", "--seed", "1", **changes) == 0
    mine, theirs = (read_stored(path) for path in (tmp_path / "sweep" / "strength-2-seed-1", tmp_path / "run"))
    assert mine.step == 2, "of equal steps the first is kept as the best"
    newest = read_stored(tmp_path / "sweep" / "strength-2-seed-1" / "checkpoints" / "step_00000003")
    assert all((newest.weights[name] == theirs.weights[name]).all() for name in theirs.weights)


def test_intervals_over_seeds_are_those_of_student():
    points: list[dict[str, Any]] = [dict.fromkeys(sweep.FIGURES, value) for value in (0.1, 0.2, 0.3)]
    found = sweep._means(points)
    assert found["words_right"] == pytest.approx(0.2)
    assert found["words_right_half"] == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert sweep._means(points[:1]) == dict.fromkeys(sweep.FIGURES, 0.1), "one seed says nothing of seeds"


def test_table_says_where_stage_two_does_not_help():
    row = {"strength": None, "step": 0, "seeds": 1} | dict.fromkeys(sweep.FIGURES, 0.5)
    assert "no stage 2 at all" in table({"rows": [row], "best": row | {"model": "runs/a"}})


def test_plan_is_read_from_lists_and_ranges():
    plan = read_plan("0,50,200", "0.5,10", "0-2")
    assert plan == Plan(at=(0, 50, 200), strengths=(0.5, 10.0), seeds=(0, 1, 2))
    assert read_plan("5", "1", "7,3").seeds == (7, 3)


@pytest.mark.parametrize(
    "at, strengths, seeds, expected",
    [
        ("0", "1", "0", "--at 0: name rising steps"),
        ("5,2", "1", "0", "--at 5,2: name rising steps"),
        ("5,x", "1", "0", "--at 5,x: write numbers with commas"),
        ("5", "1,1", "0", "--strengths 1,1: name different numbers"),
        ("5", "-1", "0", "--strengths -1: name different numbers"),
        ("5", "1", "2-0", "--seeds 2-0: write numbers with commas"),
    ],
)
def test_message_of_a_wrong_plan(at: str, strengths: str, seeds: str, expected: str):
    with pytest.raises(UserError) as caught:
        read_plan(at, strengths, seeds)
    assert str(caught.value).startswith(expected)


def test_sweep_needs_words_a_stage_two_and_a_folder_of_its_own(
    text: Path, long_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def line(*more: str) -> str:
        assert main([*flags(text, long_rows, tmp_path / "sweep", at="1"), *more]) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "eval.words = 0: a sweep chooses by next words that are right" in line("--set", "eval.words=0")
    assert "is no sweep, and not empty" in line("--out", str(long_rows))
    assert main(["sweep", "--preset", "pixar-smoke", "--init", str(long_rows), "--out", str(tmp_path / "a")]) == 2
    assert "preset pixar-smoke: is no stage 2" in capsys.readouterr().err
    assert main(["--preset", "pixar-adversarial", "sweep"]) == 2
    assert "sweep has flags of its own and comes first" in capsys.readouterr().err
    assert main(["sweep", "--init", "a"]) == 2
    assert "the following arguments are required: --out" in capsys.readouterr().err
