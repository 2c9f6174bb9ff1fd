"""A tokenizer of printable ASCII and a Qwen3 with exactly its vocabulary; how a prompt is encoded."""

import argparse

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

PAD, EOS, BOT, UNK = "<|pad|>", "<|im_end|>", "<|im_start|>", "<unk>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MAX_RESPONSE = 48


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character and newline, four control tokens, nothing else."""
    characters = ["\n"] + [chr(code) for code in range(32, 127)]
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, BOT, UNK] + characters)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[BOT],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> Qwen3ForCausalLM:
    """A Qwen3 whose vocabulary is exactly the tokenizer's, so that no logit stands for nothing."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 32,
        num_key_value_heads=args.hidden // 64,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.update(
        do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=MAX_RESPONSE, bos_token_id=None
    )
    return model


def chat(tokenizer: PreTrainedTokenizerFast, user_turn: str) -> list[int]:
    """Token ids of the prompt up to and with the assistant's header."""
    messages = [{"role": "user", "content": user_turn}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)
