"""Writes a small Llama with random weights whose answers depend on every block of the KV cache:

    make_model.py FOLDER [WINDOW]

With a window, every second layer attends to so many tokens only, which gives vLLM two groups of KV caches.
vLLM's `--load-format dummy` will not do: with weights that small attention hardly counts, and any KV gives the same
answer.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCABULARY = 4, 256, 4, 2, 64, 512, 512


def write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["pack my box with five dozen liquor jugs 0123456789 " * 60], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 8192,
        "chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def write_config(folder: Path, window: int) -> None:
    told = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "hidden_act": "silu",
    }
    if window:
        told |= {"sliding_window": window, "layer_types": ["full_attention", "sliding_attention"] * (LAYERS // 2)}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1}))


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4711)

    def draw(rows: int, columns: int, spread: float) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * spread

    out = {
        "model.embed_tokens.weight": draw(VOCABULARY, HIDDEN, 1.0),
        "lm_head.weight": draw(VOCABULARY, HIDDEN, 0.15),
        "model.norm.weight": torch.ones(HIDDEN),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        out |= {
            f"{at}.self_attn.q_proj.weight": draw(HEADS * HEAD_DIM, HIDDEN, 0.12),
            f"{at}.self_attn.k_proj.weight": draw(KV_HEADS * HEAD_DIM, HIDDEN, 0.12),
            f"{at}.self_attn.v_proj.weight": draw(KV_HEADS * HEAD_DIM, HIDDEN, 0.2),
            f"{at}.self_attn.o_proj.weight": draw(HIDDEN, HEADS * HEAD_DIM, 0.3),
            f"{at}.mlp.gate_proj.weight": draw(INNER, HIDDEN, 0.06),
            f"{at}.mlp.up_proj.weight": draw(INNER, HIDDEN, 0.06),
            f"{at}.mlp.down_proj.weight": draw(HIDDEN, INNER, 0.06),
            f"{at}.input_layernorm.weight": torch.ones(HIDDEN),
            f"{at}.post_attention_layernorm.weight": torch.ones(HIDDEN),
        }
    return out


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    write_config(folder, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    save_file(weights(), str(folder / "model.safetensors"))


main()
