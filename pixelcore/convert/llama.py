"""The decoder as a Hugging Face Llama folder, for every program that reads those.

Llama is the same architecture but for one convention: its rotary embedding turns feature j together with j + K/2, ours
turns the neighbours 2j and 2j + 1. Reordering the rows of q and k inside each head carries one into the other, and
since scores are dot products over a head, nothing else changes. Mixtures of experts have no place in that layout.
Sources: specs/decoder.md, section 2; the LlamaConfig documentation of transformers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from pixelcore.config import DecoderConfig
from pixelcore.convert.folder import new_folder
from pixelcore.convert.merge import merge_lora
from pixelcore.convert.names import check_tensors, pack, places, unpack
from pixelcore.errors import UserError
from pixelcore.stored import Stored
from pixelcore.tokenizer import Tokenizer, byte_tokenizer

_ROOT_NAMES = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "norm1": "input_layernorm",
    "attention": "self_attn",
    "norm2": "post_attention_layernorm",
    "feed_forward": "mlp",
}


def write_llama(folder: Path, stored: Stored) -> None:
    """Write a new folder that `LlamaForCausalLM.from_pretrained` loads, atomically; adapters are merged first."""
    stored = merge_lora(stored)
    tokenizer = stored.tokenizer
    state = to_llama_state(stored.decoder_config, stored.weights)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    dtype = str(state["model.embed_tokens.weight"].dtype).removeprefix("torch.")
    special = {} if tokenizer is None else _special_ids(tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    with new_folder(folder) as new:
        _write_json(new / "config.json", llama_config(stored.decoder_config) | {"dtype": dtype} | special)
        save_file(state, new / "model.safetensors", metadata={"format": "pt"})
        _write_json(new / "generation_config.json", special)
        if tokenizer is not None:
            (new / "tokenizer.model").write_bytes(tokenizer.model_bytes)
            of_bytes = tokenizer == byte_tokenizer()
            if of_bytes:  # the class for Llama's tokenizers would put a mark in the place of every space
                _write_json(new / "tokenizer.json", _tokenizer_of_bytes(tokenizer))
            _write_json(new / "tokenizer_config.json", _tokenizer_config(stored.decoder_config, of_bytes))


def llama_config(config: DecoderConfig) -> dict[str, Any]:
    """The fields of LlamaConfig. rope_theta stands alone for transformers 4 and in rope_parameters for 5."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": config.attention_dropout,
        "initializer_range": 0.02,
        "use_cache": True,
    }


def to_llama_state(config: DecoderConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under Llama's names; a tied head has one name there. Raises UserError for experts and adapters."""
    _require_llama(config)
    state = {}
    for name, tensor in unpack(weights, config, tied_head=False).items():
        state[_llama_name(name)] = _convert(tensor, name, config, permute_for_half_split)
    return state


def from_llama_state(config: DecoderConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Llama state dict as our weights, where `config` says the same as its configuration; a tied head may be there
    twice. Raises UserError naming every tensor that does not fit."""
    _require_llama(config)
    state = {
        name: tensor for name, tensor in state.items() if not (config.tie_word_embeddings and name == "lm_head.weight")
    }
    check_tensors(state, {_llama_name(place.published): place.shape for place in places(config)}, "Llama state dict")
    return pack(
        {
            place.published: _convert(
                state[_llama_name(place.published)], place.published, config, permute_for_interleaved
            )
            for place in places(config)
        },
        config,
        "Llama state dict",
    )


def permute_for_half_split(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder the rows [num_heads * K, ..] of each head from 0, 1, 2, .. to 0, 2, .. K - 2, 1, 3, .. K - 1."""
    return weight.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def permute_for_interleaved(weight: Tensor, num_heads: int) -> Tensor:
    """The inverse of `permute_for_half_split`."""
    return weight.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _convert(tensor: Tensor, published: str, config: DecoderConfig, permute: Any) -> Tensor:
    if published.endswith("q_proj.weight"):
        return permute(tensor, config.num_attention_heads)
    if published.endswith("k_proj.weight"):
        return permute(tensor, config.num_key_value_heads)
    return tensor


def _llama_name(published: str) -> str:
    if published in _ROOT_NAMES:
        return _ROOT_NAMES[published]
    layers, index, part, *rest = published.split(".")
    return ".".join(("model", layers, index, _LAYER_NAMES[part], *rest))


def _require_llama(config: DecoderConfig) -> None:
    if config.moe is not None:
        raise UserError(
            f"the model has {config.moe.num_experts} experts in some layers, and the Llama layout "
            "has none: export it with --to safetensors or --to bundle"
        )
    if config.lora is not None:
        raise UserError("the model has adapters, and the Llama layout has none: merge them first")


def _special_ids(bos: int, eos: int, pad: int) -> dict[str, int]:
    ids = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    return {name: id for name, id in ids.items() if id >= 0}


def _tokenizer_config(config: DecoderConfig, of_bytes: bool) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast" if of_bytes else "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.context_length,
    }


def _tokenizer_of_bytes(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer.json that spells every character in bytes and puts <s> before a text."""
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    return {
        "version": "1.0",
        "added_tokens": [{"id": id, "content": piece} | flags for id, piece in enumerate(pieces[:4])],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [tokenizer.bos_id], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "vocab": {piece: id for id, piece in enumerate(pieces)},
            "merges": [],
        },
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
