"""How a model's parameters begin: a pure function of the configuration and a seed.

Every linear map and the tied embedding start as N(0, 0.02), an untied embedding as N(0, 1/sqrt(D)), norm weights at
one, and no branch is scaled by depth: what the original decoder does in effect (specs/decoder.md, section 2). Adapters
start so that they change nothing.
"""

import torch
from torch import nn

from pixelcore.layers import Adapter, ExpertLinear, PackedLinear, initialise_adapter
from pixelcore.models.decoder import Decoder, Experts, NormWeight

_STANDARD_DEVIATION = 0.02


@torch.no_grad()
def initialise(model: Decoder, seed: int) -> None:
    """Fill every parameter of the model, in the order of its modules, from one generator on the host."""
    generator = torch.Generator().manual_seed(seed)
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
