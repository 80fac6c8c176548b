"""Attention by distance: what looks everywhere alike gives 1, what looks at the next row gives it everything."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.where_attention_looks import DISTANCES, Watched, main
from pixelcore.ops import attention
from pixelcore.packed import Packed
from tests.infer.tiny_pixels import mae, stored, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "strips", stored(mae()))


def test_the_next_row_gets_everything_and_the_output_is_that_of_attention():
    length, layers = 12, 2
    packed = Packed.from_lengths((length, length))
    places = torch.eye(length).repeat(2, 1)[:, None]  # [N, 1 head, K]
    following = torch.roll(places, -1, 0)  # row i asks for the key of row i + 1
    values = torch.randn(2 * length, 1, length, generator=torch.Generator().manual_seed(0))
    watched = Watched(layers)
    out, _ = watched(100 * following, places, values, packed, "full", 1.0, None)
    watched(0 * following, places, values, packed, "full", 1.0, None)
    torch.testing.assert_close(out, attention(100 * following, places, values, packed, "full", 1.0)[0])
    for distance in DISTANCES:
        first, second = (torch.stack(watched.found[layer][distance]) for layer in range(layers))
        assert first.shape == (2, 1), "two strips, one head"
        assert first.mean() == pytest.approx(length if distance == 1 else 0.0, abs=1e-3)
        assert second.mean() == pytest.approx(1.0)


def test_an_encoder_before_training_looks_everywhere_alike(run, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the ferry waits by the old river and the lamp begins to burn again slowly " * 3 + "\n")
    main(["--model", str(run), "--data", str(text), "--texts", "2", "--json"])
    layers = json.loads(capsys.readouterr().out)["layers"]
    for layer in layers:
        assert set(layer) == {str(distance) for distance in DISTANCES}
        assert all(0.5 < one["mean"] < 2 and one["mean"] <= one["head"] for one in layer.values())


def test_text_without_a_long_line_is_refused(run, tmp_path, capsys):
    (tmp_path / "short.txt").write_text("too short\n")
    with pytest.raises(SystemExit) as end:
        main(["--model", str(run), "--data", str(tmp_path / "short.txt")])
    assert end.value.code == 2 and "no line of 60 characters" in capsys.readouterr().err
