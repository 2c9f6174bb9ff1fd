"""From which checkpoint a start goes on, and what is refused before anything starts."""

import shutil
from pathlib import Path

import pytest
from checkpoints import write_checkpoint, write_files
from omegaconf import OmegaConf

from srpo_recipe.records import checkpoint
from srpo_recipe.run import resume
from srpo_recipe.settings.schema import SRPOConfig


@pytest.fixture
def folder(tmp_path) -> Path:
    """Checkpoints of steps 2, 4 and 6, of which the last is the latest, and metrics of 7 steps."""
    for step in (2, 4, 6):
        write_checkpoint(tmp_path / "checkpoints", step)
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 8)))
    return tmp_path / "checkpoints"


@pytest.fixture
def config(tmp_path):
    def make(route="srpo", ranks=1, total=40, **settings):
        trainer = {
            "default_local_dir": str(tmp_path / "checkpoints"),
            "resume_mode": "auto",
            "nnodes": 1,
            "n_gpus_per_node": ranks,
            "total_training_steps": total,
            "val_only": False,
        }
        run = {"dir": str(tmp_path), "resume": "auto"}
        run |= {key: value for key, value in settings.items() if key == "resume"}
        trainer |= {key: value for key, value in settings.items() if key != "resume"}
        srpo = OmegaConf.structured(SRPOConfig(route=route))
        return OmegaConf.create({"run": run, "trainer": trainer, "srpo": srpo})

    return make


def test_the_pointers_step_is_taken_and_without_any_checkpoint_none(config, folder, tmp_path):
    assert resume.choose(config()) == (6, [])
    assert resume.choose(config(default_local_dir=str(tmp_path / "none"))) == (0, [])


def remove(path: Path) -> None:
    shutil.rmtree(path)


def cut_shard(path: Path) -> None:
    shard = path / "actor" / "model_world_size_1_rank_0.pt"
    shard.write_bytes(shard.read_bytes()[:50])


def link_to_nowhere(path: Path) -> None:
    shard = path / "actor" / "model_world_size_1_rank_0.pt"
    shard.unlink()
    shard.symlink_to(path / "moved" / "away")


BROKEN = {
    "a link to nowhere": (link_to_nowhere, "names step 6: .*actor/model_world_size_1_rank_0.pt is missing"),
    "a folder that is not there": (remove, "names step 6: .*global_step_6 is not there"),
    "a cut shard": (cut_shard, "names step 6: .*actor/model_world_size_1_rank_0.pt has 50 bytes instead of"),
    "no teacher": (
        lambda path: remove(path / "teacher"),
        "names step 6: .*teacher/model_world_size_1_rank_0.pt is missing",
    ),
    "no data.pt": (lambda path: (path / "data.pt").unlink(), "names step 6: .*data.pt is missing"),
    "an empty pointer": (lambda path: (path.parent / checkpoint.TRACKER).write_text(""), "is empty"),
    "a pointer to nothing": (
        lambda path: (path.parent / checkpoint.TRACKER).write_text("99"),
        "global_step_99 is not there",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_resumed_is_refused_with_the_newest_whole_checkpoint(config, folder, kind):
    """Before: training from scratch over the old metrics, a traceback after minutes, or another order of the data."""
    damage, says = BROKEN[kind]
    damage(folder / "global_step_6")
    whole = 6 if "pointer" in kind else 4
    with pytest.raises(
        ValueError, match=f"(?s){says}.*newest whole checkpoint is step {whole}: run.resume={whole} goes on"
    ):
        resume.choose(config())
    before = sorted(folder.iterdir())
    step, aside = resume.choose(config(resume=whole))
    assert step == whole and sorted(folder.iterdir()) == before
    resume.settle(config(resume=whole), step, aside)
    assert resume.choose(config()) == (whole, [])


def test_anyway_takes_the_newest_whole_one_by_itself(config, folder, capsys):
    """Settings that differ and a damaged checkpoint at once: run.resume holds one of the two ways on."""
    cut_shard(folder / "global_step_6")
    assert resume.choose(config(resume="anyway")) == (4, [6])
    assert "run.resume=anyway goes on from step 4" in capsys.readouterr().out
    with pytest.raises(ValueError, match="Start with 1 ranks"):
        resume.choose(config(resume="anyway", ranks=2))


def test_going_back_puts_the_newer_ones_aside_with_the_metrics(config, folder, capsys):
    chosen = config(resume=2)
    step, aside = resume.choose(chosen)
    assert (step, aside) == (2, [4, 6])
    resume.settle(chosen, step, aside)
    assert checkpoint.steps(folder) == [2] and checkpoint.pointer(folder) == 2
    (place,) = folder.glob("left-at-step-2-*")
    assert checkpoint.steps(place) == [4, 6] and (place / "metrics.jsonl").read_text().count("\n") == 7
    assert "the checkpoints of steps 4, 6" in capsys.readouterr().out


def test_a_step_that_is_damaged_or_absent_is_not_taken(config, folder):
    cut_shard(folder / "global_step_2")
    for step in (2, 3):
        with pytest.raises(ValueError, match=f"run.resume={step}: .*newest whole checkpoint is step 6"):
            resume.choose(config(resume=step))


def test_where_nothing_is_whole_the_way_on_is_a_fresh_start(config, folder):
    for step in (2, 4, 6):
        cut_shard(folder / f"global_step_{step}")
    with pytest.raises(ValueError, match="No whole checkpoint is left in .*: run.fresh=true"):
        resume.choose(config())


def test_a_pointer_that_was_never_written_is_found_out(config, folder, capsys):
    """Killed between the first checkpoint's rename and its pointer."""
    (folder / checkpoint.TRACKER).unlink()
    assert resume.choose(config()) == (6, [])
    assert "going on from its newest whole checkpoint, step 6" in capsys.readouterr().out
    resume.settle(config(), 6, [])
    assert checkpoint.pointer(folder) == 6


def test_a_first_checkpoint_that_was_cut_is_none(config, tmp_path):
    write_files(tmp_path / "checkpoints" / ".partial" / "global_step_2", teacher=False)
    assert resume.choose(config()) == (0, [])


def test_another_number_of_ranks_is_refused_before_the_start(config, folder):
    with pytest.raises(
        ValueError, match=r"was written by 1 rank\(s\), and this run has 2 .*Start with 1 ranks, or export"
    ):
        resume.choose(config(ranks=2))
    write_checkpoint(folder, 8, ranks=2)
    assert resume.choose(config(ranks=2)) == (8, [])


def test_a_checkpoint_of_a_method_without_a_teacher(config, folder):
    write_checkpoint(folder, 8, teacher=False)
    assert resume.choose(config(route="grpo")) == (8, [])
    with pytest.raises(ValueError, match="without an EMA teacher.*newest whole checkpoint is step 6"):
        resume.choose(config())


def test_a_start_at_step_0_among_checkpoints_is_refused(config, folder, tmp_path):
    with pytest.raises(ValueError, match="would start at step 0 among the checkpoints of steps 2, 4, 6"):
        resume.choose(config(resume_mode="disable"))
    assert resume.choose(config(resume_mode="disable", default_local_dir=str(tmp_path / "none"))) == (0, [])


def test_verls_own_path_to_a_checkpoint_is_looked_at_too(config, folder, tmp_path):
    def path(place):
        return config(resume_mode="resume_path", resume_from_path=str(place))

    other = folder.rename(tmp_path / "of another run")
    assert resume.choose(path(other / "global_step_4")) == (4, [])
    cut_shard(other / "global_step_4")
    with pytest.raises(ValueError, match="resume_from_path=.*has 50 bytes"):
        resume.choose(path(other / "global_step_4"))
    with pytest.raises(ValueError, match="ends in global_step_N"):
        resume.choose(path(tmp_path))


def test_a_run_from_anothers_checkpoint_goes_on_from_its_own(config, folder, tmp_path):
    """Before, each start of the same command went back to the other run's, and the steps in between were lost."""
    write_checkpoint(tmp_path / "other", 4)
    given = config(resume_mode="resume_path", resume_from_path=str(tmp_path / "other" / "global_step_4"))
    assert resume.choose(given) == (6, [])
    resume.settle(given, 6, [])
    assert given.trainer.resume_mode == "auto"


@pytest.mark.parametrize(
    "step, settings, found",
    [(0, {}, False), (39, {}, False), (40, {}, True), (41, {}, True), (40, {"val_only": True}, False)],
)
def test_when_nothing_is_left_to_do(config, step, settings, found):
    assert resume.finished(config(**settings), step) is found
    assert resume.finished(config(total=None, **settings), step) is False
