"""vLLM in this process: n samples of each question, one seed for every sample.

vLLM draws a request with its own generator when the request carries a seed. The numbers that it draws from are still sums of
floats, whose last digits depend on which requests met in a batch, and once in a long while that changes a token. So a chunk of
questions is always asked as a whole, in the same order, with an empty prefix cache: its batches are the same every time.
"""

import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from srpo_recipe.machine import on_cpu
from srpo_recipe.method.chat import with_system_prompt
from srpo_recipe.method.seeds import checksum

# Of what a machine with an accelerator runs; everything else is vLLM's default.
GPU_ENGINE: dict[str, Any] = {"dtype": "bfloat16"}
# Where what vLLM starts listens: an evaluation is on one machine.
LOOPBACK = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def default_engine() -> dict[str, Any]:
    """vLLM's arguments on this machine: on a CPU those of training (config/hardware/cpu.yaml)."""
    if not on_cpu():
        return dict(GPU_ENGINE)
    from importlib.resources import files

    from omegaconf import OmegaConf

    text = files("srpo_recipe_config").joinpath("hardware/cpu.yaml").read_text()
    rollout = OmegaConf.create(text).actor_rollout_ref.rollout
    names = ("dtype", "enforce_eager", "max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill")
    return {**{name: rollout[name] for name in names}, **rollout.engine_kwargs.vllm}


def sample_seed(seed: int, task: str, index: int, sample: int) -> int:
    """Seed of one sample: from what it is, not from where it stands in a batch. In [0, 2^32)."""
    return checksum(seed, task, index, sample)


@dataclass(frozen=True)
class Response:
    """text: decoded without special tokens, as training's verifiers read it; tokens: its length, the end token included; finish:
    "stop", or "length" when it was cut."""

    text: str
    tokens: int
    finish: str


class Prompts:
    """Questions as the model reads them.

    options: of the tokenizer's chat template, as training's data.apply_chat_template_kwargs. system_prompt: put before chats
    without a system turn, as training's srpo.system_prompt.
    """

    def __init__(self, model: Path, options: dict[str, Any], system_prompt: str | None):
        from transformers import AutoConfig, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model)
        if not self.tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {model} has no chat template; evaluate a chat model, or add one")
        self.options, self.system_prompt = options, system_prompt
        config = AutoConfig.from_pretrained(model)
        self.positions = int(getattr(config, "text_config", config).max_position_embeddings)

    def ids(self, messages: list[dict[str, Any]]) -> list[int]:
        """Token ids of the prompt, up to where the answer begins."""
        chat = with_system_prompt(messages, self.system_prompt)
        return self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=False, **self.options
        )

    def room(self, max_tokens: int, max_prompt_tokens: int | None) -> int:
        """The longest prompt in tokens. Raises ValueError when the answer alone fills the model's positions."""
        room = self.positions - max_tokens
        if room < 1:
            raise ValueError(
                f"--max-tokens {max_tokens} leaves no room for a prompt in the model's {self.positions} positions; "
                "give fewer"
            )
        return min(room, max_prompt_tokens or room)


_bar = functools.partial(tqdm, leave=False)


class Sampler:
    """A vLLM engine. engine: arguments of vllm.LLM; length: the longest prompt and answer together, in tokens.

    Raises ValueError for arguments with which vLLM could not keep the seeds.
    """

    def __init__(self, model: Path, engine: dict[str, Any], length: int):
        if on_cpu() and engine.get("enable_chunked_prefill") is not False:
            raise ValueError(
                "--engine enable_chunked_prefill=true: vLLM's seeded requests fail with it on a CPU; leave it out"
            )
        # In its own process the engine would begin with whichever requests had arrived: other batches every time.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings are about speed
        for name, value in LOOPBACK.items():
            os.environ.setdefault(name, value)
        if on_cpu():
            from srpo_recipe.cpu import ENVIRONMENT, distribution

            for name, value in ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            distribution.install()
        from vllm import LLM

        if engine.get("enable_chunked_prefill") is False:  # then a batch must hold the longest prompt
            engine = {**engine, "max_num_batched_tokens": max(length, engine["max_num_batched_tokens"])}
        self.llm = LLM(model=str(model), max_model_len=length, **engine)
        self.tokenizer = self.llm.get_tokenizer()

    def sample(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[Sequence[int]],
        temperature: float,
        top_p: float,
        max_tokens: int,
    ) -> list[list[Response]]:
        """Responses of each prompt, one for each of its seeds. prompts: token ids. A temperature of 0 is greedy, whatever
        top_p is.
        """
        from vllm import SamplingParams, TokensPrompt

        if not prompts:
            return []
        requests = [
            (
                TokensPrompt(prompt_token_ids=prompt),
                SamplingParams(
                    temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed, detokenize=False
                ),
            )
            for prompt, own in zip(prompts, seeds, strict=True)
            for seed in own
        ]
        self.llm.reset_prefix_cache()
        bar = _bar if sys.stderr.isatty() else False
        outputs = iter(self.llm.generate(*map(list, zip(*requests, strict=True)), use_tqdm=bar))
        return [[self._response(next(outputs).outputs[0]) for _ in own] for own in seeds]

    def _response(self, output) -> Response:
        text = self.tokenizer.decode(output.token_ids, skip_special_tokens=True)
        return Response(text, len(output.token_ids), str(output.finish_reason))
