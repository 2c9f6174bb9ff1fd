"""Rollouts that verl recorded, replayed: with other verdicts, and cut to other lengths."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

RECORDED = "tq_batch.pt"


@dataclass(frozen=True)
class Step:
    """One step of a run: the share of rows that have failed, and to how many tokens the recorded responses are cut."""

    share: float
    response: int


@dataclass(frozen=True)
class Recording:
    """What verl recorded of one step, and the folder in which it looks for those of a run."""

    payload: dict
    folder: Path
    meta: str

    def lay(self, plan: list[Step]) -> None:
        """Write the rollouts of every step of a plan where verl looks for them."""
        shutil.rmtree(self.folder)
        for number, step in enumerate(plan, start=1):
            place = self.folder / str(number) / "0"
            place.mkdir(parents=True)
            torch.save(replayed(self.payload, step), place / RECORDED)
            (place / "meta.json").write_text(self.meta)


def verdicts(keys: list[str], share: float) -> list[float]:
    """1 for right, 0 for wrong: the share fails, spread over the groups; every group keeps a right one (below 1 - 1/n)."""
    groups: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key.split("_")[0], []).append(row)
    found = [1.0] * len(keys)
    for rows, failed in zip(groups.values(), failures(share, len(keys), len(groups)), strict=True):
        for row in rows[:failed]:
            found[row] = 0.0
    return found


def failures(share: float, rows: int, groups: int) -> list[int]:
    """How many rows of each group fail, so that the share of all does."""
    failed = round(share * rows)
    return [failed // groups + (place < failed % groups) for place in range(groups)]


def replayed(payload: dict, step: Step) -> dict:
    """The recorded batch with responses cut and verdicts set, as verl reads it back."""
    data = payload["tensordict"]
    length_B = data["responses"].offsets().diff()
    total_B = data["input_ids"].offsets().diff()
    kept_B = length_B.clamp(max=step.response)
    fields = data.clone()
    for name, field in data.items():
        if not (isinstance(field, torch.Tensor) and field.is_nested):
            continue
        rows = field.unbind()
        if all(len(row) == length for row, length in zip(rows, length_B, strict=True)):
            rows = [row[:kept] for row, kept in zip(rows, kept_B, strict=True)]
        elif all(len(row) == total for row, total in zip(rows, total_B, strict=True)):
            rows = [row[: len(row) - cut] for row, cut in zip(rows, length_B - kept_B, strict=True)]
        else:
            continue
        fields[name] = torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)
    scores = [torch.zeros(int(kept)) for kept in kept_B]
    for score, verdict in zip(scores, verdicts(payload["keys"], step.share), strict=True):
        score[-1] = verdict
    fields["rm_scores"] = torch.nested.as_nested_tensor(scores, layout=torch.jagged)
    lengths = (total_B - length_B + kept_B).tolist()
    tags = [
        {**tag, "seq_len": length, "response_len": int(kept)} if "response_len" in tag else {**tag, "seq_len": length}
        for tag, length, kept in zip(payload["tags"], lengths, kept_B, strict=True)
    ]
    return {**payload, "tensordict": fields, "tags": tags}
