"""The same model in another library: `LlamaForCausalLM` of transformers with our weights, and its training step.

The architecture is ours but for the order of rotary pairs (`pixelcore.convert.llama` says how one becomes the other).
The step is the one that its users write: `clip_grad_norm_`, `torch.optim.AdamW`, `zero_grad`. Needs the extra `parity`.
"""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM  # pyright: ignore[reportMissingImports] - the extra parity

import presets
from pixelcore.config import DecoderConfig
from pixelcore.convert.llama import llama_config, to_llama_state
from pixelcore.models.decoder import Decoder
from train.config import OptimizerConfig
from train.job import read_settings


def architecture(preset: str) -> DecoderConfig:
    """The model table of a preset."""
    config = read_settings(presets.load(preset), (), f"preset {preset}").model
    assert isinstance(config, DecoderConfig)
    return config


def as_llama(model: Decoder) -> LlamaForCausalLM:
    """A Llama of its own memory that computes what `model` computes, in training mode, attention by sdpa."""
    fields = {name: value for name, value in llama_config(model.config).items() if name != "rope_theta"}
    fields["attn_implementation"] = "sdpa"
    llama = LlamaForCausalLM(LlamaConfig(**fields))
    state = to_llama_state(model.config, model.state_dict())
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    llama.load_state_dict(state, strict=True)
    return llama.train()


def loss_of_llama(
    llama: LlamaForCausalLM,
    ids_BT: Tensor,
    targets_BT: Tensor,
    mask_B1TT: Tensor | None = None,
    positions_BT: Tensor | None = None,
) -> Tensor:
    """The mean cross entropy over the targets that are not -100. Without a mask: causal over each whole row."""
    out = llama(
        input_ids=ids_BT,
        attention_mask=mask_B1TT,
        position_ids=positions_BT,
        labels=targets_BT,
        shift_labels=targets_BT,  # ours are shifted already: the target of a row is the token after it
        use_cache=False,
    )
    return out.loss


class LlamaOptimizer:
    """`torch.optim.AdamW` with the groups of `train.optimizer.AdamW`: matrices decay, vectors do not."""

    def __init__(self, llama: nn.Module, config: OptimizerConfig, fused: bool) -> None:
        self.parameters = list(llama.parameters())
        self.max_grad_norm = config.max_grad_norm
        groups = [
            {"params": [p for p in self.parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in self.parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        betas = (config.betas[0], config.betas[1])
        self.inner = torch.optim.AdamW(groups, config.learning_rate, betas, config.eps, fused=fused)

    def step(self, learning_rate: float) -> None:
        """Clip, update and clear."""
        nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        for group in self.inner.param_groups:
            group["lr"] = learning_rate
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
