"""What any checkpoint folder comes down to, whoever wrote it.

Readers of the different formats (`checkpoint.py` for ours, `convert/` for foreign ones) all return one record, so that
loading, inspecting and exporting do not care where a model came from.
"""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from pixelcore.config import DecoderConfig
from pixelcore.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """AdamW's moments by parameter name (our packed names), shaped like the parameters, and the number of updates."""

    firsts: dict[str, Tensor]
    seconds: dict[str, Tensor]
    step: int


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A model at rest. weights: by our names, on the host, in the dtype of the file. origin: "checkpoint" (ours),
    "export" (ours, weights only) or "bundle" (the original decoder's). details: what the format says besides, by its
    own names, kept for `inspect` and for writing the same format again."""

    path: Path
    origin: str
    name: str
    step: int
    config: DecoderConfig
    weights: dict[str, Tensor]
    tokenizer: Tokenizer | None = None
    optimizer: OptimizerState | None = None
    details: dict[str, object] = field(default_factory=dict)
