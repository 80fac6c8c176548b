"""How a model's parameters begin: a pure function of the configuration and a seed.

The decoder of tokens: every linear map and the tied embedding start as N(0, 0.02), an untied embedding as
N(0, 1/sqrt(D)), norm weights at one, and no branch is scaled by depth: what the original decoder does in effect
(specs/decoder.md, section 2). Adapters start so that they change nothing.

The models of strips: linear maps, the CLS vector and the mask token as N(0, initializer_range), biases at zero, norms
at one and zero, positions as their formula says, and the patch projection as the original pretraining really starts,
which is not as its model class does: the script builds the embeddings anew, so the weights are Xavier-uniform and the
bias is uniform (specs/pixel.md, section 2.7). Heads of tasks start like linear maps, but for a parser, whose two
biaffine tensors are zero, and the seed of attention pooling, which is Xavier-uniform (section 3). Their token partner
begins likewise, its table of tokens as linear maps do.

The model that writes strips: linear maps and the start vector as N(0, 0.02), norms at one. The two maps between patches
and rows are uniform in +-1/sqrt(values of a patch), because the original's initialiser passes convolutions by
(specs/pixar.md, section 2.1); each component of a mixture begins like a patch of its own, so no two are alike.
Its classifier's head, and that of the decoder's, begin as linear maps do, biases at zero.
Its context-aware discriminator begins likewise, the bias of its answers at zero, before it copies what it judges; the
discriminator of single patches as PyTorch's layers do, uniform in +-1/sqrt(inputs) (section 4.2).
"""

import math

import torch
from torch import nn

from pixelcore.layers import Adapter, ExpertLinear, Linear, PackedLinear, initialise_adapter
from pixelcore.models import Model
from pixelcore.models.decoder import Decoder, Experts, NormWeight
from pixelcore.models.decoder_task import DecoderTask
from pixelcore.models.discriminator import Discriminator, PatchDiscriminator
from pixelcore.models.packed_head import PackedHead
from pixelcore.models.pixar_task import PixarTask
from pixelcore.models.pixar_trunk import PatchMap, PixarTrunk
from pixelcore.models.vit import Encoder, Norm, PatchProjection
from pixelcore.models.vit_mae import PixelDecoder
from pixelcore.positions import sincos_table

_STANDARD_DEVIATION = 0.02
_ZERO_AT_FIRST = ("arcs", "relations")


@torch.no_grad()
def initialise(model: Model | Discriminator, seed: int) -> None:
    """Fill every parameter of the model and its tables of positions, in the order of its modules, from one generator on
    the host."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, Decoder):
        _initialise_decoder(model, generator)
        return
    if isinstance(model, PixarTrunk):
        _initialise_pixar(model, generator)
        return
    if isinstance(model, PixarTask | DecoderTask):
        trunk = model.encoder
        _initialise_pixar(trunk, generator) if isinstance(trunk, PixarTrunk) else _initialise_decoder(trunk, generator)
        _initialise_packed_head(model.head, generator)
        return
    if isinstance(model, PatchDiscriminator):
        _initialise_patch_discriminator(model, generator)
        return
    for module in model.modules():
        _initialise_strip_module(module, model.config.initializer_range, generator)


def _initialise_decoder(model: Decoder, generator: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, PackedLinear | ExpertLinear):
            nn.init.normal_(module.weight, std=_STANDARD_DEVIATION, generator=generator)
        elif isinstance(module, Experts):
            nn.init.normal_(module.router.weight, std=_STANDARD_DEVIATION, generator=generator)
        elif isinstance(module, NormWeight):
            nn.init.ones_(module.weight)
        elif isinstance(module, Adapter):
            initialise_adapter(module, generator)
    tied = model.head is None
    deviation = _STANDARD_DEVIATION if tied else model.config.hidden_size**-0.5
    nn.init.normal_(model.embed.weight, std=deviation, generator=generator)
    if model.head is not None:
        nn.init.normal_(model.head.weight, std=_STANDARD_DEVIATION, generator=generator)


def _initialise_pixar(model: PixarTrunk, generator: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, PackedLinear | Linear):
            nn.init.normal_(module.weight, std=_STANDARD_DEVIATION, generator=generator)
            if isinstance(module, Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, PatchMap):
            bound = 1 / math.sqrt(module.values)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
        elif isinstance(module, NormWeight):
            nn.init.ones_(module.weight)
        elif isinstance(module, Adapter):
            initialise_adapter(module, generator)
    if model.start is not None:
        nn.init.normal_(model.start, std=_STANDARD_DEVIATION, generator=generator)


def _initialise_packed_head(head: PackedHead, generator: torch.Generator) -> None:
    for module in head.modules():
        if isinstance(module, Linear):
            nn.init.normal_(module.weight, std=_STANDARD_DEVIATION, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _initialise_patch_discriminator(model: PatchDiscriminator, generator: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, Linear):
            bound = 1 / math.sqrt(module.weight.shape[1])
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif isinstance(module, Norm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def _initialise_strip_module(module: nn.Module, deviation: float, generator: torch.Generator) -> None:
    """The parameters that the module itself holds, not those of the modules within it."""
    if isinstance(module, Norm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, PatchProjection):
        flat_DA = module.weight.flatten(1)
        nn.init.xavier_uniform_(flat_DA, generator=generator)
        bound = 1 / math.sqrt(flat_DA.shape[1])
        nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    elif isinstance(module, Adapter):
        initialise_adapter(module, generator)
    else:
        if isinstance(module, Encoder | PixelDecoder):
            num_places, width = module.positions.shape
            module.positions.copy_(sincos_table(num_places - 1, width))
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias" or name in _ZERO_AT_FIRST:
                nn.init.zeros_(parameter)
            elif name == "seed":
                nn.init.xavier_uniform_(parameter, generator=generator)
            elif name != "positions":
                nn.init.normal_(parameter, std=deviation, generator=generator)
