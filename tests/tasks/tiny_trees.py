"""Trees to read, to learn and to score: sentences whose words say what hangs on what, and predictions with mistakes."""

import random
from pathlib import Path

from pixelcore.tasks.spanning_tree import is_tree

_NOUNS = ("ferry", "clock", "river", "lamp")
_VERBS = ("waits", "turns", "sinks", "begins")
_ADVERBS = ("slowly", "again", "quietly")
_RELATIONS = ("nsubj", "nsubj:pass", "obj", "obl", "obl:agent", "advmod", "punct", "det", "acl:relcl", "conj")

Row = tuple[str, int, str]


def sentence(number: int) -> list[Row]:
    """(word, head, relation); the order of the parts depends on the number, so where a word stands says little."""
    number = number * 37 % 144
    verb, number = _VERBS[number % 4], number // 4
    noun, number = _NOUNS[number % 4], number // 4
    adverb, order = _ADVERBS[number % 3], number // 3
    subject = [("the", noun, "det"), (noun, verb, "nsubj")]
    parts = [subject, [(verb, "", "root")], [(adverb, verb, "advmod:x")]]
    parts = [parts[place] for place in ((0, 1, 2), (2, 0, 1), (2, 1, 0))[order]]
    rows = [row for part in parts for row in part] + [(".", verb, "punct")]
    places = {word: place for place, (word, _, _) in enumerate(rows, start=1)} | {"": 0}
    return [(word, places[head], relation) for word, head, relation in rows]


def conllu(sentences: list[list[Row]]) -> str:
    """Sentences in CoNLL-U; the second one has a range of words and a word that is not there."""
    written = []
    for number, rows in enumerate(sentences):
        written.append(f"# sent_id = s{number}")
        for place, (word, head, relation) in enumerate(rows, start=1):
            if (number, place) == (1, 2):
                written.append("2-3\t" + rows[1][0] + rows[2][0] + "\t_" * 8)
            written.append(f"{place}\t{word}\t_\t_\t_\t_\t{head}\t{relation}\t_\t_")
            if (number, place) == (1, 3):
                written.append("3.1\tnothing" + "\t_" * 6 + "\t2:dep\t_")
        written.append("")
    return "\n".join(written) + "\n"


def treebank(folder: Path) -> Path:
    """A folder with train, dev and test files."""
    folder.mkdir(parents=True, exist_ok=True)
    for role, numbers in (("train", range(16)), ("dev", range(40, 48)), ("test", range(60, 72))):
        text = conllu([sentence(number) for number in numbers])
        (folder / f"xx_tiny-ud-{role}.conllu").write_text(text, encoding="utf-8")
    return folder


def mistaken(seed: int) -> tuple[list[list[Row]], list[list[Row]]]:
    """40 random trees with subtypes, and predictions that are trees too and partly right."""
    generator = random.Random(seed)
    gold, predicted = [], []
    for _ in range(40):
        size = generator.randint(1, 9)
        heads = _random_tree(generator, size)
        others = _random_tree(generator, size)
        said = list(heads)
        for word in generator.sample(range(size), size // 2):
            trial = [*said[:word], others[word], *said[word + 1 :]]
            said = trial if is_tree(trial) else said
        relations = [generator.choice(_RELATIONS) if head else "root" for head in heads]
        named = [
            relation if generator.random() < 0.6 else generator.choice(_RELATIONS) if head else "root"
            for head, relation in zip(said, relations)
        ]
        words = [f"w{generator.randint(0, 99)}" for _ in range(size)]
        gold.append(list(zip(words, heads, relations)))
        predicted.append(list(zip(words, said, named)))
    return gold, predicted


def _random_tree(generator: random.Random, size: int) -> list[int]:
    order = list(range(1, size + 1))
    generator.shuffle(order)
    heads = [0] * size
    for place in range(1, size):
        heads[order[place] - 1] = order[generator.randrange(place)]
    return heads
