"""Classifiers of all families: padding, poolings, learning by heart, and where their weights begin."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infer.task_model import predict
from infer.task_rows import Strips, TaskRows
from pixelcore.accounting import flops_per_token, num_parameters
from pixelcore.accounting_pixar import flops_per_patch
from pixelcore.checkpoint import build_model, read_stored
from pixelcore.config import (
    POOLINGS,
    DecoderConfig,
    DecoderTaskConfig,
    LoRAConfig,
    MoEConfig,
    PixarConfig,
    PixarTaskConfig,
    ViTTaskConfig,
)
from pixelcore.config_io import config_from_dict, config_to_dict
from pixelcore.convert.exported import read_export, write_export
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.models import MODELS
from pixelcore.models.decoder import Decoder
from pixelcore.models.decoder_task import DecoderTask
from pixelcore.models.pixar import Pixar
from pixelcore.models.pixar_task import PixarTask
from pixelcore.stored import Stored
from pixelcore.tasks import classify
from pixelcore.tasks.classify import ClassifyOptions
from pixelcore.tasks.examples import TextExample
from pixelcore.tasks.task import score
from render import RenderConfig, Renderer
from tests.train.conftest import marks, overrides
from train.cli import main
from train.task_models import adopted, begun_weights

SIZES: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
VIT = ViTTaskConfig(
    task="sequence",
    patch_size=8,
    num_patches=48,
    num_labels=2,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    **SIZES,
)
PIXAR = PixarTaskConfig(max_patches=24, num_labels=2, **SIZES)
TOKENS = DecoderTaskConfig(
    vocab_size=128, context_length=24, num_key_value_heads=1, rope_base=1e4, num_labels=2, **SIZES
)
OPTIONS = ClassifyOptions()
WORDS = ["ferry", "clock", "river", "lamp", "bread", "stone", "cloud", "wheel"]


def make(config: Any, seed: int = 0) -> Any:
    model = MODELS[config.kind](config)
    initialise(model, seed)
    return model


def pixels(length: int, height: int = 8, width: int = 16) -> Tensor:
    return torch.rand(2, 1, height, width * length, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------ poolings


@torch.no_grad()
@pytest.mark.parametrize("start_vector", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_never_changes_what_pixar_says(pooling: str, start_vector: bool):
    model = make(replace(PIXAR, pooling=pooling, start_vector=start_vector)).eval()
    strips = pixels(6)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    other = strips.clone()
    other[0, ..., 3 * 16 :] = 0.5
    one = model(strips, attention_mask=mask).logits
    torch.testing.assert_close(model(other, attention_mask=mask).logits, one, rtol=0, atol=0)
    torch.testing.assert_close(model(strips[:1, ..., : 3 * 16]).logits, one[:1])
    assert not torch.equal(model(strips).logits[0], one[0])


@torch.no_grad()
@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_never_changes_what_a_decoder_says(pooling: str):
    model = make(replace(TOKENS, pooling=pooling)).eval()
    ids = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    one = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(model(ids.where(mask == 1, 3), attention_mask=mask).logits, one, rtol=0, atol=0)
    torch.testing.assert_close(model(ids[:1, :3]).logits, one[:1])


@torch.no_grad()
def test_poolings_are_their_formulas():
    strips, mask = pixels(4), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    for pooling in POOLINGS:
        model = make(replace(PIXAR, pooling=pooling)).eval()
        head, logits = model.head, model(strips, attention_mask=mask).logits
        for strip, length in enumerate((3, 4)):
            real = strips[strip : strip + 1, ..., : 16 * length]
            patches = real[0, 0].unflatten(1, (length, 16)).permute(1, 0, 2).flatten(1)
            rows, _ = model.encoder.encode(patches, [length])
            pooled = rows[-1]
            if pooling == "end_mlp":
                pooled = F.gelu(head.inner(rows[-1:])[0])
            if pooling == "mean":
                pooled = rows.mean(0)
            if pooling == "attention":
                pooled = (head.score(rows).softmax(0) * rows).sum(0)
            torch.testing.assert_close(head.classifier(pooled), logits[strip])


@torch.no_grad()
def test_attention_pooling_of_pixel_sees_padding_only_as_published():
    strips, mask = pixels(6, 8, 8), torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    found, whole = {}, None
    for padding in ("fixed", "published"):
        model = make(replace(VIT, pooling="pma2", pma_padding=padding)).eval()
        alone = model(strips[:1, ..., : 3 * 8]).logits[0]
        found[padding] = (alone - model(strips, attention_mask=mask).logits[0]).abs().max().item()
        whole = model(strips).logits
    assert found["fixed"] < 1e-6 < 1e-5 < found["published"]
    torch.testing.assert_close(make(replace(VIT, pooling="pma2")).eval()(strips).logits, whole)  # nothing to look at


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="a strip of 25 patches is longer than the model's max_patches = 24"):
        make(PIXAR)(pixels(25))
    with pytest.raises(UserError, match="a sequence of 25 tokens is longer"):
        make(TOKENS)(torch.zeros(1, 25, dtype=torch.int64))
    with pytest.raises(UserError, match="padding stands before real patches"):
        make(PIXAR)(pixels(2), attention_mask=torch.tensor([[0, 1], [1, 1]]))
    with pytest.raises(UserError, match="text 1 has no token"):
        make(TOKENS)(torch.zeros(2, 3, dtype=torch.int64), attention_mask=torch.tensor([[1, 1, 1], [0, 0, 0]]))
    with pytest.raises(UserError, match="padding stands before real tokens"):
        make(TOKENS)(torch.zeros(1, 2, dtype=torch.int64), attention_mask=torch.tensor([[0, 1]]))
    for bad in ({"pooling": "last"}, {"num_labels": -1}):
        with pytest.raises(ValueError, match="must"):
            replace(PIXAR, **bad)


# ------------------------------------------------------------------ learning


def texts(regression: bool = False) -> list[TextExample]:
    """16 pairs of words; the second word says the label, or the number."""
    found = []
    for number in range(16):
        kind = number % 8
        label = float(kind) if regression else ("low" if kind < 4 else "high")
        found.append(TextExample(id=str(number), text=WORDS[number // 2], second=WORDS[kind], label=label))
    return found


def rows_of(config: Any, options: ClassifyOptions) -> TaskRows:
    examples = texts(options.regression)
    height = config.patch_size if isinstance(config, ViTTaskConfig) else config.patch_height
    width = config.patch_size if isinstance(config, ViTTaskConfig) else config.patch_width
    render = RenderConfig(height=height, patch_width=width, max_patches=24, size=6.0)
    inputs = Strips(Renderer(render), 24)
    return TaskRows(classify, examples, inputs, classify.inventory(examples, options), options)


def learn(model: Any, batch: dict[str, Tensor], steps: int) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "config",
    [VIT, replace(VIT, pooling="pma2"), PIXAR, replace(PIXAR, pooling="attention", start_vector=True)],
    ids=["pixel", "pixel pma", "pixar", "pixar attention"],
)
def test_sixteen_pairs_of_strips_are_learned_by_heart(config: Any):
    rows, model = rows_of(config, OPTIONS), make(config)
    batch = rows.batch(range(16), [rows.targets(number) for number in range(16)])
    losses = learn(model, batch, 80)
    assert losses[-1] < 0.1 * losses[0]
    found = predict(model.eval(), rows, "cpu", with_loss=True)
    assert score(classify, rows.examples, found.predictions, OPTIONS)["accuracy"] == 1.0
    assert found.loss == pytest.approx(model(**batch).loss.item(), abs=1e-4)
    assert predict(model, rows, "cpu", with_loss=False).predictions == found.predictions


@pytest.mark.parametrize("pooling", ["end", "mean"])
def test_sixteen_texts_of_tokens_are_learned_by_heart(pooling: str):
    ids = torch.randint(1, 128, (16, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.arange(16)[:, None] % 5 + 4
    labels = torch.arange(16) % 2
    model = make(replace(TOKENS, pooling=pooling))
    losses = learn(model, {"ids": ids, "attention_mask": mask, "labels": labels}, 50)
    assert losses[-1] < 0.1 * losses[0]
    assert (model.eval()(ids, attention_mask=mask).logits.argmax(1) == labels).all()


def test_numbers_are_learned_row_by_row():
    """PIXAR's own loss would compare each prediction with every label and learn nothing but their mean."""
    options = ClassifyOptions(regression=True)
    config = replace(PIXAR, num_labels=1, pooling="mean")
    rows, model = rows_of(config, options), make(config)
    batch = rows.batch(range(16), [rows.targets(number) for number in range(16)])
    learn(model, batch, 200)
    found = predict(model.eval(), rows, "cpu", with_loss=True)
    assert score(classify, rows.examples, found.predictions, options)["pearson"] > 0.98
    said = torch.tensor([one.label for one in found.predictions])
    assert found.loss == pytest.approx((said - batch["labels"]).square().mean().item(), rel=1e-4)


def test_a_step_in_parts_is_the_step_at_once():
    strips, labels = pixels(5), torch.tensor([0, 1])
    for config in (PIXAR, replace(PIXAR, num_labels=1)):
        one, other = make(config), make(config)
        targets = labels if config.num_labels == 2 else labels.float()
        one(strips, labels=targets).loss.backward()
        for row in range(2):
            other(strips[row : row + 1], labels=targets[row : row + 1], scale=torch.tensor(0.5)).loss.backward()
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            assert mine.grad is not None and theirs.grad is not None
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_dropout_of_a_decoder_follows_the_names_of_texts():
    model = make(replace(TOKENS, dropout=0.3)).train()
    ids, seed = torch.randint(1, 128, (2, 6), generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2])
    one = model(ids, dropout_seed=seed, documents=(3, 7)).logits
    other = model(ids.flip(0), dropout_seed=seed, documents=(7, 3)).logits.flip(0)
    torch.testing.assert_close(one, other)
    assert not torch.equal(one, model(ids, dropout_seed=seed, documents=(3, 8)).logits)


def test_experts_of_a_decoder_are_balanced_here_too():
    model = make(replace(TOKENS, moe=MoEConfig(num_experts=2, top_k=1, expert_interval=1, balance_coefficient=5.0)))
    ids, labels = torch.arange(1, 13).reshape(2, 6), torch.tensor([0, 1])
    out = model(ids, labels=labels)
    assert out.loss > F.cross_entropy(out.logits, labels) + 5.0
    half = torch.tensor(0.5)
    halves = [model(ids[row : row + 1], labels=labels[row : row + 1], scale=half).loss.item() for row in (0, 1)]
    assert sum(halves) == pytest.approx(out.loss.item(), rel=0.2)


# ------------------------------------------------------------------ accounts and files


@pytest.mark.parametrize(
    "config",
    [
        *(replace(PIXAR, pooling=pooling) for pooling in POOLINGS),
        replace(PIXAR, start_vector=True, num_channels=3),
        *(replace(TOKENS, pooling=pooling) for pooling in POOLINGS),
        replace(TOKENS, moe=MoEConfig(num_experts=2, top_k=1, expert_interval=2), lora=LoRAConfig(rank=2)),
    ],
    ids=lambda config: f"{config.kind} {config.pooling}",
)
def test_accounts_and_stored_forms_are_exact(config: Any):
    assert sum(parameter.numel() for parameter in make(config).parameters()) == num_parameters(config)
    assert config_from_dict(config.kind, config_to_dict(config)) == config


def test_a_classifier_costs_its_trunk():
    pretrained = PixarConfig(max_patches=24, **SIZES)
    head = pretrained.patch_values * pretrained.hidden_size
    assert flops_per_patch(PIXAR, 10) == flops_per_patch(pretrained, 10) - 6 * head
    decoder = DecoderConfig(
        **{name: value for name, value in config_to_dict(TOKENS).items() if name not in ("num_labels", "pooling")}
    )
    assert flops_per_token(TOKENS, 10) == flops_per_token(decoder, 10) - 6 * 128 * 32


def _stored(config: Any) -> Stored:
    weights = {name: tensor.detach() for name, tensor in make(config, seed=3).state_dict().items()}
    return Stored(path=Path("x"), origin="export", name="x", step=0, config=config, weights=weights)


@torch.no_grad()
def test_the_trunk_of_a_pretrained_model_is_taken(caplog: pytest.LogCaptureFixture):
    sizes: dict[str, Any] = SIZES | {"num_layers": 3}
    pixar = PixarConfig(max_patches=40, start_vector=True, head="mixture", num_components=3, **sizes)
    stored = _stored(pixar)
    config = adopted(replace(PIXAR, pooling="mean"), pixar)
    assert isinstance(config, PixarTaskConfig)
    assert (config.num_layers, config.max_patches, config.start_vector, config.pooling) == (3, 40, True, "mean")
    model, pretrained = make(config), build_model(stored)
    with caplog.at_level(logging.INFO):
        assert isinstance(model, PixarTask) and isinstance(pretrained, Pixar)
        missing, unexpected = model.load_state_dict(begun_weights(stored, config), strict=False)
    assert not unexpected and all(name.startswith("head.") for name in missing)
    assert "left out 2 others; the head begins fresh" in caplog.text
    patches = torch.rand(5, 128)
    torch.testing.assert_close(model.encoder.encode(patches, [5])[0], pretrained.encode(patches, [5])[0])

    untied = DecoderConfig(
        vocab_size=99, context_length=30, num_key_value_heads=2, tie_word_embeddings=False, rope_base=1e4, **SIZES
    )
    stored = _stored(untied)
    config = adopted(TOKENS, untied)
    assert isinstance(config, DecoderTaskConfig) and config.vocab_size == 99 and config.context_length == 30
    model, pretrained = make(config), build_model(stored)
    assert isinstance(model, DecoderTask) and isinstance(pretrained, Decoder)
    missing, unexpected = model.load_state_dict(begun_weights(stored, config), strict=False)
    assert not unexpected and all(name.startswith("head.") for name in missing)


@pytest.mark.parametrize("config", [PIXAR, TOKENS], ids=["pixar", "decoder"])
def test_an_export_of_a_classifier_comes_back(config: Any, tmp_path: Path):
    stored = replace(_stored(config), task={"kind": "classify", "labels": ["a", "b"], "options": {}})
    write_export(tmp_path / "out", stored)
    found = read_export(tmp_path / "out")
    assert found.config == config and found.task == stored.task
    assert all(torch.equal(tensor, stored.weights[name]) for name, tensor in found.weights.items())


# ------------------------------------------------------------------ the commands


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two languages, whose texts say in two words which topic they have."""
    folder = tmp_path_factory.mktemp("topics")
    for code, words in (("xxa_Latn", WORDS), ("xxb_Latn", [word[::-1] for word in WORDS])):
        for role, count in (("train", 16), ("dev", 8), ("test", 8)):
            rows = [
                f"{number}\t{'water' if number % 8 < 4 else 'land'}\t{words[number % 8]}" for number in range(count)
            ]
            path = folder / code / f"{role}.tsv"
            path.parent.mkdir(exist_ok=True)
            path.write_text("index_id\tcategory\ttext\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return folder


TINY = {
    "model.num_layers": 1,
    "model.hidden_size": 32,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 64,
    "model.hidden_dropout": 0.0,
    "data.max_patches": 12,
    "optimizer.learning_rate": 5e-3,
    "schedule.warmup_steps": 4,
    "eval.every": 30,
}


def test_several_languages_are_learned_together_and_scored_apart(topics: Path, tmp_path: Path):
    flags = ["--preset", "pixel-tiny-sib", "--data", str(topics), "--device", "cpu", "--steps", "60"]
    assert main([*flags, "--out", str(tmp_path / "run"), *overrides(TINY)]) == 0
    found = marks(tmp_path / "run")
    assert found["test_accuracy"] == found["test_macro_f1_xxb_Latn"] == found["test_macro_f1_mean"] == 1.0
    assert found["test_macro_f1_low"] == 1.0
    stored = read_stored(tmp_path / "run")
    assert stored.task is not None and stored.task["labels"] == ["land", "water"]


def test_pixar_is_fine_tuned_from_a_model_that_writes(topics: Path, tmp_path: Path, text: Path):
    writes = ["--preset", "pixar-smoke", "--data", str(text), "--steps", "1", "--device", "cpu"]
    assert main([*writes, "--out", str(tmp_path / "writes"), "--set", "eval.picture_rows=0"]) == 0
    changes = {"objective.layout": "sib200", "data.rows_per_step": 8, "data.max_patches": 12, "eval.every": 2}
    flags = ["--preset", "pixar-85m-glue", "--data", str(topics), "--device", "cpu", "--steps", "2"]
    init = ["--init", str(tmp_path / "writes")]
    assert main([*flags, *init, "--out", str(tmp_path / "run"), *overrides(changes)]) == 0
    stored = read_stored(tmp_path / "run")
    assert isinstance(stored.config, PixarTaskConfig) and stored.config.hidden_size == 32 and stored.config.start_vector
    assert stored.renderer is not None and stored.renderer["config"]["height"] == 8
    assert "test_macro_f1" in marks(tmp_path / "run")
    adapted = ["--set", "model.lora.rank=2", "--out", str(tmp_path / "adapted")]
    assert main([*flags, *init, *overrides(changes), *adapted]) == 0
    given, found = read_stored(tmp_path / "writes").weights, read_stored(tmp_path / "adapted").weights
    trunk = {name.removeprefix("encoder.") for name in found if name.startswith("encoder.")} & given.keys()
    assert trunk and all(torch.equal(given[name], found[f"encoder.{name}"]) for name in trunk)
    adapters = [tensor for name, tensor in found.items() if ".adapters." in name and name.endswith("up")]
    assert adapters and all(tensor.abs().sum() > 0 for tensor in adapters)


def test_a_decoder_is_fine_tuned_whole_or_by_adapters(topics: Path, tmp_path: Path, text: Path):
    reads = ["--preset", "smoke", "--data", str(text), "--steps", "1", "--device", "cpu", "--set", "eval.prompts=[]"]
    assert main([*reads, "--out", str(tmp_path / "reads")]) == 0
    flags = ["--preset", "decoder-tiny-sib", "--data", str(topics), "--device", "cpu", "--steps", "2"]
    flags += ["--init", str(tmp_path / "reads"), "--set", "data.max_patches=24", "--set", "eval.every=2"]
    pretrained = {f"encoder.{name}": tensor for name, tensor in read_stored(tmp_path / "reads").weights.items()}
    for lora in ([], ["--set", "model.lora.rank=2"]):
        assert main([*flags, *lora, "--out", str(tmp_path / f"run{len(lora)}")]) == 0
        stored = read_stored(tmp_path / f"run{len(lora)}")
        assert isinstance(stored.config, DecoderTaskConfig) and stored.config.vocab_size == 512
        assert stored.tokenizer is not None and stored.task is not None
        same = {name: torch.equal(tensor, stored.weights[name]) for name, tensor in pretrained.items()}
        assert all(same.values()) if lora else not any(same[name] for name in same if "embed" not in name)
        assert stored.weights["head.classifier.weight"].abs().sum() > 0
        adapters = [tensor for name, tensor in stored.weights.items() if ".adapters." in name and name.endswith("up")]
        assert bool(adapters) == bool(lora) and all(tensor.abs().sum() > 0 for tensor in adapters)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["pixar-85m-glue", "--set", "objective.layout=sib200", "--set", "data.max_patches=400"], "max_patches = 360"),
        (["pixar-85m-glue", "--set", "render.patch_width=8"], "must be 8 and 16, as model.patch_height"),
        (["pixel-tiny-pos", "--set", "model.task=sequence"], "needs model.task = 'token', not 'sequence'"),
        (["pixel-tiny-sib", "--set", "eval.select=f1"], "eval.select = 'f1' must be one of loss, macro_f1, accuracy"),
    ],
)
def test_settings_that_do_not_fit_are_said_in_a_line(
    flags: list[str], expected: str, topics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["--preset", *flags, "--data", str(topics), "--out", str(tmp_path / "run"), "--device", "cpu"]) == 2
    assert expected in capsys.readouterr().err
