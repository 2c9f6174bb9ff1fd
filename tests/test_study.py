"""The study of docs/study.md: its protocol, its choices, its claims against numbers worked out by hand, and its book of runs."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from srpo_recipe.settings.compose import compose_config
from srpo_recipe.settings.rules import check
from srpo_recipe.starter import picks, sums

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import study  # noqa: E402
import study_claims  # noqa: E402
import study_protocol  # noqa: E402
import study_report  # noqa: E402
import study_runs  # noqa: E402
from study_claims import OPEN, REFUTED, SHOWN, Measured  # noqa: E402
from study_protocol import ARMS, CHOOSE, QUICK, REPORT, STUDY, Run  # noqa: E402

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
    assert 3 < study.estimate(STUDY, 2) < 5


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


def measured(accuracy: dict[int, float], failed: bool = False, length=10.0, seconds=1.0, steps: int = 120) -> Measured:
    """A run with these test accuracies; length and seconds: numbers, or functions of the step."""

    def at(value, step):
        return value(step) if callable(value) else value

    lines = [
        {"step": step, "route/response_length": at(length, step), "timing_s/step": at(seconds, step) + 0.5}
        | {"timing_s/save_checkpoint": 0.25, "timing_s/samples": 0.25}
        | ({KEY: accuracy[step]} if step in accuracy else {})
        for step in range(1, steps + 1)
    ]
    return Measured([{"step": 0, KEY: accuracy[0]}, *lines] if 0 in accuracy else lines, failed)


def number(name: str, arms: dict[str, Measured], grpo: str = "grpo1") -> float | None:
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
    assert number("5.", {"grpo4": grpo, "srpo": measured({}, seconds=seconds(0.8, 1.0))}) == pytest.approx(np.log(0.8))


def test_a_failed_run_counts_with_nothing_and_an_unfinished_one_does_not_count():
    whole, half = {110: 0.8, 120: 0.9}, {110: 0.6}
    assert number("2.", {"srpo": measured(whole), "sdpo": measured(half, failed=True)}) == pytest.approx(0.85 - 0.3)
    assert number("2.", {"srpo": measured(whole), "sdpo": measured({}, failed=True)}) == pytest.approx(0.85)
    assert number("2.", {"srpo": measured(whole), "sdpo": measured(half)}) is None


def test_the_verdicts():
    assert study_claims.verdict([0.1, 0.2, 0.3, 0.1, 0.2]) == SHOWN
    assert study_claims.verdict([-0.1, -0.2, -0.3]) == REFUTED
    assert study_claims.verdict([0.5, -0.4, 0.6, -0.5, 0.1]) == OPEN
    assert study_claims.verdict([0.1, 0.2]) == OPEN and study_claims.verdict([]) == OPEN
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


def write_run(book, run: Run, accuracy: dict[int, float], whole: bool = True) -> None:
    """The files that a run leaves."""
    folder = run.folder(book.out)
    folder.mkdir(parents=True)
    lines = measured(accuracy, steps=run.steps).lines
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if whole:
        (folder / "summary.json").write_text(json.dumps({"steps": run.steps}))


def test_the_best_rate_on_validation_is_chosen_and_the_smallest_of_equal_ones(tmp_path):
    book = study_runs.Book(tmp_path, STUDY)
    runs = [
        run for run in study_protocol.choosing(STUDY) if run.arm in ("srpo", "grpo1", "grpo4") and run.task == "sums"
    ]
    book.add(runs)
    values = {3e-5: 0.5, 1e-4: 0.8, 3e-4: 0.8, 1e-3: 0.2}
    for run in runs:
        if run.arm != "grpo4" or run.rate < 1e-3:
            gain = 0.1 if run.arm == "grpo1" else 0.0
            write_run(book, run, {10: 1.0, 30: values[run.rate] + gain, 40: values[run.rate] + gain})
    found = study_claims.choices(study_claims.measured(book), STUDY)
    assert found["sums", "srpo"]["chosen"] == 1e-4 and found["sums", "grpo1"]["chosen"] == 1e-4
    assert found["sums", "grpo4"]["chosen"] is None  # one of its runs is not there yet
    assert found["sums", "grpo1"]["by_rate"][1e-4] == pytest.approx(0.9)
    assert study_claims.better_grpo(found) == "grpo1" and study_claims.better_grpo({}) == "grpo4"


@pytest.fixture
def fake(monkeypatch):
    """Runs that a line of shell stands for: it appends to a file, and does what the run's name says."""

    def command(run, protocol, out):
        folder = run.folder(out)
        done = f"mkdir -p {folder}; echo begun >> {folder}/starts; "
        summary = f"echo '{{\"steps\": {run.steps}}}' > {folder}/summary.json"
        if run.seed == 7:  # fails always
            return ["bash", "-c", done + "echo it broke; exit 3"]
        if run.seed == 8:  # fails once
            return ["bash", "-c", done + f"[ $(wc -l < {folder}/starts) -ge 2 ] && {summary} || exit 1"]
        return ["bash", "-c", done + (f"sleep {run.rate}; " if run.rate >= 1 else "") + summary]

    monkeypatch.setattr(study_runs, "command", command)
    return command


def starts(run: Run, out: Path) -> int:
    return len((run.folder(out) / "starts").read_text().split())


def test_runs_end_once_are_tried_twice_and_stay_failed(tmp_path, fake):
    runs = [Run(REPORT, "sums", "srpo", 1e-4, seed, 4) for seed in (1, 7, 8)]
    book = study_runs.Book(tmp_path, QUICK)
    runner = study_runs.Runner(book, 2, float("inf"))
    assert runner.all(runs)
    assert [starts(run, tmp_path) for run in runs] == [1, 2, 2]
    written = json.loads((tmp_path / "manifest.json").read_text())["runs"]
    assert [entry["status"] for entry in written.values()] == ["ended", "failed", "ended"]
    failed = written["report-sums/srpo-lr0.0001-seed7"]
    assert failed["exit"] == 3 and failed["log"][-1] == "it broke" and failed["attempts"] == 2 and failed["command"]
    again = study_runs.Runner(study_runs.Book(tmp_path, QUICK), 2, float("inf"))
    assert again.all(runs) and [starts(run, tmp_path) for run in runs] == [1, 2, 2]  # left alone
    assert again.all(runs, retry=True) and [starts(run, tmp_path) for run in runs] == [1, 4, 2]


def test_no_run_is_begun_after_the_hours_are_over(tmp_path, fake):
    runs = [Run(REPORT, "sums", "srpo", 1e-4, seed, 4) for seed in (1, 2)]
    book = study_runs.Book(tmp_path, QUICK)
    assert not study_runs.Runner(book, 2, until=0.0).all(runs)
    assert not any(run.folder(tmp_path).exists() for run in runs)
    assert study_runs.Runner(book, 2, float("inf")).all(runs)


def test_two_runs_go_side_by_side(tmp_path, fake):
    runs = [Run(REPORT, "sums", "srpo", 4.0, seed, 4) for seed in (1, 2)]
    began = study_runs.time.time()
    assert study_runs.Runner(study_runs.Book(tmp_path, QUICK), 2, float("inf")).all(runs)
    begun = [(run.folder(tmp_path) / "starts").stat().st_mtime for run in runs]
    assert abs(begun[0] - begun[1]) < 3.5 and study_runs.time.time() - began > 4


def test_a_book_of_another_protocol_is_refused(tmp_path):
    study_runs.Book(tmp_path, QUICK).add([])
    with pytest.raises(ValueError, match="belongs to another protocol: take another --out"):
        study_runs.Book(tmp_path, STUDY)


def test_the_tables_before_and_after_runs(tmp_path):
    results, out = tmp_path / "results", tmp_path / "out"
    results.mkdir()
    out.mkdir()
    book = study_runs.Book(out, STUDY)
    study_report.write(book, results)
    empty = json.loads((results / "study_claims.json").read_text())
    assert (
        len(empty["rows"]) == 9
        and {row[-1] for row in empty["rows"]} == {"not run"}
        and "not made yet" in empty["source"]
    )
    for seed in (1, 2, 3):
        for arm, late in (("srpo", 0.9), ("sdpo", 0.1 * seed)):
            run = Run(REPORT, "sums", arm, 1e-4, seed, 120)
            book.add([run])
            write_run(book, run, {0: 0.5, 10: 0.6, 20: 0.7, 30: 0.8, 110: late, 120: late})
    book.change(Run(REPORT, "sums", "sdpo", 1e-4, 3, 120), status="failed")
    study_report.write(book, results)
    claims = {row[0]: row for row in json.loads((results / "study_claims.json").read_text())["rows"]}
    # Differences 0.8, 0.7 and 0.6: each of the ends is one draw of 27, more than 2.5 %.
    assert claims["2. SDPO is unstable late"][3:] == ["70.0 points (60.0 to 80.0)", 3, "shown"]
    assert claims["1. SDPO is faster at first"][3:] == ["not run", 0, "not run"]
    assert json.loads((results / "study_claims.json").read_text())["failed"] == ["report-sums/sdpo-lr0.0001-seed3"]
    rows = {row[1]: row for row in json.loads((results / "study_runs.json").read_text())["rows"] if row[0] == "sums"}
    assert rows["sdpo"][3:9] == [3, 1, "50.0", "70.0", "20.0", "10.0 20.0 30.0"]
    assert rows["srpo"][10] == "1.00 / 1.00" and rows["grpo1"][3] == 0
    assert set(rows) == set(ARMS)


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
