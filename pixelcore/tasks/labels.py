"""What the outputs of a model mean: names of labels, in the order of the outputs.

The inventory is made from the training data, sorted, so that it does not depend on the order of the file; or it is
given, where the order is part of a published model. It stands in the checkpoint, because without it a trained head is
a list of numbers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pixelcore.errors import UserError

UNSEEN = -1


@dataclass(frozen=True)
class Labels:
    """names[i] is what output i stands for. Of a task without named outputs, such as regression, there are none."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise UserError(f"label {twice!r} stands twice in the list of labels: name each once")
        # looked up for every word: not a field, so equality and the stored form are of the names alone
        object.__setattr__(self, "_places", {name: place for place, name in enumerate(self.names)})

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """The output of a label, `UNSEEN` for one that is not in the inventory."""
        places: dict[str, int] = self.__dict__["_places"]
        return places.get(name, UNSEEN)


def inventory(found: Iterable[tuple[str, str]], given: Sequence[str] = ()) -> Labels:
    """The labels of training data. found: (label, where it stands). given: the inventory, where the user names it; a
    label outside of it is a UserError that says where."""
    if not given:
        names = sorted({label for label, _ in found})
        if not names:
            raise UserError("the training data has no labels: give a file in which they stand")
        return Labels(tuple(names))
    labels = Labels(tuple(given))
    for label, where in found:
        if labels.index(label) == UNSEEN:
            raise UserError(
                f"{where}: label {label!r} is not among the {len(labels)} of objective.labels: add it, or leave "
                "objective.labels out to take those of the training data"
            )
    return labels
