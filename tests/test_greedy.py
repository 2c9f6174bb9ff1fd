"""An evaluation at temperature 0 takes the likeliest token every time. Training's validation: test_rollout.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import srpo_recipe

TINY = Path(srpo_recipe.__file__).parent / "assets" / "tiny_qwen3"
TERMS = [(1, 2), (31, 4), (5, 5, 5), (70, 7), (6, 9, 8), (88, 11)]
TOKENS = 24

# vLLM in a process of its own, and the same model in transformers: the likeliest next token, one after the other.
CODE = """
import json, sys
from pathlib import Path
from srpo_recipe.eval.sampling import Prompts, Sampler, default_engine

model, terms, tokens = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
prompts = Prompts(model, {"enable_thinking": False}, None)
ids = [prompts.ids([{"role": "user", "content": "+".join(map(str, own)) + "=?"}]) for own in terms]
# a batch holds fewer tokens than the prompts have
sampler = Sampler(model, {**default_engine(), "max_num_batched_tokens": 60, "max_num_seqs": 40}, max(map(len, ids)) + tokens)
drawn = {}
for temperature in (0.0, 1.0):
    found = sampler.sample(ids, [[1, 2, 3]] * len(ids), temperature, 0.5, tokens)
    drawn[temperature] = [[response.text for response in own] for own in found]

import torch
from transformers import AutoModelForCausalLM

network = AutoModelForCausalLM.from_pretrained(model).eval()
greedy = []
with torch.no_grad():
    for own in ids:
        text = list(own)
        while len(text) < len(own) + tokens and text[-1] != prompts.tokenizer.eos_token_id or len(text) == len(own):
            text.append(int(network(torch.tensor([text])).logits[0, -1].argmax()))
        greedy.append(prompts.tokenizer.decode(text[len(own) :], skip_special_tokens=True))
print(json.dumps({"zero": drawn[0.0], "one": drawn[1.0], "greedy": greedy}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_temperature_zero_is_greedy_whatever_the_seed():
    pytest.importorskip("vllm")
    command = [sys.executable, "-c", CODE, str(TINY), json.dumps(TERMS), str(TOKENS)]
    done = subprocess.run(command, env={**os.environ, "SRPO_PLATFORM": "cpu"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["zero"] == [[text] * 3 for text in found["greedy"]]
    assert any(len(set(own)) > 1 for own in found["one"]), "at temperature 1 the seeds differ"
