"""The models, by the `kind` of their configuration."""

from pixelcore.models.decoder import Decoder
from pixelcore.models.heads import ViTTask
from pixelcore.models.vit_mae import ViTMAE

Model = Decoder | ViTMAE | ViTTask
MODELS = {"decoder": Decoder, "vit_mae": ViTMAE, "vit_task": ViTTask}
