"""`compare --hours`: best accuracies within wall-clock budgets, seconds a step, lengths, intervals over seeds, exports of W&B."""

import argparse
import csv
import itertools
import json
import sys

import pytest

from srpo_recipe.inspect import budgets, compare
from srpo_recipe.inspect.exports import read_exports
from srpo_recipe.inspect.figure1 import points
from srpo_recipe.inspect.runs import load

CHEMISTRY, PHYSICS = "val-core/sciknoweval/chemistry/acc/mean@16", "val-core/sciknoweval/physics/acc/mean@16"
PNG = b"\x89PNG\r\n\x1a\n"


def lines(
    accuracy: dict[int, float], seconds: list[float], key: str = CHEMISTRY, lengths=None, checkpoint=0.0
) -> list[dict]:
    """A run's metrics: steps of so many seconds, of which `checkpoint` for a checkpoint, accuracies by step, a start of 50 s."""
    found = [{"step": 0, key: accuracy[0]}] if 0 in accuracy else []
    since = 50.0
    for step, took in enumerate(seconds, start=1):
        since += took
        line = {
            "step": step,
            "timing_s/step": took,
            "timing_s/save_checkpoint": checkpoint,
            "route/response_length": (lengths or [100.0] * len(seconds))[step - 1],
            "actor/distill/teacher_entropy": 0.1 * step,
            "run/seconds_since_start": since,
        }
        found.append(line | ({key: accuracy[step]} if step in accuracy else {}))
    return found


def write(folder, name: str, method: str, seed: int, metrics: list[dict], key: str = CHEMISTRY) -> None:
    """A finished run."""
    place = folder / name
    place.mkdir(parents=True)
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    summary = {"method": method, "seed": seed, "metric": key, "steps": metrics[-1]["step"], "seconds": 1.0}
    (place / "summary.json").write_text(json.dumps(summary))


def run(tmp_path, monkeypatch, *arguments: str) -> dict[str, dict]:
    """The command; returns the rows of budgets.json by name."""
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path), *arguments])
    compare.main()
    return {row["name"]: row for row in json.loads((tmp_path / "budgets.json").read_text())["rows"]}


# ------------------------------------------------------------------------------------------------------------- one run


@pytest.fixture
def one():
    """Ten steps of 900 s (100 s of each a checkpoint), validated every second: four and a half steps an hour."""
    accuracy = {0: 0.4, 2: 0.5, 4: 0.7, 6: 0.6, 8: 0.8, 10: 0.3}
    metrics = lines(accuracy, [900.0] * 10, lengths=[10.0 * step for step in range(1, 11)], checkpoint=100.0)
    return {"method": "srpo", "seed": 1, "metric": CHEMISTRY, "folder": "one", "lines": metrics}


def test_the_best_within_a_budget_is_the_best_that_stood_when_it_was_over(one):
    """By hand: steps of 800 s without checkpoints end at 800, 1600, 2400, 3200 (within an hour), 4000, ..., 8000."""
    hour = budgets.within(one, 1, "step")
    assert (hour["best"], hour["best_step"], hour["steps"], hour["ended"]) == (0.7, 4, 4, False)
    assert hour["seconds_a_step"] == pytest.approx(800) and hour["length"] == pytest.approx((10 + 20 + 30 + 40) / 4)
    two = budgets.within(one, 2, "step")  # nine steps
    assert (two["best"], two["best_step"], two["steps"]) == (0.8, 8, 9)
    ten = budgets.within(one, 10, "step")
    assert ten["ended"] and ten["hours"] == pytest.approx(8000 / 3600) and ten["best"] == 0.8
    tiny = budgets.within(one, 0.1, "step")  # before the first step has ended: the model as it was
    assert (tiny["best"], tiny["best_step"], tiny["steps"]) == (0.4, 0, 0)
    assert tiny["seconds_a_step"] is None and tiny["length"] is None


def test_a_validation_on_the_budgets_last_second_counts_and_one_after_it_does_not(one):
    assert budgets.within(one, 3200 / 3600, "step")["best"] == 0.7
    assert budgets.within(one, 3199 / 3600, "step")["best"] == 0.5


def test_wall_clock_adds_up_the_starts_of_a_resumed_run():
    metrics = lines({0: 0.1, 4: 0.9}, [100.0] * 4)
    metrics[3]["run/seconds_since_start"], metrics[4]["run/seconds_since_start"] = 140.0, 240.0  # a start after step 2
    found = budgets.clock({"folder": "a", "lines": metrics}, "wall")
    assert found == {1: 150, 2: 250, 3: 390, 4: 490}
    assert budgets.clock({"folder": "a", "lines": metrics}, "step") == {1: 100, 2: 200, 3: 300, 4: 400}


def test_wall_clock_knows_a_start_that_the_clock_does_not_show():
    """The second start logs its first step later than the first one did: the clock does not fall."""
    metrics = lines({}, [100, 100, 100, 100])
    for line, since in zip(metrics, (300, 700, 800, 900), strict=True):
        line["run/seconds_since_start"] = since
    found = {"folder": "a", "lines": metrics, "resumed": [1]}
    assert budgets.clock(found, "wall") == {1: 300, 2: 1000, 3: 1100, 4: 1200}


def test_the_starts_of_a_run_are_read_from_its_folder(tmp_path):
    """Behind which steps the lines go on: a start from an earlier checkpoint writes the later ones anew."""
    write(tmp_path, "a", "srpo", 1, lines({0: 0.1}, [1.0] * 6))
    (tmp_path / "a" / "starts").mkdir()
    for number, step in enumerate((0, 2, 4, 3, None, 3), start=1):
        (tmp_path / "a" / "starts" / f"{number:03d}.json").write_text(json.dumps({"resumed_step": step, "counted": {}}))
        wanted = {1: [], 2: [2], 3: [2, 4], 4: [2, 3], 5: [], 6: [3]}[number]
        (found,) = (one for group in load(tmp_path).values() for one in group)
        assert found["resumed"] == wanted


def test_a_step_whose_line_was_lost_took_as_long_as_the_others():
    metrics = [line for line in lines({}, [100, 100, 100, 100]) if line["step"] != 2]
    assert budgets.clock({"folder": "a", "lines": metrics}, "step") == {1: 100, 2: 200, 3: 300, 4: 400}
    with pytest.raises(ValueError, match=r"a lacks 1 of the steps from 1 to 4, .* run.history\(samples=100_000\)"):
        budgets.clock({"folder": "a", "lines": metrics, "exported": True}, "step")


@pytest.mark.parametrize("kind, wanted", [("step", "has no timing_s/step"), ("wall", "has no run/seconds_since_start")])
def test_a_run_that_nothing_tells_the_hours_of_is_named(kind, wanted):
    with pytest.raises(ValueError, match=f"mute {wanted}"):
        budgets.clock({"folder": "mute", "lines": [{"step": 1, CHEMISTRY: 0.5}]}, kind)


@pytest.mark.parametrize("text", ["", "1,,5", "0", "-1", "nan", "inf", "one"])
def test_budgets_that_are_none_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="hours above 0"):
        budgets.hours(text)


def test_budgets_are_sorted_and_counted_once():
    assert budgets.hours("10,1,5.5,1") == [1.0, 5.5, 10.0]


# --------------------------------------------------------------------------------------------------------- several runs


@pytest.fixture
def several(tmp_path):
    """Two methods on two sets, two seeds of one of them; steps of an hour, so that a budget of h hours holds h steps."""
    for seed, last in ((1, 0.6), (2, 0.8)):
        write(tmp_path, f"srpo-c{seed}", "srpo", seed, lines({0: 0.4, 1: 0.5, 2: last}, [3600.0] * 2))
    write(tmp_path, "grpo-c1", "grpo", 1, lines({0: 0.4, 1: 0.45, 2: 0.7}, [1800.0] * 2))
    write(tmp_path, "srpo-p1", "srpo", 1, lines({0: 0.2, 1: 0.9}, [3600.0], PHYSICS), PHYSICS)
    write(tmp_path, "grpo-p1", "grpo", 1, lines({0: 0.2, 1: 0.1}, [3600.0], PHYSICS), PHYSICS)
    return tmp_path


def test_the_tables_of_several_runs(several, monkeypatch, capsys):
    rows = run(several, monkeypatch, "--hours", "1,2")
    on = " on sciknoweval/chemistry avg@16"
    srpo = rows["srpo" + on]["within"]
    assert [entry["best"] for entry in srpo] == [pytest.approx(0.5), pytest.approx(0.7)]
    # Two seeds: a mean of two draws is 0.6, 0.7 or 0.8 with chances 1/4, 1/2, 1/4, so the middle 95 % reach from end to end.
    assert srpo[1]["best_interval"] == [pytest.approx(0.6), pytest.approx(0.8)]
    assert srpo[0]["ended_before"] == 0 and srpo[1]["best_by_seed"] == [0.6, 0.8]
    assert rows["grpo" + on]["within"][1]["ended_before"] == 1  # after one hour
    text = (several / "budgets.md").read_text()
    assert f"| srpo{on} | 1 2 | 50.0 (50.0 to 50.0) | 70.0 (60.0 to 80.0) |" in text
    assert f"| grpo{on} | 1 | 70.0 | 70.0+ |" in text
    assert f"| srpo{on} | 1 2 | 3600.00 (3600.00 to 3600.00) |" in text
    # The paper's layout: a line a method, a column a set, the mean of both.
    assert (
        "| srpo | 50.0/70.0 | 90.0/90.0 | 70.0/80.0 |" in text
        and "| grpo | 70.0/70.0 | 20.0/20.0 | 45.0/45.0 |" in text
    )
    assert (several / "figure1.png").read_bytes().startswith(PNG)
    assert text in capsys.readouterr().out


def test_runs_without_hours_are_compared_as_before(several, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare", str(several)])
    compare.main()
    assert (several / "comparison.md").exists() and not (several / "budgets.md").exists()


def test_the_interval_is_that_of_all_draws(tmp_path, monkeypatch):
    """Against every one of the 27 draws of three seeds, the mean's 95 % of them."""
    values = (0.5, 0.6, 0.9)
    for seed, value in enumerate(values):
        write(tmp_path, f"srpo{seed}", "srpo", seed, lines({0: 0.1, 1: value}, [60.0]))
    (row,) = run(tmp_path, monkeypatch, "--hours", "1").values()
    means = sorted(sum(draw) / 3 for draw in itertools.product(values, repeat=3))
    low, high = row["within"][0]["best_interval"]
    assert means[0] == pytest.approx(low) and high == pytest.approx(means[-1])  # 1 of 27 is more than 2.5 %


def test_a_curve_is_drawn_at_the_mean_of_the_seeds_times():
    first = {"folder": "a", "lines": lines({0: 0.0, 1: 0.2, 2: 0.4}, [3600.0, 3600.0])}
    second = {"folder": "b", "lines": lines({0: 0.2, 1: 0.6, 2: 0.8}, [1800.0, 1800.0])}
    times = {one["folder"]: budgets.clock(one, "step") for one in (first, second)}
    hours, mean, low, high = points([first, second], CHEMISTRY, times)
    assert hours.tolist() == pytest.approx([0, 0.75, 1.5]) and mean.tolist() == pytest.approx([0.1, 0.4, 0.6])
    assert low.tolist() == pytest.approx([0.0, 0.2, 0.4]) and high.tolist() == pytest.approx([0.2, 0.6, 0.8])


# ---------------------------------------------------------------------------------------------------------------- W&B


def panel(path, metric: str, runs: dict[str, list[dict]], x: str = "Step") -> None:
    """A panel's CSV as W&B writes it: empty cells where a run has nothing, ends of the smoothing beside each column."""
    steps = sorted({line["step"] for metrics in runs.values() for line in metrics if metric in line})
    names = [f"{name} - {metric}" for name in runs]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow([x, *(f"{name}{end}" for name in names for end in ("", "__MIN", "__MAX"))])
        for step in steps:
            of_step = [
                next((line[metric] for line in one if line["step"] == step and metric in line), "")
                for one in runs.values()
            ]
            writer.writerow([step, *(value for value in of_step for _ in range(3))])


@pytest.fixture
def exported(several, tmp_path_factory):
    """The runs of `several` on chemistry, as panels; and one as a history."""
    folder = tmp_path_factory.mktemp("wandb")
    read = {
        name: [json.loads(text) for text in (several / old / "metrics.jsonl").read_text().splitlines()]
        for name, old in (("srpo-chemistry-seed1", "srpo-c1"), ("srpo-chemistry-seed2", "srpo-c2"))
    }
    for number, metric in enumerate((CHEMISTRY, "timing_s/step", "route/response_length")):
        panel(folder / f"panel{number}.csv", metric, read)
    history = [json.loads(text) for text in (several / "grpo-c1" / "metrics.jsonl").read_text().splitlines()]
    keys = sorted({key for line in history for key in line} - {"step"})
    with (folder / "grpo-chemistry-seed1.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "_step", "_runtime", "samples/train", *keys])
        for number, line in enumerate(history):
            cells = [line.get(key, "NaN") for key in keys]
            writer.writerow(
                [number, line["step"], line.get("run/seconds_since_start", 0.0), "{'_type': 'table-file'}", *cells]
            )
    return folder


def test_exports_say_what_the_runs_themselves_say(several, exported, monkeypatch):
    on = " on sciknoweval/chemistry avg@16"
    own = run(several, monkeypatch, "--hours", "1,2")
    theirs = run(exported, monkeypatch, "--hours", "1,2")
    assert set(theirs) == {"grpo", "srpo"}
    for name in theirs:
        assert theirs[name]["within"] == own[name + on]["within"] and theirs[name]["seeds"] == own[name + on]["seeds"]
    assert (exported / "figure1.png").exists() and (exported / "comparison.html").exists()


def test_stock_verls_export_is_read_too(tmp_path, monkeypatch):
    """No key of ours: verl's own names for time and length."""
    with (tmp_path / "grpo-seed3.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["_step", "perf/time_per_step", "response_length/mean", CHEMISTRY])
        writer.writerows([[0, "", "", 0.4], [1, 60, 200, 0.5], [2, 80, 400, ""]])
    (row,) = run(tmp_path, monkeypatch, "--hours", "1").values()
    found = row["within"][0]
    assert (found["best"], found["seconds_a_step"], found["length"]) == (0.5, 70, 300) and row["seeds"] == [3]


def test_exports_and_folders_stand_side_by_side(several, monkeypatch):
    panel(several / "panel.csv", CHEMISTRY, {"sdpo-seed1": lines({0: 0.3, 1: 0.4}, [60.0])})
    panel(several / "time.csv", "timing_s/step", {"sdpo-seed1": lines({0: 0.3, 1: 0.4}, [60.0])})
    rows = run(several, monkeypatch, "--hours", "1")
    assert rows["sdpo on sciknoweval/chemistry avg@16"]["within"][0]["best"] == 0.4


def test_the_longest_name_of_a_method_is_the_runs(tmp_path):
    for name in ("srpo_no_dw-seed1", "my-sdpo_correct_only-x-seed_2", "run3_grpo_seed3"):
        panel(tmp_path / f"{name}.csv", CHEMISTRY, {name: lines({0: 0.3}, [60.0])})
    found = {
        run["folder"]: (run["method"], run["seed"]) for run in read_exports(tmp_path, {"run3_grpo_seed3": ("grpo", 3)})
    }
    assert found == {
        "srpo_no_dw-seed1": ("srpo_no_dw", 1),
        "my-sdpo_correct_only-x-seed_2": ("sdpo_correct_only", 2),
        "run3_grpo_seed3": ("grpo", 3),
    }


@pytest.mark.parametrize(
    "name, missing", [("fearless-bird-7", "method"), ("srpo-chemistry", "seed"), ("dapo-seed1", "method")]
)
def test_a_run_whose_name_tells_too_little_is_refused_with_the_way_out(tmp_path, name, missing):
    panel(tmp_path / "a.csv", CHEMISTRY, {name: lines({0: 0.3}, [60.0])})
    with pytest.raises(SystemExit, match=f"exported run {name} tells no {missing}: give --run '{name}=METHOD,SEED'"):
        load(tmp_path)
    (group,) = load(tmp_path, {name: ("srpo", 5)}).values()
    assert group[0]["seed"] == 5


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b\n1,2\n", "has a column of steps"),
        ("", "has a column of steps"),
        ('"Relative Time (Wall)","srpo-seed1 - x"\n1,2\n', "let the panel's x axis be Step"),
        ("_step,x\n1,2,3\n", "line 2: 3 columns where the header has 2"),
        ("_step,x\n1,2\nlast,3\n", "line 3: 'last' in column _step is no step"),
        ("_step,x\n1.5,2\n", "line 2: '1.5' in column _step is no step"),
    ],
)
def test_a_file_that_is_no_export_is_named(tmp_path, text, message):
    (tmp_path / "srpo-seed1.csv").write_text(text)
    with pytest.raises(SystemExit, match=f"srpo-seed1.csv.*{message}"):
        load(tmp_path)


def test_a_name_that_no_export_has_is_refused(tmp_path):
    panel(tmp_path / "a.csv", CHEMISTRY, {"srpo-seed1": lines({0: 0.3}, [60.0])})
    with pytest.raises(SystemExit, match="--run other: no CSV file of .* holds that run, but srpo-seed1"):
        load(tmp_path, {"other": ("srpo", 1)})


@pytest.mark.parametrize("text", ["name", "name=srpo", "name=dapo,1", "name=srpo,x", "=srpo,1"])
def test_a_label_that_is_none_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="NAME=METHOD,SEED"):
        compare.exported(text)
    assert compare.exported("a=b=srpo,1") == ("a=b", ("srpo", 1))
