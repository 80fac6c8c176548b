"""The models, by the `kind` of their configuration."""

from pixelcore.models.decoder import Decoder

MODELS = {"decoder": Decoder}
