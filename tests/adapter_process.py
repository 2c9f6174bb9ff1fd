"""One rank of tests/test_adapters.py: `torchrun --nproc-per-node N tests/adapter_process.py FOLDER MODEL`.

As engine_process.py, with the real AdapterEngine: student and self-teacher are two LoRA adapters of one base. The plain models
are the base with each adapter multiplied out and added. What was seen goes to FOLDER/MODEL_lora_WORLD.pt.
"""

import gc
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from engine_process import RATE, Run, full
from engine_rows import CASES
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM

from srpo_recipe.records import checkpoint
from srpo_recipe.records.adapters import STUDENT, TEACHER
from srpo_recipe.settings.schema import TeacherConfig
from srpo_recipe.training.adapters import MODEL_TYPE

RANK, ALPHA = 4, 12


def name_of_base(name: str) -> str:
    return name.replace("base_model.model.", "").replace(".base_layer", "")


class AdapterRun(Run):
    overrides = (f"actor_rollout_ref.model.lora_rank={RANK}", f"actor_rollout_ref.model.lora_alpha={ALPHA}")
    model_type = MODEL_TYPE

    def build(self, engine_config) -> None:
        self.student = self.teacher = self.engine(engine_config)
        self.student.teacher, self.student.actor_config = self.student, self.actor_config
        self.found |= {"at_start": full(self.student.module)}
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in self.student.module.named_parameters():
                if ".lora_" in name:
                    value = 0.1 * torch.randn(parameter.shape, generator=generator)
                    share = len(value) // self.world
                    parameter.to_local().copy_(value[dist.get_rank() * share :][: len(parameter.to_local())])
        self.first = AutoModelForCausalLM.from_pretrained(
            self.folder / self.name, dtype=torch.float32, attn_implementation="sdpa"
        )
        self.multiply_out()

    def multiply_out(self) -> None:
        """Make the plain models of base and adapters."""
        weights = full(self.student.module)
        for model, adapter in ((self.model, STUDENT), (self.plain_teacher, TEACHER)):
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    inside = {name_of_base(known): known for known in weights}[name]
                    parameter.copy_(weights[inside])
                    stem = inside.removesuffix("base_layer.weight")
                    if f"{stem}lora_A.{adapter}.weight" in weights:
                        a, b = (weights[f"{stem}lora_{part}.{adapter}.weight"] for part in "AB")
                        parameter.add_(ALPHA / RANK * b @ a)

    def gradients_of_adapters(self) -> dict[str, torch.Tensor]:
        """What the plain model's gradient means for A and B of the student."""
        weights, plain = full(self.student.module), dict(self.model.named_parameters())
        found = {}
        for name in weights:
            if f".lora_A.{STUDENT}" not in name:
                continue
            other = name.replace("lora_A", "lora_B")
            gradient = plain[name_of_base(name).replace(f".lora_A.{STUDENT}", "")].grad
            found[name] = ALPHA / RANK * weights[other].T @ gradient
            found[other] = ALPHA / RANK * gradient @ weights[name].T
        return found

    def copies_of_the_base(self) -> float:
        """How many times the base's weights are in this process: all of a rank's shards against the plain model's numbers."""
        of_module = {id(p) for n, p in self.student.module.named_parameters() if ".lora_" not in n}
        alive = [one for one in gc.get_objects() if isinstance(one, torch.nn.Parameter) and hasattr(one, "to_local")]
        sizes = [one.to_local().numel() for one in alive if one.shape.numel() > 16 * 64]  # no adapter is as large
        own = [one.to_local().numel() for one in alive if id(one) in of_module and one.shape.numel() > 16 * 64]
        return sum(sizes) / sum(own)

    def ema(self) -> None:
        settings = replace(CASES["srpo"], teacher=TeacherConfig(ema_rate=RATE))
        start = full(self.student.module)
        recursion = {name: value.double() for name, value in start.items() if f".{TEACHER}." in name}
        for _ in range(2):
            self.student.lr_scheduler_step()
            self.use("srpo")
            self.student.srpo = settings
            self.train()
            for name, value in full(self.student.module).items():
                if f".{STUDENT}." in name:
                    teacher = name.replace(f".{STUDENT}.", f".{TEACHER}.")
                    recursion[teacher] = (1 - RATE) * recursion[teacher] + RATE * value.double()
        self.found |= {"start": start, "end": full(self.student.module), "recursion": recursion}
        self.found["distance"] = self.student.relative_teacher_distance()
        actor_path = str(self.folder / f"checkpoint_lora_{self.world}" / "global_step_2" / "actor")
        self.student.save_checkpoint(actor_path, None, 2)
        self.student.save_teacher(checkpoint.teacher_path(actor_path), 2)
        with torch.no_grad():
            for parameter in self.student.module.parameters():
                parameter.mul_(0.5)
        checkpoint.require_teacher(actor_path, self.world, dist.get_rank())
        self.student.load_checkpoint(actor_path, None, False)
        self.student.load_teacher(checkpoint.teacher_path(actor_path))
        self.found["loaded"], self.found["actor_path"] = full(self.student.module), actor_path
        self.without_the_base()

    def without_the_base(self) -> None:
        """A checkpoint with `save_lora_only`, and what comes out of it: the base has to be there already."""
        folder = self.folder / f"adapters_alone_{self.world}" / "global_step_2" / "actor"
        self.student.checkpoint_manager.checkpoint_config = {"save_lora_only": True}
        self.student.save_checkpoint(str(folder), None, 2)
        shard = folder / f"model_world_size_{self.world}_rank_{dist.get_rank()}.pt"
        self.found["saved_alone"] = set(torch.load(shard, weights_only=False))
        with torch.no_grad():
            for name, parameter in self.student.module.named_parameters():
                if ".lora_" in name:
                    parameter.mul_(0.5)
        self.student.load_checkpoint(str(folder), None, False)
        self.found["loaded_alone"] = full(self.student.module)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder, model = Path(sys.argv[1]), sys.argv[2]
    run = AdapterRun(folder, model)
    trained = {name for name, parameter in run.student.module.named_parameters() if parameter.requires_grad}
    for case in ("srpo", "sdpo", "mixed"):
        run.reference(case)
        run.use(case)
        for split in ("one", "four"):
            run.backward(case, split)
        run.found["gradient"][case, "plain"] = run.gradients_of_adapters()
    layers = [layer for layer in run.student.module.modules() if isinstance(layer, BaseTunerLayer)]
    run.found["active"] = {tuple(layer.active_adapters) for layer in layers}
    run.found["trained"] = trained, {n for n, p in run.student.module.named_parameters() if p.requires_grad}
    run.found["copies"] = run.copies_of_the_base()
    run.ema()
    if dist.get_rank() == 0:
        torch.save(run.found, folder / f"{model}_lora_{run.world}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
