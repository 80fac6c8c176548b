"""`python -m infer report`: one page with everything in it, errors first; and where heat maps come from."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from infer.predict import load_model, text_examples
from infer.relevancy import Relevancy, rolled
from infer.report.cases import arguments_of, cases_of
from infer.report.confusion import confusion
from infer.report.curves import curves
from infer.report.strips import _folded
from pixelcore.ops import REFERENCE, softmax_attention
from tests.tasks.fine_tuned import fine_tuned
from tests.tasks.test_predict import SQUAD
from tests.tasks.tiny_tasks import conllu

CHROMIUM = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def mislabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight sentences; in three of them a label of the file is wrong, and one has a word that HTML must not see."""
    lines = conllu(range(40, 48)).split("\n")
    for place in (1, 7, 13):
        lines[place] = lines[place].replace("DET", "ADV")
    lines[2] = re.sub(r"^2\t\w+", "2\t<b>&lamp", lines[2])
    file = tmp_path_factory.mktemp("data") / "mislabelled.conllu"
    file.write_text("\n".join(lines))
    return file


@pytest.fixture(scope="module")
def page(tagger: Path, mislabelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report. Read it."""
    from infer.cli import main

    out = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", "--model", str(tagger), "--data", str(mislabelled), "--heat", "2", "--out", str(out)]) == 0
    return out


# ------------------------------------------------------------------ the page


def test_the_page_needs_nothing_else(page: Path):
    content = page.read_text()
    assert not re.search(r"<script|<link|http:|https:|url\(|@import|<iframe", content)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', content))
    assert "<b>&lamp" not in content and "&lt;b&gt;&amp;lamp" in content
    for opened in ("div", "span", "table", "svg", "details"):
        assert content.count(f"<{opened}") == content.count(f"</{opened}>")


def test_errors_come_first_and_the_surest_of_them_at_the_top(page: Path):
    heads = re.findall(r'verdict (wrong|right)">(?:error|right)</span>.*?: ([\d.]+) %', page.read_text())
    assert len(heads) == 8
    wrong = [float(sure) for verdict, sure in heads if verdict == "wrong"]
    right = [float(sure) for verdict, sure in heads if verdict == "right"]
    assert len(wrong) >= 3 and [verdict for verdict, _ in heads] == ["wrong"] * len(wrong) + ["right"] * len(right)
    assert wrong == sorted(wrong, reverse=True) and right == sorted(right)


def test_labels_lie_under_the_patches_of_their_words(tagger: Path):
    loaded = load_model(tagger)
    (case,), _, rows = cases_of(loaded, text_examples(loaded, [("the text", "the ferry sinks")]))
    starts = rows.row(case.number).layout.word_starts
    assert starts is not None
    assert [(label.first, label.end) for label in case.said] == list(zip(starts[:-1].tolist(), starts[1:].tolist()))
    assert not case.wrong and case.gold == () and case.pairs == ()
    assert all(label.right is None and label.sure is not None and 0.25 < label.sure <= 1 for label in case.said)


def test_the_page_has_the_curves_and_figures_of_the_run(page: Path):
    content = page.read_text()
    assert content.count('<figure class="chart">') == 2 and "figures of the dev file" in content
    assert re.search(r"accuracy</th><td class=\"number\">\d+\.\d\d %", content)
    assert content.count("where it comes from") == 2
    chart = curves([{"step": step, "loss": 1 / step, "skipped": 0} for step in (1, 2, 4)], 2)
    (points,) = re.findall(r'points="([^"]*)"', chart)
    heights = [float(point.split(",")[1]) for point in points.split(" ")]
    assert heights == sorted(heights) and len(heights) == 3  # down the page, down the loss
    assert curves([], 1) == ""


def test_confusions_are_counted_and_rare_labels_together():
    table = confusion([("A", "A")] * 3 + [("A", "B"), ("B", "(cut off)")])
    said = ["A as A: 3 of 4 (75.0 %)", "A as B: 1 of 4 (25.0 %)", "B as (cut off): 1 of 1 (100.0 %)"]
    assert re.findall(r'title="([^"]*)"', table) == said
    assert table.index(">B<") < table.index(">(cut off)<") and confusion([]) == ""
    many = [(f"{number:02d}", "00") for number in range(40) for _ in range(2 if number < 20 else 1)]
    assert "others" in confusion(many) and sum(map(int, re.findall(r'total">(\d+)', confusion(many)))) == 60


def test_lines_break_where_words_begin():
    assert _folded(50, {0, 9, 18, 27, 36, 45}, 20) == [(0, 18), (18, 36), (36, 50)]
    assert _folded(50, set(), 20) == [(0, 20), (20, 40), (40, 50)]


@pytest.mark.parametrize("kind", ["parse", "classify", "regression", "answer"])
def test_the_other_tasks_have_pages(command, tmp_path: Path, kind: str):
    if kind == "parse":
        model = fine_tuned(tmp_path / "run", kind, ["_", "dep", "root"], subtypes=True)
        (tmp_path / "data.conllu").write_text(conllu(range(3)))
        data, said = tmp_path / "data.conllu", "head of "
    elif kind == "answer":
        model = fine_tuned(tmp_path / "run", kind, ["start", "end"])
        (tmp_path / "data.json").write_text(json.dumps(SQUAD))
        data, said = tmp_path / "data.json", "What sinks?"
    else:
        numbers = kind == "regression"
        model = fine_tuned(tmp_path / "run", "classify", [] if numbers else ["1", "2"], regression=numbers)
        (tmp_path / "data.tsv").write_text("text\tlabel\na lamp\t1\na clock\t2\nشكرا\t2\n")
        data, said = tmp_path / "data.tsv", "a lamp"
    status, _, log = command("report", "--model", model, "--data", data, "--heat", 1, "--out", tmp_path / "r.html")
    content = (tmp_path / "r.html").read_text()
    assert status == 0 and said in content and "where it comes from" in content
    assert "there are no curves" in log and "<figure" not in content
    assert ("What was taken for what" in content) == (kind in ("parse", "classify"))


def test_what_cannot_be_shown_is_refused(refused, tagger: Path, mislabelled: Path):
    words = ("report", "--model", tagger, "--data", mislabelled)
    assert "let the name end in .html" in refused(*words, "--out", "report.pdf")
    assert "--count 0: must be at least 1" in refused(*words, "--out", "report.html", "--count", 0)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
def test_a_browser_shows_the_page(page: Path, tmp_path: Path):
    assert CHROMIUM is not None
    picture = tmp_path / "page.png"
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1136,2000")
    place = (f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", page.as_uri())
    done = subprocess.run([CHROMIUM, *flags, *place], capture_output=True, timeout=120, check=True)
    assert b"CONSOLE" not in done.stderr
    shown = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert shown.shape == (2000, 1136, 3)
    ink = (shown.sum(2) < 120).mean()
    hot = ((shown[..., 0] > 240) & (shown[..., 1] < 190) & (shown[..., 2] < 90)).mean()
    red = ((shown[..., 0] > 240) & (abs(shown[..., 1] - 230) < 3) & (abs(shown[..., 2] - 227) < 3)).mean()
    assert 0.005 < ink < 0.3 and hot > 1e-4 and red > 1e-4  # strips, heat, labels that are wrong
    # nothing sticks out to the right
    assert (shown[:, -20:] > 200).all()


# ------------------------------------------------------------------ heat


def test_two_layers_are_rolled_out_as_the_formula_says():
    first = torch.tensor([[[0.5, 0.5], [0.2, 0.8]], [[1.0, 0.0], [0.6, 0.4]]])
    second = torch.tensor([[[0.3, 0.7], [0.9, 0.1]], [[0.4, 0.6], [0.5, 0.5]]])
    gradients = [torch.tensor([[[1.0, -1.0], [2.0, 1.0]], [[0.5, 3.0], [-1.0, 1.0]]]), torch.ones(2, 2, 2)]
    shares = [np.array([[0.5, 0.0], [0.2, 0.6]]), np.array([[0.35, 0.65], [0.7, 0.3]])]
    wanted = (np.eye(2) + shares[1]) @ (np.eye(2) + shares[0])
    assert np.allclose(rolled([first, second], gradients), wanted)


def test_heat_is_that_of_gradients_found_by_trying(tmp_path: Path):
    """Every attention weight of every layer is moved a little, and what becomes of the output is its gradient."""
    loaded = load_model(fine_tuned(tmp_path / "run", "tag", ["A", "B", "C"]))
    loaded.model.double()
    loaded.model.compute_dtype = torch.float64
    (case,), _, rows = cases_of(loaded, text_examples(loaded, [("the text", "a b")]))
    given = arguments_of(loaded, rows, case.number)
    output = case.outputs[0]
    moved: tuple[int, int, int, int] | None = None
    kept: list[Tensor] = []

    def attention(q, k, v, packed, rule, scale, drop=None):
        weights = (q.transpose(0, 1) @ k.transpose(0, 1).transpose(1, 2) * scale).softmax(-1)
        truth, _ = softmax_attention(q, k, v, packed, rule, scale)
        assert torch.allclose((weights @ v.transpose(0, 1)).transpose(0, 1), truth)
        weights = weights.clone()
        if moved is not None and moved[0] == len(kept):
            weights[moved[1:]] += 1e-5
        kept.append(weights)
        return (weights @ v.transpose(0, 1)).transpose(0, 1), None

    model = loaded.model
    model.ops = replace(REFERENCE, attention=attention)

    def value() -> float:
        kept.clear()
        with torch.no_grad():
            return float(output.score(model(**given)))

    before = value()
    weights = list(kept)
    gradients = [torch.zeros_like(one) for one in weights]
    for layer, gradient in enumerate(gradients):
        for place in np.ndindex(*gradient.shape):
            moved = (layer, *place)
            gradient[place] = (value() - before) / 1e-5
    rolled_out = rolled([one.float() for one in weights], [one.float() for one in gradients])
    wanted = (rolled_out - torch.eye(len(rolled_out)))[output.patches[0] + 1, 1:]
    (heat,) = Relevancy(loaded).heats(given, [(output.score, output.patches)])
    assert heat.min() >= 0 and heat.max() > 0
    assert np.allclose(heat / heat.max(), wanted / wanted.max(), atol=2e-3)
    assert heat.max() == pytest.approx(float(wanted.max()), rel=2e-3)
