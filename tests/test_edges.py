"""Values at the edge: each was taken without a word, and is now refused with its key and the fix."""

import re

import pytest
from config_files import BASE, changed, composed
from omegaconf import OmegaConf

from srpo_recipe.settings import kinds, unused
from srpo_recipe.settings.compose import compose_config, verl_defaults
from srpo_recipe.settings.ranges import LOAD_FORMATS, LOGGERS, RANGES, TOOL_FORMATS
from srpo_recipe.settings.refusals import ACTOR, REF, ROLLOUT
from srpo_recipe.settings.required import REQUIRED
from srpo_recipe.settings.rules import check

NAN, INF = float("nan"), float("inf")

# overrides -> what the message says
TAKEN_BEFORE = {
    "method=grpo srpo.route=srpo": "srpo.route=srpo under the name of method=grpo, whose route is grpo: choose",
    "method=srpo_no_dw srpo.route=sdpo": "srpo.route=sdpo under the name of method=srpo_no_dw, whose route is srpo: choose",
    "trainer.logger=[console,foo]": "there is no logger foo",
    "trainer.logger=foo": "there is no logger foo",
    "actor_rollout_ref.rollout.name=sglang": "set it to vllm",
    "srpo.teacher.max_prompt_tokens=10": "max_prompt_tokens=10 does not hold a question of data.max_prompt_length=48",
    "srpo.mix=0.5": "srpo.mix=0.5 has no effect here (it is the weight of method=advantage_mix): leave it at 0.9",
    "method=grpo srpo.mix=0.5": "srpo.mix=0.5 has no effect here",
    "method=grpo srpo.beta=2": "srpo.beta=2.0 has no effect here (srpo.route=grpo has no teacher): leave it at 1.0",
    "method=grpo srpo.alpha=0": "srpo.alpha=0.0 has no effect here",
    "method=grpo srpo.teacher.ema_rate=0.1": "srpo.teacher.ema_rate=0.1 has no effect here",
    "method=grpo srpo.teacher.kind=frozen": "srpo.teacher.kind=frozen has no effect here",
    "srpo.teacher.kind=frozen srpo.teacher.ema_rate=0.1": "(srpo.teacher.kind is frozen): leave it at 0.05",
    "method=grpo srpo.teacher.demonstration=first": "srpo.teacher.demonstration=first has no effect here",
    "method=grpo srpo.teacher.overflow=reroute": "srpo.teacher.overflow=reroute has no effect here",
    "method=grpo srpo.teacher.feedback=append": "srpo.teacher.feedback=append has no effect here",
    "method=grpo 'srpo.teacher.template=\"{prompt}{demonstration}\"'": "srpo.teacher.template=",
    "'srpo.teacher.feedback_template=\"{prompt}{feedback}\"'": "(srpo.teacher.feedback is off)",
    "srpo.top_k=1000000": "srpo.top_k=1000000 is more ids than the 100 of ",
    "srpo.top_k=101": "srpo.top_k=101 is more ids than the 100 of ",
    "model=qwen3_8b srpo.top_k=1000000": "srpo.top_k=1000000 is more ids than any model's vocabulary has",
    "trainer.val_only=no": "trainer.val_only=no: set it to true or false",
    "data.shuffle=off": "data.shuffle=off: set it to true or false",
    "actor_rollout_ref.actor.optim.num_cycles=many": "num_cycles=many: set it to a number",
    "actor_rollout_ref.actor.optim.num_cycles=nan": "num_cycles=nan is not a number: set it to one",
    "actor_rollout_ref.rollout.mode=1": "rollout.mode=1: set it to a text",
}  # fmt: skip


@pytest.mark.parametrize("typed", TAKEN_BEFORE)
def test_what_was_taken_without_a_word_is_refused(typed):
    import shlex

    with pytest.raises(ValueError) as error:
        check(compose_config(shlex.split(typed)))
    assert TAKEN_BEFORE[typed] in str(error.value)


def test_a_method_of_the_users_has_any_route():
    assert check(compose_config(["method=grpo", "method.name=mine", "srpo.route=srpo"])).route == "srpo"
    assert check(compose_config(["method=advantage_mix", "srpo.mix=0.5"])).mix == 0.5
    assert check(compose_config(["srpo.top_k=100"])).top_k == 100


def test_verls_loggers_are_all_known():
    from verl.utils.tracking import Tracking

    assert set(LOGGERS) == set(Tracking.supported_backend)


def test_vllms_ways_to_load_weights_are_all_known():
    """Read in its file: to import it takes seconds."""
    from importlib.util import find_spec
    from pathlib import Path

    text = (Path(find_spec("vllm").origin).parent / "model_executor" / "model_loader" / "__init__.py").read_text()
    assert set(LOAD_FORMATS) == set(re.findall(r'"(\w+)"', re.search(r"LoadFormats = Literal\[(.*?)\]", text, re.S)[1]))


@pytest.mark.parametrize(
    "overrides, says",
    [
        (["num_warmup_batches=8"], "set it to at most 7, or raise the threshold"),
        (["num_warmup_batches=7"], None),
        (["num_warmup_batches=1", "threshold=1"], "set it to at most 0"),
        (["num_warmup_batches=20", "threshold=null"], None),
        (["num_warmup_batches=20", "strategy=wait"], None),
    ],
)
def test_rollouts_that_wait_longer_than_they_may_are_refused(overrides, says):
    """Before, a billion batches ahead were taken."""
    names = {
        "num_warmup_batches": "colocate_async.num_warmup_batches",
        "threshold": "sampler.max_off_policy_threshold",
        "strategy": "sampler.max_off_policy_strategy",
    }
    given = [f"trainer.v1.{names[name]}={value}" for name, value in (one.split("=") for one in overrides)]
    config = composed(*BASE, "trainer.v1.trainer_mode=srpo_colocate_async", *given)
    if says is None:
        assert check(config)
        return
    with pytest.raises(ValueError, match=says) as error:
        check(config)
    assert str(error.value).startswith("trainer.v1.colocate_async.num_warmup_batches=")


def test_verls_formats_of_tool_calls_are_all_known():
    from verl.experimental.agent_loop.tool_parser import ToolParser

    assert set(TOOL_FORMATS) == set(ToolParser._registry)


def test_the_largest_vocabulary_is_larger_than_those_of_the_shipped_models():
    from srpo_recipe.plan.architecture import PUBLISHED

    assert unused.LARGEST_VOCABULARY > max(numbers["vocab_size"] for numbers in PUBLISHED.values())


# ------------------------------------------------------------------------------------------------------------- the ranges

COUNT = ([0, -1, 1.5, 8.0, True, "2", None, [1]], [1, 7])
OR_MINUS_ONE = ([0, -2, 1.5, True, "2", None], [-1, 1])
OR_NULL = ([0, -4, 1.5, True, "2"], [None, 1])
SHARE = ([0, -0.1, 1.1, 2, NAN, INF, True, "0.5", None], [0.01, 1, 1.0])
UNIT = ([-0.1, 1.1, NAN, INF, True, "0.5"], [0, 0.5, 1])
# key -> (refused, taken). The kinds of the table are not asked: these are written out.
EDGES = {
    **dict.fromkeys(
        [
            *(f"data.{name}" for name in ("train_batch_size", "max_prompt_length", "max_response_length")),
            *(f"{ACTOR}.{name}" for name in ("ppo_mini_batch_size", "ppo_epochs", "ppo_max_token_len_per_gpu")),
            f"{REF}.log_prob_max_token_len_per_gpu",
            f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size",
            *(
                f"{ROLLOUT}.{name}"
                for name in (
                    "n", "tensor_model_parallel_size", "max_num_seqs", "max_num_batched_tokens", "agent.num_workers",
                    "multi_turn.max_parallel_calls",
                    "log_prob_max_token_len_per_gpu", "checkpoint_engine.update_weights_bucket_megabytes", "val_kwargs.n",
                )
            ),
            *(f"trainer.{name}" for name in ("nnodes", "n_gpus_per_node", "total_epochs")),
            "reward.num_workers",
        ],
        COUNT,
    ),
    **dict.fromkeys(["data.train_max_samples", "data.val_max_samples", "trainer.test_freq", "trainer.save_freq"], OR_MINUS_ONE),
    **dict.fromkeys(
        [f"{ROLLOUT}.top_k", f"{ROLLOUT}.val_kwargs.top_k", f"{ACTOR}.fsdp_config.fsdp_size"], OR_MINUS_ONE
    ),
    **dict.fromkeys(
        [
            "data.val_batch_size", f"{ROLLOUT}.max_model_len", "trainer.total_training_steps",
            "trainer.max_actor_ckpt_to_keep",
            *(f"{ROLLOUT}.multi_turn.max_{who}_turns" for who in ("assistant", "user")),
        ],
        OR_NULL,
    ),
    **dict.fromkeys([f"{ROLLOUT}.top_p", f"{ROLLOUT}.val_kwargs.top_p", f"{ROLLOUT}.gpu_memory_utilization"], SHARE),
    f"{ACTOR}.clip_ratio_low": UNIT,
    f"{ACTOR}.optim.lr_warmup_steps_ratio": UNIT,
    f"{ACTOR}.optim.min_lr_ratio": (UNIT[0], [None, *UNIT[1]]),
    f"{ACTOR}.clip_ratio_high": ([-0.1, NAN, INF, True, None], [0, 0.28, 3]),
    f"{ACTOR}.clip_ratio_c": ([1, 0.5, NAN, INF, True], [1.1, 3]),
    f"{ACTOR}.optim.lr": ([-1e-6, NAN, INF, "1e-6", True, None], [0, 1e-6, 1]),
    f"{ACTOR}.optim.weight_decay": ([-0.1, NAN, INF, True], [0, 0.01]),
    f"{ACTOR}.optim.clip_grad": ([0, -1, NAN, INF, True, None], [0.5, 1]),
    f"{ACTOR}.optim.lr_warmup_steps": ([-2, 0.5, True, None], [-1, 0, 10]),
    f"{ACTOR}.optim.lr_scheduler_type": (["linear", None, 1], ["constant", "cosine"]),
    f"{ROLLOUT}.val_kwargs.temperature": ([-1, NAN, INF, "0.6", True, None], [0.1, 1]),
    f"{ROLLOUT}.load_format": (["nonsense", None, True, "AUTO"], ["auto", "dummy", "safetensors"]),
    f"{ROLLOUT}.multi_turn.format": (["nonsense", "llama3_json", "", None, True], ["hermes", "gpt-oss", "qwen3_coder"]),
    f"{ROLLOUT}.multi_turn.max_tool_response_length": ([-1, 0, 1, 1.5, True, "256", None], [2, 256]),
    f"{ROLLOUT}.multi_turn.tool_response_truncate_side": (["nonsense", "", None, True], ["left", "middle", "right"]),
    "data.dataloader_num_workers": ([-1, 1.5, True, None], [0, 8]),
    "data.truncation": (["cut", None, True], ["error", "left", "right", "middle"]),
    "trainer.log_val_generations": ([-1, 0.5, None], [0, 5]),
    "trainer.v1.colocate_async.num_warmup_batches": ([-1, 1e9, 1001, NAN, INF, "1", True, None], [0, 1.5, 2, 1000]),
    "trainer.v1.sampler.max_off_policy_threshold": OR_NULL,
    "trainer.v1.sampler.max_off_policy_strategy": (["keep", None, True], ["drop", "wait"]),
    "trainer.resume_mode": (["sometimes", None, True, ""], ["auto", "disable", "resume_path"]),
}  # fmt: skip


def test_every_range_is_tried_and_is_of_a_key_of_verls():
    assert set(EDGES) == set(RANGES)
    absent = object()
    assert not [key for key in RANGES if OmegaConf.select(verl_defaults(), key, default=absent) is absent]


@pytest.mark.parametrize("key", EDGES)
def test_a_range_refuses_what_lies_outside_and_takes_its_edges(key):
    refused, taken = EDGES[key]
    for value in refused:
        with changed(key, value) as config, pytest.raises(ValueError) as error:
            check(config)
        assert str(error.value).startswith(f"{key}={kinds.shown(value)}: set it to "), value
    assert all(RANGES[key].holds(value) for value in taken)
    assert OmegaConf.select(verl_defaults(), key) is None or RANGES[key].holds(OmegaConf.select(verl_defaults(), key))


@pytest.mark.parametrize("value", ["a number of 1", 1, -1, True, None, 2.5])
def test_one_value_more_is_that_value_and_no_other(value):
    kind = kinds.one_of(7).or_else(value, "this")
    assert [one for one in ("a number of 1", 1, -1, True, None, 2.5, 7) if kind.holds(one)] == [
        one for one in ("a number of 1", 1, -1, True, None, 2.5, 7) if one is value or one == 7
    ]


# --------------------------------------------------------------------------------------------------- what has to be given


@pytest.mark.parametrize("key", REQUIRED)
@pytest.mark.parametrize("value", [None, ""])
def test_what_has_to_be_given_is_asked_for(key, value):
    with changed(key, value) as config, pytest.raises(ValueError, match=f"^{key} is missing: give a "):
        check(config)


@pytest.mark.parametrize(
    "chosen, says",
    [
        ("task=parquet", "data.train_files is missing (~/data/rlhf/gsm8k/train.parquet is verl's example, not taken)"),
        ("task=parquet data.train_files=a.parquet", "data.val_files is missing (~/data/rlhf/gsm8k/test.parquet is"),
        ("model=path", "actor_rollout_ref.model.path is missing (~/models/deepseek-llm-7b-chat is verl's example"),
        ("task=chemistry", "task.dir is missing: give the folder that scripts/prepare_data.sh has written"),
        ("data.train_files=???", "data.train_files is missing"),
        ("+task.own=???", "task.own is missing: add task.own=VALUE"),
    ],
)
def test_a_gap_binds_although_verl_has_a_value(chosen, says):
    with pytest.raises(ValueError) as error:
        check(compose_config(chosen.split()))
    assert says in str(error.value)


def test_a_loader_of_the_users_may_do_without_files():
    config = compose_config(["data.train_files=null", "data.val_files=null", "data.custom_cls.path=mine.py"])
    assert check(config)


# ----------------------------------------------------------------------------------------------------- names and places


@pytest.mark.parametrize(
    "typed, says",
    [
        ("run.name=null", "run.name=null is empty"),
        ("run.name=", "run.name= is empty"),
        ("run.name=3.10", "run.name=3.1 is a number and no text: quote it, 'run.name=\"...\"'"),
        ("run.name=1e5", "run.name=100000.0 is a number"),
        ("run.name=2024", "run.name=2024 is a number"),
        ("run.name=true", "run.name=True is true or false and no text"),
        ("run.name=[a]", "run.name=['a'] is a list and no text"),
        ("run.name=../../etc/x", "run.name=../../etc/x is not the name of one folder in run.root: leave the / out"),
        ("run.name=a/b", "leave the / out"),
        ("run.name=..", "must not begin with a dot"),
        ("run.name=.", "must not begin with a dot"),
        ("run.name=.hidden", "must not begin with a dot"),
        ('run.name="a "', "spaces at its ends"),
        ('run.name="a\nb"', "line ends"),
        ("run.name=old", "stands beside the runs"),
        ("run.name=data", "stands beside the runs"),
        (f"run.name={'x' * 201}", "200 bytes"),
        ("method.name=../x", "leave the / out"),
        ("run.root=", "run.root= is empty"),
        ("run.root=null", "run.root=null is empty"),
        ("run.root=2024", "run.root=2024 is a number"),
        ("run.dir=", "run.dir= is empty"),
        ("run.stop_file=", "run.stop_file= is empty"),
        ("trainer.default_local_dir=null", "trainer.default_local_dir=null is empty"),
        ("trainer.project_name=2024", "trainer.project_name=2024 is a number"),
        ("run.root=/tmp/$HOME", "data.train_files=/tmp/$HOME/data/sums/train.parquet would be read as /tmp//"),
        ("data.val_files=[a.parquet,'$HOME/b.parquet']", "data.val_files=$HOME/b.parquet would be read as /"),
    ],
)
def test_a_name_or_place_that_is_none_is_refused(typed, says):
    with pytest.raises(ValueError) as error:
        check(compose_config([typed]))
    assert says in str(error.value)


@pytest.mark.parametrize("name", ["run", "3.10", "2024", "a=b", "läufe 1", "x" * 200, "srpo-sums-seed42-beta3"])
def test_a_name_that_is_one_is_taken(name):
    assert check(compose_config([f'run.name="{name}"']))


def test_the_base_of_these_tests_passes():
    assert check(composed(*BASE))
