"""The study of docs/study.md: its protocol, its choices, its claims against numbers worked out by hand, and its book of runs."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from srpo_recipe.records.files import sha256
from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.rules import check
from srpo_recipe.starter import picks, sums
from srpo_recipe.starter.tiny.__main__ import parse
from srpo_recipe.starter.tiny.acceptance import ACCEPTANCE_PICKS

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import study  # noqa: E402
import study_book  # noqa: E402
import study_claims  # noqa: E402
import study_model  # noqa: E402
import study_protocol  # noqa: E402
import study_records  # noqa: E402
import study_report  # noqa: E402
import study_runs  # noqa: E402
from study_claims import OPEN, REFUTED, SHOWN  # noqa: E402
from study_protocol import ARMS, CHOOSE, QUICK, REPORT, STUDY, Run  # noqa: E402
from study_records import ENDED, FAILED, Measured, Records  # noqa: E402

PAGE = (ROOT / "docs" / "study.md").read_text()
CHOSEN = {(task, arm): 1e-4 for task, plan in STUDY.tasks for arm in plan.tuned}
KEY = "val-core/sums/acc/mean@2"


# -------------------------------------------------------------------------------------------------------- the protocol


def test_the_runs_are_those_of_the_page():
    choosing, reporting = list(study_protocol.choosing(STUDY)), list(study_protocol.reporting(STUDY, CHOSEN))
    assert len(choosing) == 4 * (5 + 2) and {run.seed for run in choosing} == {101}
    assert len(reporting) == 6 * 5 + 2 * 3 + 3 * 3 and 101 not in {run.seed for run in reporting}
    assert len({run.folder(Path("x")) for run in choosing + reporting}) == len(choosing) + len(reporting)
    assert {run.arm for run in reporting if run.task == "picks"} == {"grpo1", "srpo", "srpo_no_dw"}
    # Seed by seed, so that what is compared runs under like conditions.
    of_sums = [run.seed for run in reporting if run.task == "sums"]
    assert of_sums == sorted(of_sums)
    for text in ("120 steps; sums with seeds 1 to 5", "steps 30 and 40 of a run of 40 steps with seed 101"):
        assert text in " ".join(PAGE.split())
    assert (STUDY.early, STUDY.late, STUDY.judged) == ((10, 20, 30), (110, 120), (30, 40))


def test_it_fits_into_five_hours():
    assert 3 < study.estimate(STUDY, study.whole(STUDY), 2) < 5


@pytest.mark.parametrize(
    "run, wanted",
    [
        (Run(CHOOSE, "sums", "grpo4", 3e-5, 101, 40), ("grpo", 2, 1.0, "validation", False)),
        (Run(REPORT, "sums", "grpo1", 1e-3, 4, 120), ("grpo", 8, 1.0, "test", True)),
        (Run(REPORT, "picks", "srpo_no_dw", 3e-4, 2, 120), ("srpo", 8, 0.0, "test", True)),
        (Run(REPORT, "sums", "sdpo_correct_only", 1e-4, 1, 120), ("sdpo_correct_only", 8, 0.0, "test", True)),
    ],
)
def test_a_run_is_configured_as_the_page_says(run, wanted):
    config = compose_config(study_protocol.overrides(run, STUDY, Path("/out")))
    assert check(config)
    route, prompts, beta, split, before = wanted
    actor = config.actor_rollout_ref.actor
    assert (config.srpo.route, actor.ppo_mini_batch_size, config.srpo.beta) == (route, prompts, beta)
    assert (actor.optim.lr, actor.optim.lr_warmup_steps, config.srpo.seed) == (run.rate, 10, run.seed)
    assert config.data.val_files == f"/out/data/{run.task}/{split}.parquet"
    assert config.data.train_files == f"/out/data/{run.task}/train.parquet"
    assert (config.trainer.val_before_train, config.trainer.total_training_steps) == (before, run.steps)
    assert config.run.dir == f"/out/{run.stage}-{run.task}/{run.name}" and config.task.name == run.task
    assert config.actor_rollout_ref.rollout.n == 8 and config.data.train_batch_size == 8
    assert ("tiny_picks" in config.actor_rollout_ref.model.path) == (run.task == "picks")


@pytest.mark.parametrize("task", [sums, picks])
def test_the_three_splits_share_no_problem_in_any_order(task, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    paths = task.write_parquet(tmp_path, train_size=600, test_size=200, seed=0, validation_size=200)
    problems = {}
    for split, path in paths.items():
        turns = [row["prompt"][0]["content"] for row in pq.read_table(path).to_pylist()]
        problems[split] = {tuple(sorted(re.findall(r"\d+", turn.removesuffix("=?")))) for turn in turns}
        assert len(problems[split]) == len(turns) == (600 if split == "train" else 200)
    assert set(problems) == {"train", "validation", "test"}
    assert not problems["train"] & problems["test"] and not problems["validation"] & (
        problems["train"] | problems["test"]
    )
    # The model's warm start draws from the training problems, of which there is no held-out one in three parts either.
    if task is sums:
        for split in ("validation", "test"):
            assert {sums.split_of(tuple(map(int, terms))) for terms in problems[split]} == {"test"}


# ----------------------------------------------------------------------------------------------------------- the claims


def lines(accuracy: dict[int, float], length=10.0, seconds=1.0, steps: int = 120) -> list[dict]:
    """The metrics of a run with these test accuracies; length and seconds: numbers, or functions of the step."""

    def at(value, step):
        return value(step) if callable(value) else value

    found = [
        {"step": step, "route/response_length": at(length, step), "timing_s/step": at(seconds, step) + 0.5}
        | {"timing_s/save_checkpoint": 0.25, "timing_s/samples": 0.25}
        | ({KEY: accuracy[step]} if step in accuracy else {})
        for step in range(1, steps + 1)
    ]
    return [{"step": 0, KEY: accuracy[0]}, *found] if 0 in accuracy else found


def measured(accuracy: dict[int, float], failed: bool = False, **more) -> Measured:
    length, seconds, model = (
        more.pop(name, default) for name, default in (("length", 10.0), ("seconds", 1.0), ("model", None))
    )
    return Measured(*study_records.kept(lines(accuracy, length, seconds)).values(), failed, model, **more)


def number(name: str, arms: dict[str, Measured], grpo: str = "grpo1") -> float | None:
    """The claim's number where seed 1 alone is there."""
    claim = next(one for one in study_claims.claims(STUDY, grpo) if one.name.startswith(name))
    runs = {(REPORT, claim.task, arm): {1: run} for arm, run in arms.items()}
    found = study_claims.differences(claim, runs, STUDY)
    return found[0] if found else None


def test_early_speed_and_late_stability():
    sdpo = measured({10: 0.5, 20: 0.7, 30: 0.9, 110: 0.3, 120: 0.1})
    grpo = measured({10: 0.4, 20: 0.5, 30: 0.6, 110: 0.6, 120: 0.8})
    srpo = measured({10: 0.4, 20: 0.7, 30: 0.8, 110: 0.8, 120: 0.9})
    arms = {"sdpo": sdpo, "grpo1": grpo, "srpo": srpo, "advantage_mix": grpo}
    assert number("1.", arms) == pytest.approx(0.7 - 0.5)
    assert number("2.", arms) == pytest.approx(0.85 - 0.2)
    assert number("3a.", arms) == pytest.approx(0.85 - 0.7)
    assert number("beside: SRPO and GRPO", arms) == pytest.approx(0.85 - 0.7)
    assert number("3b.", arms) is None and number("1.", arms, grpo="grpo4") is None  # an arm that is not there


def test_lengths_are_those_of_the_last_steps_and_the_smaller_gap_counts():
    def late(value):
        return lambda step: value if step > 100 else 1000.0

    arms = {
        "grpo1": measured({}, length=late(30)),
        "srpo": measured({}, length=late(25)),
        "sdpo": measured({}, length=late(22)),
    }
    assert number("4.", arms) == pytest.approx(3)
    arms["grpo1"] = measured({}, length=late(20))
    assert number("4.", arms) == pytest.approx(-5)


def test_cost_crosses_when_it_is_dearer_at_first_and_cheaper_at_the_end():
    """Seconds without the half second of checkpoint and samples; the first step, which warms up, is left out."""

    def seconds(first, last):
        return lambda step: 100.0 if step == 1 else first if step <= 10 else last if step > 100 else 50.0

    grpo = measured({}, seconds=seconds(1.0, 2.0))
    assert number("5.", {"grpo4": grpo, "srpo": measured({}, seconds=seconds(1.2, 1.5))}) == pytest.approx(np.log(1.2))
    assert number("5.", {"grpo4": grpo, "srpo": measured({}, seconds=seconds(1.5, 1.8))}) == pytest.approx(
        np.log(2 / 1.8)
    )
    fast = measured({}, seconds=seconds(0.8, 1.0))
    assert number("5.", {"grpo4": grpo, "srpo": fast}) == pytest.approx(np.log(0.8))
    elsewhere = replace(fast, conditions=("another machine", 2))  # whose seconds are not compared
    assert number("5.", {"grpo4": grpo, "srpo": elsewhere}) is None
    assert number("5.", {"grpo4": replace(grpo, conditions=("another machine", 2)), "srpo": elsewhere}) is not None


def test_runs_from_two_models_give_no_number():
    one, same, other = (measured({110: 0.8, 120: 0.8}, model=model) for model in ("a", "a", "b"))
    assert number("3b.", {"srpo": one, "srpo_no_dw": same}) == 0
    assert number("3b.", {"srpo": one, "srpo_no_dw": other}) is None


def test_a_failed_run_counts_with_nothing_and_an_unfinished_one_does_not_count():
    whole, half = {110: 0.8, 120: 0.9}, {110: 0.6}
    assert number("2.", {"srpo": measured(whole), "sdpo": measured(half, failed=True)}) == pytest.approx(0.85 - 0.3)
    assert number("2.", {"srpo": measured(whole), "sdpo": measured({}, failed=True)}) == pytest.approx(0.85)
    assert number("2.", {"srpo": measured(whole), "sdpo": measured(half)}) is None
    good = {"grpo1": measured(whole), "grpo4": measured(whole), "srpo": measured(whole), "sdpo": measured(whole)}
    late = {**good, "sdpo": measured(whole, failed=True), "grpo4": measured(whole, failed=True)}
    assert number("4.", good) is not None and number("5.", good) is not None
    assert number("4.", late) is None and number("5.", late) is None


def test_the_verdicts():
    assert study_claims.verdict([0.1, 0.2, 0.3, 0.1, 0.2]) == SHOWN
    assert study_claims.verdict([-0.1, -0.2, -0.3]) == REFUTED
    assert study_claims.verdict([0.5, -0.4, 0.6, -0.5, 0.1]) == OPEN
    assert study_claims.verdict([0.1, 0.2]) == OPEN and study_claims.verdict([]) == OPEN
    # In fractions the lower end is 3 x -2 + 2 x 3 = 0; made of these doubles it lay 2e-17 above it.
    ours, theirs = np.array([700, *[703] * 4]) / 768, np.array([702, *[700] * 4]) / 768
    found = (ours - theirs).tolist()
    assert study_claims.interval(found)[0] == 0 and study_claims.verdict(found) == OPEN
    for word in (SHOWN, REFUTED, OPEN):
        assert f"**{word}**" in PAGE


def test_the_interval_is_that_of_very_many_draws():
    values = np.array([0.1, -0.2, 0.35, 0.4, 0.05])
    drawn = np.random.default_rng(0).choice(values, (400_000, 5)).mean(1)
    assert study_claims.interval(values.tolist()) == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=2e-3)
    assert study_claims.interval([0.3, 0.3, 0.3]) == pytest.approx((0.3, 0.3))


@pytest.mark.parametrize("seeds, covered", [(5, 0.85), (3, 0.75)])
def test_how_often_such_an_interval_holds_the_mean(seeds, covered):
    """What the page says of it, for normal numbers: 4,000 samples, whose share is known to about 0.007."""
    assert f"{covered:.0%}".replace("%", " %") in PAGE
    samples = np.random.default_rng(1).normal(size=(4000, seeds))
    picked = np.stack(np.meshgrid(*[np.arange(seeds)] * seeds, indexing="ij"), -1).reshape(-1, seeds)
    weights = np.stack([(picked == place).mean(1) for place in range(seeds)])
    low, high = np.percentile(samples @ weights, (2.5, 97.5), axis=1, method="inverted_cdf")
    assert study_claims.interval(samples[0].tolist()) == pytest.approx((low[0], high[0]))
    assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(covered, abs=0.02)


# ----------------------------------------------------------------------------------------------------- the choice, the book


ABOUT = {
    "attempts": 1,
    "seconds": 300,
    "finished": "2026-01-02 10:00",
    "commit": "abc",
    "machine": "2 cores",
    "at_a_time": 2,
}


def record(records: Records, run: Run, accuracy: dict[int, float], **more) -> None:
    """The record that the run leaves."""
    records.write(run, lines(accuracy, steps=run.steps), **{"status": ENDED, **ABOUT, **more})


def test_the_best_rate_on_validation_is_chosen_and_the_smallest_of_equal_ones(tmp_path):
    records = Records(tmp_path, STUDY)
    values = {3e-5: 0.5, 1e-4: 0.8, 3e-4: 0.8, 1e-3: 0.2}
    for run in study_protocol.choosing(STUDY):
        if run.arm in ("srpo", "grpo1", "grpo4") and run.task == "sums" and (run.arm != "grpo4" or run.rate < 1e-3):
            gain = 0.1 if run.arm == "grpo1" else 0.0
            record(records, run, {10: 1.0, 30: values[run.rate] + gain, 40: values[run.rate] + gain})
    found = study_claims.choices(study_records.measured(records.all()), STUDY)
    assert found["sums", "srpo"]["chosen"] == 1e-4 and found["sums", "grpo1"]["chosen"] == 1e-4
    assert found["sums", "grpo4"]["chosen"] is None  # one of its runs is not there yet
    assert found["sums", "grpo1"]["by_rate"][1e-4] == pytest.approx(0.9)
    assert study_claims.better_grpo(found) == "grpo1" and study_claims.better_grpo({}) == "grpo4"


# ---------------------------------------------------------------------------------------------------------- the records

ONE = Run(REPORT, "sums", "srpo", 1e-4, 1, 120)


def test_a_record_keeps_what_is_judged_and_no_more(tmp_path):
    of = lines({0: 0.5, 60: 0.75, 120: 1 - 1 / 256}, length=lambda step: 26.123456 + step)
    of[1] |= {"actor/distill/teacher_entropy": 0.123456, "actor/grad_norm": 3.0}
    records = Records(tmp_path, STUDY)
    records.write(ONE, of, status=ENDED, **ABOUT)
    text = (tmp_path / "report-sums" / "srpo-lr0.0001-seed1.json").read_text()
    assert "grad_norm" not in text and str(ROOT) not in text and len(text) < 4000
    ((run, kept),) = records.all()
    assert run == ONE and records.find(ONE) == kept and kept["commit"] == "abc"
    assert (
        "trainer.total_training_steps=120" in kept["command"]
        and "run.root=outputs/study/report-sums" in kept["command"]
    )
    found = study_records.measured(records.all())[REPORT, "sums", "srpo"][1]
    assert found.accuracies == {0: 0.5, 60: 0.75, 120: 1 - 1 / 256} and found.entropies == {1: 0.1235}
    assert found.length(2, 4) == pytest.approx(29.12) and found.seconds(101, 120) == 1.0 and not found.failed


def test_all_records_of_the_study_are_small():
    """About 4 kB a run of 120 steps."""
    tests = dict.fromkeys(range(0, 121, 10), 0.99609375)
    with_entropy = [one | {"actor/distill/teacher_entropy": 0.1234} for one in lines(tests)]
    assert (
        len(json.dumps([list(of.values()) for of in study_records.kept(with_entropy).values()]))
        * len(study.whole(STUDY))
        < 300_000
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"protocol": {**study_protocol.settings(STUDY), "choose_steps": 20}},
            r"another protocol, choose_steps 20 \(here 40\)",
        ),
        ({"protocol": study_protocol.settings(QUICK)}, r"another protocol, rates .* sizes \[64, 8, 8\] \(here"),
        ({"rate": 3e-4}, "holds the record of report-sums/srpo-lr0.0003-seed1"),
        ({"steps": 60}, "no run of the protocol"),
        ({"command": "bash scripts/train.sh method=grpo"}, "made by another command, which differs in .*method=grpo"),
        ({"length": None}, "lacks length"),
    ],
)
def test_a_record_of_something_else_is_refused_by_its_name(tmp_path, change, message):
    records = Records(tmp_path, STUDY)
    record(records, ONE, {0: 0.5})
    path = records.path(ONE)
    written = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: value for name, value in written.items() if value is not None}))
    for reading in (records.all, lambda: records.find(ONE)):
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))} .*{message}"):
            reading()


def test_a_torn_record_and_a_run_that_is_none_are_refused(tmp_path):
    records = Records(tmp_path, STUDY)
    records.path(ONE).parent.mkdir(parents=True)
    records.path(ONE).write_text('{"stage": ')
    with pytest.raises(ValueError, match="seed1.json cannot be read .*: remove it, and its run is made again"):
        records.find(ONE)
    records.path(ONE).unlink()
    record(records, replace(ONE, seed=6), {0: 0.5})
    with pytest.raises(ValueError, match="seed6.json is no run of the protocol"):
        records.all()


def test_a_reported_run_at_another_rate_than_the_chosen_one_is_refused(tmp_path):
    records = Records(tmp_path / "study", STUDY)
    for run in study_protocol.choosing(STUDY):
        record(records, run, {30: 0.5, 40: 0.9 if run.rate == 3e-4 else 0.5})
    assert set(study.rates(STUDY, records).values()) == {3e-4}
    record(records, replace(ONE, arm="srpo_no_dw"), {0: 0.5})
    for refused in (lambda: study.rates(STUDY, records), lambda: study_report.write(records, tmp_path)):
        with pytest.raises(
            ValueError, match="report-sums/srpo_no_dw-lr0.0001-seed1.json: another rate than the chosen"
        ):
            refused()


def test_what_is_left_is_what_has_no_record(tmp_path, capsys):
    records = Records(tmp_path, STUDY)
    assert len(study.left(STUDY, records)) == len(study.whole(STUDY)) == 73
    record(records, ONE, {0: 0.5}, status=FAILED)
    record(records, next(study_protocol.choosing(STUDY)), {30: 0.5})
    assert len(study.left(STUDY, records)) == 71 and len(study.left(STUDY, records, retry=True)) == 72
    study.plan(STUDY, records, Path("x"), 2)
    printed = capsys.readouterr().out
    assert (
        printed.count("done ") == 2 and printed.count("left  bash scripts/train.sh") == 71 and "71 are left" in printed
    )


def test_a_quick_try_stays_away_from_the_real_records(tmp_path):
    def folder(*words: str) -> Path:
        return study.checked(study.parser().parse_args([*words]))

    assert folder("report") == ROOT / "docs" / "results"
    assert folder("run", "--quick", "--out", str(tmp_path)) == tmp_path / "results"
    with pytest.raises(SystemExit, match="--quick does not write to .*results"):
        folder("report", "--quick", "--results", str(ROOT / "docs" / ".." / "docs" / "results"))
    record(Records(tmp_path / "study", STUDY), ONE, {0: 0.5})  # and where it meets them, it refuses them
    command = [
        sys.executable,
        "benchmarks/study.py",
        "run",
        "--quick",
        "--out",
        str(tmp_path),
        "--results",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (
        done.returncode == 1
        and "seed1.json is of another protocol, rates" in done.stderr
        and "Traceback" not in done.stderr
    )


# ------------------------------------------------------------------------------------------------------------- the runs


@pytest.fixture
def fake(monkeypatch):
    """Runs that a line of shell stands for: it appends to a file, and does what the run's seed or rate says."""

    def command(run, protocol, out):
        folder = run.folder(out)
        done = f"mkdir -p {folder}; echo begun >> {folder}/starts; "
        summary = f"echo '{{\"steps\": {run.steps}}}' > {folder}/summary.json"
        if run.seed == 7:  # fails always
            return ["bash", "-c", done + f"echo The run ended: it broke in {folder.parent}; echo more; exit 3"]
        if run.seed == 9:  # dies behind its last checkpoint; started again, it says that it is finished
            died, tracker = f"{folder}.died", f"{folder}/checkpoints/latest_checkpointed_iteration.txt"
            first = f"mkdir -p {folder}/checkpoints; touch {died}; echo {run.steps} > {tracker}; exit 1"
            return ["bash", "-c", done + f"[ -e {tracker} ] && exit 0; [ -e {died} ] || {{ {first}; }}; {summary}"]
        if run.seed == 10:  # comes to step 3, then from a checkpoint to step 2
            last = f"$((4 - $(wc -l < {folder}/starts)))"
            line = f'{{\\"step\\": $s, \\"{KEY}\\": 0.$s}}'
            return [
                "bash",
                "-c",
                done + f'for s in $(seq {last}); do echo "{line}"; done > {folder}/metrics.jsonl; exit 1',
            ]
        if run.seed == 8:  # fails once
            return ["bash", "-c", done + f"[ $(wc -l < {folder}/starts) -ge 2 ] && {summary} || exit 1"]
        return ["bash", "-c", done + (f"sleep {run.rate}; " if run.rate >= 1 else "") + summary]

    monkeypatch.setattr(study_runs, "command", command)
    return command


def starts(run: Run, out: Path) -> int:
    return len((run.folder(out) / "starts").read_text().split())


def runner(folder: Path, runs: list[Run], until: float = float("inf"), retry: bool = False, out: str = "out"):
    """For runs of QUICK, with seeds 1, 2 and 7 to 10."""
    plan = replace(QUICK.tasks[0][1], seeds=(1, 2, 7, 8, 9, 10))
    protocol = replace(QUICK, tasks=(("sums", plan),))
    book, records = study_runs.Book(folder / out, protocol), Records(folder / "study", protocol)
    return study_runs.Runner(book, records, study_runs.Progress(protocol, len(runs), runs, 2), 2, until, retry)


def reported(*seeds: int) -> list[Run]:
    return [Run(REPORT, "sums", "srpo", 1e-4, seed, 4) for seed in seeds]


def test_runs_end_once_are_tried_twice_and_stay_failed(tmp_path, fake, capsys):
    runs, out = reported(1, 7, 8), tmp_path / "out"
    first = runner(tmp_path, runs)
    assert first.all(runs)
    assert [starts(run, out) for run in runs] == [1, 2, 2]
    kept = [first.records.find(run) for run in runs]
    assert [one["status"] for one in kept] == [ENDED, FAILED, ENDED] and [one["attempts"] for one in kept] == [1, 2, 2]
    assert (kept[1]["exit"], kept[1]["said"]) == (3, "The run ended: it broke in outputs/study/report-sums")
    assert str(tmp_path) not in json.dumps(kept) and all(one["commit"] and one["machine"] for one in kept)
    assert json.loads((out / "manifest.json").read_text())["runs"][study_records.key(runs[1])]["log"]
    printed = capsys.readouterr().out
    assert "run 1 of 3, report-sums/srpo-lr0.0001-seed1: begun" in printed
    assert re.search(r"seed7: FAILED \(3: The run ended: it broke .*\) after \d+ s; \d left, about 0.0 hours", printed)
    again = runner(tmp_path, runs)
    assert again.all(runs) and [starts(run, out) for run in runs] == [1, 2, 2]  # left alone
    assert not runner(tmp_path, runs, until=0.0, retry=True).all(runs)  # a failed run that is not tried again yet
    assert runner(tmp_path, runs, retry=True).all(runs) and [starts(run, out) for run in runs] == [1, 4, 2]


def test_a_run_that_dies_behind_its_last_checkpoint_is_made_again(tmp_path, fake):
    """Started again it says that it is finished, and lacks the metrics of its last step."""
    (one,) = runs = reported(9)
    first = runner(tmp_path, runs)
    assert first.all(runs) and (tmp_path / "out" / "report-sums" / f"{one.name}.died").exists()
    assert first.records.find(one)["status"] == ENDED and first.records.find(one)["attempts"] == 2


def test_a_failed_run_keeps_what_any_attempt_reached(tmp_path, fake):
    (one,) = runs = reported(10)
    first = runner(tmp_path, runs)
    assert first.all(runs) and first.records.find(one)["status"] == FAILED
    assert first.records.find(one)["accuracy"] == {"1": 0.1, "2": 0.2, "3": 0.3}


def test_seconds_under_changing_conditions_are_of_no_like_run(tmp_path, fake, monkeypatch):
    """A run that goes on alone, or is taken up with another number side by side."""
    monkeypatch.setattr(study_book, "ALONE", 2.0)
    long, short = replace(reported(1)[0], rate=5.0), replace(reported(2)[0], rate=1.0)
    first = runner(tmp_path, [long, short])
    assert first.all([long, short])
    sides = [first.records.find(run)["at_a_time"] for run in (long, short)]
    assert re.fullmatch(r"2, fewer for [345] s", sides[0]) and sides[1] == 2
    found = study_records.measured([(run, first.records.find(run)) for run in (long, short)])
    assert [one.conditions[1:] for one in found[REPORT, "sums", "srpo"].values()] == [(), (2,)]
    both = {"at_a_time": [2, 1], "machine": [], "fewer_seconds": 0.0}
    assert study_book.side_by_side(both) == "2 then 1"


def test_what_is_recorded_is_not_run_again_where_the_folder_is_lost(tmp_path, fake):
    runs = reported(1, 7, 2)
    assert not runner(tmp_path, runs, until=0.0).all(runs)
    assert runner(tmp_path, runs[:2]).all(runs[:2])
    before = {path: path.read_text() for path in (tmp_path / "study").rglob("*.json")}
    assert runner(tmp_path, runs, out="elsewhere").all(runs)
    assert [run.folder(tmp_path / "elsewhere").exists() for run in runs] == [False, False, True]
    assert (
        len(before) == 2 and before.items() <= {p: p.read_text() for p in (tmp_path / "study").rglob("*.json")}.items()
    )


def test_a_run_whose_record_was_removed_is_made_again(tmp_path, fake):
    (failed,) = runs = reported(7)
    first = runner(tmp_path, runs)
    assert first.all(runs)
    first.records.path(failed).unlink()
    assert runner(tmp_path, runs).all(runs) and starts(failed, tmp_path / "out") == 4


def test_an_ended_run_without_a_record_gets_it_from_its_folder(tmp_path, fake):
    """The study was killed between the two."""
    (one,) = runs = reported(1)
    first = runner(tmp_path, runs)
    assert first.all(runs)
    first.records.path(one).unlink()
    again = runner(tmp_path, runs)
    assert again.all(runs) and starts(one, tmp_path / "out") == 1 and again.records.find(one)["attempts"] == 1


def test_no_run_is_begun_after_the_hours_are_over(tmp_path, fake):
    runs = reported(1, 2)
    assert not runner(tmp_path, runs, until=0.0).all(runs)
    assert not any(run.folder(tmp_path / "out").exists() for run in runs)
    assert runner(tmp_path, runs).all(runs)


def test_two_runs_go_side_by_side(tmp_path, fake):
    runs = [replace(run, rate=4.0) for run in reported(1, 2)]
    began = study_runs.time.monotonic()
    assert runner(tmp_path, runs).all(runs)
    begun = [(run.folder(tmp_path / "out") / "starts").stat().st_mtime for run in runs]
    assert abs(begun[0] - begun[1]) < 3.5 and study_runs.time.monotonic() - began > 4


def test_the_hours_that_are_left_follow_what_runs_took():
    runs = reported(1, 2, 7, 8)
    progress = study_runs.Progress(QUICK, 6, runs, 2)
    each = study_runs.expected(runs[0], QUICK)
    assert progress.hours() == pytest.approx(4 * each / 2 / 3600) and progress.begun == 2
    progress.end(runs[0], "", ENDED, 3 * each)
    assert progress.hours() == pytest.approx(3 * 3 * each / 2 / 3600)


def test_a_book_of_another_protocol_is_refused(tmp_path):
    study_runs.Book(tmp_path, QUICK).add([])
    with pytest.raises(ValueError, match="belongs to another protocol: take another --out"):
        study_runs.Book(tmp_path, STUDY)


# ------------------------------------------------------------------------------------------------------------ the tables


def tables(results: Path) -> dict[str, dict]:
    return {name: json.loads((results / f"study_{name}.json").read_text()) for name in ("choices", "runs", "claims")}


def test_the_tables_before_and_after_runs(tmp_path):
    records = Records(tmp_path / "study", STUDY)
    study_report.write(records, tmp_path)
    empty = tables(tmp_path)["claims"]
    assert len(empty["rows"]) == 9 and {row[-1] for row in empty["rows"]} == {"not run"}
    assert "not made yet" in empty["source"]
    for seed in (1, 2, 3, 4, 5):
        for arm, late in (("srpo", 0.9), ("sdpo", 0.1 * seed)):
            if (arm, seed) == ("sdpo", 5):  # before the last run: no verdict, and every table says what is missing
                study_report.write(records, tmp_path)
                claims = {row[0]: row for row in tables(tmp_path)["claims"]["rows"]}
                assert claims["2. SDPO is unstable late"][3:] == ["not run", "9 of 10", 0, "not run"]
                assert {row[1]: row for row in tables(tmp_path)["runs"]["rows"][:8]}["sdpo"][3] == "4 of 5"
                said = "0 of 28 runs that choose and 9 of 45 that are reported are in, 1 of them failed; 2 cores; commit abc, def"
                assert {one["source"] for one in tables(tmp_path).values()} == {f"{said}; 2026-01-02."}
            of = {0: 0.5, 10: 0.6, 20: 0.7, 30: 0.8, 110: late, 120: late}
            status = FAILED if (arm, seed) == ("sdpo", 3) else ENDED
            more = {"commit": "def", "finished": "2026-01-02 12:00"} if seed > 2 else {}
            record(records, Run(REPORT, "sums", arm, 1e-4, seed, 120), of, status=status, **more)
    study_report.write(records, tmp_path)
    found = tables(tmp_path)
    claims = {row[0]: row for row in found["claims"]["rows"]}
    assert claims["2. SDPO is unstable late"][3:] == ["60.0 points (48.0 to 72.0)", "10 of 10", 5, "shown"]
    assert claims["1. SDPO is faster at first"][3:] == ["not run", "5 of 10", 0, "not run"]
    assert found["claims"]["failed"] == ["report-sums/sdpo-lr0.0001-seed3"]
    rows = {row[1]: row for row in found["runs"]["rows"] if row[0] == "sums"}
    assert rows["sdpo"][3:9] == ["5 of 5", 1, "50.0", "70.0", "30.0", "10.0 20.0 30.0 40.0 50.0"]
    assert rows["srpo"][10] == "1.00 / 1.00" and rows["grpo1"][3] == "0 of 5"
    assert set(rows) == set(ARMS)


def test_a_claim_about_the_better_grpo_waits_for_its_choice(tmp_path):
    records = Records(tmp_path / "study", STUDY)
    for run in study_protocol.reporting(STUDY, CHOSEN):
        record(records, run, {0: 0.5, 10: 0.6, 20: 0.7, 30: 0.8, 110: 0.9, 120: 0.9})
    study_report.write(records, tmp_path)
    waiting = {row[0] for row in tables(tmp_path)["claims"]["rows"] if row[-1] == "not run"}
    assert waiting == {"1. SDPO is faster at first", "4. lengths", "beside: SRPO and GRPO"}
    for run in study_protocol.choosing(STUDY):
        record(records, run, {30: 0.5, 40: 0.9 if run.rate == 1e-4 else 0.5})
    study_report.write(records, tmp_path)
    assert "not run" not in {row[-1] for row in tables(tmp_path)["claims"]["rows"]}


# ------------------------------------------------------------------------------------------------------------ the model


def write_model(out: Path, **recipe) -> Path:
    """A folder as srpo_recipe.starter.tiny leaves it."""
    folder = study_protocol.model(out)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    least = {name: low for name, low, _ in ACCEPTANCE_PICKS}
    made = {"recipe": study_protocol.model_recipe(STUDY) | recipe, "acceptance": least}
    made["sha256"] = {"model.safetensors": sha256(folder / "model.safetensors")}
    (folder / "provenance.json").write_text(json.dumps(made))
    return folder


def test_a_model_is_taken_with_the_settings_and_conditions_of_the_protocol_alone(tmp_path):
    folder = write_model(tmp_path)
    study_model.make(STUDY, tmp_path)  # it is there: nothing is made
    made = json.loads((folder / "provenance.json").read_text())
    made["acceptance"]["teacher_entropy_nats_on_those_failed"] = 0.2
    (folder / "provenance.json").write_text(json.dumps(made))
    with pytest.raises(ValueError, match="tiny_picks: teacher_entropy.* is 0.200, wanted 0.3 .*remove the folder"):
        study_model.make(STUDY, tmp_path)
    other = write_model(tmp_path / "other", steps=3)
    with pytest.raises(ValueError, match="was made with steps 3, which is not the protocol's: remove the folder"):
        study_model.make(STUDY, tmp_path / "other")
    (other / "provenance.json").unlink()
    with pytest.raises(ValueError, match="provenance.json cannot be read"):
        study_model.make(STUDY, tmp_path / "other")
    changed = write_model(tmp_path / "changed")
    (changed / "model.safetensors").write_bytes(b"others")
    with pytest.raises(ValueError, match="safetensors is not what was made there"):
        study_model.make(STUDY, tmp_path / "changed")


def test_the_options_of_the_model_are_those_of_its_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tiny", *study_model.arguments(STUDY, Path("x"))])
    recipe = {name: str(value) if isinstance(value, Path) else value for name, value in vars(parse()).items()}
    assert study_protocol.model_recipe(STUDY).items() <= recipe.items() and recipe["out"] == "x/models/tiny_picks"


def test_the_model_is_made_before_the_first_run_of_picks_and_not_earlier(tmp_path, fake, monkeypatch):
    """Runs of sums alone, and those of picks that are all recorded, need none."""
    made, happened = [], []
    monkeypatch.setattr(study_model, "make", lambda protocol, out: made.append(out) or write_model(out))
    monkeypatch.setattr(study_runs.Runner, "all", lambda self, runs: happened.append((runs[0].task, len(made))) or True)
    monkeypatch.setattr(study, "rates", lambda protocol, records: CHOSEN)
    records = Records(tmp_path / "study", STUDY)

    def run(*words: str) -> None:
        arguments = study.parser().parse_args(["run", "--out", str(tmp_path / "out"), *words])
        tasks = tuple(one for one in STUDY.tasks if arguments.task in (None, one[0]))
        study.run(replace(STUDY, tasks=tasks), records, arguments)

    run("--task", "sums")
    run()
    assert happened == [("sums", 0)] * 4 + [("picks", 1)] * 2
    for one in (*study_protocol.choosing(STUDY), *study_protocol.reporting(STUDY, CHOSEN)):
        if one.task == "picks":
            record(records, one, {30: 0.5, 40: 0.5}, model="elsewhere")
    run()
    assert len(made) == 1
    assert len(study_model.others(records, tmp_path / "out")) == 8 + 9


# ------------------------------------------------------------------------------------------------------------- the task


def test_picks_wants_four_numbers_of_the_offer_and_their_sum():
    offer = picks.ground_truth((17, 25, 38, 39, 12, 44, 20, 31, 27, 46, 15, 33))
    assert picks.verify("25+17=42+39=81+12=93#93", offer) == 1.0
    assert picks.verify("25+17=1+39=2+12=3#93\n", offer) == 1.0  # the running sums are not looked at
    assert picks.verify("25+25=50+39=89+12=101#101", offer) == 1.0  # one may be taken again
    for wrong in (
        "25+17=42+39=81+12=93#94",
        "25+17=42+39=81+12=93",
        "25+17=42+39=81+13=94#94",  # not on offer
        "25+17=42+39=81#81",
        "25+17=42+39=81+12=93+20=113#113",
        "#93",
        "",
        "25+17=42+39=81+12=93#093",
    ):
        assert picks.verify(wrong, offer) == 0.0, wrong
    assert picks.verify(None, offer) == 0.0


def test_solutions_of_picks_are_right_many_and_slip_as_often_as_asked():
    import random

    rng, right = random.Random(0), []
    for terms in picks.generate_problems("train", 300, seed=0):
        assert len(set(terms)) == 12 and picks.prompt_text(terms).count(",") == 11
        assert picks.verify(picks.correct_solution(terms, rng), picks.ground_truth(terms)) == 1.0
        assert picks.verify(picks.slipping_solution(terms, rng, 1.0), picks.ground_truth(terms)) == 0.0
        right.append(picks.verify(picks.slipping_solution(terms, rng, 0.4), picks.ground_truth(terms)))
    assert np.mean(right) == pytest.approx(0.6**3, abs=0.08)
    assert len({picks.correct_solution(terms, rng) for _ in range(500)}) > 450
