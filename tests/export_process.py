"""One rank of tests/test_export.py: `python -m torch.distributed.run --nproc-per-node N tests/export_process.py FOLDER`.

Shards small random models with FSDP2 over gloo, as training does, and has verl's own checkpoint manager save them: for each case
a run's folder FOLDER/CASE_N with a student and a teacher, and their whole weights in FOLDER/CASE_N/{student,teacher}.pt.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM
from verl.trainer.config import CheckpointConfig
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

from srpo_recipe.records import checkpoint

ASSETS = Path(checkpoint.__file__).parents[1] / "assets" / "tiny_qwen3"
# 101 rows do not divide by 2: the ranks' shards differ in size.
SMALL = {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128}
SMALL |= {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.2}
# name -> (embeddings tied, replicas)
CASES = {"tied": (True, 1), "untied": (False, 1), "replicated": (True, 2)}


def build(folder: Path, tied: bool, seed: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    Qwen3ForCausalLM(Qwen3Config(**SMALL, tie_word_embeddings=tied)).float().save_pretrained(folder)
    GenerationConfig(eos_token_id=1, pad_token_id=0, temperature=0.9, do_sample=True).save_pretrained(folder)
    return Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder, rank, world = Path(sys.argv[1]), dist.get_rank(), dist.get_world_size()
    tokenizer = AutoTokenizer.from_pretrained(ASSETS)
    contents = CheckpointConfig(save_contents=["model"], load_contents=["model"])
    for case, (tied, replicas) in CASES.items():
        if replicas > world:
            continue
        run = folder / f"{case}_{world}"
        shape = {"ddp": replicas, "fsdp": world // replicas} if replicas > 1 else {"fsdp": world}
        mesh = init_device_mesh("cpu", tuple(shape.values()), mesh_dim_names=tuple(shape))
        actor = str(run / "checkpoints" / "global_step_7" / "actor")
        for seed, (name, path) in enumerate((("student", actor), ("teacher", checkpoint.teacher_path(actor)))):
            model = build(run / f"initial_{name}_{rank}", tied, seed)
            if rank == 0:
                torch.save(model.state_dict(), run / f"{name}.pt")
            for layer in model.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            FSDPCheckpointManager(model, None, None, tokenizer, contents).save_checkpoint(path, None, 7)
        (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("7")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
