"""How a checkpoint is written so that it is whole or not there, which are whole, and which are removed, and when."""

import errno
import inspect
import json
import logging
import os
import re
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import write_checkpoint, write_files
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from srpo_recipe.records import checkpoint, manifest
from srpo_recipe.records.checkpoint import newest_whole, pointer, prune
from srpo_recipe.training import lifecycle
from srpo_recipe.training.step import SRPOTrainer

REAL_SAVE = PPOTrainer._save_checkpoint


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


# ------------------------------------------------------------------------------------------------- whole, or not there


class Workers:
    """The ranks' part of a save, as worker.py has it, on one rank."""

    discard = staticmethod(checkpoint.discard)
    publish = staticmethod(checkpoint.publish)
    prune = staticmethod(checkpoint.prune)


def trainer_at(folder: Path, step: int, keep: int | None = 1) -> SRPOTrainer:
    made = SRPOTrainer.__new__(SRPOTrainer)
    section = {"default_local_dir": str(folder), "max_actor_ckpt_to_keep": keep}
    made.config, made.global_steps, made.actor_rollout_wg = OmegaConf.create({"trainer": section}), step, Workers()
    made.told = []
    made.checkpoint_callback = SimpleNamespace(on_save=lambda **event: made.told.append(event["checkpoint_dir"]))
    return made


@pytest.fixture(autouse=True)
def verls(monkeypatch):
    """verl's own part of a save: the files of one rank, data.pt, the tracker, and whoever wants to be told."""

    def save(self):
        folder = Path(self.config.trainer.default_local_dir)
        write_files(folder / f"global_step_{self.global_steps}", step=self.global_steps)
        (folder / checkpoint.TRACKER).write_text(str(self.global_steps))
        self.checkpoint_callback.on_save(
            trainer=self, global_step=self.global_steps, checkpoint_dir=str(folder), async_save=False
        )

    monkeypatch.setattr(PPOTrainer, "_save_checkpoint", save)


def test_a_save_ends_with_a_whole_checkpoint_and_nothing_beside_it(tmp_path):
    trainer = trainer_at(tmp_path, 4)
    write_checkpoint(tmp_path, 2)
    trainer._save_checkpoint()
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint.TRACKER, "global_step_4"}
    assert pointer(tmp_path) == 4 and manifest.damage(tmp_path / "global_step_4", teacher=True) == []
    assert trainer.told == [str(tmp_path / "global_step_4")] and trainer.saved_step == 4
    assert trainer.config.trainer.default_local_dir == str(tmp_path)


def test_verl_asks_the_config_where_to_write():
    """What writing beside the place leans on: every path of a save comes from default_local_dir, and one callback is told."""
    source = inspect.getsource(REAL_SAVE)
    assert (
        source.count("self.config.trainer.default_local_dir") == 2
        and source.count("self.checkpoint_callback.on_save(") == 2
    )
    places = [source.index(part) for part in (".save_checkpoint(", '"data.pt"', f'"{checkpoint.TRACKER}"')]
    assert places == sorted(places) and source.rindex(".save_checkpoint(") < places[-1]


def killed_at(operation: int, folder: Path, work) -> bool:
    """Do `work` in a process that ends, as by SIGKILL, before its file operation of this number in the folder. Returns whether it
    came so far: False when the work was done before.
    """
    child = os.fork()
    if child == 0:
        seen = [0]

        def audit(event, arguments):
            of_files = event in ("open", "shutil.rmtree") or event.startswith("os.")
            if of_files and any(str(folder) in str(one) for one in arguments):
                seen[0] += 1
                if seen[0] > operation:
                    os._exit(9)

        try:
            sys.addaudithook(audit)
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), f"the save raised at operation {operation}"
    return status == 9


@pytest.mark.parametrize("earlier, keep", [([], 1), ([2], 1), ([2, 4], 2)])
def test_killed_at_any_file_operation_a_whole_checkpoint_is_there(tmp_path, earlier, keep):
    """Before, a kill between the actor's and the teacher's save left nothing to resume from with one checkpoint kept."""
    operations, cut = 0, True
    while cut:
        folder = tmp_path / f"at-{operations}"
        for step in earlier:
            write_checkpoint(folder, step)
        folder.mkdir(exist_ok=True)
        cut = killed_at(operations, folder, trainer_at(folder, 6, keep)._save_checkpoint)
        if earlier:
            named = pointer(folder)
            assert named in (earlier[-1], 6), operations
            assert manifest.damage(folder / f"global_step_{named}", teacher=True) == [], operations
        left = newest_whole(folder, teacher=True)
        assert left in (None, *earlier, 6) and (left or not earlier), operations
        # the next start saves again, and nothing of the cut save is left
        trainer_at(folder, 8 if left == 6 else 6, keep)._save_checkpoint()
        found = {path.name for path in folder.iterdir()}
        kept = sorted({*earlier, *[6] * (left == 6), 8 if left == 6 else 6})[-keep:]
        assert found == {checkpoint.TRACKER, *(f"global_step_{step}" for step in kept)}, operations
        shutil.rmtree(folder)
        operations += 1
    assert operations > 25


def test_a_full_disk_leaves_nothing_half_and_says_what_is_left(tmp_path, monkeypatch):
    reports: list[str] = []
    monkeypatch.setattr(lifecycle, "report", reports.append)

    def full(self):
        write_files(Path(self.config.trainer.default_local_dir) / "global_step_4", teacher=False)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PPOTrainer, "_save_checkpoint", full)
    write_checkpoint(tmp_path, 2)
    trainer = trainer_at(tmp_path, 4)
    with pytest.raises(RuntimeError) as error:
        trainer._save_checkpoint()
    text = str(error.value)
    for part in (
        "step 4 could not be written",
        "No space left on device",
        "GiB free",
        f"{tmp_path}/global_step_2",
        "keep=1",
    ):
        assert part in text
    assert reports[0].startswith(f"The run ended: {text}\nStage: saving after step 4\n")  # what the driver prints last
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint.TRACKER, "global_step_2"}
    assert pointer(tmp_path) == 2 and trainer.config.trainer.default_local_dir == str(tmp_path)


def test_torchs_words_for_a_full_disk_are_not_ours(tmp_path, monkeypatch):
    """torch.save on a disk without room, as it was seen: "unexpected pos 128 vs 0"."""
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 0")
    space = SimpleNamespace(f_bavail=3, f_frsize=4096)
    assert "unexpected pos 128" in checkpoint.not_written(tmp_path, 4, error)
    monkeypatch.setattr(checkpoint.os, "statvfs", lambda path: space)
    text = checkpoint.not_written(tmp_path, 4, error)
    assert text.startswith(
        "the checkpoint of step 4 could not be written: the disk has no space left (0.00 GiB free at "
    )
    quota = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "x")
    assert os.strerror(errno.EDQUOT) in checkpoint.not_written(tmp_path, 4, quota)


def test_checkpoints_of_earlier_starts_count(tmp_path):
    """Before, nine starts with keep=2 left eighteen."""
    for start in range(9):
        for step in (2 * start + 1, 2 * start + 2):
            trainer_at(tmp_path, step, keep=2)._save_checkpoint()
    assert checkpoint.steps(tmp_path) == [17, 18]


# ------------------------------------------------------------------------------------------------------------- damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


SHARD = "actor/model_world_size_1_rank_0.pt"
DAMAGES = {
    "a cut shard": (lambda path: cut(path / SHARD), f"{SHARD} has"),
    "an altered shard": (lambda path: altered(path / SHARD), f"{SHARD} has other bytes than were written"),
    "an empty teacher": (
        lambda path: (path / "teacher" / SHARD[6:]).write_bytes(b""),
        "teacher/.* has 0 bytes instead of",
    ),
    "no teacher": (lambda path: shutil.rmtree(path / "teacher"), "teacher/.* is missing"),
    "no data.pt": (lambda path: (path / "data.pt").unlink(), "data.pt is missing"),
    "a cut manifest": (lambda path: cut(path / manifest.NAME), "manifest.json cannot be read"),
    "a manifest of something else": (
        lambda path: (path / manifest.NAME).write_text("[]"),
        "manifest.json cannot be read",
    ),
    "nothing": (shutil.rmtree, "is not there"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_found_with_the_file(tmp_path, kind):
    """Before, a traceback of torch after minutes, or another order of the data after one line."""
    damage, says = DAMAGES[kind]
    write_checkpoint(tmp_path, 2)
    path = write_checkpoint(tmp_path, 4)
    assert manifest.damage(path, teacher=True) == [] and newest_whole(tmp_path) == 4
    damage(path)
    (found,) = manifest.damage(path, teacher=True)
    assert re.search(says, found), found
    assert newest_whole(tmp_path) == 2


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if "manifest" not in kind and "altered" not in kind])
def test_damage_of_a_checkpoint_without_a_manifest_is_found(tmp_path, kind):
    """verl's own, and those of earlier versions: by their shards."""
    path = write_checkpoint(tmp_path, 4, sealed=False)
    assert manifest.damage(path, teacher=True) == []
    DAMAGES[kind][0](path)
    assert len(manifest.damage(path, teacher=True)) == 1


def test_a_shard_of_a_rank_that_is_missing_is_named(tmp_path):
    path = write_checkpoint(tmp_path, 4, ranks=2, sealed=False)
    (path / "actor" / "model_world_size_2_rank_1.pt").unlink()
    assert manifest.damage(path) == [f"{path}/actor/model_world_size_2_rank_1.pt is missing"]
    assert manifest.ranks(path) == 2


def test_a_teacher_is_asked_for_where_the_method_has_one(tmp_path):
    path = write_checkpoint(tmp_path, 4, teacher=False)
    assert manifest.damage(path) == []
    assert "without an EMA teacher" in manifest.damage(path, teacher=True)[0]
    assert newest_whole(tmp_path) == 4 and newest_whole(tmp_path, teacher=True) is None


def test_of_a_large_file_the_ends_are_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "WHOLE_BYTES", 100)
    monkeypatch.setattr(manifest, "END_BYTES", 40)
    write_files(tmp_path / "global_step_2")
    large = tmp_path / "global_step_2" / "actor" / "large.bin"
    large.write_bytes(bytes(1000))
    manifest.seal(tmp_path / "global_step_2", 2)
    entry = json.loads((tmp_path / "global_step_2" / manifest.NAME).read_text())["files"]["actor/large.bin"]
    assert entry["bytes"] == 1000 and "ends" in entry and "sha256" not in entry
    for place, found in ((10, True), (990, True), (500, False)):
        content = bytearray(1000)
        content[place] = 1
        large.write_bytes(content)
        assert bool(manifest.damage(tmp_path / "global_step_2")) == found


@pytest.mark.parametrize(
    "text, says", [("", "is empty"), ("abc", "names no step: it holds 'abc'"), ("-1", "names no step")]
)
def test_a_pointer_that_names_no_step_is_an_error(tmp_path, text, says):
    assert pointer(tmp_path) is None
    (tmp_path / checkpoint.TRACKER).write_text(text)
    with pytest.raises(ValueError, match=says):
        pointer(tmp_path)
