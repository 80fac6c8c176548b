"""A fine-tuned model on attacked examples, beside itself on the same ones as they were.

The strata of `attack_strata.py` compare the same examples with and without the attack: examples differ in how hard they
are, and an attack that leaves the pixels alone hits short ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infer.attack_strata import SAID, strata_of
from infer.evaluate_task import Clean, Figure, chosen, figures_of, in_columns
from infer.predict import TaskModel, predict
from infer.task_attacks import TaskAttack, attacked


@dataclass(frozen=True)
class Stratum:
    """Some of the examples. clean, attacked: their figures without the attack, and under it."""

    name: str
    examples: int
    clean: dict[str, Figure]
    attacked: dict[str, Figure]


@dataclass(frozen=True)
class Attacked:
    """strata: all examples, then those that have any. changed: the share of examples whose text is another. shares: of
    attacked rows that were cut, of characters that no font has."""

    attack: str
    severity: float
    seed: int
    table: str | None
    loss: float
    changed: float
    shares: dict[str, float]
    strata: list[Stratum]

    def as_text(self, figure: str) -> list[str]:
        """Lines of a table of one figure, in per cent."""
        rows = [["", "examples", f"{figure}, clean", "attacked", "95 % interval"]]
        for one in self.strata:
            clean, hit = one.clean[figure], one.attacked[figure]
            between = f"[{100 * hit.low:.2f}, {100 * hit.high:.2f}]"
            rows.append([one.name, str(one.examples), f"{100 * clean.value:.2f}", f"{100 * hit.value:.2f}", between])
        heading = f"attack {self.attack} {self.severity:g}, seed {self.seed}: loss {self.loss:.4f}, "
        heading += f"{100 * self.changed:.2f} % of the examples changed, {100 * self.shares['truncated']:.2f} % cut"
        return [heading, *in_columns(rows)]


def evaluate_attacked(loaded: TaskModel, examples: Sequence[Any], clean: Clean, attack: TaskAttack) -> Attacked:
    """All examples under the attack, and by what it did to their pixels."""
    hit = [attacked(attack, example, number) for number, example in enumerate(examples)]
    found, rows = predict(loaded, hit, with_loss=True)
    counts = loaded.task.counts(hit, found.predictions, loaded.options)
    of_example = strata_of(clean.rows, rows)
    strata = [Stratum("all", len(hit), figures_of(loaded, clean.counts), figures_of(loaded, counts))]
    for name, said in SAID.items():
        which = of_example == name
        if not which.any():
            continue
        before, after = (figures_of(loaded, chosen(one, which)) for one in (clean.counts, counts))
        strata.append(Stratum(said, int(which.sum()), before, after))
    assert found.loss is not None
    changed = float(np.mean([loaded.task.drawn(a) != loaded.task.drawn(b) for a, b in zip(examples, hit, strict=True)]))
    return Attacked(
        attack=attack.name,
        severity=attack.severity,
        seed=attack.seed,
        table=attack.strata.table.name if attack.name == "confusables" else None,
        loss=found.loss,
        changed=changed,
        shares=rows.shares(),
        strata=strata,
    )
