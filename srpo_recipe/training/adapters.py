"""LoRA: student and self-teacher as two adapters of one base model.

The self-teacher's adapter is the EMA of the student's, A and B each. That is not the EMA of the products B A: the average of full
weights has no adapter of the same rank. No second model is built, and the base exists once.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from tensordict import TensorDict
from torch import Tensor
from verl.workers.engine.base import EngineRegistry

from srpo_recipe.records.adapters import STUDENT, TEACHER, names_of
from srpo_recipe.records.files import whole_file, write_whole
from srpo_recipe.training.engine import RoutedEngine
from srpo_recipe.training.output_layer import after_head_of

# Key of AdapterEngine in verl's engine registry.
MODEL_TYPE = "srpo_language_model_with_adapters"


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp2"], device=["cuda", "npu", "cpu"])
class AdapterEngine(RoutedEngine):
    """RoutedEngine whose module is the student and, under its other adapter, the self-teacher."""

    def _build_module(self):
        module = super()._build_module()
        self.after_head = after_head_of(module, needed=True)
        return module

    def _build_lora_module(self, module):
        """verl's, before FSDP wraps it, with the teacher's adapter: frozen, and equal to the student's at the start.

        Raises ValueError where the output layer itself would have an adapter: the teacher's is kept as one matrix.
        """
        module = super()._build_lora_module(module)
        if isinstance(module.get_output_embeddings(), BaseTunerLayer):
            raise ValueError(
                "actor_rollout_ref.model.target_modules reaches the model's output layer, of which the self-teacher keeps one "
                "copy: name other modules, or all-linear, which leaves it out"
            )
        config = copy(module.peft_config[STUDENT])
        config.inference_mode = True
        empty = any(
            parameter.is_meta for _, parameter in _of(module, STUDENT)
        )  # verl fills all ranks but one from that one
        module.add_adapter(TEACHER, config, low_cpu_mem_usage=empty)
        for (_, teacher), (_, student) in zip(_of(module, TEACHER), _of(module, STUDENT), strict=True):
            teacher.requires_grad_(False)
            if not empty:
                teacher.data = student.detach().clone()
        return module

    # -------------------------------------------------------------------------------------------------------- weights

    def shards(self) -> Iterator[Tensor]:
        self.reshard()
        return (parameter for _, parameter in _of(self.module, STUDENT))

    def teacher_shards(self) -> Iterator[Tensor]:
        self.reshard()
        return (parameter for _, parameter in _of(self.module, TEACHER))

    def save_teacher(self, folder: str, step: int) -> None:
        """The adapter's shards of this rank, in the layout and under the names of verl's model files."""
        self.reshard()
        path = self._teacher_file(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            torch.save({name: parameter.detach() for name, parameter in _of(self.module, TEACHER)}, partial)
        if self.rank == 0:  # as verl writes it beside the actor's
            layout = {"FSDP_version": 2, "world_size": torch.distributed.get_world_size()}
            write_whole(path.parent / "fsdp_config.json", json.dumps(layout))
        torch.distributed.barrier()

    @torch.no_grad()
    def load_teacher(self, folder: str) -> None:
        """Raises ValueError where the file holds other weights than this run's adapter has."""
        import torch.distributed.tensor  # noqa: F401  (lets torch.load read sharded tensors without running pickled code)

        self.reshard()
        path = self._teacher_file(folder)
        found = torch.load(path, map_location="cpu", weights_only=True)
        own = dict(_of(self.module, TEACHER))
        if wrong := sorted(set(found) ^ set(own)) or [name for name in own if found[name].shape != own[name].shape]:
            raise ValueError(f"{path} holds another adapter than lora_rank and target_modules make here: {wrong[:3]}")
        for name, parameter in own.items():
            parameter.copy_(found[name].to(parameter.device))
        torch.distributed.barrier()

    def _teacher_file(self, folder: str) -> Path:
        return Path(folder) / f"model_world_size_{torch.distributed.get_world_size()}_rank_{self.rank}.pt"

    # --------------------------------------------------------------------------------------------------- forward passes

    def forward_backward_batch(self, data: TensorDict, loss_function, forward_only=False):
        stage = self._pass_of(data)
        if stage not in ("teacher", "first"):
            return super().forward_backward_batch(data, loss_function, forward_only)
        with active_adapter(self.module, TEACHER if stage == "teacher" else None):
            return super().forward_backward_batch(data, loss_function, forward_only)


def _of(module: torch.nn.Module, adapter: str) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The parameters of an adapter by name, in the order of the module."""
    parameters = dict(module.named_parameters())
    return ((name, parameters[name]) for name in names_of(parameters, adapter))


@contextmanager
def active_adapter(module: torch.nn.Module, name: str | None) -> Iterator[None]:
    """Compute with another adapter, or None for the base alone. peft's own `set_adapter` also decides which one is trained, which
    a sharded model's optimiser and gradients would not follow; so the layers' field is set and set back.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    before = [layer._active_adapter for layer in layers]
    try:
        for layer in layers:
            layer._active_adapter = [] if name is None else name
        yield
    finally:
        for layer, kept in zip(layers, before, strict=True):
            layer._active_adapter = kept
