"""Everything of verl (and of vLLM) that this package leans on, in one list. A new version of verl should fail here first."""

import ast
import base64
import hashlib
import importlib
import inspect
import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

import srpo_recipe

PACKAGE = Path(srpo_recipe.__file__).parent
VERSION = "0.9.1"

# What we import or reach through a module: "module:name" -> its parameters, None where only the name matters.
NAMES = {
    # entry point and runner
    "verl.trainer.main_ppo:run_ppo": "config task_runner_class",
    "verl.trainer.main_ppo:TaskRunnerV1": None,
    "verl.trainer.ppo.utils:need_critic": "config",
    "verl.trainer.ppo.utils:need_reference_policy": "config",
    "verl.utils.config:validate_config": "config use_reference_policy use_critic",
    "verl.utils.device:auto_set_device": "config",
    # registries
    "verl.trainer.ppo:core_algos": None,
    "verl.trainer.ppo.core_algos:register_adv_est": "name_or_enum",
    "verl.trainer.ppo.core_algos:register_policy_loss": "name",
    "verl.trainer.ppo.core_algos:get_adv_estimator_fn": "name_or_enum",
    "verl.trainer.ppo.core_algos:get_policy_loss_fn": "name",
    "verl.trainer.ppo.v1:get_trainer_cls": "name",
    "verl.trainer.ppo.v1.trainer_base:register_trainer": "name",
    "verl.workers.engine.base:EngineRegistry": None,
    # trainer
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer": "config",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync": "config",
    "verl.trainer.ppo.v1.trainer_colocate_async:PPOTrainerColocateAsync": "config",
    "verl.trainer.ppo.utils:Role": None,
    "verl.trainer.ppo.checkpoint_callback:CheckpointCallback": "config",
    "verl.utils.debug:marked_timer": "name timing_raw color domain category",
    "verl.utils.seqlen_balancing:log_seqlen_unbalance": "seqlen_list partitions prefix",
    "transfer_queue:KVBatchMeta": "keys tags partition_id fields extra_info",
    "transfer_queue:kv_batch_get": "keys partition_id select_fields",
    "transfer_queue:kv_batch_put": "keys partition_id fields tags data_parser",
    # worker
    "verl.single_controller.base.decorator:Dispatch": None,
    "verl.single_controller.base.decorator:make_nd_compute_dataproto_dispatch_fn": "mesh_name",
    "verl.single_controller.base.decorator:register": "dispatch_mode execute_mode blocking materialize_futures",
    "verl.trainer.config:CheckpointConfig": "_target_ save_contents load_contents async_save strict save_lora_only",
    "verl.utils:tensordict_utils": None,
    "verl.utils.tensordict_utils:assign_non_tensor": "tensor_dict kwargs",
    "verl.utils.tensordict_utils:assign_non_tensor_data": "tensor_dict key val",
    "verl.utils.tensordict_utils:get_non_tensor_data": "data key default",
    "verl.utils.tensordict_utils:get": "tensordict key default",
    "verl.utils.device:get_device_id": "",
    # what gpu_check takes beside it: the config's dataclasses, and verl's own GRPO to compare with
    "verl.utils.device:get_device_name": "",
    "verl.utils.config:omega_conf_to_dataclass": "config dataclass_type",
    "verl.workers.utils.losses:ppo_loss": "config model_output data dp_group",
    "verl.workers.utils.padding:no_padding_2_padding": "tensor data",
    "verl.utils.metric:AggregationType": None,
    "verl.utils.metric:Metric": "aggregation value",
    "verl.workers.config:ActorConfig": None,
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead": (
        "model_config engine_config optimizer_config checkpoint_config"
    ),
    # sequences that are split over ranks
    "verl.utils.ulysses:gather_outputs_and_unpad": "x gather_dim unpad_dim padding_size grad_scaler group",
    "verl.utils.ulysses:get_ulysses_sequence_parallel_group": "",
    "verl.utils.ulysses:set_ulysses_sequence_parallel_group": "group",
    "verl.utils.ulysses:slice_input_tensor": "x dim padding group",
    "verl.workers.engine_workers:ActorRolloutRefWorker": "config role distillation_config kwargs",
    "verl.workers.engine_workers:TrainingWorker": "config",
    "verl.trainer.ppo.rollout_corr_helper:compute_rollout_correction_weights": (
        "log_ratio response_mask rollout_is rollout_is_threshold rollout_is_batch_normalize"
    ),
    # what run and network lean on: the queue's sockets, the server's door
    "transfer_queue:controller": None,
    "transfer_queue.storage:simple_storage": None,
    "transfer_queue.storage.managers:base": None,
    "transfer_queue.utils:zmq_utils": None,
    "transfer_queue.utils.zmq_utils:create_zmq_socket": "ctx socket_type ip identity",
    "verl.workers.rollout.replica:RolloutReplicaRegistry": None,
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer": (
        "config model_config rollout_mode workers replica_rank node_rank gpus_per_node nnodes cuda_visible_devices "
        "disaggregation_role disaggregation_kv_transfer_config"
    ),
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMReplica": (
        "replica_rank config model_config gpus_per_node is_reward_model is_teacher_model name_suffix"
    ),
    # rollout
    "verl.experimental.agent_loop.agent_loop:AgentLoopBase": None,
    "verl.experimental.agent_loop.agent_loop:AgentLoopOutput": None,
    "verl.experimental.agent_loop.agent_loop:DictConfigWrap": "config",
    "verl.experimental.agent_loop.agent_loop:ToolListWrap": "tools",
    "verl.experimental.agent_loop.agent_loop:_agent_loop_registry": None,
    "verl.protocol:DataProto": "batch non_tensor_batch meta_info",
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopManagerTQ": "args kwargs",
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ": None,
    "verl.utils.tensordict_utils:list_of_dict_to_tensordict": "list_of_dicts",
    "transfer_queue:async_kv_put": "key partition_id fields tag data_parser",
    "transfer_queue:async_kv_batch_put": "keys partition_id fields tags data_parser",
    "verl.experimental.agent_loop.single_turn_agent_loop:SingleTurnAgentLoop": None,
    "verl.experimental.agent_loop.tool_agent_loop:ToolAgentLoop": None,
    "verl.trainer.ppo.v1.agent_loop_tq:apply_greedy_sampling_params": "params",
    # machines without an accelerator
    "verl.plugin.platform:PlatformBase": None,
    "verl.plugin.platform:PlatformRegistry": None,
    "verl.utils:torch_functional": None,
    "verl.models.transformers:monkey_patch": None,
    "verl.models.transformers.monkey_patch:_flash_attention_forward": None,
    "verl.utils.torch_functional:logprobs_from_logits_v2": "logits labels",
    "vllm.platforms:current_platform": None,
    "vllm:_custom_ops": None,
    # evaluation
    "vllm:LLM": None,
    "vllm:SamplingParams": None,
    "vllm:TokensPrompt": None,
    "vllm._custom_ops:_supports_onednn": None,
}

# Methods that we override or call, and their parameters.
METHODS = {
    "verl.trainer.main_ppo:TaskRunnerV1.__ray_metadata__.modified_class.run": "self config",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer.__init__": "self config",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._init_resource_pool_mgr": "self",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._init_dataloader": "self",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer.on_validate_end": "self",
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngine._build_lora_module": "self module",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._build_replay_buffer": "self",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._setup": "self",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._load_checkpoint": "self",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._save_checkpoint": "self",
    "verl.trainer.ppo.checkpoint_callback:CheckpointCallback.on_save": (
        "self trainer global_step checkpoint_dir async_save kwargs"
    ),
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer.fit": "self agent_loop_manager",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer.on_sample_begin": "self",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync.on_sample_end": "self",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync.on_init_end": "self",
    "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync.on_step_end": "self",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer.on_validate_begin": "self",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer.on_train_begin": "self",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._balance_batch": "self batch metrics logging_prefix keep_minibatch",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._compute_advantage": "self batch metrics",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._get_required_batch_multiple": "self dp_size",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._compute_old_log_prob": "self batch metrics",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._compute_ref_log_prob": "self batch metrics",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._update_actor": "self batch metrics",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._compute_metrics": "self batch metrics timing_raw global_steps epoch",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._maybe_log_val_generations": "self inputs outputs scores",
    "verl.trainer.ppo.v1.trainer_base:PPOTrainer._val_metrics_update": (
        "self data_sources sample_uids reward_extra_infos_dict sample_turns expected_acc_counts"
    ),
    "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer.sample": None,
    "verl.workers.engine.base:EngineRegistry.register": "model_type backend device vendor",
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead.prepare_model_outputs": (
        "self output output_args micro_batch logits_processor_func"
    ),
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead.forward_backward_batch": (
        "self data loss_function forward_only"
    ),
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead.prepare_model_inputs": "self micro_batch",
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead.initialize": "self",
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead.optimizer_step": "self",
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead.lr_scheduler_step": "self",
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead._build_module": "self",
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead._build_optimizer": "self module",
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead._build_lr_scheduler": "self optimizer",
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead.get_data_parallel_group": "self",
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead.save_checkpoint": (
        "self local_path hdfs_path global_step max_ckpt_to_keep kwargs"
    ),
    "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead.load_checkpoint": (
        "self local_path hdfs_path del_local_after_load kwargs"
    ),
    "verl.workers.engine_workers:TrainingWorker.infer_batch": "self data",
    "verl.workers.engine_workers:TrainingWorker.set_loss_fn": "self loss_fn",
    "verl.workers.engine_workers:ActorRolloutRefWorker.init_model": "self",
    "verl.workers.engine_workers:ActorRolloutRefWorker.update_actor": "self data",
    "verl.workers.engine_workers:ActorRolloutRefWorker.save_checkpoint": (
        "self local_path hdfs_path global_step max_ckpt_to_keep"
    ),
    "verl.workers.engine_workers:ActorRolloutRefWorker.load_checkpoint": (
        "self local_path hdfs_path del_local_after_load"
    ),
    "verl.experimental.agent_loop.agent_loop:AgentLoopBase.ct_build_initial_tokens": (
        "self messages tools images videos audios mm_inputs_out"
    ),
    "verl.experimental.agent_loop.agent_loop:AgentLoopBase.run": "self sampling_params kwargs",
    "verl.experimental.agent_loop.single_turn_agent_loop:SingleTurnAgentLoop.run": (
        "self sampling_params priority kwargs"
    ),
    "verl.experimental.agent_loop.tool_agent_loop:ToolAgentLoop.run": "self sampling_params priority kwargs",
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ.__ray_metadata__.modified_class._run_agent_loop": (
        "self sampling_params trajectory agent_name trace kwargs"
    ),
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ.__ray_metadata__.modified_class._agent_loop_postprocess": (
        "self output validate kwargs"
    ),
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ.__ray_metadata__.modified_class._compute_score": (
        "self outputs kwargs"
    ),
    "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ.__ray_metadata__.modified_class._run_prompt": (
        "self prompt sampling_params trajectory trace"
    ),
    "verl.experimental.reward_loop:RewardLoopWorker.compute_score_batch": "self data",
    "verl.single_controller.base.worker:Worker._query_dispatch_info": "self mesh_name",
    # wrapped on the instance by watchdog.SyncWatch
    "verl.workers.rollout.vllm_rollout.vllm_rollout:ServerAdapter._execute_method": (
        "self method non_block timeout args kwargs"
    ),
    "verl.workers.rollout.vllm_rollout.vllm_rollout:ServerAdapter.update_weights": (
        "self weights global_steps wire_format kwargs"
    ),
    "verl.workers.rollout.vllm_rollout.vllm_rollout:ServerAdapter.resume": "self tags",
    "verl.workers.rollout.replica:RolloutReplicaRegistry.register": "name loader",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer.run_server": "self args",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer.generate": (
        "self prompt_ids sampling_params request_id image_data video_data audio_data mm_processor_kwargs priority "
        "kv_transfer_params"
    ),
    # what a loop's server_manager is
    "verl.workers.rollout.llm_server:LLMServerClient.generate": None,
    "verl.experimental.agent_loop.agent_loop:AgentLoopBase._cap_text_prompt_length": "self prompt_ids",
    "verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer.collective_rpc": (
        "self method timeout args kwargs"
    ),
    "vllm.v1.engine.async_llm:AsyncLLM.is_sleeping": "self",
    "verl.plugin.platform:PlatformRegistry.register": "platform",
    "verl.plugin.platform:PlatformRegistry.get": "name",
    "verl.utils.tracking:Tracking.log": "self data step backend",
    "verl.utils.tracking:Tracking.finish": "self exit_code",
}

# Attributes that exist only once verl has run: a piece of verl's own source that shows them, and how often it must stand.
SOURCE = {
    "verl.trainer.ppo.v1.trainer_base": {
        'self.trainer_mode == "sync"': 2,  # the comparisons that LifecycleTrainer.trainer_mode answers
        'self.trainer_mode != "sync"': 4,
        "self.trainer_mode = self.config.trainer.v1.trainer_mode": 1,
        "self.role_worker_mapping": None,
        "self.mapping": None,
        "self.actor_rollout_wg": None,
        "self.llm_server_manager": None,
        "self.tokenizer": None,
        "self.global_steps": None,
        "self.total_training_steps": None,
        "self.timing_raw": None,
        "self.logger": None,
        "batch = self._balance_batch(": None,
        # the reference stage, in which the self-teacher has its turn, and its timer
        "self.use_reference_policy = need_reference_policy(self.config)": 1,
        "if self.use_reference_policy:": None,
        "batch = self._compute_ref_log_prob(": 1,
        'with marked_timer("ref", timing_raw, color="olive"):': 1,
        # a validation's texts come before its metrics, for all samples in one order
        "self._maybe_log_val_generations(inputs=sample_inputs, outputs=sample_outputs, scores=sample_scores)": 1,
        # no correction of old log-probs that only the update makes
        'rollout_corr_config = self.config.algorithm.get("rollout_correction", None)': 2,
        "rollout_corr_config is not None and": None,
    },
    "verl.trainer.ppo.v1.agent_loop_tq": {
        'f"{uid}_{session_id}_{i}"': 1,  # what SRPOTrainer._split_key takes apart
        # why GroupWorker._compute_score leaves an empty one
        'output.extra_fields["reward_extra_info"] = final_output.extra_fields["reward_extra_info"]': 1,
    },
    "verl.experimental.agent_loop.agent_loop": {"return self._cap_text_prompt_length(prompt_ids)": 1},
    "verl.single_controller.base.worker_group": {"self._dispatch_info = {}": 1},
    # what training/server.py and training/network.py change
    "verl.workers.rollout.vllm_rollout.vllm_async_server": {
        "self.server_class = ray.remote(vLLMHttpServer)": 1,
        "await run_uvicorn(app, args, self._server_address)": 1,
        "self._server_address = ray.util.get_node_ip_address()": 1,
    },
    "verl.workers.rollout.replica": {"return max(1000, self.config.max_num_seqs + CONTROL_METHOD_CONCURRENCY)": 1},
    "verl.utils.distributed": {'init_method=os.environ.get("DIST_INIT_METHOD", None)': 2},
    "verl.trainer.constants_ppo": {'"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true"': 1},
    "verl.workers.rollout.llm_server": {
        "self.server_handles = [": 1,
        "self.server_addresses = [": 1,
        "prompt_ids=prompt_ids + final_output.token_ids,": 1,  # by which training/server.py knows what goes on
    },
    "verl.trainer.ppo.v1.replay_buffer": {"self.poll_interval": None},
    # a slice is so long, and a gradient comes back times the group's size: Split
    "verl.utils.ulysses": {
        "pad_size = (sp_size - total_seq_len % sp_size) % sp_size": 1,
        "grad_output = grad_output * ctx.sp_world_size": 1,
    },
    # what cpu/attention.py takes the place of, and that verl puts its all-to-all around
    "verl.models.transformers.monkey_patch": {
        "attn_output = _flash_attention_forward(": 1,
        "flash_attention._flash_attention_forward = _ulysses_flash_attention_forward": 1,
    },
    "verl.workers.engine.utils": {
        "max_token_len = max_token_len_per_gpu * sp_size": 1,  # a budget is a rank's
        "assert total_data_size % (force_group_size * micro_batch_size_per_gpu) == 0": 1,  # RoutedSteps fills a batch up
    },
    "verl.utils.tracking": {
        "self.logger = {}": 1,
        "in self.logger.items()": None,
        'self.logger["wandb"] = wandb': None,  # what run/loggers.py shows rollouts and the summary by
        'self.logger["tensorboard"] = _TensorboardAdapter(': 1,
        "self.writer = SummaryWriter(tensorboard_dir)": 1,
        'os.environ.get("TENSORBOARD_DIR",': None,
    },
    "verl.workers.engine_workers": {
        "self.actor = self.actor_worker_cls(config=": 1,
        "self.ref = self.ref_worker_cls(config=": 1,
        "self.loss_fn = partial(ppo_loss, config=actor_config)": 1,
        "self.model_config.model_type = self.config.model_type": 1,
    },
    "verl.workers.engine.fsdp.transformer_impl": {
        "CPUOffloadPolicy(pin_memory=True)": None,  # why RoutedEngine hides forward_only
        "if not self.engine_config.forward_only:": None,
        "self.module = module": 1,
        "self._autocast_dtype = param_dtype": 1,
        "dp_size=self.get_data_parallel_size()": 1,
        'self.ulysses_parallel_group = self.ulysses_device_mesh["sp"].get_group()': 1,
        "input_ids_rmpad, position_ids_rmpad, pad_size = ulysses_pad_and_slice_inputs(": 1,  # what split_of counts on
        "batch_num_tokens=batch_num_tokens.item()": 1,
        "if not torch.isfinite(grad_norm):": 1,  # what RoutedEngine.optimizer_step follows
        "return grad_norm.item()": 1,
    },
}


def resolve(path: str):
    module, _, name = path.partition(":")
    if "vllm" in module:
        pytest.importorskip("vllm")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(f"{module}.{part}")
    return found


def parameters(function) -> str:
    """Names of its parameters; Ray adds one to the methods of an actor."""
    return " ".join(name for name in inspect.signature(function).parameters if name != "_ray_trace_ctx")


# ------------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("path", [*NAMES, *METHODS])
def test_it_is_there_with_the_parameters_that_we_rely_on(path):
    expected = {**NAMES, **METHODS}[path]
    try:
        found = resolve(path)
    except (AttributeError, ModuleNotFoundError) as error:
        if path == "vllm._custom_ops:_supports_onednn":
            pytest.skip("this build of vLLM is not for the CPU")
        raise AssertionError(f"{path} is gone: {error}") from None
    assert expected is None or parameters(found) == expected


@pytest.mark.parametrize("module", SOURCE)
def test_the_source_still_reads_so(module):
    text = inspect.getsource(importlib.import_module(module))
    for piece, count in SOURCE[module].items():
        found = text.count(piece)
        assert found > 0 if count is None else found == count, f"{piece!r} stands {found} times in {module}"


def test_the_trainers_name_is_compared_in_six_places_only():
    """Any comparison of trainer_mode, however written: SRPOTrainer answers "sync" to all of them."""
    tree = ast.parse(inspect.getsource(importlib.import_module("verl.trainer.ppo.v1.trainer_base")))
    compared = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) and any(getattr(part, "attr", "") == "trainer_mode" for part in ast.walk(node))
    ]
    assert len(compared) == 6 and all("'sync'" in text for text in compared), compared


def test_the_enums_have_our_members():
    from verl.single_controller.base.decorator import Dispatch
    from verl.trainer.ppo.utils import Role
    from verl.utils.metric import AggregationType

    assert Dispatch.ONE_TO_ALL and Role.ActorRollout != Role.ActorRolloutRef
    assert AggregationType.SUM and AggregationType.MAX


def test_the_actors_config_has_what_the_loss_reads():
    from verl.workers.config import ActorConfig

    names = set(ActorConfig.__dataclass_fields__)
    assert {"clip_ratio_low", "clip_ratio_high", "clip_ratio_c", "global_batch_info", "policy_loss"} <= names


# --------------------------------------------------------------------------------------------------- the list is complete


def imported() -> set[str]:
    """ "module:name" of everything that our source imports from verl, vLLM and TransferQueue, or reads off such a module."""
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        modules = {}  # local name -> module
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
                "verl",
                "vllm",
                "transfer_queue",
            ):
                for alias in node.names:
                    found.add(f"{node.module}:{alias.name}")
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] in ("verl", "vllm", "transfer_queue"):
                        modules[alias.asname or alias.name] = alias.name
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                found.add(f"{modules[node.value.id]}:{node.attr}")
    return found


def test_everything_that_is_imported_is_in_the_list():
    classes = {
        path.replace(":", ".") for path in NAMES
    }  # attributes of a listed class are in METHODS or an enum's members
    missing = {path for path in imported() - NAMES.keys() - METHODS.keys() if path.partition(":")[0] not in classes}
    assert not missing
    assert len(imported()) > 30  # the search finds something


def test_nothing_in_the_list_is_unused():
    assert not {path for path in NAMES if path not in imported()}


OURS = (
    "srpo_recipe.training.step:RoutedSteps",
    "srpo_recipe.training.step:SRPOTrainer",
    "srpo_recipe.training.step:SRPOAsyncTrainer",
    "srpo_recipe.training.lifecycle:LifecycleTrainer",
    "srpo_recipe.training.passes:NamedPasses",
    "srpo_recipe.training.engine:RoutedEngine",
    "srpo_recipe.training.adapters:AdapterEngine",
    "srpo_recipe.training.worker:RoutedTrainingWorker",
    "srpo_recipe.training.worker:SRPOWorker",
    "srpo_recipe.training.server:ShutServer",
    "srpo_recipe.training.server:ShutReplica",
    "srpo_recipe.training.agent_loop:TeachableLoop",
    "srpo_recipe.training.agent_loop:SeededSingleTurnAgentLoop",
    "srpo_recipe.training.agent_loop:SeededToolAgentLoop",
    "srpo_recipe.training.group_rollout:GroupWorker",
    "srpo_recipe.training.group_manager:GroupManager",
    "srpo_recipe.training.runner:SRPOTaskRunner.__ray_metadata__.modified_class",
)


@pytest.mark.parametrize("path", OURS)
def test_every_overridden_method_is_in_the_list_and_takes_what_verl_gives(path):
    ours = resolve(path)
    listed = {name.rpartition(".")[2] for name in METHODS}
    for name, method in vars(ours).items():
        if not inspect.isfunction(method) or name == "__ray_call__":
            continue
        base = next((vars(parent)[name] for parent in ours.__mro__[1:] if name in vars(parent)), None)
        if base is None or not getattr(base, "__module__", "").startswith("verl"):
            continue
        assert name in listed or name == "__init__", f"{path} overrides {name}, which no line of METHODS names"
        kinds = {parameter.kind for parameter in inspect.signature(method).parameters.values()}
        takes_more = kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        assert takes_more or parameters(method) == parameters(base), (
            f"{name}({parameters(method)}) against verl's ({parameters(base)})"
        )


def test_every_class_of_ours_that_extends_verl_is_checked():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("verl")
            for alias in node.names
        }
        for node in tree.body:  # a base class under another name
            if isinstance(node, ast.AnnAssign) and any(getattr(part, "id", "") in names for part in ast.walk(node)):
                names.add(ast.unparse(node.target))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and any(
                isinstance(part, ast.Name) and part.id in names for base in node.bases for part in ast.walk(base)
            ):
                found.add(node.name)
    checked = {path.partition(":")[2].split(".")[0] for path in OURS}
    # these extend ours, which extend verl's
    assert found == (checked - {"RoutedSteps", "RoutedEngine", "AdapterEngine"}) | {"PlatformCPU"}


def test_the_platform_answers_all_that_verl_may_ask():
    from verl.plugin.platform import PlatformBase

    from srpo_recipe.cpu.platform import PlatformCPU

    assert not PlatformCPU.__abstractmethods__
    for name in PlatformBase.__abstractmethods__:
        theirs, own = getattr(PlatformBase, name), getattr(PlatformCPU, name)
        if inspect.isfunction(theirs) and inspect.isfunction(own):
            assert parameters(own) == parameters(theirs), name


# -------------------------------------------------------------------------------------------------------- verl itself


def test_verl_is_the_version_that_the_list_was_written_for():
    assert distribution("verl").version == VERSION
    pins = (PACKAGE.parent / "requirements" / "versions.txt").read_text().splitlines()
    assert f"verl=={VERSION}" in pins


def test_verl_is_unmodified():
    """Every installed file of verl is what its wheel's RECORD says."""
    changed, count = [], 0
    for file in distribution("verl").files:
        if file.hash is None or file.parts[0] != "verl":
            continue
        digest = hashlib.new(file.hash.mode, file.locate().read_bytes()).digest()
        count += 1
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            changed.append(str(file))
    assert not changed and count > 400


# --------------------------------------------------------------------------------------------------------- the plugin


def run_python(code: str, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SRPO_PLATFORM": "cpu", **environment},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_plugin_registers_the_method_and_may_be_imported_again():
    code = """
import importlib, sys
import verl
assert "srpo_recipe.plugin" in sys.modules, "verl did not load the plugin"
assert not {"srpo_recipe.training.step", "srpo_recipe.training.worker"} & set(sys.modules), "importing verl is slow"
from srpo_recipe import plugin
from srpo_recipe.training.register import register_method
plugin.assert_discovered()
register_method()
importlib.reload(plugin)
register_method()
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.workers.engine.base import EngineRegistry
from srpo_recipe.training import advantage, engine, losses, step
assert get_trainer_cls("srpo") is step.SRPOTrainer
assert get_trainer_cls("srpo_colocate_async") is step.SRPOAsyncTrainer
assert get_adv_estimator_fn("srpo") is advantage.srpo_advantage
assert get_policy_loss_fn("srpo") is losses.srpo_policy_loss
assert EngineRegistry.get_engine_cls(engine.MODEL_TYPE, "fsdp2") is engine.RoutedEngine
assert EngineRegistry.get_engine_cls("language_model", "fsdp2") is not engine.RoutedEngine, "verl's own engine is replaced"
print("registered")
"""
    result = run_python(code)
    assert result.returncode == 0 and result.stdout.strip().endswith("registered"), result.stderr[-4000:]


@pytest.mark.parametrize(
    "allowed, found", [("auto", True), ("srpo", True), ("other,srpo", True), ("none", False), ("other", False)]
)
def test_a_plugin_that_verl_would_not_load_is_refused(monkeypatch, allowed, found):
    from srpo_recipe import plugin

    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", allowed)
    if found:
        plugin.assert_discovered()
    else:
        with pytest.raises(RuntimeError, match="VERL_USE_EXTERNAL_PLUGINS at auto, or name srpo in it"):
            plugin.assert_discovered()


def test_a_name_taken_by_another_package_is_an_error():
    code = """
from srpo_recipe.training.register import register_method
register_method()
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
POLICY_LOSS_REGISTRY["srpo"] = print
try:
    register_method()
except RuntimeError as error:
    assert "another package registered itself with verl under the name srpo" in str(error)
    print("refused")
"""
    result = run_python(code)
    assert result.stdout.strip().endswith("refused"), result.stderr[-4000:]
