"""What any checkpoint folder comes down to, whoever wrote it.

Readers of the different formats (`checkpoint.py` for ours, `convert/` for foreign ones) all return one record, so that
loading, inspecting and exporting do not care where a model came from.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pixelcore.config import DecoderConfig, ModelConfig
from pixelcore.errors import UserError
from pixelcore.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """AdamW's moments by parameter name (our packed names), shaped like the parameters, and the number of updates."""

    firsts: dict[str, Tensor]
    seconds: dict[str, Tensor]
    step: int


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A model at rest. weights: its state dict by our names, on the host, in the dtype of the file.

    origin: "checkpoint" (ours), "export" (ours, weights only), "bundle" (the original decoder's), "pixel" and "pixar"
    (published folders). renderer: how the strips of a model that reads them were drawn, {"config", "identity"}, opaque
    here; None where there are none or the format cannot say. task: what a fine-tuned model is for, {"kind", "labels",
    "options"}, the names of its outputs among them; None of any other. details: what the format says besides, by its
    own names, kept for `inspect` and for writing the same format again.
    """

    path: Path
    origin: str
    name: str
    step: int
    config: ModelConfig
    weights: dict[str, Tensor]
    tokenizer: Tokenizer | None = None
    renderer: dict[str, Any] | None = None
    task: dict[str, Any] | None = None
    optimizer: OptimizerState | None = None
    details: dict[str, object] = field(default_factory=dict)

    @property
    def decoder_config(self) -> DecoderConfig:
        """The configuration of a decoder. Raises UserError for a model of another kind."""
        if not isinstance(self.config, DecoderConfig):
            raise UserError(f"{self.path}: a {self.config.kind} model, and a decoder is needed here: give one")
        return self.config
