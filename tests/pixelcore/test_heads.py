"""The task heads: the numbers of the original programs, and what each target and option does to the loss."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pixelcore.checkpoint import load_model
from pixelcore.config import ViTTaskConfig
from pixelcore.convert.pixel_names import packed_shapes
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.models.heads import TaskOutput, ViTTask, word_means
from pixelcore.ops import IGNORED

TOLERANCE = 1e-4  # of golden data, absolute, in float32
BATCH, LENGTH, PATCH = 2, 6, 4
CONFIG = ViTTaskConfig(
    task="sequence",
    num_labels=3,
    patch_size=PATCH,
    num_patches=LENGTH,
    num_layers=2,
    hidden_size=8,
    num_attention_heads=2,
    intermediate_size=16,
)
TASKS: dict[str, dict[str, Any]] = {
    "mean": {"pooling": "mean"},
    "max": {"pooling": "max"},
    "cls": {"pooling": "cls"},
    "pma2": {"pooling": "pma2"},
    "token": {"task": "token"},
    "qa": {"task": "qa", "num_labels": 2},
    "parser": {"task": "parser"},
}
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


def make(name: str, **changes: Any) -> ViTTask:
    """A model whose every parameter is drawn: the biaffine ones begin at zero and would test nothing."""
    model = ViTTask(replace(CONFIG, **TASKS[name] | changes))
    initialise(model, 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def strips(length: int = LENGTH) -> Tensor:
    return torch.rand(BATCH, 3, PATCH, PATCH * length, generator=torch.Generator().manual_seed(2))


def targets(name: str) -> dict[str, Tensor]:
    if name == "token":
        return {"labels": torch.tensor([[0, IGNORED, 2, IGNORED, IGNORED, IGNORED], [1, 1, IGNORED, 2, 0, IGNORED]])}
    if name == "qa":
        return {"start_positions": torch.tensor([1, 6]), "end_positions": torch.tensor([3, 6])}
    if name == "parser":
        return {
            "word_starts": torch.tensor([[0, 2, 3, IGNORED], [0, 1, 1, 5]]),
            "arc_labels": torch.tensor([[2, 0, IGNORED], [0, 1, 2]]),
            "rel_labels": torch.tensor([[1, 2, IGNORED], [0, 1, 2]]),
        }
    return {"labels": torch.tensor([2, 0])}


def scores(output: TaskOutput) -> list[Tensor]:
    found = (output.logits, output.start_logits, output.end_logits, output.arc_logits, output.rel_logits)
    return [one for one in found if one is not None]


def loss_of(output: TaskOutput) -> Tensor:
    assert output.loss is not None
    return output.loss


def count_of(output: TaskOutput) -> int:
    assert output.count is not None
    return int(output.count)


# ------------------------------------------------------------------ the originals


GOLDEN = {
    "sequence_mean": ({"labels": "sequence_labels"}, {"logits": "sequence_mean_logits"}),
    "sequence_max": ({"labels": "sequence_labels"}, {"logits": "sequence_max_logits"}),
    "sequence_cls": ({"labels": "sequence_labels"}, {"logits": "sequence_cls_logits"}),
    "token": ({"labels": "token_labels"}, {"logits": "token_logits"}),
    "qa": (
        {"start_positions": "qa_start", "end_positions": "qa_end"},
        {"start_logits": "qa_start_logits", "end_logits": "qa_end_logits"},
    ),
    "parser": (
        {"word_starts": "parser_word_starts", "arc_labels": "parser_arcs", "rel_labels": "parser_rels"},
        {"arc_logits": "parser_arc_logits", "rel_logits": "parser_rel_logits"},
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", GOLDEN)
def test_logits_and_loss_are_the_originals_padding_included(name: str, shared: Path):
    folder = shared / "golden" / "pixel_heads"
    arrays = numpy.load(folder / "reference.npz")
    inputs, outputs = GOLDEN[name]
    pooling = name.removeprefix("sequence_") if name.startswith("sequence") else None
    model = load_model(folder / name, pooling=pooling)
    assert isinstance(model, ViTTask)
    output = model(
        torch.from_numpy(arrays["pixel_values"]),
        attention_mask=torch.from_numpy(arrays["attention_mask"]),
        **{given: torch.from_numpy(arrays[key]) for given, key in inputs.items()},
    )
    worst = {
        key: (getattr(output, field) - torch.from_numpy(arrays[key])).abs().max() for field, key in outputs.items()
    }
    worst["loss"] = (loss_of(output) - float(arrays[f"{name}_loss"])).abs()
    print(name, {key: f"{float(error):.1e}" for key, error in worst.items()})
    assert all(error < TOLERANCE for error in worst.values()), worst


# ------------------------------------------------------------------ shapes, padding, order


@torch.no_grad()
@pytest.mark.parametrize("name", TASKS)
def test_state_dict_is_what_conversion_expects(name: str):
    model = make(name)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == packed_shapes(model.config)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mean", "max", "cls", "pma2", "token", "parser"])
def test_padding_never_changes_the_scores_of_what_is_real(name: str):
    model = make(name, num_patches=9)
    given = {"word_starts": targets("parser")["word_starts"]} if name == "parser" else {}
    padded = F.pad(strips(), (0, 3 * PATCH), value=0.7)
    mask = F.pad(torch.ones(BATCH, LENGTH, dtype=torch.int64), (0, 3))
    short, long = model(strips(), **given), model(padded, attention_mask=mask, **given)
    if name == "token":
        torch.testing.assert_close(long.logits[:, :LENGTH], short.logits)
    elif name == "parser":
        torch.testing.assert_close(long.arc_logits[:, :3, :4], short.arc_logits[:, :3, :4])
        torch.testing.assert_close(long.rel_logits[:, :3, :4], short.rel_logits[:, :3, :4])
    else:
        torch.testing.assert_close(long.logits, short.logits)


@torch.no_grad()
def test_padding_between_patches_keeps_its_place():
    model, mask, pixels = make("token"), torch.tensor([[1, 0, 1, 1, 0, 1]] * BATCH), strips()
    other = pixels.clone()
    other[..., PATCH : 2 * PATCH] = 0.0
    one, two = model(pixels, attention_mask=mask).logits, model(other, attention_mask=mask).logits
    changed = (one != two).any(-1)
    assert changed.tolist() == [[False, True, False, False, False, False]] * BATCH


@torch.no_grad()
def test_grey_and_its_three_copies_are_one_picture():
    model, grey = make("mean"), (strips()[:, :1] * 255).to(torch.uint8)
    torch.testing.assert_close(model(grey).logits, model(grey.expand(-1, 3, -1, -1) / 255).logits)


@torch.no_grad()
def test_attention_pooling_is_its_formula_with_the_published_leak():
    model = make("pma2", pma_padding="published")
    head, run_rows = model.head, []
    head.attention.register_forward_pre_hook(lambda module, given: run_rows.append(given[0]))
    logits = model(strips(), attention_mask=MASK).logits
    (x_BLD,) = run_rows
    pooling, width = head.attention, CONFIG.hidden_size
    for strip in range(BATCH):
        seed = pooling.q(pooling.seed[0, 0])
        keys = pooling.k(x_BLD[strip]) * MASK[strip][:, None]
        values = pooling.v(x_BLD[strip])
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            weights = (keys[:, part] @ seed[part] / width**0.5).softmax(0)
            heads.append(seed[part] + weights @ values[:, part])
        joined = torch.cat(heads)
        expected = head.classifier(joined + F.relu(pooling.o(joined)))
        torch.testing.assert_close(logits[strip], expected)


def test_a_word_is_the_mean_of_its_patches():
    patches = torch.arange(5.0)[None, :, None]
    found = word_means(patches, torch.tensor([[0, 2, 2, 5, IGNORED]]))
    assert found[0, :, 0].tolist() == [0.5, 2.0, 3.0, 0.0, 0.0]


# ------------------------------------------------------------------ losses


@pytest.mark.parametrize("name", TASKS)
def test_every_parameter_is_trained_the_positions_too(name: str):
    model = make(name)
    loss_of(model(strips(), attention_mask=MASK, **targets(name))).backward()
    without = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.abs().sum()]
    # nothing but CLS is read, so the last layer's other rows matter through attention alone; all parameters still do
    assert without == []
    assert "encoder.positions" in dict(model.named_parameters())


@torch.no_grad()
@pytest.mark.parametrize(("name", "count"), [("mean", 2), ("token", 6), ("qa", 4), ("parser", 5)])
def test_a_scale_gives_the_sum_and_none_the_mean(name: str, count: int):
    model, given = make(name), targets(name)
    mean = model(strips(), attention_mask=MASK, **given)
    scaled = model(strips(), attention_mask=MASK, **given, scale=torch.tensor(0.5))
    assert count_of(mean) == count_of(scaled) == count
    torch.testing.assert_close(loss_of(scaled), loss_of(mean) * count * 0.5)


@torch.no_grad()
def test_without_targets_there_are_scores_alone():
    for name in TASKS:
        given = {"word_starts": targets("parser")["word_starts"]} if name == "parser" else {}
        output = make(name)(strips(), **given)
        assert output.loss is None and output.count is None and scores(output), name


@torch.no_grad()
def test_one_label_is_regression():
    output = make("mean", num_labels=1)(strips(), labels=torch.tensor([0.5, 2.0]))
    expected = F.mse_loss(output.logits[:, 0], torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(loss_of(output), expected)
    assert count_of(output) == 2


@torch.no_grad()
def test_labels_that_do_not_exclude_each_other_are_binary():
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    output = make("mean")(strips(), labels=labels)
    torch.testing.assert_close(loss_of(output), F.binary_cross_entropy_with_logits(output.logits, labels))
    assert count_of(output) == 6


@torch.no_grad()
def test_answers_outside_the_strip_are_ignored_and_cls_is_none():
    model = make("qa")
    one = model(strips(), start_positions=torch.tensor([LENGTH, 7]), end_positions=torch.tensor([LENGTH, IGNORED]))
    assert count_of(one) == 2
    expected = (
        F.cross_entropy(one.start_logits[:1], torch.tensor([6])),
        F.cross_entropy(one.end_logits[:1], torch.tensor([6])),
    )
    torch.testing.assert_close(loss_of(one), sum(expected) / 2)


@torch.no_grad()
def test_words_whose_head_is_cut_off_do_not_count():
    model, given = make("parser"), targets("parser")
    beyond = {**given, "arc_labels": torch.tensor([[2, 0, IGNORED], [0, 1, LENGTH + 1]])}
    assert count_of(model(strips(), **beyond)) == 4


# ------------------------------------------------------------------ dropout


@torch.no_grad()
@pytest.mark.parametrize("name", TASKS)
def test_dropout_follows_its_seed(name: str):
    model, seed = make(name), torch.tensor([3, 5])
    given = {"word_starts": targets("parser")["word_starts"]} if name == "parser" else {}
    plain, one, same = (model(strips(), **given, dropout_seed=which) for which in (None, seed, seed))
    assert all(torch.equal(a, b) for a, b in zip(scores(one), scores(same), strict=True))
    assert not torch.equal(scores(one)[0], scores(plain)[0])


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mean", lambda given: {"start_positions": torch.tensor([0, 0])}, "start_positions is no input of a sequence"),
        ("qa", lambda given: {"start_positions": given["start_positions"]}, "a qa model needs end_positions too"),
        ("parser", lambda given: {"arc_labels": given["arc_labels"]}, "a parser model needs word_starts too"),
        ("parser", lambda given: {k: v for k, v in given.items() if k != "rel_labels"}, "needs rel_labels too"),
        ("token", lambda given: {"labels": given["labels"][:, 1:]}, r"labels has shape \[2, 5\], which does not fit 2"),
        ("mean", lambda given: {"labels": torch.zeros(BATCH, 2)}, r"labels has shape \[2, 2\]"),
        (
            "parser",
            lambda given: given | {"arc_labels": torch.zeros(BATCH, 7).long()},
            r"arc_labels has shape \[2, 7\]",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_named(name: str, change: Callable[[dict], dict], message: str):
    with pytest.raises(UserError, match=message):
        make(name)(strips(), **change(targets(name)))


def test_a_strip_longer_than_the_table_is_refused():
    with pytest.raises(UserError, match="a strip of 8 patches is longer"):
        make("mean")(strips(8))
