"""Parsing: files in and out, targets on strips, both ways to read the scores, and figures that are those of CoNLL."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from infer.task_rows import Strips, TaskRows
from pixelcore.config import ViTTaskConfig
from pixelcore.errors import UserError
from pixelcore.initialise import initialise
from pixelcore.models.heads import ViTTask
from pixelcore.ops import IGNORED
from pixelcore.tasks import parse
from pixelcore.tasks.examples import TreeExample
from pixelcore.tasks.labels import Labels
from pixelcore.tasks.parse import ParseOptions, TreePrediction
from pixelcore.tasks.task import Layout, score
from render import RenderConfig, Renderer
from tests.tasks import tiny_trees
from tests.tasks.tiny_tasks import TINY
from tests.train.conftest import lines, marks, overrides
from train.cli import main

TREE = ParseOptions()
GREEDY = ParseOptions(decode="greedy")
SUBTYPES = ParseOptions(subtypes=True)
KNOWN = Labels(parse.UNIVERSAL)


def read(tmp_path: Path, text: str, options: ParseOptions = TREE) -> list[TreeExample]:
    path = tmp_path / "a.conllu"
    path.write_text(text, encoding="utf-8")
    return parse.read(path, options)


def as_predicted(examples: Sequence[TreeExample]) -> list[TreePrediction]:
    return [
        TreePrediction(heads=one.heads or (), relations=one.relations or (), num_seen=len(one.words))
        for one in examples
    ]


# ------------------------------------------------------------------ files


def test_trees_are_read_without_subtypes_and_written_back(tmp_path: Path):
    rows = [tiny_trees.sentence(0), [("Vamos", 0, "root"), ("nos", 1, "obj"), ("mar adentro", 1, "obl:arg")]]
    text = tiny_trees.conllu(rows)
    example = read(tmp_path, text)[1]
    assert example.id == "s1" and example.words == ("Vamos", "nos", "mar adentro")
    assert example.heads == (0, 1, 1) and example.relations == ("root", "obj", "obl")
    assert read(tmp_path, text, SUBTYPES)[1].relations == ("root", "obj", "obl:arg")
    said = TreePrediction(heads=(0, 3, None), relations=("root", "case", None), num_seen=2)
    own = text.split("\n\n")[1].splitlines()
    expected = [*own[:3], own[3].replace("\t1\tobj", "\t3\tcase"), own[4].replace("\t1\tobl:arg", "\t_\t_"), own[5], ""]
    assert own[1].startswith("2-3\t") is False and own[2].startswith("2-3\t")
    assert parse.lines(example, said, TREE) == expected
    assert parse.record(example, said)["predicted"] == {
        "heads": [0, 3, None],
        "relations": ["root", "case", None],
    }


def test_words_without_a_file_become_new_lines():
    example = TreeExample(id="x", words=("a", "b"))
    said = TreePrediction(heads=(2, 0), relations=("det", "root"), num_seen=2)
    assert parse.lines(example, said, TREE) == [
        "1\ta\t_\t_\t_\t_\t2\tdet\t_\t_",
        "2\tb\t_\t_\t_\t_\t0\troot\t_\t_",
        "",
    ]


def test_a_head_that_is_no_word_is_named_with_its_line(tmp_path: Path):
    text = tiny_trees.conllu([[("a", 0, "root"), ("b", 3, "dep")]])
    with pytest.raises(UserError, match=r"a.conllu:3: head '3' of 'b' must be a number from 0, the root, to 2"):
        read(tmp_path, text)


def test_outputs_are_the_published_relations_or_those_of_the_data(tmp_path: Path):
    text = tiny_trees.conllu([tiny_trees.sentence(0)])
    known = parse.inventory(read(tmp_path, text), TREE)
    assert len(known) == parse.num_outputs(known, TREE) == 38
    assert known.names[:3] == ("_", "acl", "advcl") and known.names[35:] == ("root", "vocative", "xcomp")
    assert parse.inventory(read(tmp_path, text, SUBTYPES), SUBTYPES).names == (
        "advmod:x",
        "det",
        "nsubj",
        "punct",
        "root",
    )
    with pytest.raises(UserError, match="sentence s0: relation 'SBJ' is none of the 37 universal ones"):
        parse.inventory(read(tmp_path, tiny_trees.conllu([[("a", 0, "SBJ")]])), TREE)
    unparsed = text.replace("\troot\t", "\t_\t")
    for head in range(6):
        unparsed = "\n".join(line.replace(f"\t_\t_\t{head}\t", "\t_\t_\t_\t") for line in unparsed.split("\n"))
    (raw,) = read(tmp_path, unparsed)
    assert raw.heads is None and raw.relations is None
    with pytest.raises(UserError, match="sentence s0: has no heads to train on"):
        parse.inventory([raw], TREE)
    with pytest.raises(UserError, match="sentence s0: has no heads to compare with"):
        score(parse, [raw], [TreePrediction(heads=(0,) * 5, relations=("root",) * 5, num_seen=5)], TREE)


def test_every_treebank_has_universal_relations_and_trees(shared: Path):
    treebanks = sorted((shared / "data" / "ud").iterdir())
    for folder in treebanks:
        found = parse.find_splits(folder, TREE)
        examples = parse.read(found.get("valid", found["test"]), TREE)
        assert set(parse.inventory(examples, TREE).names) == set(parse.UNIVERSAL), folder.name
        assert score(parse, examples, as_predicted(examples), TREE) == {
            "uas": 1.0,
            "las": 1.0,
            "lost_words": 0.0,
            "trees": 1.0,
        }
    assert len(treebanks) == 5


# ------------------------------------------------------------------ targets


EXAMPLE = TreeExample(
    id="s", words=("the", "ferry", "waits", "slowly"), heads=(2, 3, 0, 3), relations=("det", "nsubj", "root", "advmod")
)


@pytest.mark.parametrize("layout", ["continuous", "words", "bigrams"])
def test_words_have_targets_where_they_and_their_heads_are_there(layout: str):
    renderer = Renderer(RenderConfig(layout=layout))
    rows = TaskRows(parse, [EXAMPLE], Strips(renderer, 64), KNOWN, TREE)
    starts = rows.row(0).layout.word_starts
    assert starts is not None
    found = rows.targets(0)
    assert found["word_starts"].tolist() == starts.tolist()
    assert found["arc_labels"].tolist() == [2, 3, 0, 3]
    assert [KNOWN.names[place] for place in found["rel_labels"]] == list(EXAMPLE.relations or ())
    assert parse.num_targets(found) == 4
    cut = TaskRows(parse, [EXAMPLE], Strips(renderer, int(starts[2]) + 1), KNOWN, TREE)
    found, num_words = cut.targets(0), cut.row(0).layout.num_words
    assert num_words == 2 and cut.shares()["truncated"] == 1.0
    # the head of "ferry" is lost
    assert found["arc_labels"].tolist() == [2, IGNORED] and found["rel_labels"][1] == IGNORED
    assert parse.num_targets(found) == 1 and len(found["word_starts"]) == 3


def test_a_relation_that_training_has_not_seen_is_no_target():
    layout = Layout(9, np.array([0, 1, 2, 3, 4], np.int32))
    found = parse.targets(EXAMPLE, layout, Labels(("det", "root", "nsubj")), SUBTYPES)
    assert found["arc_labels"].tolist() == [2, 3, 0, IGNORED] and found["rel_labels"].tolist() == [0, 2, 1, IGNORED]
    bare = parse.targets(replace(EXAMPLE, heads=None, relations=None), layout, KNOWN, TREE)
    assert parse.num_targets(bare) == 0 and len(bare["word_starts"]) == 5


def test_a_batch_is_as_wide_as_its_longest_sentence():
    layouts = [Layout(9, np.array(starts, np.int32)) for starts in ([0, 1, 2], [0, 2, 4, 5, 8], [0])]
    found = [parse.targets(EXAMPLE, layout, KNOWN, TREE) for layout in layouts]
    batch = parse.collate(found, 9)
    assert batch["word_starts"].tolist() == [[0, 1, 2, -100, -100], [0, 2, 4, 5, 8], [0, -100, -100, -100, -100]]
    assert batch["arc_labels"].tolist() == [[2, -100, -100, -100], [2, 3, 0, 3], [-100] * 4]
    assert parse.collate(found[2:], 9)["arc_labels"].shape == (1, 1)


# ------------------------------------------------------------------ the model


def model_of(mask_heads: bool, num_patches: int = 12) -> ViTTask:
    config = ViTTaskConfig(
        task="parser",
        num_labels=38,
        mask_heads=mask_heads,
        patch_size=4,
        num_patches=num_patches,
        num_layers=1,
        hidden_size=8,
        num_attention_heads=2,
        intermediate_size=16,
    )
    model = ViTTask(config)
    initialise(model, 0)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


BATCH = parse.collate(
    [
        parse.targets(EXAMPLE, Layout(9, np.array(starts, np.int32)), KNOWN, TREE)
        for starts in ([0, 1, 3], [0, 2, 4, 5, 8])
    ],
    9,
)


def pixels(length: int) -> dict[str, torch.Tensor]:
    strips = torch.rand(2, 1, 4, 4 * 9, generator=torch.Generator().manual_seed(2))
    real = torch.tensor([[1] * 4 + [0] * 5, [1] * 9])
    return {
        "pixel_values": F.pad(strips, (0, 4 * (length - 9)), value=0.5),
        "attention_mask": F.pad(real, (0, length - 9)),
    }


@torch.no_grad()
@pytest.mark.parametrize("mask_heads", [False, True])
def test_the_loss_does_not_depend_on_the_padding_of_the_batch(mask_heads: bool):
    model = model_of(mask_heads)
    losses = [model(**pixels(length), **BATCH).loss for length in (9, 11, 12)]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])
    # nor on the sentence beside it
    alone = {name: tensor[:1] for name, tensor in (pixels(9) | BATCH).items()}
    short = model(**alone | {name: alone[name][:, : 2 + (name == "word_starts")] for name in BATCH})
    beside = {name: tensor[1:] for name, tensor in (pixels(9) | BATCH).items()}
    both = short.loss * short.count + (other := model(**beside)).loss * other.count
    torch.testing.assert_close(both / (short.count + other.count), losses[0])


@torch.no_grad()
def test_masked_heads_leave_the_scores_of_words_as_they_are():
    published, masked = (model_of(mask)(**pixels(9), **BATCH) for mask in (False, True))
    assert published.arc_logits.shape == (2, 9, 10) and masked.arc_logits.shape == (2, 4, 5)
    assert masked.rel_logits.shape == (2, 4, 5, 38)
    torch.testing.assert_close(masked.arc_logits[0, :2, :3], published.arc_logits[0, :2, :3])
    torch.testing.assert_close(masked.arc_logits[1], published.arc_logits[1, :4, :5])
    torch.testing.assert_close(masked.rel_logits, published.rel_logits[:, :4, :5])
    assert (published.arc_logits[0, :, 3:] == 0).all() and (masked.arc_logits[0, :, 3:] == -1e9).all()
    # the published loss is over 12 words and the root, whatever the strip
    padded = F.pad(published.arc_logits, (0, 3)).flatten(0, 1)
    arcs = F.cross_entropy(padded, F.pad(BATCH["arc_labels"], (0, 5), value=IGNORED).flatten())
    gold = published.rel_logits[1, range(4), BATCH["arc_labels"][1]], published.rel_logits[0, 0, 2][None]
    relations = F.cross_entropy(torch.cat(gold), torch.cat((BATCH["rel_labels"][1], BATCH["rel_labels"][0, :1])))
    torch.testing.assert_close(published.loss, arcs + relations)


def test_masked_heads_belong_to_parsers():
    with pytest.raises(ValueError, match="mask_heads = true belongs to task = \"parser\", and the task is 'token'"):
        ViTTaskConfig(
            task="token", mask_heads=True, num_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=16
        )


# ------------------------------------------------------------------ decoding


def scores_of(arcs: list[list[float]], num_words: int) -> dict[str, np.ndarray]:
    """Arc scores, padded to 4 words; of relations `obj` is the best, `root` the next, then `det`."""
    arcs_BWU = np.zeros((1, 4, 5), np.float32)
    arcs_BWU[0, :num_words, : num_words + 1] = np.reshape(arcs, (num_words, num_words + 1))
    rels_BWUO = np.zeros((1, 4, 5, 38), np.float32)
    for worth, name in enumerate(("det", "root", "obj"), start=1):
        rels_BWUO[..., KNOWN.index(name)] = worth
    return {"arc_logits": arcs_BWU, "rel_logits": rels_BWUO}


def decoded(arcs: list[list[float]], options: ParseOptions, num_words: int = 3, lost: int = 0) -> TreePrediction:
    example = TreeExample(id="s", words=("x",) * (num_words + lost))
    layout = Layout(9, np.arange(num_words + 1, dtype=np.int32))
    return parse.decode(scores_of(arcs, num_words), [example], [layout], KNOWN, options)[0]


def test_greedy_takes_the_best_head_of_each_word_and_tree_the_best_tree():
    # 1 and 2 choose each other, 3 the root, and nothing of it is a tree
    arcs: list[list[float]] = [[1, 0, 9, 2], [3, 9, 0, 4], [5, 2, 2, 0]]
    greedy, tree = decoded(arcs, GREEDY), decoded(arcs, TREE)
    assert greedy.heads == (2, 1, 0) and greedy.relations == ("obj", "obj", "obj")
    assert tree.heads == (2, 3, 0)
    assert tree.relations == ("obj", "obj", "root")  # the root alone has it, and always


def test_greedy_may_choose_a_word_that_is_not_there_and_tree_never_does():
    arcs: list[list[float]] = [[-5, -6, -4], [-7, -8, -9]]
    greedy, tree = decoded(arcs, GREEDY, 2, lost=1), decoded(arcs, TREE, 2, lost=1)
    assert greedy.heads == (None, None, None) and greedy.relations == (None, None, None) and greedy.num_seen == 2
    assert tree.heads == (2, 0, None) and tree.relations == ("obj", "root", None)
    assert decoded([], TREE, 0, lost=2).heads == (None, None)


def test_lost_words_are_wrong_and_counted():
    gold = TreeExample(id="s", words=("a", "b", "c"), heads=(2, 0, 2), relations=("det", "root", "obj"))
    said = TreePrediction(heads=(2, 0, None), relations=("det", "root", None), num_seen=2)
    third = pytest.approx(1 / 3)
    assert score(parse, [gold], [said], TREE) == {
        "uas": pytest.approx(2 / 3),
        "las": pytest.approx(2 / 3),
        "lost_words": third,
        "trees": 0.0,
    }


# ------------------------------------------------------------------ figures


def scored_slowly(gold: str, said: str) -> dict[str, float]:
    """UAS and LAS from the text of two files, word by word, with nothing of ours."""
    words = []
    for text in (gold, said):
        found, sentence = [], 0
        for line in text.splitlines():
            columns = line.split("\t")
            sentence += not line
            if columns[0].isdigit():
                found.append((sentence, columns[1], columns[6], columns[7].split(":")[0]))
        words.append(found)
    assert [word[:2] for word in words[0]] == [word[:2] for word in words[1]]
    heads = [one[2] == other[2] for one, other in zip(*words)]
    both = [one[2:] == other[2:] for one, other in zip(*words)]
    return {"uas": sum(heads) / len(heads), "las": sum(both) / len(both)}


# What `udeval` of udtools 0.2.9, the scorer of the shared task as its authors keep it, prints for these files.
OFFICIAL = {0: (78.12, 57.14), 1: (79.89, 57.14)}


@pytest.mark.parametrize("seed", OFFICIAL)
def test_figures_are_those_of_the_shared_task(seed: int, tmp_path: Path):
    gold, said = map(tiny_trees.conllu, tiny_trees.mistaken(seed))
    for options in (TREE, SUBTYPES):
        examples = read(tmp_path, gold, options)
        predictions = as_predicted(read(tmp_path, said, options))
        found = score(parse, examples, predictions, options)
        assert {name: found[name] for name in ("uas", "las")} == scored_slowly(gold, said)
        assert (round(100 * found["uas"], 2), round(100 * found["las"], 2)) == OFFICIAL[seed]
        assert found["trees"] == 1.0
    back = "\n".join(line for pair in zip(examples, predictions) for line in parse.lines(*pair, SUBTYPES)) + "\n"
    assert scored_slowly(gold, back) == scored_slowly(gold, said)


def test_las_of_the_original_is_the_same_number():
    """It takes the relation at the true head, and counts words of which the head is right too."""
    generator = np.random.default_rng(0)
    arcs_BWU = generator.normal(size=(1, 40, 41)).astype(np.float32)
    rels_BWUO = generator.normal(size=(1, 40, 41, 38)).astype(np.float32)
    heads, places = generator.integers(0, 41, 40), np.arange(40)
    arcs_BWU[0, places[:20], heads[:20]] += 9
    rels_BWUO[0, places[10:], heads[10:], 5] += 9
    gold = TreeExample(id="s", words=("x",) * 40, heads=tuple(heads.tolist()), relations=(KNOWN.names[5],) * 40)
    scores = {"arc_logits": arcs_BWU, "rel_logits": rels_BWUO}
    said = parse.decode(scores, [gold], [Layout(41, np.arange(41, dtype=np.int32))], KNOWN, GREEDY)
    published = (arcs_BWU[0].argmax(-1) == heads) & (rels_BWUO[0, places, heads].argmax(-1) == 5)
    assert 0.2 < score(parse, [gold], said, GREEDY)["las"] == published.mean() < 0.4


def test_baselines_hang_each_word_on_its_neighbour(tmp_path: Path, shared: Path):
    rows = [[("a", 2, "det"), ("b", 0, "root")], [("b", 3, "obj"), ("a", 1, "det"), ("c", 0, "root")]]
    examples = read(tmp_path, tiny_trees.conllu(rows))
    found = parse.baselines(examples, examples, TREE)
    assert found["right_neighbour"]["uas"] == pytest.approx(3 / 5) and found["right_neighbour"]["trees"] == 1.0
    assert found["left_neighbour"]["uas"] == found["left_neighbour"]["las"] == pytest.approx(1 / 5)
    folder = shared / "data" / "ud" / "UD_Vietnamese-VTB"
    splits = parse.find_splits(folder, TREE)
    found = parse.baselines(parse.read(splits["valid"], TREE), parse.read(splits["test"], TREE), TREE)
    assert round(100 * found["left_neighbour"]["uas"], 2) == 23.39  # as `udeval` scores the written file
    assert found["right_neighbour"]["uas"] == pytest.approx(0.2313, abs=1e-4)
    assert 0.15 < found["right_neighbour"]["las"] < 0.2


# ------------------------------------------------------------------ a run


@pytest.mark.parametrize("published", [False, True])
def test_sixteen_sentences_are_learned_by_heart(tmp_path: Path, published: bool):
    data, path = tiny_trees.treebank(tmp_path / "UD_Tiny"), tmp_path / "run"
    fields = TINY | {"model.num_patches": 40, "data.max_patches": 40, "eval.every": 24, "eval.patience": 0}
    if published:
        fields |= {"model.mask_heads": False, "objective.decode": "greedy"}
    flags = ["--preset", "pixel-tiny-ud", "--data", str(data), "--device", "cpu", *overrides(fields)]
    assert main([*flags, "--out", str(path), "--steps", "48", "--valid", str(data / "xx_tiny-ud-train.conllu")]) == 0
    found = marks(path)
    assert found["valid_las"] > 0.98 and found["valid_uas"] > 0.98 and found["test_las"] > 0.6
    assert found["valid_trees"] == 1.0 or published
    losses = [row["loss"] for row in lines(path) if "loss" in row]
    assert losses[-1] < 0.1 * losses[0]
