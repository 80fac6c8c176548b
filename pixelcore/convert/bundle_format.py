"""What the original decoder's bundle is made of: file names, fields and defaults, shared by its reader and its writer.

Source: specs/decoder.md, sections 1 and 3.
"""

from pixelcore.config import LORA_TARGETS

TOKENIZER_FILE = "pixel_tokenizer.model"
VOCABULARY_FILE = "pixel_tokenizer.vocab"
MODEL_FILE = "pixel_model_config.json"
TRAINING_FILE = "pixel_training_config.json"
REQUIRED = (
    "name",
    "vocab_size",
    "context_length",
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)
OPTIONAL = {
    "rope_base": 500000,
    "tie_word_embeddings": True,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "rms_norm_eps": 1e-5,
    "use_moe": False,
}
MOE = {"enabled": False, "num_experts": 4, "top_k": 2, "expert_interval": 4}
LORA = {"enabled": False, "rank": 8, "alpha": 16, "dropout": 0.05, "target_modules": list(LORA_TARGETS)}
BALANCE_COEFFICIENT = 1.0  # the format has no field for it: the original adds the balance loss as it is
BETAS, EPS, WEIGHT_DECAY, LEARNING_RATE = (0.9, 0.95), 1e-8, 0.1, 3e-4  # the original recipe
