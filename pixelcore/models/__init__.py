"""The models, by the `kind` of their configuration."""

from pixelcore.models.decoder import Decoder
from pixelcore.models.decoder_task import DecoderTask
from pixelcore.models.heads import ViTTask
from pixelcore.models.pixar import Pixar
from pixelcore.models.pixar_task import PixarTask
from pixelcore.models.token_encoder import TokenMLM, TokenTask
from pixelcore.models.vit_mae import ViTMAE

Model = Decoder | ViTMAE | ViTTask | TokenMLM | TokenTask | Pixar | PixarTask | DecoderTask
MODELS = {
    "decoder": Decoder,
    "vit_mae": ViTMAE,
    "vit_task": ViTTask,
    "token_mlm": TokenMLM,
    "token_task": TokenTask,
    "pixar": Pixar,
    "pixar_task": PixarTask,
    "decoder_task": DecoderTask,
}
