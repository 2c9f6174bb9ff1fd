"""Writes the pages that are made from the code: docs/metrics.md.

python docs/make.py            # tests/test_docs_made.py fails while a page is not as the code says
"""

from pathlib import Path

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


if __name__ == "__main__":
    (DOCS / "metrics.md").write_text(metrics_page())
