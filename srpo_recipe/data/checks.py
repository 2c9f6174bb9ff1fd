"""What every example must hold before it is written: a prompt within the limit, an id of its own, a gold answer that scores 1."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from srpo_recipe.data.formats import Example
from srpo_recipe.data.lengths import prompt_length
from srpo_recipe.data.problems import BadRow, Refused, shown
from srpo_recipe.method.chat import fill
from srpo_recipe.records.files import sha256
from srpo_recipe.verify import Verdict, Verifier
from srpo_recipe.verify.pool import VerifierPool
from srpo_recipe.verify.settings import VerifierConfig

# The chat template's switches; the same as data.apply_chat_template_kwargs in config/srpo.yaml.
CHAT_SWITCHES = {"enable_thinking": False}
_OPTION = re.compile(r"^[ \t]*\(?([A-Z])[.:)][ \t]", re.MULTILINE)
Tokens = Callable[[list[dict[str, str]]], int]


# ---- choice ----


def listed_options(prompt: str) -> str:
    """The letters of the options that `prompt` lists, one a line as `A: ...`, `A. ...`, `A) ...` or `(A) ...`.

    Read from the last line that begins with A, so that lines of the question do not count.
    """
    letters = "".join(_OPTION.findall(prompt))
    letters = letters[letters.rfind("A") :] if "A" in letters else ""
    in_order = "".join(map(chr, range(ord("A"), ord("A") + len(letters))))
    return "".join(found for found, wanted in zip(letters, in_order, strict=True) if found == wanted)


def check_choice(example: Example) -> None:
    """The gold letter is one of the options that the prompt really lists; some prompts list fewer than their system turn says."""
    answer = example.ground_truth
    if not re.fullmatch("[A-Z]", answer):
        raise BadRow("answer", "one capital letter", f"{shown(answer)}, which cannot be read as a choice")
    options = listed_options(example.messages[-1]["content"])
    if len(options) < 2:
        raise BadRow("prompt", "two options or more, one a line as 'A: ...'", f"{len(options)}")
    if answer not in options:
        raise BadRow("answer", f"one of the options that the prompt lists ({', '.join(options)})", shown(answer))


# ---- the gold answer ----


def _choice_response(truth: str) -> str:
    return f"<reasoning>\n...\n</reasoning>\n<answer>\n{truth}\n</answer>"


def _math_response(truth: str) -> str:
    return f"The answer is \\boxed{{{truth}}}."


def _tool_use_response(truth: str) -> str:
    calls = json.loads(truth)
    return "\n".join(f"Action: {call['Action']}\nAction Input: {call['Action_Input']}" for call in calls)


GOLD_RESPONSES: Mapping[str, Callable[[str], str]] = {
    "choice": _choice_response,
    "math": _math_response,
    "tool_use": _tool_use_response,
}


def gold_response(verifier: str, template: str | None) -> Callable[[str], str] | None:
    """From a ground truth to a response that must score 1. template: with {answer}; None: as the table's verifiers have it.

    None when the verifier is the user's own and there is no template: then the gold answers cannot be tried. Raises
    Refused for a template without {answer}.
    """
    if template is None:
        return GOLD_RESPONSES.get(verifier)
    if "{answer}" not in template:
        raise Refused(f"the gold response {template!r} lacks {{answer}}")
    return lambda truth: fill(template, answer=truth)


@contextmanager
def gold_verifier(name: str) -> Iterator[Verifier]:
    """The strict verifier `name`, under training's own limits of time and memory: a gold answer is anybody's text.

    It raises ValueError, as a verifier does, for what cannot be read and for what does not finish. Raises Refused when
    there is no such verifier.
    """
    limits = VerifierConfig()
    try:
        pool = VerifierPool(name, "strict", limits.time_limit, 1, limits.memory_mb)
    except ValueError as error:
        raise Refused(str(error)) from error

    def verify(response: str, truth: str) -> Verdict:
        verdict = pool.submit(response, truth).result()
        if verdict.failure:
            raise ValueError(
                f"no answer within {limits.time_limit:g} s" if verdict.failure == "timeout" else verdict.error
            )
        return verdict

    with pool:
        yield verify


def check_gold(truth: str, verify: Verifier, response: Callable[[str], str]) -> None:
    """The verifier can read the gold answer, and gives it reward 1."""
    if not truth.strip():
        raise BadRow("answer", "a gold answer", "nothing but white space" if truth else "an empty text")
    readable = "a gold answer that the verifier can read"
    try:
        verdict = verify(response(truth), truth)
    except (ValueError, TypeError, LookupError) as error:
        raise BadRow("answer", readable, f"{shown(truth)} ({error})") from error
    if not verdict.parsed:
        raise BadRow("answer", readable, shown(truth))
    if verdict.reward != 1.0:
        raise BadRow("answer", "a gold answer that scores 1", f"{shown(truth)}, which scores {verdict.reward:g}")


# ---- length ----


def token_counter(tokenizer: str) -> Tokens:
    """A function from chat messages to the length of their prompt in tokens, as verl counts it.

    tokenizer: a Hugging Face folder or name. Raises Refused when it has no chat template or cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
        loaded.apply_chat_template([{"role": "user", "content": "1"}], tokenize=False, **CHAT_SWITCHES)
    except (OSError, ValueError) as error:
        where = tokenizer if Path(tokenizer).exists() else f"{tokenizer} (no such folder here)"
        raise Refused(f"no tokenizer with a chat template at {where}: {error}") from error

    def count(messages: list[dict[str, str]]) -> int:
        return prompt_length(messages, loaded, CHAT_SWITCHES)

    return count


def tokenizer_identity(tokenizer: str) -> dict[str, str]:
    """Name of a tokenizer, and for a folder the SHA-256 of its tokenizer.json, for the manifest."""
    path = Path(tokenizer)
    file = path / "tokenizer.json"
    return {"name": path.resolve().name, "sha256": sha256(file)} if file.is_file() else {"name": tokenizer}


# ---- all of them ----


class TooLong(BadRow):
    """A prompt over the limit; the manifest counts them."""


class Checks:
    """The checks of one split; the ids of the examples that passed are remembered between calls.

    verifier, verify: a verifier's name and its strict function. response: see gold_response. tokens: None when no length
    is asked for; limit: of the prompt, in tokens.
    """

    def __init__(self, verifier: str, verify: Verifier, response, tokens: Tokens | None, limit: int):
        self.verifier, self.verify, self.response = verifier, verify, response
        self.tokens, self.limit = tokens, limit
        self.rows_by_id: dict[str, int] = {}

    def __call__(self, example: Example, row: int) -> int | None:
        """The prompt's length in tokens (None without a tokenizer). row: the example's number, for others of the same id.

        Raises BadRow with key prompt, answer or id.
        """
        if not all(message["content"].strip() for message in example.messages):
            raise BadRow("prompt", "text in every turn", "an empty prompt, or nothing but white space")
        if example.id in self.rows_by_id:
            first = self.rows_by_id[example.id]
            raise BadRow("id", "an id of its own", f"{example.id!r}, a duplicate of row {first}")
        if self.verifier == "choice":
            check_choice(example)
        if self.response:
            check_gold(example.ground_truth, self.verify, self.response)
        length = self.tokens(example.messages) if self.tokens else None
        if length is not None and length > self.limit:
            raise TooLong("prompt", f"a prompt of at most {self.limit} tokens", f"{length} tokens")
        self.rows_by_id[example.id] = row
        return length
