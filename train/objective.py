"""What training asks of an objective, and what it gets back.

`Objective` is a protocol that modules fulfil: `next_token.py` reads as one example of it from top to bottom.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pixelcore.stored import Stored
from pixelcore.tokenizer import Tokenizer
from train.distributed import Ranks
from train.report import Reporter


@dataclass(frozen=True)
class Loss:
    """total: what is differentiated. reported: the part that is shown as "loss". balance: the experts' load-balancing
    loss before its coefficient. All are scaled sums: over the micro-batches and ranks of a step they make means."""

    total: Tensor
    reported: Tensor
    balance: Tensor


@dataclass(frozen=True)
class Belongings:
    """What a checkpoint must keep beside the weights, or they mean nothing. renderer, task: tables of a checkpoint's
    manifest."""

    tokenizer: Tokenizer | None = None
    renderer: dict[str, Any] | None = None
    task: dict[str, Any] | None = None


class Corpus(Protocol):
    """Text, found, divided and prepared. fingerprint: differs when what is learned from could differ. overlap: share of
    the held-out 50-character windows that occur in the training text. splits: records of who is held out."""

    @property
    def sources(self) -> Sequence[Any]: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def overlap(self) -> float: ...
    @property
    def splits(self) -> Sequence[Any]: ...
    @property
    def belongings(self) -> Belongings: ...


class Batches(Protocol):
    """The training data by step: a step has `per_rank` micro-batches on each rank, and `num_targets` targets in all."""

    per_rank: int

    def num_targets(self, step: int) -> int: ...
    def micro_batch(self, step: int, index: int, device: torch.device | str) -> Any: ...
    def close(self) -> None: ...


class Objective(Protocol):
    """The questions, in the order in which they are asked."""

    @property
    def UNIT(self) -> str:
        """What progress is counted in: "tokens", "rows"."""
        ...

    @property
    def CURVE(self) -> str:
        """What the axis of the loss curve says."""
        ...

    def adopt(self, settings: Any, stored: Stored, init: Path) -> Any:
        """Settings of a run that starts from a stored model: its architecture and what belongs to it hold."""
        ...

    def find_data(self, settings: Any, ranks: Ranks, stored: Stored | None, own_text: Path | None) -> tuple[Any, Any]:
        """The corpus, and the settings with all that is only known now. stored: the model that the run goes on from.
        own_text: the run's copy of the default text."""
        ...

    def num_blocks(self, settings: Any) -> int:
        """Blocks, or rows, of one step over all ranks."""
        ...

    def block_units(self, settings: Any) -> int:
        """Units of progress in one block."""
        ...

    def describe_block(self, settings: Any) -> str:
        """A block in words, for log and errors."""
        ...

    def block_bytes(self, settings: Any, blocks: int, bytes_per_value: int, recompute: bool) -> float:
        """Estimated peak memory of a training step with micro-batches of so many blocks."""
        ...

    def block_rows(self, settings: Any) -> int:
        """Rows of activations that a block has, at most."""
        ...

    def step_flops(self, settings: Any) -> float:
        """Floating point operations of one optimizer step over all ranks."""
        ...

    def deal(self, settings: Any, corpus: Any, ranks: Ranks) -> tuple[Any, Any]:
        """The training batches, and the held-out text in the form that `evaluate` takes."""
        ...

    def loss(self, model: nn.Module, batch: Any, scale: Tensor, dropout_seed: Tensor | None) -> Loss:
        """The loss of one micro-batch; scale is 1 / (targets of the whole step)."""
        ...

    def evaluate(self, model: nn.Module, held_out: Any, ranks: Ranks) -> dict[str, float]:
        """`loss`, and what else says how well the held-out text is predicted. Every rank must call it."""
        ...

    def say(self, values: dict[str, float]) -> str:
        """These values in a line for people."""
        ...

    def show(
        self, model: Any, settings: Any, corpus: Any, held_out: Any, reporter: Reporter, step: int
    ) -> dict[str, float]:
        """Put what the model can do now into the run's samples; further values. Called by a run of one process."""
        ...
