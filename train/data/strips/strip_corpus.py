"""From paths to rows of text for models that read strips: the counterpart of `train/data/corpus.py`.

Sources and splits are the same as for tokens. What is prepared differs: rows that one renderer draws, in the place of
ids that one tokenizer gives. Held-out rows are taken evenly from all of the held-out text.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixelcore.durable import write_json
from render import RenderConfig, Renderer
from train.config import StripDataConfig
from train.data.corpus import Source, cache_folder, training_texts
from train.data.split import Role, Split, overlap_share
from train.data.strips.row_store import RowStore, describe, prepare_rows
from train.objective import Belongings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StripCorpus:
    """Training rows of every source, held-out rows, and what identifies them.

    renderer: {"config", "identity"} of the renderer that the rows were measured with, as a checkpoint keeps it.
    overlap: share of the held-out 50-character windows that occur in the training text.
    """

    sources: list[Source]
    renderer: dict[str, Any]
    training: list[RowStore]
    held_out: list[RowStore]
    overlap: float

    @property
    def fingerprint(self) -> str:
        """Differs when the rows, their pixels or their order could differ."""
        keys = [store.key for store in self.training + self.held_out]
        return hashlib.sha256(json.dumps(keys).encode()).hexdigest()

    @property
    def description(self) -> str:
        """For people: how much text, and what became of it."""
        totals = Counter[str]()
        for store in self.training:
            totals.update(store.counts)
        return (
            f"{totals['rows']:,} rows to train on, {sum(map(len, self.held_out)):,} held out; of the held-out "
            f"50-character windows {100 * self.overlap:.2f} % occur in training text; training text: {describe(totals)}"
        )

    @property
    def summary(self) -> dict[str, Any]:
        """What was prepared."""
        return {
            "training_rows": sum(map(len, self.training)),
            "training_patches": sum(int(store.num_patches.sum(dtype=np.int64)) for store in self.training),
            "held_out_rows": sum(map(len, self.held_out)),
            "overlap": self.overlap,
            "stores": [str(store.folder) for store in self.training],
            "counts": [store.counts for store in self.training],
        }

    def verify(self, workers: int) -> int:
        """Draw all rows again; their number. Raises UserError for the first that differs from what was prepared."""
        renderer = Renderer(RenderConfig.from_dict(self.renderer["config"]))
        for store in self.training + self.held_out:
            store.verify(renderer, workers=workers)
        return sum(map(len, self.training + self.held_out))

    @property
    def splits(self) -> list[Split]:
        """Who is held out, for each source."""
        return [source.split for source in self.sources]

    @property
    def belongings(self) -> Belongings:
        """What a checkpoint must keep: the renderer."""
        return Belongings(renderer=self.renderer)


def build_strip_corpus(
    sources: Sequence[Source], held_out: Sequence[Source], renderer: Renderer, data: StripDataConfig, max_eval_rows: int
) -> StripCorpus:
    """Make the rows that are not made yet, and measure how much held-out text is trained on.

    sources, held_out: of `corpus.find_sources`. max_eval_rows: of the held-out rows, at most, over all sources; at
    least one of each. Raises UserError where a source has no row.
    """
    cache = cache_folder()
    training = [_rows(source, "train", renderer, data) for source in sources]
    chosen: list[tuple[Source, Role]]
    if held_out:
        chosen = [(source, "train") for source in held_out]  # of separate paths, nothing is held out in turn
    else:
        chosen = [(source, "valid") for source in sources]
    most = max(1, max_eval_rows // len(chosen))
    evaluation = [_rows(source, role, renderer, data).thinned(most) for source, role in chosen]
    key = hashlib.sha256(json.dumps([store.key for store in training + evaluation]).encode()).hexdigest()[:32]
    record = cache / "overlaps" / f"{key}.json"
    if not record.exists():
        _log.info("measuring how much of the held-out text occurs in the training text")
        texts = (text for source, role in chosen for text in source.split.texts(source.files, role, data.field))
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, {"share": overlap_share(training_texts(sources, data.field), texts)})
    return StripCorpus(
        sources=list(sources),
        renderer={"config": renderer.config.to_dict(), "identity": renderer.identity()},
        training=training,
        held_out=evaluation,
        overlap=json.loads(record.read_text())["share"],
    )


def _rows(source: Source, role: Role, renderer: Renderer, data: StripDataConfig) -> RowStore:
    label = source.files[0].name + (f" and {len(source.files) - 1} more" if len(source.files) > 1 else "")
    return prepare_rows(source.files, source.split, role, renderer, data, cache_folder(), label)
