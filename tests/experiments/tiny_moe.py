"""A tiny random Qwen3-MoE with a byte-level tokenizer, and texts, made on the spot."""

import random
from pathlib import Path

NUM_LAYERS, NUM_EXPERTS, TOP_K = 2, 8, 4


def save_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Save model and tokenizer; its router is sharp enough that choices move the loss."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_K,
        decoder_sparse_step=1,
        norm_topk_prob=True,
        max_position_embeddings=256,
        eos_token_id=None,
        bos_token_id=None,
        initializer_range=0.3,
    )
    Qwen3MoeForCausalLM(config).eval().save_pretrained(folder)
    return folder


def write_text(path: Path, num_bytes: int, seed: int = 0) -> Path:
    """Words in no language."""
    rng = random.Random(seed)
    words = ["".join(rng.choice("abcdefghij") for _ in range(rng.randint(1, 7))) for _ in range(50)]
    text = ""
    while len(text) < num_bytes:
        text += rng.choice(words) + " "
    path.write_text(text[:num_bytes])
    return path
