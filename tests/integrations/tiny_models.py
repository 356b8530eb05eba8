"""Tiny random models of every supported family: float32, 2 layers, 8 experts, one per test session."""

import functools

import torch
import transformers
from torch import nn

VOCAB, EXPERTS, LAYERS = 48, 8, 2
PAD, BOS, EOS = 0, 1, 2

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
    "intermediate_size": 16,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 0,
    "n_routed_experts": EXPERTS,
    "routed_scaling_factor": 1.7,
}
_QWEN = {"moe_intermediate_size": 16, "intermediate_size": 16, "num_experts": EXPERTS, "num_experts_per_tok": 3}
_LOCAL = {"intermediate_size": 16, "num_local_experts": EXPERTS, "num_experts_per_tok": 3}

# name -> (class prefix, settings). Three experts a token where the family allows it, so that k0 < k has room.
CASES = {
    "mixtral": ("Mixtral", _LOCAL | {"num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2Moe", _QWEN | {"shared_expert_intermediate_size": 16, "norm_topk_prob": False}),
    "qwen3_moe": ("Qwen3Moe", _QWEN | {"head_dim": 8, "norm_topk_prob": True}),
    "olmoe": ("Olmoe", {"intermediate_size": 16, "num_experts": EXPERTS, "num_experts_per_tok": 3}),
    "deepseek_v2": ("DeepseekV2", _LATENT | {"topk_method": "greedy", "num_experts_per_tok": 3}),
    "deepseek_v2_groups": (
        "DeepseekV2",
        _LATENT | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
    ),
    "deepseek_v3": ("DeepseekV3", _LATENT | {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}),
    "glm4_moe": (
        "Glm4Moe",
        {
            "head_dim": 8,
            "intermediate_size": 16,
            "moe_intermediate_size": 16,
            "n_routed_experts": EXPERTS,
            "num_experts_per_tok": 3,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 0,
            "routed_scaling_factor": 1.3,
        },
    ),
    "gpt_oss": ("GptOss", _LOCAL | {"head_dim": 8, "sliding_window": 6}),
    "phimoe": ("Phimoe", _LOCAL | {"num_experts_per_tok": 2, "router_jitter_noise": 0.3}),
    "granitemoe": ("GraniteMoe", _LOCAL),
}
NAMES = list(CASES)


@functools.cache
def _built(name: str) -> nn.Module:
    prefix, settings = CASES[name]
    config = getattr(transformers, f"{prefix}Config")(**(_COMMON | settings))
    torch.manual_seed(len(name))
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).eval()
    with torch.no_grad():
        for module in model.modules():  # decided routers: random ones would be nearly indifferent
            if type(module).__name__.endswith(("TopKRouter", "TopkRouter")):
                module.weight.normal_(0.0, 0.5)
                if getattr(module, "bias", None) is not None:
                    module.bias.normal_(0.0, 0.2)
                if hasattr(module, "e_score_correction_bias"):
                    module.e_score_correction_bias.normal_(0.0, 0.05)
    return model


def tiny_model(name: str) -> nn.Module:
    """The session's model of this case; a test leaves it as it was."""
    return _built(name)


def routers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if type(m).__name__.endswith(("TopKRouter", "TopkRouter"))]


def token_ids(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (rows, columns), generator=generator)
