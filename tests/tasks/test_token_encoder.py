"""The token partner of PIXEL: what its rows say, what is hidden from it, and that it differs in what it reads alone."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from infer.task_model import predict
from infer.task_rows import Row, TaskRows
from infer.task_tokens import Tokens
from pixelcore.accounting import num_parameters
from pixelcore.accounting_vit import tokens_flops
from pixelcore.checkpoint import read_stored
from pixelcore.config import TokenMLMConfig, TokenTaskConfig, ViTTaskConfig
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.models.heads import ViTTask
from pixelcore.models.token_encoder import CLS, TokenMLM, TokenTask
from pixelcore.ops import IGNORED
from pixelcore.packed import Packed
from pixelcore.tasks import answer, parse, tag
from pixelcore.tasks.examples import QuestionExample
from pixelcore.tasks.task import Windows
from pixelcore.tokenizer import Tokenizer, byte_tokenizer, train_tokenizer
from tests.tasks.tiny_tasks import TINY
from tests.train.conftest import Server, lines, marks, newest, overrides
from train.cli import main
from train.config import MaskedTokensConfig
from train.data.blocks import Block
from train.data.order import BlockOrder
from train.objectives.masked_tokens import MaskedBatches, MaskedMicroBatch

BYTES = byte_tokenizer()
SIZES: dict[str, Any] = {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = "日本 éx 😀!"


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    """A small vocabulary in which some characters are spelled in bytes."""
    return train_tokenizer(["the ferry waits slowly", "a clock turns again и это", "日本語 text here"] * 30, 320)


# ------------------------------------------------------------------ rows of tokens


@pytest.mark.parametrize("text", ["the ferry", TEXT, " two  spaces ", "a▁b", "", " ", "日"])
def test_each_token_says_which_characters_it_stands_for(pieces: Tokenizer, text: str):
    for tokenizer in (BYTES, pieces):
        ids, spans = tokenizer.encode_with_spans(text)
        assert ids == tokenizer.encode(text) and len(spans) == len(ids)
        # each character once, but for those spelled in bytes, of which each byte stands for the whole
        assert "".join(text[begin:end] for begin, end in dict.fromkeys(spans)) == text
        for id, one in zip(ids, [text[begin:end] for begin, end in spans], strict=True):
            surface = tokenizer.surface(id)
            if isinstance(surface, int):
                assert surface in one.encode() and len(one) == 1
            else:
                assert surface.removeprefix("▁") == one.replace(" ", "▁").removeprefix("▁")


def test_a_tokenizer_that_changes_the_text_cannot_say_where_its_tokens_stand():
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["fine office waits"] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = Tokenizer(model.getvalue())
    assert tokenizer.encode_with_spans("fine")[1][-1][1] == 4
    with pytest.raises(UserError, match="changes the text"):
        tokenizer.encode_with_spans("ofﬁce")


def words_of(tokenizer: Tokenizer, row: Row) -> list[str]:
    """The text of the tokens of each word."""
    starts = row.layout.word_starts
    assert starts is not None and row.units[-1] == tokenizer.eos_id
    ids = row.units.tolist()
    return [tokenizer.decode(ids[start:end]).strip() for start, end in pairwise(starts)]


@pytest.mark.parametrize("words", [["the", "日本", "ferry", "😀", "1 000"], ["ה", "e\u0301"], ["a"]])
def test_a_word_starts_on_its_first_token(pieces: Tokenizer, words: list[str]):
    for tokenizer in (BYTES, pieces):
        (row,) = Tokens(tokenizer, 64).rows(words, None, False)
        assert words_of(tokenizer, row) == words
        assert row.layout.num_units == len(row.units) and not row.layout.cut
        assert tokenizer.decode(row.units.tolist()) == " ".join(words)


def test_words_that_do_not_fit_are_cut_whole_and_counted():
    (row,) = Tokens(BYTES, 9).rows(["the", "日", "ferry"], None, False)
    assert words_of(BYTES, row) == ["the", "日"] and row.layout.cut and row.layout.num_units == 8
    (row,) = Tokens(BYTES, 8).rows(["the", "日"], None, False)
    assert not row.layout.cut and row.layout.num_units == 8
    sentence = tag.WordsExample(id="s", words=("the", "日", "ferry"), labels=("A", "B", "C"))
    rows = TaskRows(tag, [sentence], Tokens(BYTES, 9), tag.inventory([sentence], tag.OPTIONS()), tag.OPTIONS())
    assert rows.targets(0)["labels"].tolist() == [0, IGNORED, IGNORED, 1, *[IGNORED] * 4]
    assert rows.shares() == {"truncated": 1.0, "missing_glyphs": 0.0}


def shown(row: Row) -> list[tuple[int, int, int]]:
    spans = row.layout.char_spans
    assert spans is not None and len(spans) == row.layout.num_units
    return [tuple(span) for span in spans.tolist()]


def test_the_texts_of_a_pair_are_parted_and_the_second_is_cut(pieces: Tokenizer):
    (row,) = Tokens(BYTES, 8).rows(("日", "ab cd"), None, True)
    assert row.units.tolist() == [*BYTES.encode("日"), BYTES.eos_id, *BYTES.encode("ab "), BYTES.eos_id]
    assert shown(row) == [(0, 0, 1)] * 3 + [(-1, -1, -1), (1, 0, 1), (1, 1, 2), (1, 2, 3), (-1, -1, -1)]
    assert row.layout.cut
    (row,) = Tokens(BYTES, 6).rows("a日日", None, True)  # no half character
    assert shown(row) == [(0, 0, 1)] + [(0, 1, 2)] * 3 + [(-1, -1, -1)] and row.layout.cut
    (row,) = Tokens(pieces, 64).rows(("the", "ferry"), None, True)
    assert not row.layout.cut and shown(row)[:2] == [(0, 0, 3), (-1, -1, -1)]


@pytest.mark.parametrize("stride", [0, 3, 5])
def test_windows_show_every_character_and_some_twice(pieces: Tokenizer, stride: int):
    text = "日本 abc 日日日 clock turns again"
    for tokenizer in (BYTES, pieces):
        rows = Tokens(tokenizer, 13).rows(("the", text), Windows(stride=stride, first_max=2), True)
        seen: list[set[int]] = []
        for row in rows:
            assert row.layout.num_units <= 13 and row.layout.cut == (tokenizer is BYTES)  # "the" is three bytes
            assert shown(row)[-1] == (-1, -1, -1)
            seen.append({place for text, begin, end in shown(row) if text == 1 for place in range(begin, end)})
        assert set.union(*seen) == set(range(len(text)))
        again = [len(one & other) for one, other in pairwise(seen)]
        assert all(count > 0 for count in again) if stride else set(again) == {0}
    with pytest.raises(UserError, match="stride = 40 tokens are as many as a window shows"):
        Tokens(BYTES, 13).rows(("q", text), Windows(stride=40, first_max=2), True)
    with pytest.raises(UserError, match="nothing of the text fits beside the first"):
        Tokens(BYTES, 6).rows(("question", text), Windows(stride=1, first_max=9), True)


# ------------------------------------------------------------------ the model


def task_model(task: str = "token", seed: int = 0, **changes: Any) -> TokenTask:
    labels = 2 if task == "qa" else 3
    config = TokenTaskConfig(**SIZES, vocab_size=260, max_tokens=40, task=task, num_labels=labels, **changes)
    model = TokenTask(config)
    initialise(model, seed)
    return model.eval()


def test_it_differs_from_its_partner_in_the_embedding_alone():
    partner = ViTTask(ViTTaskConfig(**SIZES, patch_size=4, num_patches=40, task="token", num_labels=3)).eval()
    initialise(partner, 1)
    model = task_model()
    own, others = model.state_dict(), partner.state_dict()
    assert own.keys() - others.keys() == {"encoder.embed.weight"}
    assert others.keys() - own.keys() == {"encoder.patch.weight", "encoder.patch.bias"}
    # the same rows go in where pixels say nothing: then the same comes out, dropout included
    with torch.no_grad():
        row_D = torch.randn(16, generator=torch.Generator().manual_seed(2))
        partner.encoder.patch.weight.zero_()
        partner.encoder.patch.bias.copy_(row_D)
        table_VD = (row_D / 16**0.5).expand(260, 16)
        shared = {name: tensor for name, tensor in others.items() if name in own}
        model.load_state_dict(shared | {"encoder.embed.weight": table_VD})
        mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]])
        given: dict[str, Any] = {"attention_mask": mask, "dropout_seed": torch.tensor([3, 4])}
        labels = torch.tensor([[0, 1, 2, 0, 1, IGNORED], [2, 1, 0, IGNORED, IGNORED, IGNORED]])
        left = model(torch.randint(260, (2, 6)), labels=labels, **given)
        right = partner(torch.rand(2, 1, 4, 24), labels=labels, **given)
    torch.testing.assert_close(left.logits, right.logits)
    torch.testing.assert_close(left.loss, right.loss)


@torch.no_grad()
@pytest.mark.parametrize("task", ["token", "sequence", "qa", "parser"])
def test_padding_never_changes_the_scores_of_what_is_real(task: str):
    model = task_model(task, **({"mask_heads": True} if task == "parser" else {}))
    ids = torch.randint(260, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    starts = {"word_starts": torch.tensor([[0, 2, 3], [0, 1, 4]])} if task == "parser" else {}
    whole = model(ids, attention_mask=mask, **starts)
    alone = model(ids[1:, :4], **{name: value[1:] for name, value in starts.items()})
    if task == "qa":
        torch.testing.assert_close(whole.start_logits[1, [0, 1, 2, 3, 7]], alone.start_logits[0])
    elif task == "parser":
        torch.testing.assert_close(whole.arc_logits[1], alone.arc_logits[0])
    else:
        torch.testing.assert_close(whole.logits[1][:4], alone.logits[0])


def test_accounting_counts_what_there_is():
    config = TokenMLMConfig(**SIZES, vocab_size=260, max_tokens=40, hidden_dropout=0.0, attention_dropout=0.0)
    model = TokenMLM(config)
    assert num_parameters(config) == sum(parameter.numel() for parameter in model.parameters())
    for task in ("token", "sequence", "qa", "parser"):
        found = task_model(task)
        assert num_parameters(found.config) == sum(parameter.numel() for parameter in found.parameters())
    initialise(model, 0)
    with FlopCounterMode(display=False) as counter:
        ids = torch.tensor([CLS, *range(20)] * 3)
        rows = torch.tensor([place for text in range(3) for place in (21 * text + 3, 21 * text + 5)])
        out = model(ids, Packed.from_lengths([21] * 3), scored_rows=rows, targets=ids[rows])
        assert out.loss is not None
        out.loss.backward()
    products = sum(flops for name, flops in counter.get_flop_counts()["Global"].items() if "mm" in str(name))
    # the counter knows no attention on a CPU
    attention = 3 * 2 * 2 * (2 * 21 * 21 * 16)
    assert products == 3 * (tokens_flops(config, 20, 2) - attention)


def test_a_text_that_is_too_long_and_inputs_that_do_not_fit_are_told():
    model = task_model()
    with pytest.raises(UserError, match="a text of 41 tokens is longer than the model's max_tokens = 40"):
        model(torch.zeros(1, 41, dtype=torch.int64))
    with pytest.raises(UserError, match="text 1 has no real token"):
        model(torch.zeros(2, 3, dtype=torch.int64), attention_mask=torch.tensor([[1, 1, 1], [0, 0, 0]]))
    with pytest.raises(UserError, match=r"labels has shape \[2, 4\], which does not fit 2 texts of 3 tokens"):
        model(torch.zeros(2, 3, dtype=torch.int64), labels=torch.zeros(2, 4, dtype=torch.int64))


# ------------------------------------------------------------------ what is hidden


class _Blocks:
    """Blocks of documents of several lengths, as `Blocks` would make them of a text."""

    class store:
        eos_id = 1

    size = 16

    def __init__(self, count: int = 12) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self, number: int) -> Block:
        targets = np.arange(16) + 16 * number + 4
        if number % 3 == 1:  # three pieces, two of which end their documents, and one of a single token
            targets[[5, 14]] = 1
            return Block(targets, targets, [6, 9, 1])
        if number % 3 == 2:  # a document and filler
            targets[9], targets[10:] = 1, IGNORED
            return Block(targets, targets, [10, 6])
        return Block(targets, targets, [16])


def masked(rule: str = "random", seed: int = 0, count: int = 12, **dealing: Any) -> MaskedBatches:
    dealing = {"blocks_per_step": 5, "micro_batch_blocks": 2, **dealing}
    sources: Any = [_Blocks(count)]
    return MaskedBatches(
        sources,
        BlockOrder(seed, [count]),
        objective=MaskedTokensConfig(rule=rule, ratio=0.25),
        vocab_size=1000,
        seed=seed,
        **dealing,
    )


def texts(batches: MaskedBatches, step: int) -> list[tuple[int, list[int], list[tuple[int, int]]]]:
    """Of each piece its name, what the model sees, and places and targets of what is asked for."""
    found = []
    for index in range(batches.per_rank):
        batch = batches.micro_batch(step, index, "cpu")
        assert isinstance(batch, MaskedMicroBatch)
        offsets = batch.packed.offsets.tolist()
        asked = list(zip(batch.scored_rows.tolist(), batch.targets.tolist(), strict=True))
        for first, end in pairwise(offsets):
            assert batch.ids[first] == CLS and (batch.ids[first + 1 : end] >= 0).all()
            own = [(row - first - 1, target) for row, target in asked if first <= row < end and target != IGNORED]
            found.append((int(batch.packed.documents[first]), batch.ids[first + 1 : end].tolist(), own))
    return sorted(found)


@pytest.mark.parametrize("rule", ["random", "span"])
def test_masks_depend_on_seed_and_place_alone(rule: str):
    whole = masked(rule)
    for step in (0, 1, 7):
        expected = texts(whole, step)
        assert sum(len(asked) for _, _, asked in expected) == whole.num_targets(step)
        assert texts(masked(rule), step) == expected  # no state: step 7 does not need the steps before it
        assert texts(masked(rule, micro_batch_blocks=5), step) == expected
        ranks = [texts(masked(rule, rank=rank, world=3, micro_batch_blocks=1), step) for rank in range(3)]
        fillers = [piece for found in ranks for piece in found if piece[0] == 80]
        assert sorted(piece for found in ranks for piece in found if piece[0] < 80) == expected
        assert all(asked == [] for _, _, asked in fillers) and len(fillers) == 1
    assert texts(masked(rule, seed=1), 0) != texts(whole, 0)


def test_every_token_is_read_once_and_its_place_says_what_stood_there():
    batches = masked(blocks_per_step=12)
    found = texts(batches, 0)
    read = []
    for _, seen, asked in found:
        stood = list(seen)
        for place, target in asked:
            stood[place] = target
            assert target != 1
        read += stood
    expected = [block.targets[block.targets != IGNORED] for block in map(_Blocks().read, range(12))]
    assert sorted(read) == sorted(np.concatenate(expected).tolist())
    # another epoch hides others
    assert [asked for _, _, asked in texts(batches, 1)] != [asked for _, _, asked in found]


def test_of_the_chosen_tokens_most_are_hidden_some_others_and_some_themselves():
    batches = masked(count=1000, blocks_per_step=1000, micro_batch_blocks=100)
    fates = {"hidden": 0, "other": 0, "kept": 0}
    total = 0
    for _, seen, asked in texts(batches, 0):
        total += len(seen)
        for place, target in asked:
            name = "hidden" if seen[place] == 1000 else "kept" if seen[place] == target else "other"
            fates[name] += 1
    chosen = sum(fates.values())
    assert chosen / total == pytest.approx(0.26, abs=0.02)  # rounded up in short pieces
    assert fates["hidden"] / chosen == pytest.approx(0.8, abs=0.03)
    assert fates["other"] / chosen == pytest.approx(0.1, abs=0.02)


# ------------------------------------------------------------------ runs

SMALL = {
    "model.num_layers": 1,
    "model.hidden_size": 32,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 64,
    "model.max_tokens": 40,
    "model.hidden_dropout": 0.1,
    "data.block_size": 32,
    "data.tokens_per_step": 128,
    "schedule.warmup_steps": 2,
    "eval.every": 5,
    "eval.max_tokens": 500,
    "run.log_every": 1,
    "run.save_every": 5,
    "run.micro_batch_blocks": 2,
}
_KINDS = {"bytes": {"tokenizer.kind": "bytes"}, "bpe": {"tokenizer.kind": "bpe", "model.vocab_size": 320}}


def mlm_flags(text: Path, kind: str = "bytes", **changes: Any) -> list[str]:
    fields = SMALL | _KINDS[kind] | {name.replace("__", "."): value for name, value in changes.items()}
    return ["--preset", "token-tiny-mlm", "--data", str(text), "--device", "cpu", *overrides(fields)]


def small_task(**changes: Any) -> dict[str, Any]:
    fields = {name: value for name, value in TINY.items() if name != "model.num_patches"}
    fields |= {"model.max_tokens": 40, "data.max_patches": 40}
    return fields | {name.replace("__", "."): value for name, value in changes.items()}


def tag_flags(data: Path, out: Path, *flags: str, **changes: Any) -> list[str]:
    fields = small_task(**changes)
    if "--init" in flags:
        fields = {name: value for name, value in fields.items() if not name.startswith("model.") or "dropout" in name}
    preset = ["--preset", "token-tiny-pos", "--data", str(data), "--device", "cpu", "--out", str(out)]
    return [*preset, *overrides(fields), *flags]


@pytest.fixture(scope="module")
def pretrained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps that nothing disturbed. Read it, never write to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.report.draw_curve", lambda metrics, picture, axis: False)
        patch.setattr("train.sizing.measure_matmul_flops", lambda: 1e10)
        path = tmp_path_factory.mktemp("mlm") / "run"
        assert main([*mlm_flags(text), "--steps", "10", "--out", str(path)]) == 0
    return path


def test_pretraining_learns_and_says_how_many_bits_a_token_takes(pretrained: Path):
    rows = [row for row in lines(pretrained) if "valid_loss" in row]
    assert rows[-1]["valid_loss"] < rows[0]["valid_loss"] < 6
    assert rows[-1]["valid_bits_per_token"] == pytest.approx(rows[-1]["valid_loss"] / np.log(2))
    stored = read_stored(pretrained)
    assert stored.config.kind == "token_mlm" and stored.tokenizer == BYTES


def test_a_resumed_run_is_the_run_without_a_stop(pretrained: Path, text: Path, tmp_path: Path):
    path = tmp_path / "run"
    # other micro-batches would round otherwise; the masks and dropout would be the same
    assert main([*mlm_flags(text), "--steps", "10", "--stop-at", "4", "--out", str(path)]) == 0
    assert main(["--resume", str(path), "--device", "cpu"]) == 0
    assert lines(path) == lines(pretrained)
    for name in ("model", "optimizer", "state"):
        mine, theirs = (load_file(newest(one) / f"{name}.safetensors") for one in (path, pretrained))
        assert mine.keys() == theirs.keys()
        assert not [key for key in mine if not torch.equal(mine[key], theirs[key])]


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(pretrained: Path, text: Path, tmp_path: Path, server: Server):
    path = tmp_path / "run"
    server.run_ranks(2, [*mlm_flags(text, run__micro_batch_blocks=1), "--steps", "10", "--out", str(path)])
    for one, other in zip(lines(path), lines(pretrained), strict=True):
        assert {name: one[name] for name in ("loss", "valid_loss") if name in one} == pytest.approx(
            {name: other[name] for name in ("loss", "valid_loss") if name in other}, rel=1e-4
        )


def test_sixteen_sentences_are_learned_by_heart_and_their_predictions_written(
    tiny_treebank: Path, tmp_path: Path, refused, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "run"
    assert main([*tag_flags(tiny_treebank, path, eval__every=20, eval__patience=0), "--steps", "60"]) == 0
    found = marks(path)
    assert found["test_accuracy"] > 0.99 and found["valid_accuracy"] > 0.99 and found["test_truncated"] == 0
    stored = read_stored(path)
    assert stored.tokenizer == BYTES and stored.task is not None and stored.task["max_tokens"] == 40
    written = (path / "predictions" / "test.jsonl").read_text().splitlines()
    assert json.loads(written[0])["predicted"] == json.loads(written[0])["labels"]
    capsys.readouterr()
    for flags in (("--font", "x.ttf"), ("--set", "render.max_patches=9")):
        said = refused("predict", "--model", path, "--text", "a", *flags)
        assert "reads tokens and draws nothing: leave --font and --set render.x=v out" in said


def test_a_task_begins_with_a_pretrained_encoder_and_its_tokenizer(
    text: Path, tiny_treebank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([*mlm_flags(text, "bpe"), "--steps", "1", "--out", str(tmp_path / "mlm")]) == 0
    given = read_stored(tmp_path / "mlm")
    capsys.readouterr()
    path = tmp_path / "run"
    init = ("--init", str(tmp_path / "mlm"), "--steps", "1")
    assert main(tag_flags(tiny_treebank, path, *init, tokenizer__kind="bpe", run__keep_last=2)) == 0
    assert "took the encoder" in capsys.readouterr().err
    begun = load_file(path / "checkpoints" / "step_00000000" / "model.safetensors")
    encoder = {name: tensor for name, tensor in given.weights.items() if name.startswith("encoder.")}
    assert encoder.keys() == {name for name in begun if name.startswith("encoder.")}
    assert all(torch.equal(begun[name], tensor) for name, tensor in encoder.items())
    stored = read_stored(path)
    assert given.tokenizer is not None and stored.tokenizer == given.tokenizer and given.tokenizer.vocab_size > 260
    # a model of strips is no beginning for one of tokens
    assert main(tag_flags(tiny_treebank, tmp_path / "no", "--init", "nowhere")) == 2


def test_a_vocabulary_is_learned_from_the_training_examples_where_none_is_given(tiny_treebank: Path, tmp_path: Path):
    changes = {"tokenizer__kind": "bpe", "model__vocab_size": 290}
    assert main([*tag_flags(tiny_treebank, tmp_path / "run", **changes), "--steps", "1"]) == 0
    stored = read_stored(tmp_path / "run")
    assert stored.tokenizer is not None and 260 < stored.tokenizer.vocab_size <= 290
    assert stored.weights["encoder.embed.weight"].shape[0] == stored.tokenizer.vocab_size


def learned(model: TokenTask, batch: dict[str, Tensor], steps: int) -> list[float]:
    """Losses of a model that sees one batch again and again."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def rows_of(task: Any, examples: Sequence[Any], tokenizer: Tokenizer, options: Any, longest: int = 40) -> TaskRows:
    return TaskRows(task, examples, Tokens(tokenizer, longest), task.inventory(examples, options), options)


def test_questions_are_answered_from_tokens(pieces: Tokenizer):
    facts = [("Anna", "日本"), ("Boris", "the ferry"), ("Carla", "é😀")]
    examples = []
    for number, (who, where) in enumerate(facts):
        context = f"{who} is in {where}. The clock turns again and again."
        answers = ((where, context.index(where)),)
        question = QuestionExample(id=str(number), question=f"Where is {who}?", context=context, answers=answers)
        examples.append(question)
    options = answer.OPTIONS(stride=8, question_max=24)
    for tokenizer in (BYTES, pieces):
        rows = rows_of(answer, examples, tokenizer, options, 46)
        assert len(rows) > 3  # several windows
        config = TokenTaskConfig(
            **SIZES, vocab_size=tokenizer.vocab_size, max_tokens=64, task="qa", num_labels=2, hidden_dropout=0.0
        )
        model = TokenTask(config)
        initialise(model, 0)
        batch = rows.batch(range(len(rows)), [rows.targets(number) for number in range(len(rows))])
        assert learned(model, batch, 90)[-1] < 0.2
        found = predict(model.eval(), rows, "cpu", with_loss=True)
        assert [prediction.text for prediction in found.predictions] == [where for _, where in facts]
        assert [prediction.read_back for prediction in found.predictions] == [where for _, where in facts]


def test_trees_are_parsed_from_tokens(tiny_treebank: Path, pieces: Tokenizer):
    options = parse.OPTIONS()
    (path,) = tiny_treebank.glob("*dev.conllu")
    examples = parse.read(path, options)
    for tokenizer in (BYTES, pieces):
        rows = rows_of(parse, examples, tokenizer, options)
        config = TokenTaskConfig(
            **SIZES, vocab_size=tokenizer.vocab_size, max_tokens=40, task="parser", num_labels=len(rows.known)
        )
        model = TokenTask(config)
        initialise(model, 0)
        batch = rows.batch(range(len(rows)), [rows.targets(number) for number in range(len(rows))])
        losses = learned(model, batch, 15)
        assert losses[-1] < 0.5 * losses[0]
