"""`python tests/adapter_in_vllm.py MODEL ADAPTER RANK LENGTH`: what plain vLLM says with and without an exported adapter.

Prints one JSON object: the log-probability of each of the LENGTH - 1 last of the tokens 4, 5, 6 ..., "plain" and "adapted".
"""

import json
import sys
from pathlib import Path

from srpo_recipe.eval.sampling import Sampler, default_engine


def main() -> None:
    model, adapter, rank, length = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    llm = Sampler(model, {**default_engine(), "enable_lora": True, "max_lora_rank": rank}, length + 8).llm
    from vllm import SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    tokens, asked = list(range(4, 4 + length)), SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    found = {}
    for name, request in (("plain", None), ("adapted", LoRARequest("adapter", 1, adapter))):
        llm.reset_prefix_cache()
        (output,) = llm.generate([TokensPrompt(prompt_token_ids=tokens)], asked, lora_request=request, use_tqdm=False)
        places = zip(tokens[1:], output.prompt_logprobs[1:], strict=True)
        found[name] = [place[token].logprob for token, place in places]
    print("FOUND " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
