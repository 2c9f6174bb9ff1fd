"""Which settings of LoRA are taken, and which are refused with the fix."""

import pytest
from config_files import changed

from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.describe import describe
from srpo_recipe.settings.rules import check

MODEL = "actor_rollout_ref.model"
LORA = ["hardware=cpu", f"{MODEL}.lora_rank=8"]

# override -> what the message says; asked beside lora_rank=8
REFUSED = {
    f"{MODEL}.lora_rank=-1": "set it to a whole number from 1 to 512, or to 0",
    f"{MODEL}.lora_rank=1000": "set it to a whole number from 1 to 512",
    f"{MODEL}.lora_alpha=0": "set it to a positive number",
    f"{MODEL}.lora_adapter_path=x": "set it to null",
    f"{MODEL}.lora.rank=8": f"verl's FSDP engine reads {MODEL}.lora_rank",
    f"{MODEL}.lora.alpha=8": "has no effect here: leave it at 32",
    f"{MODEL}.lora.dropout=0.1": "has no effect here",
    f"{MODEL}.target_modules=[q_proj,lm_head]": "leave the output layer out",
    "actor_rollout_ref.actor.fsdp_config.model_dtype=bf16": "set it to fp32",
    "actor_rollout_ref.rollout.layered_summon=true": "set it to False",
}


@pytest.mark.parametrize("override, says", REFUSED.items(), ids=REFUSED)
def test_what_an_adapter_cannot_do_is_refused(override, says):
    with pytest.raises(ValueError) as error:
        check(compose_config([*LORA, override]))
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
    assert table["model"].endswith(f"LoRA rank 8, alpha 32, to vLLM as {synced}")


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


@pytest.mark.parametrize("kind, rate", [("ema", 0.05), ("frozen", 0.0), ("current", 1.0)])
def test_the_kinds_of_self_teacher_are_rates(kind, rate):
    with changed("srpo.teacher.kind", kind) as config:
        assert check(config).teacher.rate == rate
