"""The planner's command line and the models that it cannot plan for: one line each, with the fix."""

import json

import pytest

from srpo_recipe.plan.__main__ import main
from srpo_recipe.plan.architecture import describe_model


@pytest.mark.parametrize(
    "more, told",
    [
        (["--memory", "nan"], "argument --memory: 'nan': set it to a finite number greater than 0"),
        (["--memory", "0"], "argument --memory: '0': set it to"),
        (["--memory", "-80"], "argument --memory: '-80': set it to"),
        (["--memory", "inf"], "argument --memory: 'inf': set it to"),
        (["--memory", "much"], "argument --memory: 'much': set it to"),
        (["--reserve", "-1"], "argument --reserve: '-1': set it to a finite number of at least 0"),
        (["--routed", "7"], "argument --routed: '7': set it to a number in [0, 1]"),
        (["--routed", "nan"], "argument --routed: 'nan': set it to"),
        (["--prompt", "-100"], "argument --prompt: '-100': set it to a finite number greater than 0"),
        (["--response", "0"], "argument --response: '0': set it to"),
        (["--plot", "nowhere/plan.png"], "--plot nowhere/plan.png: the folder nowhere is not there"),
        (["--plot", "plan"], "--plot plan: name a file that ends in one of "),
        (["--plot", "plan.doc"], "--plot plan.doc: name a file that ends in one of "),
        (["trainer.nnodes=0"], "trainer.nnodes=0: set it to a whole number"),
        (["trainer.nnodes=two"], "trainer.nnodes=two: set it to a whole number"),
        (["trainer.n_gpus_per_node=0"], "trainer.n_gpus_per_node=0: set it to a whole number"),
        (["actor_rollout_ref.rollout.tensor_model_parallel_size=0"], "tensor_model_parallel_size=0: set it to"),
        (["actor_rollout_ref.rollout.tensor_model_parallel_size=x"], "tensor_model_parallel_size=x: set it to"),
        (["data.max_response_length=0"], "data.max_response_length=0: set it to"),
        (["data.max_prompt_length=long"], "data.max_prompt_length=long: set it to"),
        (["data.train_batch_size=0"], "data.train_batch_size=0: set it to"),
        (["actor_rollout_ref.rollout.dtype=int4"], "number type int4"),
        (["srpo.betta=1"], "there is no srpo.betta; did you mean srpo.beta?"),
        (["task=parquet"], "data.train_files is missing"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_refused_with_one_line(capsys, tmp_path, monkeypatch, more, told):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(more)
    except SystemExit as ended:  # argparse's way
        status = ended.code
    assert status == 2 and told in capsys.readouterr().err.splitlines()[-1]


WHOLE = {
    "model_type": "qwen3", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 20,
}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        "[]", "1", "null", "", "{", "{}", '"text"',
        *(json.dumps({**WHOLE, **change}) for change in (
            {"hidden_size": "wide"}, {"hidden_size": -8}, {"num_hidden_layers": 0}, {"num_hidden_layers": "many"},
            {"vocab_size": None}, {"vocab_size": 0}, {"num_attention_heads": 0, "head_dim": None}, {"model_type": "own"},
            {"model_type": 1}, {"model_type": ["a"]}, {"intermediate_size": None},
        )),
    ],
)  # fmt: skip
def test_a_config_of_no_model_is_refused_with_its_file(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=str(tmp_path)):
        describe_model(str(tmp_path))


def test_the_config_of_these_tests_is_a_models(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(WHOLE))
    assert describe_model(str(tmp_path)).layers == 1
