"""A model, a tokenizer and prompts for benchmarks of the step: any size, nothing to download.

The tokenizer has one word for every id, so that text and ids have the same length both ways, as a demonstration needs them. The
weights are random: what a step costs does not depend on what the model knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIAL = ["<|pad|>", "<|im_end|>", "<|im_start|>", "<unk>", "\n"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|> ' + message['content'] + ' <|im_end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|> ' }}{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """Of the network. The share of the output layer in a forward pass is about that of Qwen3-8B, a tenth."""

    hidden: int = 192
    layers: int = 4
    vocabulary: int = 1024


def build_tokenizer(words: int) -> PreTrainedTokenizerFast:
    """One word an id: w5, w6, ... and the line's end, which verl wants as one token of a Qwen."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + [f"w{i}" for i in range(len(SPECIAL), words)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", behavior="isolated"), pre_tokenizers.Split(" ", behavior="removed")]
    )
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # joins with spaces
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|im_end|>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_model(folder: Path, size: Size, seed: int) -> None:
    """A Hugging Face folder with random weights."""
    torch.manual_seed(seed)
    heads = size.hidden // 64
    config = Qwen3Config(
        vocab_size=size.vocabulary, hidden_size=size.hidden, intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers, num_attention_heads=heads, num_key_value_heads=max(1, heads // 4), head_dim=64,
        max_position_embeddings=4096, tie_word_embeddings=False, bos_token_id=None, eos_token_id=1, pad_token_id=0,
        dtype="float32",
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    build_tokenizer(size.vocabulary).save_pretrained(folder)


def write_prompts(
    file: Path, rows: int, tokens: int, vocabulary: int, seed: int, truths: Sequence[object] | None = None
) -> None:
    """Prompts of exactly `tokens` tokens, chat template included, in verl's parquet format. truths: a ground truth for each."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(len(SPECIAL), vocabulary, (rows, tokens - 3), generator=generator).tolist()
    pandas.DataFrame(
        {
            "data_source": "benchmark",
            "prompt": [[{"role": "user", "content": " ".join(f"w{word}" for word in row)}] for row in words],
            "ability": "none",
            "reward_model": [{"style": "rule", "ground_truth": str(truth)} for truth in truths or [""] * rows],
            "extra_info": [{"index": index} for index in range(rows)],
        }
    ).to_parquet(file)


def no_reward(data_source, solution_str, ground_truth, extra_info=None) -> float:
    """verl's custom reward function of these runs; the verdicts are set in the recorded rollouts."""
    return 0.0
