"""Which checkpoints of a run are removed, and when."""

import inspect
import logging
import shutil
import threading
from pathlib import Path

import pytest

from srpo_recipe.records import checkpoint
from srpo_recipe.records.checkpoint import prune


def save(folder: Path, step: int, teacher: bool = True, finished: bool = True) -> Path:
    """A checkpoint as it lies on disk; one that was not finished has the actor's folder alone."""
    path = folder / f"global_step_{step}"
    for name in ["actor", *["teacher"] * (teacher and finished)]:
        (path / name).mkdir(parents=True)
        (path / name / "model_world_size_1_rank_0.pt").write_text("weights")
    if finished:
        (path / "data.pt").write_text("order")
    return path


def track(folder: Path, step: int) -> None:
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("global_step_")) for path in folder.glob("global_step_*"))


@pytest.fixture
def run(tmp_path) -> Path:
    """Checkpoints of steps 2, 4, 6, 8, 10, of which the last is the latest."""
    for step in (2, 4, 6, 8, 10):
        save(tmp_path, step)
    track(tmp_path, 10)
    return tmp_path


@pytest.mark.parametrize(
    "keep, left", [(1, [10]), (2, [8, 10]), (4, [4, 6, 8, 10]), (5, [2, 4, 6, 8, 10]), (9, [2, 4, 6, 8, 10])]
)
def test_the_newest_are_kept_and_the_oldest_go_first(run, keep, left):
    removed = prune(str(run), keep)  # as the config has it
    assert steps(run) == left
    assert removed == [run / f"global_step_{step}" for step in (2, 4, 6, 8, 10) if step not in left]
    assert {path.name for path in run.iterdir()} == {checkpoint.TRACKER, *(f"global_step_{step}" for step in left)}


@pytest.mark.parametrize("keep", [None, 0, -1])
def test_without_a_number_all_are_kept(run, keep):
    assert prune(run, keep) == [] and steps(run) == [2, 4, 6, 8, 10]


def test_killed_before_the_tracker_was_written_the_old_checkpoint_is_still_there(tmp_path):
    """With max_actor_ckpt_to_keep=1, at each point where saving step 4 may be cut."""
    save(tmp_path, 2)
    track(tmp_path, 2)
    new = tmp_path / "global_step_4"
    for part in ("actor", "teacher"):
        (new / part).mkdir(parents=True)
        assert prune(tmp_path, 1) == [] and steps(tmp_path) == [2, 4]
    (new / "data.pt").write_text("order")
    assert prune(tmp_path, 1) == [] and steps(tmp_path) == [2, 4]
    (tmp_path / checkpoint.TRACKER).write_text("")  # opened for writing
    assert prune(tmp_path, 1) == [] and steps(tmp_path) == [2, 4]
    track(tmp_path, 4)
    assert prune(tmp_path, 1) == [tmp_path / "global_step_2"] and steps(tmp_path) == [4]


def test_what_is_newer_than_the_tracker_is_neither_removed_nor_counted(run):
    track(run, 6)
    assert prune(run, 2) == [run / "global_step_2"] and steps(run) == [4, 6, 8, 10]


def test_an_incomplete_checkpoint_is_not_counted_and_goes_with_what_is_older_than_the_kept(run):
    save(run, 1, finished=False)
    save(run, 3, finished=False)
    save(run, 9, finished=False)
    shutil.rmtree(run / "global_step_6" / "actor")
    removed = prune(run, 3)  # complete are 10, 8, 4
    assert steps(run) == [4, 6, 8, 9, 10]
    assert [path.name for path in removed] == ["global_step_1", "global_step_2", "global_step_3"]
    prune(run, 2)
    assert steps(run) == [8, 9, 10]


def test_the_tracked_checkpoint_stays_even_if_it_is_incomplete(run):
    (run / "global_step_10" / "data.pt").unlink()
    prune(run, 1)
    assert steps(run) == [8, 10]  # 8 is the newest complete one


def test_nothing_is_removed_where_nothing_is_complete_or_tracked(tmp_path):
    save(tmp_path, 2, finished=False)
    save(tmp_path, 4, finished=False)
    assert prune(tmp_path, 1) == []
    track(tmp_path, 4)
    assert prune(tmp_path, 1) == [] and steps(tmp_path) == [2, 4]
    assert prune(tmp_path / "none", 1) == []


def test_a_method_without_a_teacher_has_complete_checkpoints(tmp_path):
    for step in (2, 4):
        save(tmp_path, step, teacher=False)
    track(tmp_path, 4)
    assert prune(tmp_path, 1) == [tmp_path / "global_step_2"]


def test_other_files_are_left_alone(run):
    for name in ("notes.txt", "global_step_2.bak", "global_step_", "exported"):
        (run / name).mkdir()
    prune(run, 1)
    assert {path.name for path in run.iterdir() if path.name not in (checkpoint.TRACKER, "global_step_10")} == {
        "notes.txt",
        "global_step_2.bak",
        "global_step_",
        "exported",
    }


def test_several_at_once_remove_each_folder_once(tmp_path):
    for step in range(1, 31):
        save(tmp_path, step)
    track(tmp_path, 30)
    found: list = []
    start = threading.Barrier(6)

    def one():
        start.wait()
        try:
            found.append(prune(tmp_path, 2))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [one for one in found if isinstance(one, Exception)], found
    assert sorted(path.name for one in found for path in one) == sorted(f"global_step_{step}" for step in range(1, 29))
    assert steps(tmp_path) == [29, 30] and len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_vanishes_meanwhile_is_fine(run, monkeypatch):
    rename = Path.rename

    def faster(path, target):
        shutil.rmtree(path)  # another process
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", faster)
    assert prune(run, 1) == [] and steps(run) == [10]


def test_a_removal_that_was_killed_is_finished_by_the_next(run):
    (run / "global_step_2").rename(run / ".global_step_2.removed")
    assert [path.name for path in prune(run, 4)] == []
    assert not (run / ".global_step_2.removed").exists() and steps(run) == [4, 6, 8, 10]


def test_a_checkpoint_that_cannot_be_removed_is_a_warning(run, monkeypatch, caplog):
    def denied(path, target):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "rename", denied)
    with caplog.at_level(logging.WARNING):
        assert prune(run, 4) == []
    assert "global_step_2" in caplog.text and "Permission denied" in caplog.text and steps(run) == [2, 4, 6, 8, 10]


def test_verl_writes_the_tracker_last():
    """What makes the tracked checkpoint a whole one."""
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer

    source = inspect.getsource(PPOTrainer._save_checkpoint)
    places = [source.index(part) for part in (".save_checkpoint(", '"data.pt"', f'"{checkpoint.TRACKER}"')]
    assert places == sorted(places) and source.rindex(".save_checkpoint(") < places[-1]
