"""From the rows of a source to examples: one converter for each format that a source can have.

A converter is called with a row and its position among the rows of its source; it raises BadRow for a key that is missing
or of the wrong type. Its `used` names the keys that it reads ("extra_info.index" for a key within a key), its `names` what
the source calls the prompt, the answer and the id, for messages.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from srpo_recipe.data.problems import BadRow, Refused, shown
from srpo_recipe.data.readers import Row
from srpo_recipe.data.tasks import MATH_TEMPLATE, Hub
from srpo_recipe.method.chat import fill, with_system_prompt
from srpo_recipe.verify.mathematics.answer_text import of_truth

# SciKnowEval's rows carry no chat prompt. These are the turns of the published splits, word for word: the published
# numbers were measured with them.
SCIKNOWEVAL_SYSTEM = """
Given a question and four options, please select the right answer. Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>

For the answer, only output the letter corresponding to the correct option (A, B, C, or D), and nothing else. \
Do not restate the answer text. For example, if the answer is "A", just output:
<answer>
A
</answer>
"""
SCIKNOWEVAL_TEMPLATE = "{question}\n\n{options}\nPlease reason step by step."
SCIKNOWEVAL_LEVEL = "L3"
SCIKNOWEVAL_TYPES = ("mcq-4-choices", "mcq-2-choices")

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Example:
    """A row on its way into the data: a chat that ends in a user turn, the gold answer, what its source calls the row, and a
    worked solution, None for none.
    """

    messages: list[dict[str, str]]
    ground_truth: str
    id: str
    reference: str | None = None


class Converter(Protocol):
    @property
    def used(self) -> Collection[str]: ...

    @property
    def names(self) -> Mapping[str, str]: ...

    def __call__(self, row: Row, position: int) -> Example: ...


# ---- keys and types ----


def take(row: Mapping[str, Any], key: str, kind: type | tuple[type, ...] = str, within: str = "") -> Any:
    """row[key], which must be there and be a `kind`. within: the key that `row` stands under, for the message."""
    names = {
        str: "text",
        int: "a whole number",
        float: "a number",
        dict: "an object",
        list: "a list",
        type(None): "null",
    }
    kinds = kind if isinstance(kind, tuple) else (kind,)
    name = f"{within}.{key}" if within else key
    if key not in row:
        raise BadRow(name, "this key", f"only {', '.join(map(str, row)) or 'none'}")
    value = row[key]
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise BadRow(name, " or ".join(names[one] for one in kinds), shown(value))
    return value


def chat(prompt: str, system: str | None) -> list[dict[str, str]]:
    """The messages of a single-turn prompt; no system turn when there is no text for one."""
    return with_system_prompt([{"role": "user", "content": prompt}], system or None)


# ---- converters ----


@dataclass(frozen=True)
class Published:
    """The published split files. kind: what the rows of this task call themselves."""

    kind: str
    used = ("idx", "kind", "prompt", "system", "answer")
    names = {"prompt": "prompt", "answer": "answer", "id": "idx"}

    def __call__(self, row: Row, position: int) -> Example:
        kind = take(row, "kind")
        if kind != self.kind:
            raise BadRow("kind", f"'{self.kind}', the rows of this task", shown(kind))
        system = take(row, "system", (str, type(None)))
        return Example(chat(take(row, "prompt"), system), take(row, "answer"), str(take(row, "idx", int)))


@dataclass(frozen=True)
class SciKnowEval:
    """SciKnowEval's own rows. domain: as the data calls it."""

    domain: str
    used = ("question", "choices", "answerKey", "type", "domain", "details")
    names = {"prompt": "question", "answer": "answerKey", "id": "(position)"}

    def belongs(self, row: Row) -> bool:
        """The published filter: this domain, reasoning questions (level L3), multiple choice."""
        level = take(take(row, "details", dict), "level", within="details")
        return (
            take(row, "domain") == self.domain and level == SCIKNOWEVAL_LEVEL and take(row, "type") in SCIKNOWEVAL_TYPES
        )

    def __call__(self, row: Row, position: int) -> Example:
        choices = take(row, "choices", dict)
        labels, texts = (take(choices, key, list, within="choices") for key in ("label", "text"))
        if len(labels) != len(texts):
            raise BadRow("choices", "as many labels as texts", f"{len(labels)} and {len(texts)}")
        options = "\n".join(f"{label}: {text}" for label, text in zip(labels, texts, strict=True))
        prompt = fill(SCIKNOWEVAL_TEMPLATE, question=take(row, "question"), options=options)
        return Example(chat(prompt, SCIKNOWEVAL_SYSTEM), take(row, "answerKey"), str(position))


@dataclass(frozen=True)
class MathProblems:
    """The rows of a mathematics evaluation set as the hub has them."""

    hub: Hub

    @property
    def used(self) -> Collection[str]:
        return {name for name in (self.hub.problem, self.hub.answer, self.hub.id) if name}

    @property
    def names(self) -> Mapping[str, str]:
        return {"prompt": self.hub.problem, "answer": self.hub.answer, "id": self.hub.id or "(position)"}

    def __call__(self, row: Row, position: int) -> Example:
        answer = take(row, self.hub.answer, (str, int, list))
        if isinstance(answer, list):  # several answers make one set of them
            answer = ", ".join(bare(take({"answer": one}, "answer")) for one in answer)
        prompt = fill(MATH_TEMPLATE, problem=take(row, self.hub.problem).strip())
        name = take(row, self.hub.id, (str, int)) if self.hub.id else position
        return Example(chat(prompt, None), bare(str(answer)), str(name))


@dataclass(frozen=True)
class Columns:
    """Rows of a user's own. mapping: prompt, answer and (if at all) id, system, reference -> their column.

    system: the system turn of all rows. template: the user turn, with columns of the row, or `prompt`, in braces; by
    default the prompt as it stands. Raises Refused for a template that shows the answer.
    """

    mapping: Mapping[str, str]
    system: str | None = None
    template: str = "{prompt}"

    def __post_init__(self) -> None:
        if {"answer", self.mapping["answer"], "reference", self.mapping.get("reference")} & set(self._fields):
            raise Refused(f"the template {self.template!r} would show the answer to the model")

    @property
    def _fields(self) -> list[str]:
        return re.findall(r"\{([A-Za-z_]\w*)\}", self.template)

    @property
    def used(self) -> Collection[str]:
        return {*self.mapping.values(), *self._fields}

    @property
    def names(self) -> Mapping[str, str]:
        return {"id": "(position)", **self.mapping}

    def __call__(self, row: Row, position: int) -> Example:
        values = {
            name: str(take(row, self.mapping.get(name, name), (str, int, float) if name != "prompt" else str))
            for name in self._fields
        }
        system = take(row, self.mapping["system"], (str, type(None))) if "system" in self.mapping else self.system
        name = take(row, self.mapping["id"], (str, int)) if "id" in self.mapping else position
        answer = take(row, self.mapping["answer"], (str, int))
        reference = take(row, self.mapping["reference"], (str, type(None))) if "reference" in self.mapping else None
        return Example(chat(fill(self.template, **values), system), str(answer), str(name), reference or None)


@dataclass(frozen=True)
class Verl:
    """Rows that have verl's schema already; data_source and ability become those of the task."""

    used = (
        "prompt",
        "reward_model.style",
        "reward_model.ground_truth",
        "extra_info.index",
        "extra_info.split",
        "extra_info.reference",
    )
    names = {"prompt": "prompt", "answer": "reward_model.ground_truth", "id": "extra_info.index"}

    def __call__(self, row: Row, position: int) -> Example:
        messages = []
        for message in take(row, "prompt", list):
            role, content = (
                take(take({"turn": message}, "turn", dict, "prompt"), key, within="prompt") for key in _TURN
            )
            if role not in ROLES:
                raise BadRow("prompt.role", f"one of {', '.join(ROLES)}", shown(role))
            messages.append({"role": role, "content": content})
        if not messages or messages[-1]["role"] != "user":
            raise BadRow("prompt", "a user turn at the end", messages[-1]["role"] if messages else "no turn")
        truth = take(take(row, "reward_model", dict), "ground_truth", (str, int), within="reward_model")
        extra = take(row, "extra_info", (dict, type(None))) or {} if "extra_info" in row else {}
        name = take(extra, "index", (str, int), within="extra_info") if "index" in extra else position
        reference = take(extra, "reference", (str, type(None)), within="extra_info") if "reference" in extra else None
        return Example(messages, str(truth), str(name), reference or None)


_TURN = ("role", "content")


# ---- text ----


def bare(answer: str) -> str:
    r"""The answer in a text: in the last \boxed{} of a solution, behind `####` or "the answer is", without dollars around it."""
    answer = of_truth(answer)
    single = len(answer) > 2 and answer[0] == answer[-1] == "$" and "$" not in answer[1:-1]
    return answer[1:-1].strip() if single else answer
