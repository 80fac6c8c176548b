"""The models, by the `kind` of their configuration."""

from pixelcore.models.decoder import Decoder
from pixelcore.models.heads import ViTTask
from pixelcore.models.pixar import Pixar
from pixelcore.models.vit_mae import ViTMAE

Model = Decoder | ViTMAE | ViTTask | Pixar
MODELS = {"decoder": Decoder, "vit_mae": ViTMAE, "vit_task": ViTTask, "pixar": Pixar}
