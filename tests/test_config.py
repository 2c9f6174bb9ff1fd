"""Every shipped configuration composes, means what the paper's table says, and refuses nonsense with the fix."""

import ast
import itertools
import re
import subprocess
import sys
from copy import deepcopy
from dataclasses import fields
from pathlib import Path

import pytest
from config_files import BASE, BENCHMARKS, CONFIG, GROUPS, changed, composed, leaves, raw, without
from hydra import compose, initialize_config_module
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import OmegaConf, open_dict

import srpo_recipe
from srpo_recipe.plan.setup import from_config
from srpo_recipe.settings import rules
from srpo_recipe.settings.compose import verl_defaults
from srpo_recipe.settings.describe import describe
from srpo_recipe.settings.ranges import COUNT, RANGES
from srpo_recipe.settings.read import from_plain, old_policy, read
from srpo_recipe.settings.refusals import SECTIONS
from srpo_recipe.settings.rules import check
from srpo_recipe.settings.schema import SRPOConfig, TeacherConfig

PACKAGE = Path(srpo_recipe.__file__).parent
TOO_LONG = ("parquet", "smollm", "cpu")  # sequences of 10,240 tokens on a laptop
# Each task with each model and hardware, the methods in turn (all of them with all would take minutes).
COMBINATIONS = [
    (GROUPS["method"][i % len(GROUPS["method"])], *rest)
    for i, rest in enumerate(
        [
            *(
                names
                for names in itertools.product(("gym", "parquet", "sums"), GROUPS["model"], GROUPS["hardware"])
                if names != TOO_LONG
            ),
            *itertools.product(BENCHMARKS, ("qwen3_8b",), ("gpu8",)),
            ("picks", "path", "cpu"),
        ]
    )
]


# ------------------------------------------------------------------------------------------------------- what is shipped


def test_the_groups_are_not_empty():
    assert {"srpo", "grpo", "sdpo", "srpo_no_dw", "advantage_mix", "sdpo_incorrect_only", "sdpo_correct_only"} == set(
        GROUPS["method"]
    )
    assert all(GROUPS.values())


@pytest.mark.parametrize("names", COMBINATIONS, ids="-".join)
def test_every_shipped_config_composes_resolves_and_passes_check(names):
    config = deepcopy(composed(*names))
    OmegaConf.resolve(config)
    settings = check(config)
    assert isinstance(settings, SRPOConfig) and settings == from_plain(OmegaConf.to_container(config.srpo))
    missing = OmegaConf.missing_keys(config)
    assert not {
        key for key in missing if key.split(".")[0] in ("srpo", "task", "run", "data", "trainer", "actor_rollout_ref")
    }
    rows = dict(describe(config, settings))
    assert rows["route rule"].startswith(settings.route) and names[0] in str(config.method.name)


def test_lengths_that_a_laptops_micro_batch_has_no_room_for_are_refused():
    with pytest.raises(ValueError, match="ppo_max_token_len_per_gpu=512 has no room .* set it to at least 10240"):
        check(composed("srpo", *TOO_LONG))
    assert check(composed("srpo", *TOO_LONG, "data.max_prompt_length=128", "data.max_response_length=384"))


@pytest.mark.parametrize("names", COMBINATIONS[::5], ids="-".join)
def test_verl_accepts_them(names):
    """verl's own conversion to dataclasses, as its worker does it, and its own validation."""
    from verl.trainer.ppo.utils import need_critic
    from verl.utils.config import omega_conf_to_dataclass, validate_config
    from verl.workers.config import FSDPActorConfig, RolloutConfig

    config = deepcopy(composed(*names))
    OmegaConf.resolve(config)
    assert not need_critic(config)
    validate_config(config=config, use_reference_policy=False, use_critic=False)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert isinstance(actor, FSDPActorConfig) and actor.engine.strategy == "fsdp2" and not actor.engine.forward_only
    ref = config.actor_rollout_ref.ref
    with open_dict(ref):  # verl engine_workers.py, ActorRolloutRefWorker.init_model
        ref.ppo_mini_batch_size = config.actor_rollout_ref.actor.ppo_mini_batch_size
        ref.ppo_micro_batch_size = ref.pop("log_prob_micro_batch_size", None)
        ref.ppo_micro_batch_size_per_gpu = ref.pop("log_prob_micro_batch_size_per_gpu", None)
        ref.use_dynamic_bsz = ref.pop("log_prob_use_dynamic_bsz", False)
        ref.ppo_max_token_len_per_gpu = ref.pop("log_prob_max_token_len_per_gpu", None)
    teacher = omega_conf_to_dataclass(ref)
    assert teacher.engine.strategy == "fsdp2" and teacher.engine.forward_only and teacher.engine.model_dtype == "fp32"
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    assert isinstance(rollout, RolloutConfig) and rollout.calculate_log_probs
    assert config.actor_rollout_ref.actor.use_dynamic_bsz == config.actor_rollout_ref.rollout.log_prob_use_dynamic_bsz


def test_verl_reads_the_embedded_model():
    from verl.utils.config import omega_conf_to_dataclass

    model = omega_conf_to_dataclass(composed(*BASE).actor_rollout_ref.model)
    assert model.hf_config.model_type == "qwen3" and model.tokenizer.chat_template
    assert not model.use_remove_padding and model.hf_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_line_of_a_group_file_is_without_effect(path):
    """What a group file says is what the composed config says; another file that has the last word is an error."""
    names = list(BASE)
    names[list(GROUPS).index(path.parent.name)] = path.stem
    config = composed(*names)
    dead = {}
    for key, value in leaves(raw(path)):
        found = OmegaConf.select(config, key, throw_on_missing=False)
        wanted = OmegaConf.create({"value": value})
        wanted._set_parent(config)
        if value != "???" and found != wanted.value:
            dead[key] = (wanted.value, found)
    assert not dead, f"(written, composed): {dead}"


# What a file of its group is chosen for: it says so even where verl's default is the same.
CHOSEN = {
    "hardware": {"trainer.device", "trainer.nnodes", "trainer.n_gpus_per_node"},
    "method": {"actor_rollout_ref.actor.optim.lr"},
}


def under(path: Path) -> dict:
    """What holds before the file's own lines: verl's config, the schema, config/srpo.yaml and the file that it builds on."""
    layers = [verl_defaults(), {"srpo": OmegaConf.structured(SRPOConfig)}]
    if path.parent != CONFIG:
        layers.append(raw(CONFIG / "srpo.yaml"))
        for name in OmegaConf.load(path).get("defaults", ["_self_"])[:-1]:
            parent = path.with_stem(name)
            layers += [under(parent), raw(parent)]
    return OmegaConf.to_container(OmegaConf.merge(*layers))


@pytest.mark.parametrize("path", sorted(CONFIG.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_line_repeats_a_default(path):
    before = dict(leaves(under(path)))
    repeated = {key for key, value in leaves(raw(path)) if before.get(key, ...) == value}
    assert repeated <= CHOSEN.get(path.parent.name, set())


def test_only_these_files_set_the_methods_own_settings():
    """Defaults live on the dataclasses: a method file says what makes it a method, the embedded task what its size asks for."""
    found = {}
    for path in sorted(CONFIG.rglob("*.yaml")):
        keys = {key for key, _ in leaves(raw(path).get("srpo", {}))}
        if keys and path.parent.name == "method":
            assert keys <= {"route", "beta", "mix"}, path
        elif keys:
            found[path.stem] = keys
    assert found == {
        "sums": {"top_k", "teacher.max_prompt_tokens"},
        "cpu": {"chunk_megabytes", "logits_rows", "poll_seconds"},
        "gpu8_long": {"teacher.max_prompt_tokens"},
        **{task: {"verifier.name"} for task in ("chemistry", "math", "tooluse")},
    }


# ------------------------------------------------------------------------------------------------------ the paper's table

# method -> (route, beta, mix, learning rate, optimizer steps a batch)
METHODS = {
    "srpo": ("srpo", 1.0, 0.9, 5e-6, 1),
    "srpo_no_dw": ("srpo", 0.0, 0.9, 5e-6, 1),
    "grpo": ("grpo", 1.0, 0.9, 1e-6, 4),
    "sdpo": ("sdpo", 0.0, 0.9, 1e-5, 1),
    "advantage_mix": ("advantage_mix", 0.0, 0.9, 5e-6, 1),
    "sdpo_incorrect_only": ("sdpo_incorrect_only", 0.0, 0.9, 1e-5, 1),
    "sdpo_correct_only": ("sdpo_correct_only", 0.0, 0.9, 1e-5, 1),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_methods_are_the_papers(method):
    config = composed(method, "parquet", "qwen3_8b", "gpu8")
    settings, actor = read(config), config.actor_rollout_ref.actor
    route, beta, mix, learning_rate, steps = METHODS[method]
    assert (settings.route, settings.beta, settings.mix, actor.optim.lr) == (route, beta, mix, learning_rate)
    assert config.data.train_batch_size == 32 and actor.ppo_mini_batch_size == 32 // steps
    assert settings.needs_teacher == (method != "grpo")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "key, value",
    {
        "actor_rollout_ref.actor.clip_ratio_low": 0.2,
        "actor_rollout_ref.actor.clip_ratio_high": 0.28,
        "actor_rollout_ref.actor.use_kl_loss": False,
        "actor_rollout_ref.actor.entropy_coeff": 0,
        "actor_rollout_ref.actor.ppo_epochs": 1,
        "actor_rollout_ref.actor.optim.optimizer": "AdamW",
        "actor_rollout_ref.actor.optim.weight_decay": 0.01,
        "actor_rollout_ref.actor.optim.lr_warmup_steps": 10,
        "actor_rollout_ref.actor.optim.lr_scheduler_type": "constant",
        "actor_rollout_ref.actor.optim.clip_grad": 1.0,
        "actor_rollout_ref.actor.strategy": "fsdp2",
        "actor_rollout_ref.rollout.n": 8,
        "actor_rollout_ref.rollout.temperature": 1.0,
        "actor_rollout_ref.rollout.top_p": 1.0,
        "actor_rollout_ref.rollout.top_k": -1,
        "actor_rollout_ref.rollout.val_kwargs.n": 16,
        "actor_rollout_ref.rollout.val_kwargs.temperature": 0.6,
        "actor_rollout_ref.rollout.val_kwargs.top_p": 0.95,
        "actor_rollout_ref.rollout.val_kwargs.do_sample": True,
        "algorithm.use_kl_in_reward": False,
        "algorithm.norm_adv_by_std_in_grpo": False,
        "algorithm.rollout_correction.rollout_is": "token",
        "algorithm.rollout_correction.rollout_is_threshold": 2.0,
        "data.max_prompt_length": 2048,
        "data.max_response_length": 8192,
        "data.apply_chat_template_kwargs.enable_thinking": False,
        "srpo.alpha": 0.5,
        "srpo.top_k": 100,
        "srpo.correct_threshold": 0.5,
        "srpo.average": "token",
        "srpo.system_prompt": None,
        "srpo.teacher.kind": "ema",
        "srpo.teacher.ema_rate": 0.05,
        "srpo.teacher.max_prompt_tokens": 10240,
        "srpo.teacher.demonstration": "random",
        "srpo.teacher.feedback": "off",
    }.items(),
    ids=lambda value: str(value),
)
def test_what_all_methods_share_is_the_papers(method, key, value):
    assert OmegaConf.select(composed(method, "parquet", "qwen3_8b", "gpu8"), key) == value


def test_the_teachers_template_is_the_papers():
    expected = "Q\nCorrect solution:\n\nS\n\nCorrectly solve the original question."
    assert TeacherConfig().template.replace("{prompt}", "Q").replace("{demonstration}", "S") == expected


# ----------------------------------------------------------------------------------------------------- refused nonsense

NAN, INF = float("nan"), float("inf")
# key -> [(nonsense, what the message must say besides the key)]
NONSENSE = {
    "route": [
        ("srop", "choose one of grpo, sdpo, srpo"),
        ("", "choose one of"),
        ("no.such:function", "cannot be imported"),
    ],
    "correct_threshold": [(NAN, "finite")],
    "mix": [(-0.1, "[0, 1]"), (1.1, "[0, 1]"), (NAN, "[0, 1]")],
    "beta": [(-1.0, "must not be negative"), (NAN, ""), (INF, "")],
    "alpha": [(-0.1, "[0, 1]"), (1.5, "[0, 1]"), (NAN, "[0, 1]")],
    "top_k": [(0, "must be positive"), (-1, "must be positive")],
    "average": [("row", "choose one of token, sequence")],
    "old_policy": [("rollout", "choose one of auto, update, pass"), (True, "auto, update, pass")],
    "seed": [(-1, "negative")],
    "chunk_megabytes": [(0, "must be positive"), (1e-9, "set it to at least 0.1"), (0.09, "set it to at least 0.1")],
    "target": [("student", "choose one of teacher, tempered, mixed")],
    "advantage": [("std", "choose one of group_mean, modulated")],
    "weight": [
        ("confident", "choose one of confidence, floored, by_place, gated, fading"),
        ("no.such:function", "cannot be imported"),
    ],
    "row_weight": [("rate", "choose one of alike, pass_rate")],
    "logits_rows": [(0, "a number of tokens, or null"), (-1, "a number of tokens, or null")],
    "poll_seconds": [(0.0, "must be positive"), (-1.0, "must be positive")],
    "stall_seconds": [(0.0, "must be positive")],
    "sync_gap": [(0.0, "in (0, 1], or null"), (1.5, "in (0, 1], or null"), (NAN, "in (0, 1], or null")],
    "collapse_ratio": [(1.0, "[0, 1)"), (-0.1, "[0, 1)")],
    "teacher.ema_rate": [(-0.05, "[0, 1]"), (1.05, "[0, 1]"), (NAN, "[0, 1]")],
    "teacher.kind": [("live", "choose one of ema, frozen, current")],
    "teacher.demonstration": [("best", "choose one of random, first, shortest, longest, other, reference")],
    "teacher.template": [("{prompt}", "lacks {demonstration}"), ("no fields", "lacks {prompt} and {demonstration}")],
    "teacher.max_prompt_tokens": [(0, "must be positive")],
    "teacher.overflow": [("cut", "choose one of shorten, reroute")],
    "teacher.feedback": [("on", "choose one of off, append, replace")],
    "teacher.feedback_template": [("{feedback}", "lacks {prompt}"), ("{prompt}", "lacks {feedback}")],
}
ANYTHING_GOES = {"system_prompt"}  # any text, or none
ELSEWHERE = {"weight_options", "row_weight_options", "target_options", "advantage_options"}  # test_options.py


def knobs() -> dict[str, str]:
    """Dotted key -> field name of every setting; those of the verifier have tests of their own (test_verify_reward.py)."""
    names = {field.name: field.name for field in fields(SRPOConfig) if field.name not in ("teacher", "verifier")}
    return names | {f"teacher.{field.name}": field.name for field in fields(TeacherConfig)}


def test_nonsense_is_tried_for_every_knob():
    assert NONSENSE.keys() | ANYTHING_GOES | ELSEWHERE == knobs().keys()


@pytest.mark.parametrize(
    "key, value, says", [(key, value, says) for key, cases in NONSENSE.items() for value, says in cases]
)
def test_nonsense_is_refused_with_the_key_and_the_fix(key, value, says):
    with changed(f"srpo.{key}", value) as config, pytest.raises(ValueError) as error:
        check(config)
    assert f"srpo.{key}" in str(error.value) and says in str(error.value)


@pytest.mark.parametrize(
    "override, says",
    [
        ("srpo.bogus=1", "bogus"),
        ("srpo.teacher.rate=0.1", "rate"),
        ("srpo.top_k=many", "top_k"),
        ("srpo.top_k=1.5", "top_k"),
        ("srpo.beta=high", "beta"),
        ("srpo.teacher.ema_rate=[0.1]", "ema_rate"),
        ("srpo.seed=null", "seed"),
        ("method=ppo", "ppo"),
    ],
)
def test_unknown_keys_and_wrong_types_are_refused_while_composing(override, says):
    with (
        initialize_config_module("srpo_recipe_config", version_base=None),
        pytest.raises((ConfigCompositionException, HydraException)) as error,
    ):
        compose("srpo", overrides=[override])
    assert says in f"{error.value} {error.value.__cause__}"


def test_a_key_forced_in_with_a_plus_is_refused_too():
    """Hydra lets `+srpo.betta=0` through; without a check it would have no effect, or end the run in a worker."""
    with pytest.raises(ValueError, match="betta"):
        check(composed(*BASE, "+srpo.betta=0"))


# key -> (value that contradicts the method, what the message must say); test_verl_settings.py tries each row of the tables
CONTRADICTIONS = {
    "actor_rollout_ref.actor.use_kl_loss": (True, "set it to False"),
    "algorithm.gamma": (0.9, "leave it at 1.0"),
    "actor_rollout_ref.rollout.n": (1, "at least 2"),
    "actor_rollout_ref.actor.ppo_mini_batch_size": (5, "must be a multiple of"),
    "actor_rollout_ref.rollout.temperature": (0, "set it to a positive number"),
    "actor_rollout_ref.actor.ppo_epochs": (0, "set it to a whole number of at least 1"),
    "algorithm.rollout_correction.rollout_is": ("sequence", "set it to token, or null for none"),
    "algorithm.rollout_correction.rollout_is_threshold": ("2.0_0.5", "0.5_2.0"),
    "algorithm.rollout_correction.rollout_rs": ("token_k1", "set it to null"),
    "actor_rollout_ref.rollout.calculate_log_probs": (False, "calculate_log_probs=True"),
    "run.wait_seconds": (-1, "must be a number of seconds"),
    "run.grace_seconds": (float("nan"), "must be a number of seconds"),
    "run.samples": (-1, "set it to a whole number of groups a step, or to 0"),
    "actor_rollout_ref.actor.checkpoint.load_contents": (["optimizer"], "add model"),
}


@pytest.mark.parametrize("key", CONTRADICTIONS)
def test_what_contradicts_the_method_is_refused(key):
    value, says = CONTRADICTIONS[key]
    with changed(key, value) as config, pytest.raises(ValueError) as error:
        check(config)
    assert key in str(error.value) and says in str(error.value)


def test_every_check_is_tried():
    """Each `require` of rules.py is the one that a contradiction above runs into."""
    calls = {
        (node.lineno, node.end_lineno)
        for node in ast.walk(ast.parse(Path(rules.__file__).read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require"
    }
    hit = set()
    for key, (value, _) in CONTRADICTIONS.items():
        with changed(key, value) as config, pytest.raises(ValueError) as error:
            check(config)
        line = [entry.lineno + 1 for entry in error.traceback if str(entry.path) == rules.__file__][-1]
        hit |= {call for call in calls if call[0] <= line <= call[1]}
    assert hit == calls


ACTOR, ROLLOUT, PASS = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", ("srpo.old_policy", "pass")


FP16 = [(part, f"mixed_precision.{of}_dtype") for part in ("actor", "ref") for of in ("param", "reduce", "buffer")]


@pytest.mark.parametrize("part, kind", [("actor", "model_dtype"), *FP16])
@pytest.mark.parametrize("value", ["fp16", "float16", "half", "int8"])
def test_fp16_is_refused(part, kind, value):
    """Before, the gradients of the logits were made in fp16 without the loss's scale, and were 0."""
    key = f"actor_rollout_ref.{part}.fsdp_config.{kind}"
    with changed(key, value) as config, pytest.raises(ValueError, match=f"{key}={value}: set it to bf16 or fp32"):
        check(config)
    with changed(key, "bf16") as config:
        assert check(config)


def test_a_sequence_of_full_length_fits_into_a_micro_batch():
    """Before, a run ended at its first one, hours after its start."""
    need = composed(*BASE).data.max_prompt_length + composed(*BASE).data.max_response_length
    update, log_probs = f"{ACTOR}.ppo_max_token_len_per_gpu", f"{ROLLOUT}.log_prob_max_token_len_per_gpu"
    for key, first in ((update, ("srpo.old_policy", "auto")), (log_probs, PASS)):
        with changed(*first), changed(key, need - 1) as config, pytest.raises(ValueError) as error:
            check(config)
        assert str(error.value).startswith(f"{key}={need - 1} has no room for a sequence of data.max_prompt_length=")
        assert str(error.value).endswith(f"set it to at least {need}")
        with changed(*first), changed(key, need) as config:
            assert check(config)
    with changed(log_probs, need - 1) as config:
        assert check(config)  # no pass reads it
    with changed(f"{ACTOR}.use_dynamic_bsz", False), changed(f"{ACTOR}.ppo_micro_batch_size_per_gpu", 2):
        with changed(f"{ROLLOUT}.log_prob_use_dynamic_bsz", False), changed(update, 1):
            rows = f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu"  # verl wants it whether or not there is such a pass
            with changed(rows, 2) as config:
                assert check(config)
            with changed(rows, None) as config, pytest.raises(ValueError, match=f"{rows}=null: .* set it to the rows"):
                check(config)


def test_a_checkpoint_of_the_run_itself_is_chosen_by_its_step():
    """Before, the run ended where it came to a step of which there was a checkpoint already."""
    folder = composed(*BASE).trainer.default_local_dir
    with changed("trainer.resume_mode", "resume_path"):
        with changed("trainer.resume_from_path", f"{folder}/global_step_50") as config:
            with pytest.raises(ValueError, match="is a checkpoint of this run: .* set run.resume=50"):
                check(config)
        with changed("trainer.resume_from_path", "elsewhere/global_step_50") as config:
            assert check(config)


@pytest.mark.parametrize("part", ["model", "optimizer", "extra"])
def test_a_checkpoint_holds_all_that_a_run_is_resumed_with(part):
    contents = [name for name in ("model", "optimizer", "extra") if name != part]
    key = f"{ACTOR}.checkpoint.save_contents"
    with changed(key, contents) as config, pytest.raises(ValueError, match=f"{key}=.*: add {part}, or set trainer.res"):
        check(config)
    with changed(key, contents), changed("trainer.resume_mode", "disable") as config:
        assert check(config)
    with changed(key, ["model", "optimizer", "extra", "hf_model"]) as config:
        assert check(config)


@pytest.mark.parametrize("rows", [None, 0, 1.5])
def test_micro_batches_of_rows_say_how_many(rows):
    key = f"{ACTOR}.ppo_micro_batch_size_per_gpu"
    with changed(f"{ACTOR}.use_dynamic_bsz", False), changed(f"{ROLLOUT}.log_prob_use_dynamic_bsz", False):
        with changed(key, rows) as config, pytest.raises(ValueError, match=f"{key}=.*set it to the rows of a micro"):
            check(config)


def test_a_share_of_warm_up_that_nothing_reads_is_refused():
    ratio = f"{ACTOR}.optim.lr_warmup_steps_ratio"
    for steps in (10, 0):
        with changed(f"{ACTOR}.optim.lr_warmup_steps", steps), changed(ratio, 0.1) as config:
            with pytest.raises(
                ValueError, match=f"{ratio}=0.1 has no effect with .*lr_warmup_steps={steps}: set .*=-1"
            ):
                check(config)
    with changed(f"{ACTOR}.optim.lr_warmup_steps", -1), changed(ratio, 0.1) as config:
        assert check(config)


@pytest.mark.parametrize("key", [key for key, kind in RANGES.items() if kind is COUNT])
@pytest.mark.parametrize("value", [0, -1, 1.5, 8.0, True, "2", None])
def test_counts_are_whole_and_positive(key, value):
    with changed(key, value) as config, pytest.raises(ValueError) as error:
        check(config)
    assert str(error.value) == f"{key}={'null' if value is None else value}: set it to a whole number of at least 1"


@pytest.mark.parametrize("value", [0, 1.5])
def test_the_optimizer_steps_are_whole_and_positive(value):
    """Before, 0 ended in a ZeroDivisionError, and 1.5 was taken for 1."""
    message = f"method.optimizer_steps={value}: set it to a whole number of at least 1"
    with changed("method.optimizer_steps", value) as config, pytest.raises(ValueError, match=message):
        check(config)


@pytest.mark.parametrize("value", [0, 0.0, -1.0, NAN, INF, "1.0", True, None])
def test_no_temperature(value):
    """The log-probs of a temperature of 0 are NaN."""
    key = "actor_rollout_ref.rollout.temperature"
    with changed(key, value) as config, pytest.raises(ValueError, match=f"{key}=.*: set it to a positive number"):
        check(config)


@pytest.mark.parametrize("key", SECTIONS)
def test_a_section_that_is_read_is_there(key):
    fix = SECTIONS[key] and f", and set {SECTIONS[key]} if that is what you mean"
    message = f"{key} is null or missing, and its settings are read: leave it as in verl's config{fix}"
    with without(key) as config, pytest.raises(ValueError) as missing:
        check(config)
    config = deepcopy(composed(*BASE))
    OmegaConf.update(config, key, None)
    with pytest.raises(ValueError) as null:
        check(config)
    assert str(missing.value) == str(null.value) == message


@pytest.mark.parametrize("asked", ["auto", "pass"])
def test_the_old_policy_without_a_rollout_correction(asked):
    """null is verl's way to say none."""
    message = r"algorithm\.rollout_correction is null .* set algorithm\.rollout_correction\.rollout_is=null"
    with pytest.raises(ValueError, match=message):
        old_policy(composed(*BASE, "algorithm.rollout_correction=null", f"srpo.old_policy={asked}"))


@pytest.mark.parametrize("key, value", [("do_sample", False), ("temperature", 0)])
def test_greedy_validation_asks_each_question_once(key, value):
    section = "actor_rollout_ref.rollout.val_kwargs"
    with changed(f"{section}.{key}", value) as config:
        with pytest.raises(ValueError, match="val_kwargs.n=.* greedy answers .* set it to 1"):
            check(config)
        with changed(f"{section}.n", 1) as config:
            assert check(config)


def test_validation_alone_needs_its_validation():
    """verl asks for val_only where it has validated before training, and goes on to train otherwise."""
    with changed("trainer.val_only", True) as config:
        assert check(config)
        with changed("trainer.val_before_train", False) as config, pytest.raises(ValueError, match="before_train=true"):
            check(config)


@pytest.mark.parametrize("value", [2, "2", "2.0", "0.5_2.0", 0.1])
def test_a_threshold_of_the_rollout_correction(value):
    with changed("algorithm.rollout_correction.rollout_is_threshold", value) as config:
        assert check(config)


@pytest.mark.parametrize("value", [0, -2.0, NAN, INF, "", "two", "1_2_3", "0_2", None])
def test_no_threshold_of_the_rollout_correction(value):
    """verl would say so in the first step, after the first rollouts."""
    key = "algorithm.rollout_correction.rollout_is_threshold"
    with changed(key, value) as config, pytest.raises(ValueError, match=key):
        check(config)


def test_a_batch_that_the_optimizer_steps_do_not_divide_is_refused():
    message = "must be a multiple of method.optimizer_steps=5"
    with (
        changed("method.optimizer_steps", 5) as config,
        pytest.raises(ValueError, match=f"^data.train_batch_size=.*{message}$"),
    ):
        check(config)


# what needs the old policy before the update: overrides, and the key that is named
NEEDS_PASS = [
    (["method.optimizer_steps=2"], "actor_rollout_ref.actor.ppo_mini_batch_size=16"),
    (["actor_rollout_ref.actor.ppo_mini_batch_size=8"], "actor_rollout_ref.actor.ppo_mini_batch_size=8"),
    (["actor_rollout_ref.actor.ppo_epochs=2"], "actor_rollout_ref.actor.ppo_epochs=2"),
    (
        ["algorithm.rollout_correction.rollout_is_batch_normalize=true"],
        "algorithm.rollout_correction.rollout_is_batch_normalize=True",
    ),
]


@pytest.mark.parametrize("overrides, named", NEEDS_PASS, ids=lambda value: value if isinstance(value, str) else "")
def test_the_old_policy_has_a_pass_of_its_own_where_the_update_cannot_give_it(overrides, named):
    config = composed(*BASE, *overrides)
    settings = check(config)
    assert settings.old_policy == "auto" and old_policy(config) == "pass"
    assert dict(describe(config, settings))["old policy"] == "a pass before the update"
    with pytest.raises(ValueError) as error:
        check(composed(*BASE, *overrides, "srpo.old_policy=update"))
    assert "srpo.old_policy=update" in str(error.value) and "srpo.old_policy=auto" in str(error.value)
    assert f"{named} needs the old policy before the update: set it to " in str(error.value)


@pytest.mark.parametrize(
    "asked, found, shown",
    [
        ("auto", "update", "the update's own forward pass"),
        ("update", "update", "the update's own forward pass"),
        ("pass", "pass", "a pass before the update"),
    ],
)
def test_the_old_policy_with_one_optimiser_step(asked, found, shown):
    with changed("srpo.old_policy", asked) as config:
        settings = check(config)
        assert old_policy(config) == found and dict(describe(config, settings))["old policy"] == shown
        assert from_config(config).one_forward == (found == "update")


def test_verls_bypass_mode_is_refused_and_names_ours():
    """In verl it makes the rollout engine's log-probs the old policy's."""
    with (
        changed("algorithm.rollout_correction.bypass_mode", True) as config,
        pytest.raises(ValueError, match="bypass_mode=True is not supported: set it to False .*srpo.old_policy"),
    ):
        check(config)


@pytest.mark.parametrize("key", ["srpo.weight_scope", "srpo.bypass_mode"])
def test_keys_that_are_gone_are_unknown(key):
    with pytest.raises(HydraException, match=key.split(".")[1]):
        composed(*BASE, f"{key}=micro_batch")


def test_grpo_needs_no_teacher_so_its_precision_does_not_matter():
    base = ("grpo", *BASE[1:])
    with changed("actor_rollout_ref.ref.fsdp_config.model_dtype", "bf16", base) as config:
        assert check(config).route == "grpo"


# ------------------------------------------------------------------------------------------------- no knob without effect


def settings_read() -> set[str]:
    """Attributes read from something called srpo, settings or teacher, in the package's modules outside settings/, and what
    settings/ answers questions about.
    """
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "settings" and path.name != "options.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
                if owner in ("srpo", "settings", "teacher"):
                    found.add(f"teacher.{node.attr}" if owner == "teacher" else node.attr)
                    if (owner, node.attr) == ("teacher", "rate"):  # made of these two
                        found |= {"teacher.kind", "teacher.ema_rate"}
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "old_policy":
                found.add("old_policy")
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "at" and len(node.args) == 2:
                found |= {node.args[1].value, f"{node.args[1].value}_options"}
    return found


@pytest.mark.parametrize("key", knobs())
def test_every_knob_is_read_outside_the_config(key):
    assert key in settings_read()


def test_what_the_yaml_asks_for_is_registered_with_the_schema():
    """Programs that compose the config without our check import the schema alone, as benchmarks/stock_verl.py does."""
    used = {name for path in CONFIG.rglob("*.yaml") for name in re.findall(r"\$\{(srpo_\w+):", path.read_text())}
    code = "import srpo_recipe.settings.schema, sys; from omegaconf import OmegaConf as o; "
    code += "sys.exit(', '.join(name for name in sys.argv[1:] if not o.has_resolver(name)) or 0)"
    done = subprocess.run([sys.executable, "-c", code, *sorted(used)], capture_output=True, text=True)
    assert len(used) >= 3 and done.returncode == 0, done.stderr
