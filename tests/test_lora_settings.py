"""Which settings of LoRA are taken, and which are refused with the fix."""

import pytest
from config_files import GROUPS, changed
from hydra.core.override_parser.overrides_parser import OverridesParser

from srpo_recipe.run import dry_run
from srpo_recipe.run.prepare import check_files
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.describe import describe
from srpo_recipe.settings.lora import ALONE
from srpo_recipe.settings.rules import check

MODEL = "actor_rollout_ref.model"
ACTOR, REF = (f"actor_rollout_ref.{part}.fsdp_config" for part in ("actor", "ref"))
ROLLOUT = "actor_rollout_ref.rollout"
LORA = ["hardware=cpu", f"{MODEL}.lora_rank=8"]
BASE = ("srpo", "sums", "tiny", "cpu", f"{MODEL}.lora_rank=8")

# override -> what the message says; asked beside lora_rank=8
REFUSED = {
    f"{MODEL}.lora_rank=-1": "set it to a whole number from 1 to 512, or to 0",
    f"{MODEL}.lora_rank=1000": "set it to a whole number from 1 to 512",
    f"{MODEL}.lora_alpha=0": "set it to a whole number from 1 to 8192",
    f"{MODEL}.lora_alpha=1e30": "set it to a whole number from 1 to 8192",
    f"{MODEL}.lora_alpha=1e-300": "set it to a whole number from 1 to 8192",
    f"{MODEL}.lora_alpha=0.5": "verl writes whole numbers into a checkpoint",
    f"{MODEL}.lora.merge=null": "set it to true (vLLM gets merged weights) or false (an adapter)",
    f"{MODEL}.lora.merge=1": "set it to true (vLLM gets merged weights) or false",
    f"{ALONE}=abc": "set it to true or false",
    f"{ALONE}=null": "set it to true or false",
    f"{ROLLOUT}.load_format=dummy": f"set it to auto, or {MODEL}.lora.merge=true: where vLLM is sent adapters it reads the base",
    f"{REF}.model_dtype=bf16": "has no effect here, since with actor_rollout_ref.model.lora_rank the self-teacher is an adapter",
    f"{REF}.offload_policy=true": f"leave it at False, and set {ACTOR}.offload_policy if that is what you mean",
    f"{REF}.seed=7": "leave it at 42",
    f"{REF}.mixed_precision.param_dtype=bf16": "leave it out, or at fp32 as the actor's",
    f"{REF}.forward_only=false": "set it to True (the teacher is not trained)",
    f"{MODEL}.target_modules=7": "set it to all-linear, or to a list of layers' names",
    f"{MODEL}.target_modules='(q_proj'": "patterns are not taken: write the names",
    f"{MODEL}.exclude_modules=7": "set it to null for none, or to a list of layers' names",
    f"{MODEL}.lora_adapter_path=x": "set it to null",
    f"{MODEL}.lora.rank=8": f"verl's FSDP engine reads {MODEL}.lora_rank",
    f"{MODEL}.lora.alpha=8": "has no effect here: leave it at 32",
    f"{MODEL}.lora.dropout=0.1": "has no effect here",
    f"{MODEL}.target_modules=[q_proj,lm_head]": "leave the output layer out",
    f"{MODEL}.target_modules=[model.lm_head]": "leave the output layer out",
    **{
        f"{MODEL}.target_modules={value}": "set it to all-linear, or to a list of layers' names"
        for value in ("null", "''", "[]", "3", "true", "{a:1}", "[q_proj,3]", "['']", "All-Linear")
    },
    f"{MODEL}.target_modules=q_proj": "write [q_proj]",
    f"{MODEL}.target_modules='.*q_proj'": "patterns are not taken: write the names",
    f"{MODEL}.target_modules=[all-linear]": "write all-linear without brackets",
    **{
        f"{MODEL}.exclude_modules={value}": "set it to null for none, or to a list of layers' names"
        for value in ("''", "[]", "3", "true", "{a:1}", "[3]")
    },
    f"{MODEL}.exclude_modules=q_proj": "write [q_proj]",
    f"{MODEL}.exclude_modules='.*q_proj'": "patterns are not taken: write the names",
    "actor_rollout_ref.actor.fsdp_config.model_dtype=bf16": "set it to fp32",
    "actor_rollout_ref.rollout.layered_summon=true": "set it to False",
}


def adapted(override):
    """A run with adapters and one override more."""
    value = OverridesParser.create().parse_overrides([override])[0].value()
    return changed(override.partition("=")[0].lstrip("+"), value, BASE)


@pytest.mark.parametrize("override, says", REFUSED.items(), ids=REFUSED)
def test_what_an_adapter_cannot_do_is_refused(override, says):
    with adapted(override) as config, pytest.raises(ValueError) as error:
        check(config)
    assert override.partition("=")[0] in str(error.value) and says in str(error.value)


@pytest.mark.parametrize(
    "name", ["lora_alpha=32", "target_modules=[q_proj]", "exclude_modules=[q_proj]", "lora.merge=true"]
)
def test_settings_of_adapters_are_refused_where_there_are_none(name):
    with pytest.raises(
        ValueError, match=rf"{MODEL}.{name.partition('=')[0]}=.* has no effect here: .*{MODEL}.lora_rank"
    ):
        check(compose_config(["hardware=cpu", f"{MODEL}.{name}"]))


@pytest.mark.parametrize("method", ["grpo", "sdpo", "srpo", "srpo_no_dw", "advantage_mix"])
@pytest.mark.parametrize("merge", ["true", "false"])
def test_every_method_takes_adapters(method, merge):
    config = compose_config([*LORA, f"method={method}", f"{MODEL}.lora.merge={merge}", f"{MODEL}.lora_alpha=32"])
    settings = check(config)
    table = dict(describe(config, settings))
    assert ("a second adapter" in table["self-teacher"]) == (method != "grpo")
    synced = {"true": "merged weights", "false": "an adapter"}[merge]
    assert table["model"].endswith(f"LoRA rank 8, alpha 32, on all linear layers, to vLLM as {synced}")


@pytest.mark.parametrize(
    "overrides, shown",
    [
        (["target_modules=[q_proj,v_proj]"], "on q_proj, v_proj, to vLLM"),
        (["target_modules=[self_attn.q_proj]"], "on self_attn.q_proj, to vLLM"),
        (["exclude_modules=[q_proj]"], "on all linear layers without q_proj, to vLLM"),
        (["exclude_modules=[lm_head]"], "on all linear layers without lm_head, to vLLM"),
    ],
)
def test_modules_that_the_model_has_are_taken_and_shown(overrides, shown):
    """verl's own dataclass takes them, too."""
    from verl.utils.config import omega_conf_to_dataclass

    config = compose_config([*LORA, *(f"{MODEL}.{override}" for override in overrides)])
    settings = check(config)
    check_files(config)
    assert shown in dict(describe(config, settings))["model"]
    model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    assert model.target_modules == config.actor_rollout_ref.model.target_modules


# overrides -> what the message says, of a model whose config.json is here; peft does something else, or ends in a worker
LACKED = {
    "target_modules=[q_proj,nope]": "has no linear layer nope that an adapter could be on; it has down_proj, gate_proj, k_proj",
    "target_modules=[embed_tokens]": "has no linear layer embed_tokens",
    "target_modules=[mlp]": "has no linear layer mlp",
    "target_modules=[proj]": "has no linear layer proj",
    "exclude_modules=[nope]": "has no linear layer nope",
    "target_modules=[q_proj] exclude_modules=[self_attn.q_proj]": "leaves no layer for an adapter",
}


@pytest.mark.parametrize("overrides", LACKED)
def test_layers_that_the_model_lacks_are_refused_before_anything_starts(overrides, capsys):
    given = [*LORA, *(f"{MODEL}.{override}" for override in overrides.split())]
    config = compose_config(given)
    check(config)
    with pytest.raises(ValueError) as error:
        check_files(config)
    last = overrides.split()[-1].partition("=")[0]
    assert f"{MODEL}.{last}=[" in str(error.value) and LACKED[overrides] in str(error.value)
    with pytest.raises(SystemExit, match="Configuration error: .*linear layer|Configuration error: .*for an adapter"):
        dry_run.main(given)


def test_layers_of_a_model_that_is_not_here_are_not_looked_at():
    given = ["model=path", f"{MODEL}.path=some/model", f"{MODEL}.target_modules=[nope]"]
    check_files(compose_config([*LORA, *given]))


@pytest.mark.parametrize(
    "overrides, wanted",
    [
        ([], "dummy"),
        ([f"{MODEL}.lora_rank=8"], "auto"),
        ([f"{MODEL}.lora_rank=8", f"{MODEL}.lora.merge=true"], "dummy"),
    ],
)
def test_vllm_reads_the_base_itself_where_it_is_given_adapters_alone(overrides, wanted):
    assert compose_config(["hardware=cpu", *overrides]).actor_rollout_ref.rollout.load_format == wanted


@pytest.mark.parametrize("name", ["auto", "safetensors"])
def test_vllm_may_be_told_how_to_read_the_base(name):
    with adapted(f"{ROLLOUT}.load_format={name}") as config:
        assert check(config)


def test_vllm_needs_no_base_where_it_is_sent_merged_weights():
    with adapted(f"{MODEL}.lora.merge=true") as config:
        with adapted(f"{ROLLOUT}.load_format=dummy"):
            assert check(config)


@pytest.mark.parametrize(
    "argument, why",
    [
        ("enable_lora=false", f"verl sets it from {MODEL}.lora_rank"),
        ("enable-lora=false", f"verl sets it from {MODEL}.lora_rank"),
        ("no-enable-lora=true", f"verl sets it from {MODEL}.lora_rank"),
        ("max_lora_rank=1", f"verl sets it from {MODEL}.lora_rank"),
        ("max-lora-rank=1", f"verl sets it from {MODEL}.lora_rank"),
        ("lora_target_modules=[q_proj]", "vLLM would compute with another adapter than is trained"),
        ("load_format=dummy", f"set {ROLLOUT}.load_format, which verl reads as well"),
        ("load-format=dummy", f"set {ROLLOUT}.load_format, which verl reads as well"),
    ],
)
@pytest.mark.parametrize("base", [BASE[:4], BASE], ids=["all weights", "adapter"])
def test_arguments_of_vllms_own_do_not_change_its_adapter(argument, why, base):
    """Before, vLLM took them, or verl wrote over them, without a word."""
    name, _, value = argument.partition("=")
    key = f"{ROLLOUT}.engine_kwargs.vllm.{name}"
    with changed(key, value, base) as config, pytest.raises(ValueError) as error:
        check(config)
    assert str(error.value).startswith(f"{key}={value} is not supported: leave it out ({why}")
    with changed(key, None, base) as config:
        assert check(config)


@pytest.mark.parametrize("hardware", GROUPS["hardware"])
def test_every_hardware_takes_adapters(hardware):
    """Its own settings of a second model pass: they are the actor's."""
    assert check(compose_config([f"hardware={hardware}", f"{MODEL}.lora_rank=8"]))


def test_settings_of_a_second_model_pass_where_they_are_the_actors():
    with adapted(f"{ACTOR}.offload_policy=true"), adapted(f"{REF}.offload_policy=true") as config:
        assert check(config)


def test_a_second_model_has_settings_where_there_is_one():
    with changed(f"{REF}.offload_policy", True, BASE[:4]) as config:
        assert check(config)


def test_checkpoints_of_adapters_alone_need_an_adapter():
    with changed(ALONE, True, BASE[:4]) as config, pytest.raises(ValueError) as error:
        check(config)
    assert str(error.value) == (
        f"{ALONE}=True has no effect here: leave it at False, and set {MODEL}.lora_rank if that is what you mean"
    )


@pytest.mark.parametrize("value", [True, False])
def test_verl_is_told_which_checkpoints_to_write(value):
    from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager
    from verl.utils.config import omega_conf_to_dataclass

    with adapted(f"{ALONE}={str(value).lower()}") as config:
        check(config)
        actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    manager = BaseCheckpointManager.__new__(BaseCheckpointManager)
    manager.checkpoint_config = actor.checkpoint
    assert manager.should_save_lora_only is value


@pytest.mark.parametrize("kind, rate", [("ema", 0.05), ("frozen", 0.0), ("current", 1.0)])
def test_the_kinds_of_self_teacher_are_rates(kind, rate):
    with changed("srpo.teacher.kind", kind) as config:
        assert check(config).teacher.rate == rate
