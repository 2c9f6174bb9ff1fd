"""One rank of tests/test_split.py: `torchrun --nproc-per-node N tests/split_process.py FOLDER MODEL SIZE [lora|hybrid|bf16]`.

As engine_process.py, with every sequence split over SIZE ranks (verl's ulysses_sequence_parallel_size). What was seen goes to
FOLDER/MODEL_N_SIZE.pt, and of the other kinds (an adapter; copies of the weights; bf16) to FOLDER/MODEL_N_SIZE_KIND.pt.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from adapter_process import AdapterRun
from engine_process import SPLITS, Run
from engine_rows import CASES, TEMPERATURE, VOCABULARY, make_batch

from srpo_recipe.settings.options import needs_reference
from srpo_recipe.training import split_check
from srpo_recipe.training.passes import PASS

CONFIG = (
    "actor_rollout_ref.model.use_remove_padding=true",
    "actor_rollout_ref.model.override_config.attn_implementation=packed_sdpa",
)


class SplitRun(Run):
    overrides = CONFIG
    options = {"use_remove_padding": True}

    def build(self, engine_config) -> None:
        """With what an engine tries once, before anything is counted."""
        super().build(engine_config)
        with self.student.eval_mode():
            self.student._compare_split()

    def log_probs(self) -> None:
        """verl's own pass over the rows, which has no name here."""
        options = {PASS: None, "micro_batch_size_per_gpu": 4, **self.options}
        batch = make_batch(self.rows, "srpo", self.mine, "update", **options)
        with self.student.eval_mode():
            found = self.student.infer_batch(batch, loss_function=None)["model_output"]["log_probs"]
        with torch.no_grad():
            plain = [self.model(self.rows[row]["input_ids"].unsqueeze(0)).logits[0, :-1] for row in self.mine]
        expected = []
        for row, logits in zip(self.mine, plain, strict=True):
            labels = self.rows[row]["input_ids"][1:].unsqueeze(-1)
            expected.append((logits / TEMPERATURE).log_softmax(-1).gather(-1, labels).squeeze(-1))
        self.found["log_probs"] = [row[:-1].clone() for row in found.unbind()], expected

    def refused(self) -> None:
        """What the check of a split model says of this one, and of the same with attention that verl does not split."""
        group = self.student.ulysses_parallel_group
        arguments = (self.student.module, group, VOCABULARY, "cpu", nullcontext())
        with self.student.eval_mode():
            self.found["same when split"] = split_check.check(*arguments)
            self.student.module.set_attn_implementation("sdpa")
            try:
                split_check.check(*arguments)
            except RuntimeError as error:
                self.found["refused"] = str(error)
        self.student.module.set_attn_implementation("packed_sdpa")


class HalfRun(SplitRun):
    """Computed in bf16, as on a GPU."""

    overrides = (
        *CONFIG,
        *(
            f"actor_rollout_ref.{part}.fsdp_config.mixed_precision.{name}=bf16"
            for part in ("actor", "ref")
            for name in ("param_dtype", "buffer_dtype")
        ),
    )


class SplitAdapterRun(SplitRun, AdapterRun):
    overrides = (*CONFIG, *AdapterRun.overrides)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder, model, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    lora = "lora" in sys.argv[4:]
    kind = SplitAdapterRun if lora else HalfRun if "bf16" in sys.argv[4:] else SplitRun
    kind.split = size
    hybrid = {"fsdp_size": 2} if "hybrid" in sys.argv[4:] else {}  # the weights once on each pair of ranks
    run = kind(folder, model, ulysses_sequence_parallel_size=size, **hybrid)
    cases = {"lora": ("srpo", "sdpo", "mixed"), "hybrid": ("srpo", "grpo", "whole"), "bf16": ("srpo", "whole")}
    without = [name for name in CASES if not needs_reference(CASES[name])]  # adapters
    for case in cases[sys.argv[4]] if sys.argv[4:] else without:
        run.reference(case)
        run.use(case)
        for split in SPLITS:
            run.backward(case, split)
        if lora:
            run.found["gradient"][case, "plain"] = run.gradients_of_adapters()
    run.use("srpo")
    run.backward("srpo", "one", name="dynamic", use_dynamic_bsz=True, max_token_len_per_gpu=40 // size)
    if hybrid:
        assert run.student.device_mesh.ndim == 2
    if "bf16" in sys.argv[4:] and size > 1:
        run.refused()
    if not sys.argv[4:]:
        run.log_probs()
        run.refused()
        run.second_step()
        run.ema()
    if dist.get_rank() == 0:
        torch.save(run.found, folder / f"{'_'.join([model, str(run.world), *sys.argv[3:]])}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
