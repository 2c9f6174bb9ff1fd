"""Writes the pages that are made from the code: docs/metrics.md and docs/api.md.

python docs/make.py            # tests/test_docs_made.py fails while a page is not as the code says
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from srpo_recipe.records import metrics

DOCS = Path(__file__).parent
MADE = "<!-- made by docs/make.py -->"

METRICS_HEAD = f"""{MADE}
# What a run logs

Every number of a step stands under these keys in `RUN/metrics.jsonl` (one JSON object a step), in TensorBoard and in W&B.
Words in capitals vary, and `{{a,b}}` is one key for each. A share lies between 0 and 1. "Over" tells what a mean, a count or a
share is of. The last column is the name that stock verl 0.9.1 has for the same thing, where it has one. The table stands in
[records/metrics](../srpo_recipe/records/metrics), and a test fails where a run writes a key that is not in it.

```bash
tensorboard --logdir outputs                        # every run in the folder, at http://localhost:6006
bash scripts/train.sh 'trainer.logger=[tensorboard,wandb]'
```

TensorBoard's files lie in `RUN/tensorboard`, those of W&B in `RUN/wandb`. Both also get the rollouts of
[RUN/samples](inspect.md) as tables (`samples/train`, `samples/held-out`, texts cut at 2,000 characters) and, at the end, what
`summary.json` holds (`summary`). verl's other loggers get the numbers alone.
"""


def metrics_page() -> str:
    """docs/metrics.md, from the table of metrics."""
    parts = [METRICS_HEAD]
    for section in metrics.SECTIONS:
        parts += [f"## {section.title}\n", *([f"{section.about}\n"] if section.about else [])]
        parts += ["| key | unit | what | over | stock verl |", "|---|---|---|---|---|"]
        parts += [
            f"| `{m.key}` | {m.unit} | {_code(m.meaning)} | {m.over} | {_stock(m.stock)} |" for m in section.metrics
        ]
        parts.append("")
    parts += ["## What verl makes and a run here leaves out\n", "| key | why | read instead |", "|---|---|---|"]
    parts += [f"| `{d.key}` | {d.why} | {f'`{d.instead}`' if d.instead else ''} |" for d in metrics.DROPPED]
    return "\n".join(parts) + "\n"


def _stock(name: str) -> str:
    if not name or name == "same":
        return name
    key, comma, rest = name.partition(",")
    return f"`{key}`{comma}{rest}"


def _code(text: str) -> str:
    return text.replace("*", r"\*").replace("|", r"\|")


# In the order of the figure; then what the passes over the vocabulary share, and small helpers.
MODULES = (
    *("route", "demonstrations", "decision", "self_teacher", "grpo", "dw_sdpo", "targets", "weights", "options"),
    *("loss", "ema", "student_head", "student_logits", "teacher_logits", "logits", "chat", "seeds"),
)

API_HEAD = f"""{MADE}
# The functions of the method

`srpo_recipe.method` is the paper's method on tensors. It imports torch and the standard library alone, so it can be used in a
training loop of your own: [examples/own_loop.py](../examples/own_loop.py) is one in a single file.

A tensor's name ends in its shape:

| | | | |
|---|---|---|---|
| B | rollouts in the batch, and in `_NB` and `_MB` the K + 1 bins | T | response tokens; in `_TV` rows of the logits |
| K | top ids of the student | V | words of the vocabulary |
| N | tokens that are looked at | M | those of them on the self-teacher's route |
| C | tokens of a chunk | H | width of the hidden states |

Log-probabilities and entropies are in nats, rewards and advantages in units of the reward.
"""


def api_page() -> str:
    """docs/api.md, from the docstrings of srpo_recipe/method."""
    parts = [API_HEAD]
    for name in MODULES:
        module = importlib.import_module(f"srpo_recipe.method.{name}")
        parts += [f"## method.{name}\n", _markdown(inspect.getdoc(module) or "")]
        for title, member in public(module):
            parts += [f"### `{title}`\n"] if "." not in title else [f"#### `{title}`\n"]
            if not isinstance(member, property):
                parts.append(f"```python\n{_signature(title, member)}\n```\n")
            parts.append(_markdown(inspect.getdoc(member) or ""))
    return "\n".join(parts)


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """(name, function, class, method or property) of everything public that a module defines, in the order of its source."""
    for name, found in vars(module).items():
        if name.startswith("_") or getattr(found, "__module__", None) != module.__name__ or not callable(found):
            continue
        yield name, found
        if inspect.isclass(found):
            for inner, member in vars(found).items():
                own = inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod)
                if own and not inner.startswith("_"):
                    yield f"{name}.{inner}", getattr(found, inner)


def _signature(title: str, member: Any) -> str:
    """One line, or one line for each parameter where that is too long."""
    signature = inspect.signature(member)
    parameters = [str(one) for one in signature.parameters.values() if one.name != "self"]
    returns = "" if inspect.isclass(member) else f" -> {inspect.formatannotation(signature.return_annotation)}"
    line = f"{title}({', '.join(parameters)}){returns}"
    if len(line) > 110:
        line = f"{title}(\n" + "".join(f"    {one},\n" for one in parameters) + f"){returns}"
    line = re.sub(r"<function [^,]* at 0x[0-9a-f]+>", "...", line.replace("'", ""))
    return re.sub(r"\b(torch|collections\.abc|srpo_recipe\.method\.\w+|typing)\.(?=[A-Z])", "", line)


def _markdown(doc: str) -> str:
    """A docstring as Markdown: indented formulas stay, and elsewhere stars and angles are signs like others."""
    lines = []
    for line in doc.split("\n"):
        pieces = [line] if line.startswith("    ") else re.split(r"(`[^`]*`)", line)
        lines.append("".join(one if one[:1] in " `" else re.sub(r"([*<])", r"\\\1", one) for one in pieces))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (DOCS / "metrics.md").write_text(metrics_page())
    (DOCS / "api.md").write_text(api_page())
