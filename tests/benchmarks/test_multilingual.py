"""One model for several languages: text that is taken evenly and held out, a run that is not made twice, and measures
whose best and worst are known."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import multilingual
from benchmarks.multilingual import check_plan, flags, renderer_of, train
from benchmarks.multilingual_measures import about, halves, known_patches, read, reader_error, shuffled_columns
from benchmarks.multilingual_text import even_part, find_languages, script_of_most
from pixelcore.documents import read_documents
from pixelcore.errors import UserError
from render import Reader
from tests.train.conftest import small_text

CYRILLIC = str.maketrans("abcdefghijklmnoprstuvwyz", "абцдефгхійклмнопрстувжиз")


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> argparse.Namespace:
    folder = tmp_path_factory.mktemp("languages")
    (folder / "en.txt").write_text(small_text(120))
    (folder / "uk.txt").write_text(small_text(80, seed=2).lower().translate(CYRILLIC))
    return argparse.Namespace(
        data=[f"en={folder / 'en.txt'}", f"uk={folder / 'uk.txt'}"],
        font=["builtin"],
        runs=folder / "runs",
        steps=2,
        minutes=None,
        megabytes=0.01,
        row_patches=48,
        seed=0,
        set=["model.hidden_size=32", "model.num_attention_heads=2", "model.num_components=2"],
        held_out_rows=3,
        read_rows=2,
        patches=4,
        decode="mixture",
        device="cpu",
        json=False,
        out=folder / "result.json",
    )


@pytest.fixture(scope="module")
def languages(options):
    return find_languages(options.data, renderer_of(options), options.runs, options.megabytes)


def test_every_language_gives_an_even_part_and_holds_out_documents_of_it(options, languages):
    for language, given in zip(languages, options.data, strict=True):
        whole = list(read_documents(Path(given.partition("=")[2])))
        training, held_out = language.training_texts(), list(read_documents(language.held_out))
        assert not set(training) & set(held_out)
        assert set(training) | set(held_out) <= set(whole)
        assert 0.2 < len(training + held_out) / len(whole) < 0.6
        assert language.rows and " ".join(language.rows).split() == " ".join(held_out).split()
    assert [language.script for language in languages] == ["Latn", "Cyrl"]
    assert find_languages(options.data, renderer_of(options), options.runs, options.megabytes) == languages


def test_an_even_part_comes_from_all_over_a_text_and_is_all_of_a_small_one():
    texts = [f"{number:03}" for number in range(100)]
    assert even_part(texts, 12e-6) == ["000", "033", "066", "099"]
    assert even_part(texts, 1) == texts
    assert script_of_most(["ab в 12", "где"]) == "Cyrl"


def test_data_without_a_language_or_with_too_little_text_is_refused(options, tmp_path):
    renderer = renderer_of(options)
    with pytest.raises(UserError, match="give a language and its text"):
        find_languages(["texts/uk.txt"], renderer, tmp_path, 1.0)
    (tmp_path / "one.txt").write_text("one document\n")
    with pytest.raises(UserError, match="1 documents, and one in 20 is held out"):
        find_languages([f"en={tmp_path / 'one.txt'}"], renderer, tmp_path, 1.0)


def test_the_run_has_equal_shares_and_what_the_user_sets_comes_last(options, languages):
    found = flags(languages, 40, options)
    assert found.count("--data") == found.count("--valid") == 2
    assert "data.weights=[1.0, 1.0]" in found and "schedule.warmup_steps=2" in found
    assert found[-1] == options.set[-1]


def test_a_finished_run_is_not_made_again_and_another_goes_on(options, languages, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(multilingual, "call", called.append)
    run = tmp_path / "run-0"
    train(run, languages, options)
    assert called[-1][-2:] == ["--out", str(run)]
    run.mkdir()
    (run / "run.json").write_text('{"finished": false}')
    train(run, languages, options)
    assert called[-1][-2:] == ["--resume", str(run)]
    (run / "run.json").write_text('{"finished": true}')
    train(run, languages, options)
    assert len(called) == 2


def test_minutes_become_steps_by_the_speed_of_a_trial(options, languages, tmp_path, monkeypatch):
    timed = argparse.Namespace(**vars(options) | {"runs": tmp_path, "steps": None, "minutes": 0.5})
    (tmp_path / "trial").mkdir()
    lines = [{"seconds": seconds} for seconds in (9.0, 2.0, 3.0, 2.0)] + [{"valid_loss": 1.0}]
    (tmp_path / "trial" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert multilingual.steps_of(tmp_path / "run-0", languages, timed) == 15
    monkeypatch.setattr(timed, "minutes", 60)
    assert multilingual.steps_of(tmp_path / "run-0", languages, timed) == 15  # found once, and kept


def test_a_folder_of_runs_keeps_its_settings(options, tmp_path):
    changed = argparse.Namespace(**vars(options) | {"runs": tmp_path})
    check_plan(changed)
    check_plan(changed)
    changed.megabytes = 2.0
    with pytest.raises(UserError, match=r"made with megabytes = 0\.01, not 2\.0"):
        check_plan(changed)


def test_true_halves_are_legible_and_known_and_shuffled_ones_are_not(options, languages):
    renderer, language = renderer_of(options), languages[1]
    # with the space after it, such a word fills its patches: the second half begins where a word does
    odd = [word for word in language.training_texts()[0].split() if len(word) % 2 and word.isalpha()]
    text = " ".join([*odd[:3], *odd[:3]])
    reader = Reader(renderer.config, alphabet=text)
    (prompt,), (truth,) = halves(renderer, [text])
    strip = renderer(text)
    assert (np.concatenate([prompt, truth]) == strip.patches.reshape(strip.num_patches, -1)[:-1]).all()
    known = known_patches(renderer, language)
    found = about([truth], [read(reader, truth)], known, "Cyrl")
    assert found["legible"]["share"] == found["exact"]["share"] == found["own_script"] == found["known_patches"] == 1
    assert found["unexplained"] == 0
    noise = shuffled_columns(truth, renderer.config, np.random.default_rng(0))
    assert (np.sort(noise, axis=None) == np.sort(truth, axis=None)).all()
    worst = about([noise], [read(reader, noise)], known, "Cyrl")
    assert worst["legible"]["share"] == worst["exact"]["share"] == 0 and worst["own_script"] is None
    assert worst["known_patches"] < 0.5 < worst["unexplained"]
    nothing = about([truth[:0]], [read(reader, truth[:0])], known, "Cyrl")
    assert nothing["legible"]["share"] == 0 and nothing["known_patches"] is None


def test_a_reader_that_knows_the_letters_makes_no_error_on_clean_strips(options):
    renderer = renderer_of(options)
    texts = ["the ferryman waits", "for the rain"]
    found = reader_error(Reader(renderer.config, alphabet="".join(texts)), renderer, texts)
    assert (found["strips"], found["cer"], found["equal"]) == (2, 0, 1)
    blind = reader_error(Reader(renderer.config, alphabet="the fr"), renderer, texts)
    assert blind["cer"] > 0.1 and blind["equal"] == 0


@pytest.mark.slow
def test_from_text_to_table_and_pictures(options, languages, monkeypatch, capfd):
    names = ("data", "font", "set")
    given = [word for name in names for value in getattr(options, name) for word in (f"--{name}", value)]
    for name in ("runs", "steps", "megabytes", "row_patches", "held_out_rows", "read_rows", "patches", "device", "out"):
        given += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    monkeypatch.setattr("sys.argv", ["multilingual", *given])
    multilingual.main()
    first = json.loads(options.out.read_text())
    assert list(first["languages"]) == ["en", "uk"]
    for name, one in first["languages"].items():
        assert one["bits"]["bits_per_character"] > one["bits"]["xz"]  # after two steps
        assert one["reader"]["cer"] == 0 and one["truth"]["legible"]["share"] == 1
        assert one["written"]["legible"]["count"] == 2
        assert (options.runs / "run-0-pictures" / f"{name}.png").stat().st_size > 0
    assert "bits/character" in capfd.readouterr().out
    again = []
    monkeypatch.setattr(multilingual, "call", again.append)
    multilingual.main()
    assert (
        not again and json.loads(options.out.read_text())["languages"]["en"]["bits"] == first["languages"]["en"]["bits"]
    )
