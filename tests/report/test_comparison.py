"""Tables of runs: paired differences, intervals, the best, what failed."""

import csv
import json
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from runs import Command

from scalecap.report import row_numbers
from scalecap.report.comparison import Comparison, compare
from scalecap.run.folder import FolderError, Run, read_runs
from scalecap.stats import difference, mean

Make = Callable[..., Run]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a run's folder: a value of the metric `good` for each image, None for a row that failed.

    `before_ids` makes a folder of a version that had none; `seen` says that steps looked at the images.
    """

    def make(
        name: str,
        goods: Sequence[float | None],
        *overrides: str,
        images: str = "abcdefgh",
        data: str = "rows.jsonl",
        before_ids: bool = False,
        seen: bool = True,
    ) -> Run:
        folder = tmp_path / "sweep" / name
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
        lines = [{"config": {"data": {"source": "jsonl", "path": data}}, "cwd": "/"}]
        if not before_ids:
            lines += [
                {"index": n, "id": str(n), "stamp": f"{image}!", "image": f"{image}?" * seen, "input": {}}
                for n, image in enumerate(images[: len(goods)])
            ]
        (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows = [
            {
                **({} if before_ids else {"row_id": str(number)}),
                "image": f"{image}.png",
                "first_scores": [{"text": "A.", "p_yes": 0.9, "kept": True}, {"text": "B.", "kept": False}],
                "final_caption": None if good is None else "Two words." + " more" * number,
                "good": good,
                "flags": {},
                "error": {"step": "good", "kind": "k", "message": "m"} if good is None else None,
            }
            for number, (image, good) in enumerate(zip(images, goods, strict=False))
        ]
        (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        have = [(good, 1.0) for good in goods if good is not None]
        interval = mean(have)
        assert interval is not None
        summary = {
            "status": "finished",
            "rows": {"done": len(have), "failed": len(rows) - len(have), "reused": 0},
            "metrics": {"good": interval._asdict()},
            "better": {"good": {}},
            "requests": {"total": 9, "reused": 4},
            "tokens": {"prompt": 100, "generated": 10, "prompt_reused": 900, "generated_reused": 90},
            "seconds": {"load": 1.0, "rows": 2.5},
        }
        (folder / "summary.json").write_text(json.dumps(summary))
        return Run(folder, name)

    return make


def test_a_run_of_version_0_1_has_its_requests(make: Make):
    run = make("0", [0.1])
    path = run.folder / "summary.json"
    path.write_text(path.read_text().replace('"total": 9', '"asked": 9'))
    assert Comparison([run]).lines[0].requests == (5, 9)


def test_numbers_are_those_of_the_summary_and_differences_are_paired(make: Make):
    first = make("0", [0.1, 0.2, 0.3, 0.4], "k=1")
    second = make("1", [0.9, 0.2, None, 0.5], "k=2")
    found = Comparison([first, second])
    zero, one = found.lines
    assert zero.numbers["good"].value._asdict() == first.summary["metrics"]["good"]
    assert one.numbers["good"].value._asdict() == second.summary["metrics"]["good"]
    assert zero.numbers["good"].difference is None
    pairs = [(0.9, 1.0), (0.2, 1.0), (0.5, 1.0)], [(0.1, 1.0), (0.2, 1.0), (0.4, 1.0)]
    assert one.numbers["good"].difference == difference(*pairs)
    assert one.numbers["first kept"].value.mean == 0.5
    assert one.numbers["words"].value.mean == pytest.approx((2 + 3 + 5) / 3)
    assert (one.rows, one.cost("prompt tokens"), one.cost("generated tokens")) == ((3, 1), 1000, 100)
    assert (one.requests, one.seconds) == ((5, 9), 3.5)


def test_rows_are_paired_by_their_image_not_their_position(make: Make):
    first = make("0", [0.1, 0.2, 0.3], images="abc")
    second = make("1", [0.7, 0.7, 0.7], images="xca")
    found = Comparison([first, second]).lines[1].numbers["good"].difference
    assert found == difference([(0.7, 1), (0.7, 1)], [(0.3, 1), (0.1, 1)])


def paired(first: Run, second: Run) -> list[int]:
    return list(Comparison([first, second]).partners[second.name])


def test_duplicate_images_are_paired_by_their_ids(make: Make):
    assert paired(make("0", [1, 1, 1], images="aab"), make("1", [1, 1, 1], images="aab")) == [0, 1, 2]
    # Rows 0 and 2 were replaced between the runs: equal images cannot be told apart.
    assert paired(make("2", [1, 1, 1], images="aab"), make("3", [1, 1, 1], images="baa")) == [2, 1, -1]


def test_rows_of_other_data_are_paired_by_their_pixels_alone(make: Make):
    first = make("0", [1, 1, 1, 1], images="abbc")
    assert paired(first, make("1", [1, 1, 1, 1], images="bcda", data="other.jsonl")) == [-1, 3, -1, 0]
    assert paired(first, make("2", [1, 1], images="ab", data="other.jsonl", seen=False)) == [-1, -1]
    assert paired(first, make("3", [1, 1], images="ab", seen=False)) == [0, 1], "the files are the same"
    assert paired(first, make("4", [1, 1], images="ac", seen=False)) == [0, -1], "the second is another"


def test_rows_without_ids_are_paired_by_unique_names(make: Make):
    old = make("0", [1, 1, 1], images="abb", before_ids=True)
    assert paired(old, make("1", [1, 1, 1], images="bac")) == [-1, 0, -1]
    assert paired(old, make("2", [1, 1], images="cb", before_ids=True)) == [-1, -1]
    assert paired(old, make("3", [1], data="other.jsonl", before_ids=True)) == [-1]


def test_rows_without_a_partner_are_counted(make: Make):
    runs = [make("0", [1, 1, 1], images="abc"), make("1", [1, 1], images="ax")]
    found = Comparison(runs)
    assert found.paired(runs[1]) == (1, 1, 2)
    assert "Job 1: 1 row paired with job 0; 1 of its rows and 2 of the baseline's are not." in found.notes
    lines = list(csv.DictReader(found.csv().splitlines()))
    assert (lines[1]["rows paired"], lines[1]["rows without a partner"]) == ("1", "1")


def test_the_best_is_the_highest_or_the_lowest(make: Make):
    runs = [make("0", [0.1, 0.2]), make("1", [0.5, 0.6]), make("2", [0.3, 0.3])]

    def best(objective: str | None) -> list[bool]:
        return [line.numbers["good"].best for line in Comparison(runs, objective=objective).lines]

    assert best(None) == best("good") == [False, True, False]
    assert best("-good") == [True, False, False]
    assert not any(line.numbers["words"].best for line in Comparison(runs).lines)


def test_the_best_hallucinates_least_and_no_length_is_best(make: Make):
    runs = [make("0", [0.1, 0.2]), make("1", [0.5, 0.6])]
    for run, wrong in zip(runs, (0.3, 0.2), strict=True):
        each = {"mean": wrong, "low": 0.0, "high": 1.0, "rows": 2}
        run.summary["metrics"] |= {
            "scenes.final.chair_i": each,
            "scenes.final.words": each,
            "capsbench.final.unanswered": each,
            "check.auc": each,
        }
        run.summary["better"] = {
            "scenes": {"chair_i": "lower", "words": "neither"},
            "capsbench": {"unanswered": "lower"},
        }
    lines = Comparison(runs).lines
    assert [line.numbers["scenes.final.chair_i"].best for line in lines] == [False, True]
    assert [line.numbers["capsbench.final.unanswered"].best for line in lines] == [False, True]
    assert not any(line.numbers["scenes.final.words"].best for line in lines)
    # An older run does not say which value of a metric is best.
    assert not any(line.numbers["check.auc"].best for line in lines)
    # A number that only all rows together have is shown without a difference.
    assert [line.numbers["check.auc"].value.mean for line in lines] == [0.3, 0.2]
    assert lines[1].numbers["check.auc"].difference is None


def test_breakdowns_and_earlier_captions_are_only_in_the_csv(make: Make):
    run = make("0", [0.1, 0.2])
    (run.folder / ".hydra" / "config.yaml").write_text(json.dumps({"evaluate": {"before": ["first"]}}))
    each = {"mean": 0.5, "low": 0.0, "high": 1.0, "rows": 2}
    names = ("scenes.first.f1", "scenes.final.f1", "scenes.final.sort.count.f1")
    run.summary["metrics"] |= dict.fromkeys(names, each)
    found = Comparison([run])
    assert set(found.names) - set(found.table_names) == {"scenes.first.f1", "scenes.final.sort.count.f1"}
    assert "scenes.final.sort.count.f1" in found.csv()
    assert "sort.count" not in found.markdown()
    assert "2 more (breakdowns" in found.screen()
    assert "scenes.first.f1" in Comparison([run], objective="scenes.first.f1").table_names


def test_a_sign_marks_intervals_that_exclude_zero(make: Make):
    runs = [make("0", [0.1, 0.2, 0.1]), make("1", [0.8, 0.9, 0.9]), make("2", [0.1, 0.3, 0.0])]
    assert [line.numbers["good"].sign for line in Comparison(runs).lines] == ["", "▲", ""]
    assert Comparison(runs, baseline="1").lines[0].numbers["good"].sign == "▼"


def test_a_job_that_failed_is_shown_as_failed_even_over_older_results(make: Make, tmp_path: Path):
    runs = [make("0", [0.1]), make("1", [0.2]), make("2", [0.3])]
    (runs[1].folder / ".hydra" / "error.txt").write_text("threshold: 2 is no probability | <b>\n")
    (runs[2].folder / "summary.json").unlink()
    found = Comparison(read_runs([tmp_path]))
    assert [run.status for run in found.runs] == ["finished", "failed", "unfinished"]
    assert [run.exit_code for run in found.runs] == [0, 1, 1]
    assert not found.lines[1].numbers
    assert "failed: threshold: 2 is no probability" in " ".join(found.screen().replace("\n", " ").split())
    assert r"threshold: 2 is no probability \| \<b\>" in found.markdown()


def test_truncated_files_count_as_missing(make: Make):
    run = make("0", [0.1, 0.2], "k=1")
    (run.folder / ".hydra" / "overrides.yaml").write_text("- k=1\n- 'l=")
    (run.folder / ".hydra" / "config.yaml").write_text("data: {image: [")
    (run.folder / ".hydra" / "hydra.yaml").write_text("hydra: {")
    run = Run(run.folder, "0")
    assert (run.overrides, run.config["data"]["path"], run.cwd) == ({}, "rows.jsonl", Path("/"))
    assert Comparison([run]).lines[0].rows == (2, 0)
    (run.folder / "captions.jsonl").write_bytes(b'{"image": "\xff"}\n')
    with pytest.raises(FolderError, match=r"line 1 of .*captions\.jsonl is not JSON"):
        Comparison([run])


def test_runs_over_other_images_are_noted(make: Make):
    runs = [make("0", [0.1, 0.2]), make("1", [0.3, 0.4], images="xy"), make("2", [None, 0.2])]
    (message,) = [note for note in Comparison(runs).notes if note.startswith("Job ")]
    assert message.startswith("Job 1 has no row in common with job 0")


def test_only_settings_that_differ_have_a_column(make: Make):
    runs = [
        make("0", [0.1], "prompts/verify=seed", "data.limit=4", "cache.dir=x", "+new=1"),
        make("1", [0.1], "prompts/verify=strict", "data.limit=4", "~pipeline.steps.x"),
    ]
    found = Comparison(runs)
    assert found.overrides == ["prompts/verify", "new", "pipeline.steps.x"]
    assert found.shared == ["data.limit=4"]
    assert runs[1].overrides["pipeline.steps.x"] == "removed"


def test_the_csv_has_every_number_unrounded_and_no_formula(make: Make):
    runs = [make("0", [0.1, 0.25], "k==1+1"), make("1", [0.123456789, 0.5], "k=2")]
    lines = list(csv.DictReader(Comparison(runs).csv().splitlines()))
    assert float(lines[1]["good"]) == (0.123456789 + 0.5) / 2
    assert lines[0]["k"] == "'=1+1"
    assert lines[1]["good difference"]
    assert lines[0]["good difference"] == ""
    assert (lines[0]["requests computed"], lines[0]["prompt tokens"]) == ("5", "1000")


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_the_terminal_shows_as_many_numbers_as_fit(make: Make, monkeypatch: pytest.MonkeyPatch, columns: int):
    monkeypatch.setenv("COLUMNS", str(columns))
    runs = [make(str(number), [0.1, 0.2], f"pipeline.steps.x.threshold={number}") for number in range(3)]
    shown = Comparison(runs).screen()
    table = shown.partition("Intervals")[0]
    assert max(map(len, table.splitlines())) <= max(80, columns)
    assert "good" in table
    assert "threshold" in table
    assert ("words" in table) == (columns == 140)


def test_words_are_counted_in_texts_without_spaces(make: Make):
    run = make("0", [0.1])
    row: dict[str, Any] = {"final_caption": "一只狗。 A dog's well-known 2.5 m."}
    assert dict(run.numbers(row))["words"] == (8, 1)


def test_the_command_reads_runs_made_separately(make: Make, tmp_path: Path, command: Command, capsys: Any):
    make("a", [0.1, 0.2]), make("b", [0.3, 0.4])
    assert command("compare", "sweep/b", "sweep/a", "--to", "out", "--baseline", "a") == 0
    assert "difference to job a" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("comparison.md", "comparison.csv", "comparison.html")
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "'nowhere' is not a folder"),
        (["."], "no run found in ."),
        (["sweep", "--baseline", "7"], "baseline=7: there is no such run"),
        (["sweep", "--objective", "god"], "no run has objective=god; did you mean 'good'"),
        (["damaged"], "line 1 of damaged/captions.jsonl is not JSON"),
    ],
)
def test_a_mistake_gives_one_clear_message(
    make: Make, tmp_path: Path, command: Command, capsys: Any, words: list[str], message: str
):
    if words[0] == "sweep":
        make("0", [0.1])
    if words[0] == "damaged":
        (tmp_path / "damaged").mkdir()
        (tmp_path / "damaged" / "summary.json").write_text("{}")
        (tmp_path / "damaged" / "captions.jsonl").write_text("{")
    assert command("compare", *words) == 1
    assert message in capsys.readouterr().err


def test_jobs_are_in_the_order_of_their_numbers(make: Make, tmp_path: Path):
    for name in ("10", "9", "1", "10²"):
        make(name, [0.1])
    assert [run.name for run in read_runs([tmp_path / "sweep"])] == ["1", "9", "10", "10²"]
    with pytest.raises(FolderError):
        read_runs([tmp_path / "no"])


def test_from_python_it_is_a_data_frame(make: Make, tmp_path: Path):
    make("0", [0.1, 0.2], "k=1")
    make("1", [0.9, 0.4], "k=2")
    frame = compare([tmp_path / "sweep"])
    assert compare(str(tmp_path / "sweep")).equals(frame)
    assert list(frame["job"]) == ["0", "1"]
    assert list(frame["k"]) == ["1", "2"]
    assert frame["good"][1] == pytest.approx(0.65)
    assert frame["good difference"][1] == pytest.approx(0.5)
    with pytest.raises(FolderError, match="absent"):
        compare([tmp_path / "absent"])


def test_memory_does_not_grow_with_measures(make: Make, monkeypatch: pytest.MonkeyPatch):
    run = make("0", [1.0])
    measures = {f"m{number}": {"mean": 1, "low": 0, "high": 2, "rows": 2_000} for number in range(20)}
    row = {"row_id": "0", "image": "a.png", **dict.fromkeys(measures, 1.5), "m0": None}
    lines = [json.dumps(each) + "\n" for each in (row | {"m1": 2.5}, row)]
    (run.folder / "captions.jsonl").write_text("".join(lines * 1_000))
    (run.folder / "summary.json").write_text(json.dumps({"status": "finished", "metrics": measures}))
    (run,) = read_runs([run.folder])
    monkeypatch.setattr(row_numbers, "CHUNK", 100)
    tracemalloc.start()
    (line,) = Comparison([run]).lines
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert line.numbers["m1"].value.mean == 2.0
    assert peak < 2e6
