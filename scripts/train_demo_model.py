"""Trains the demo model: a Qwen3-MoE language model of at most 8 MB, from scratch, on public-domain texts.

    python scripts/train_demo_model.py --text DIR --out DIR

writes `DIR/model` (Hugging Face format with `training.json`) and `DIR/text` (held-out and calibration slices).
"""

import argparse
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from demo_corpus import TrainingBlocks, encode, read_texts, train_tokenizer, write_slices
from demo_evaluation import RouterLogits, expert_usage, perplexities, top_k_ablation
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.integrations.moe import ExpertsInterface

MAX_BYTES = 8_000_000


def dense_experts(module: nn.Module, x_TD: Tensor, ids_TK: Tensor, gates_TK: Tensor) -> Tensor:
    """All experts on all tokens in two matrix products, unchosen experts gated by zero.

    Exact, differentiable, and at this size faster than any gathering: E x I is only a few thousand.
    """
    num_experts, two_I, D = module.gate_up_proj.shape
    gate_up = nn.functional.linear(x_TD, module.gate_up_proj.reshape(num_experts * two_I, D))
    gate, up = gate_up.view(-1, num_experts, two_I).chunk(2, dim=-1)
    gates_TE = gates_TK.new_zeros(len(x_TD), num_experts).scatter(1, ids_TK, gates_TK)
    hidden = nn.functional.silu(gate) * up * gates_TE.unsqueeze(-1)
    down = module.down_proj.permute(0, 2, 1).reshape(-1, D)  # (E * I, D)
    return (hidden.flatten(1) @ down).to(x_TD.dtype)


def parse_arguments() -> argparse.Namespace:
    """The command line; defaults are the shipped model's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of training texts (*.txt)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write model/ and text/ into")
    parser.add_argument("--minutes", type=float, default=5.0, help="training never takes longer than this")
    parser.add_argument("--epochs", type=float, default=30.0, help="passes over the texts, unless minutes end first")
    parser.add_argument("--max-steps", type=int, default=None, help="stop after this many steps (for a smoke test)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--block-size", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.15, help="on what each attention and MoE block adds")
    parser.add_argument("--balance", type=float, default=0.01, help="weight of the load-balance loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--expert-width", type=int, default=24)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def build_model(args: argparse.Namespace, vocab_size: int) -> Qwen3MoeForCausalLM:
    """The untrained model, float32, with the experts computed densely."""
    ExpertsInterface.register("dense_training", dense_experts)
    config = Qwen3MoeConfig(
        vocab_size=vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=2 * args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=args.hidden_size // 4,
        max_position_embeddings=2 * args.block_size,
        num_experts=args.experts,
        num_experts_per_tok=args.top_k,
        moe_intermediate_size=args.expert_width,
        norm_topk_prob=True,
        router_aux_loss_coef=args.balance,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    model = Qwen3MoeForCausalLM(config)
    model.set_experts_implementation("dense_training")
    return model.to(args.device)


def add_dropout(model: Qwen3MoeForCausalLM, rate: float) -> list[Any]:
    """Drops entries of what each block adds to the residual stream; returns the hooks to remove."""

    def drop(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return nn.functional.dropout(output[0], rate, module.training), *output[1:]
        return nn.functional.dropout(output, rate, module.training)

    blocks = [block for layer in model.model.layers for block in (layer.self_attn, layer.mlp)]
    return [block.register_forward_hook(drop) for block in blocks] if rate > 0 else []


def make_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW with decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.95), fused=args.device.startswith("cuda"))


def learning_rate_factor(progress: float) -> float:
    """Linear warm-up over 4 % of training, then a cosine to 2 % of the peak."""
    warmup = 0.04
    if progress < warmup:
        return max(progress, 1e-3) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def train(
    model: Qwen3MoeForCausalLM, blocks: TrainingBlocks, validation: dict[str, np.ndarray], args: argparse.Namespace
) -> dict[str, Any]:
    """Trains in place and returns what happened; progress is steps or time, whichever is further along."""
    num_steps = max(int(args.epochs * blocks.blocks_per_epoch / args.batch_size), 1)
    num_steps = min(num_steps, args.max_steps or num_steps)
    optimizer, hooks, kept = make_optimizer(model, args), add_dropout(model, args.dropout), RouterLogits(model)
    history: list[dict[str, float]] = []
    start, step, progress = time.monotonic(), 0, 0.0
    while progress < 1.0:
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * learning_rate_factor(progress)
        loss, balance = training_step(model, kept, blocks.draw(args.batch_size), optimizer, args)
        step += 1
        progress = max(step / num_steps, (time.monotonic() - start) / (60 * args.minutes))
        if step % 200 == 0 or progress >= 1.0:
            measured = {"step": step, "train_loss": loss.item(), "balance_loss": balance.item()}
            measured["validation_perplexity"] = perplexities(model, validation, args.block_size)["all"]
            measured["seconds"] = round(time.monotonic() - start, 1)
            kept.clear()
            history.append(measured)
            print(json.dumps(measured), flush=True)
    kept.close()
    for hook in hooks:
        hook.remove()
    return {"steps": step, "planned_steps": num_steps, "history": history}


def training_step(
    model: Qwen3MoeForCausalLM,
    kept: RouterLogits,
    drawn: np.ndarray,
    optimizer: torch.optim.Optimizer,
    args: argparse.Namespace,
) -> tuple[Tensor, Tensor]:
    """One update; returns the next-token loss [nat] and the balance loss, both detached."""
    ids = torch.from_numpy(drawn).to(args.device, non_blocking=True)
    kept.clear()
    with torch.autocast(torch.device(args.device).type, dtype=torch.bfloat16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
    balance = kept.balance_loss(args.top_k)
    optimizer.zero_grad(set_to_none=True)
    (loss + args.balance * balance).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach(), balance.detach()


def save(model: Qwen3MoeForCausalLM, tokenizer: Any, folder: Path) -> None:
    """Writes the folder in bfloat16, with the default experts implementation."""
    model.set_experts_implementation("eager")
    model.to(torch.bfloat16).save_pretrained(folder)
    GenerationConfig(eos_token_id=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False, separators=(",", ":")), "utf-8")


def environment(device: str) -> dict[str, Any]:
    """The machine and the versions that trained the model."""
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return {
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


def main() -> None:
    """Trains, saves, reloads what was saved and measures that."""
    args = parse_arguments()
    start = time.monotonic()
    torch.manual_seed(args.seed)
    texts = read_texts(args.text)
    write_slices(texts, args.out / "text")
    tokenizer = train_tokenizer(texts, args.vocab_size)
    training_ids = [encode(tokenizer, t.training) for t in texts]
    validation = {t.name: encode(tokenizer, t.heldout) for t in texts}
    model = build_model(args, len(tokenizer))
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{num_parameters:,} parameters, {sum(map(len, training_ids)):,} training tokens, {args.device}", flush=True)
    trained = train(model, TrainingBlocks(training_ids, args.block_size, args.seed), validation, args)

    before_rounding = perplexities(model, validation, args.block_size)
    folder = args.out / "model"
    save(model, tokenizer, folder)
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager")
    saved.to(args.device)
    longest = max(validation.values(), key=len)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("text", "out")}
    report = {
        "settings": settings,
        "environment": environment(args.device),
        "texts": {t.name: {"training_chars": len(t.training), "heldout_chars": len(t.heldout)} for t in texts},
        "training_tokens": sum(map(len, training_ids)),
        "heldout_tokens": {name: len(ids) for name, ids in validation.items()},
        "parameters": num_parameters,
        "perplexity_float32": before_rounding,
        "perplexity_bf16_weights": perplexities(saved, validation, args.block_size),
        "perplexity_by_top_k": top_k_ablation(saved, validation, args.block_size),
        "expert_usage": expert_usage(saved, longest, args.block_size),
        **trained,
        "wall_time_s": round(time.monotonic() - start, 1),
        "bytes_without_this_file": sum(f.stat().st_size for f in folder.iterdir() if f.name != "training.json"),
    }
    (folder / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    num_bytes = sum(f.stat().st_size for f in folder.iterdir())
    print(json.dumps({k: v for k, v in report.items() if k != "history"}, indent=1))
    if num_bytes > MAX_BYTES:
        raise SystemExit(f"the folder is {num_bytes:,} bytes, over {MAX_BYTES:,}: choose a smaller model")
    print(f"wrote {folder} ({num_bytes:,} bytes)")


if __name__ == "__main__":
    main()
