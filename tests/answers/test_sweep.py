"""Sweeps: the rows of a grid are what single calls say, in the order of the grid."""

from __future__ import annotations

import csv
import io
import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from command_line import graphsim
from hypothesis import given
from hypothesis import strategies as st

import graphsim as gs
from graphsim.answers.need import need_of
from graphsim.answers.sweep import SCHEMA, Point, Workers, grid, read_list, sweep
from graphsim.answers.sweep import points as points_module
from graphsim.answers.sweep.table import RESULTS, columns, to_csv, to_parquet
from graphsim.core.context import context_of
from graphsim.core.devices import DEVICES, device_of, op_seconds
from graphsim.errors import DISTRIBUTION, GraphSimError, UnknownNameError, UsageError
from graphsim.recompute.plan import make_plan
from graphsim.sources import source_of

HERE = Workers(lambda: ThreadPoolExecutor(1), slots=2)
"""The same, in this process."""
LENET = {"source": "lenet5"}


def rows_of(points: list[Point], folder: Path) -> list[dict[str, object]]:
    return [dict(row) for row in sweep(points, folder / "out.csv", HERE).rows]


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True), min_size=1, max_size=4))
def test_a_grid_is_the_product_of_its_axes_the_last_fastest(sizes):
    names = [f"param{number}" for number in range(len(sizes))]
    axes = [[{name: value} for value in values] for name, values in zip(names, sizes, strict=True)]
    made = grid([[LENET], *axes])
    assert [tuple(value for _, value in point.params) for point in made] == list(itertools.product(*sizes))


def test_a_point_stands_once_and_a_list_is_one_axis():
    listed = [{"batch": 1, "optimizer": "sgd"}, {"batch": 2}, {"batch": 1, "optimizer": "sgd"}]
    points = grid([[LENET], listed, [{"gpu": "t4"}, {"gpu": "l4"}]])
    told = [(dict(point.params), point.optimizer, point.gpu) for point in points]
    assert told == [
        ({"batch": 1}, "sgd", "t4"),
        ({"batch": 1}, "sgd", "l4"),
        ({"batch": 2}, "adamw", "t4"),
        ({"batch": 2}, "adamw", "l4"),
    ]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ([[LENET], [{"batch": 1}], [{"batch": 2}]], "'batch' is set twice"),
        ([[{"batch": 1}]], "without a model"),
        ([[LENET], [{"accumulation": "two"}]], "accumulation is a whole number"),
        ([[LENET], [{"optimizer": 3}]], "optimizer is text"),
        ([[LENET], [{"batch": b} for b in range(400)], [{"seq": s} for s in range(400)]], "160,000 points"),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused(axes, message):
    with pytest.raises(UsageError, match=message):
        grid(axes)


def test_csv_and_toml_lists_name_the_same_points(tmp_path):
    (tmp_path / "list.csv").write_text(
        "source,layers,batch,optimizer,accumulation,dropout\ngpt2,2,4,sgd,2,\nlenet5,,8,,,\ngpt2,1,,,,0.5\n"
    )
    (tmp_path / "list.toml").write_text(
        '[[point]]\nsource = "gpt2"\nlayers = 2\nbatch = 4\noptimizer = "sgd"\naccumulation = 2\n'
        '[[point]]\nsource = "lenet5"\nbatch = 8\n[[point]]\nsource = "gpt2"\nlayers = 1\ndropout = 0.5\n'
    )
    points = grid([read_list(tmp_path / "list.csv")])
    assert points == grid([read_list(tmp_path / "list.toml")])
    assert points == [
        Point(source="gpt2", params=(("layers", 2), ("batch", 4)), optimizer="sgd", accumulation=2),
        Point(source="lenet5", params=(("batch", 8),)),
        Point(source="gpt2", params=(("layers", 1), ("dropout", 0.5))),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "source,batch\ngpt2\n", "line 2: 1 cells under 2 columns"),
        ("list.csv", "source,source\ngpt2,gpt2\n", "'source' stands twice"),
        ("list.csv", "source,\ngpt2,1\n", "column without a name"),
        ("list.csv", "source,peak_bytes\ngpt2,1\n", "'peak_bytes' is a result"),
        ("list.csv", "source,accumulation\ngpt2,x\n", "line 2: accumulation is a whole number"),
        ("list.csv", 'source,batch\n"gpt2,1\n', "line 2"),
        ("list.csv", "source,batch\n", "no points"),
        ("list.csv", "", "no points"),
        ("list.csv", "source\ntorch:os:getcwd\n", "a list does not run code"),
        ("list.toml", '[[point]]\nsource = "torch:os:getcwd"\n', "a list does not run code"),
        ("list.toml", "[[point]]\nbatch = [1]\n", "'batch' is a number"),
        ("list.toml", "point = 3\n", r"write a table \[\[point\]\]"),
        ("list.toml", "[[points]]\nbatch = 1\n", r"write a table \[\[point\]\]"),
        ("list.toml", "x = " + "[" * 5000, "not TOML"),
        ("list.txt", "gpt2", ".csv or a .toml"),
        ("list.csv", "x" * 5_000_000, "larger than"),
    ],
)
def test_a_bad_list_is_refused_by_its_place(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(GraphSimError, match=message):
        read_list(tmp_path / name)


def test_rows_are_what_peak_says_when_it_is_called(tmp_path):
    points = grid(
        [
            [{"source": "gpt2", "layers": 2, "batch": 2, "seq": 64}, {"source": "lenet5", "batch": 16}],
            [{"precision": "fp32"}, {"precision": "amp-bf16"}],
            [{"mode": "train"}, {"mode": "evaluation"}, {"mode": "inference"}],
            [
                {"optimizer": "adam8bit", "policy": "liveness"},
                {"allocator": "torch", "allocator_options": "limit=8MiB"},
            ],
            [{"accumulation": 1}, {"accumulation": 5}],
        ]
    )
    rows = rows_of(points, tmp_path)
    assert len(rows) == 48
    for point, row in zip(points, rows, strict=True):
        report = gs.peak(
            gs.load(point.source, **dict(point.params)),
            training=point.training(),
            policy=point.policy,
            allocator=point.allocator,
            allocator_options=point.allocator_options,
        )
        steady = report.steady
        assert row["error"] is None
        assert row["parameters"] == report.parameters
        assert (row["peak_bytes"], row["first_peak_bytes"]) == (steady.peak_bytes, report.first.peak_bytes)
        assert (row["peak_phase"], row["peak_op"]) == (steady.peak_phase, steady.peak_op)
        held = (row["reserved_peak_bytes"], row["first_reserved_peak_bytes"], row["out_of_memory"])
        assert held == (steady.reserved_peak_bytes, report.first.reserved_peak_bytes, steady.out_of_memory)
        assert (row["batch"], row["overhead"], row["fits"]) == (report.batch, 0.0, None)
    assert {row["out_of_memory"] for row in rows} > {"", "before the step"}


def test_a_gpu_is_judged_as_fit_does_and_sets_the_rules_of_the_step(tmp_path):
    gpus, batches = ("t4", "a100-80g", "h200"), (1, 10, 200)
    axes = [[{"source": "gpt2", "layers": 2}], [{"batch": b} for b in batches], [{"gpu": g} for g in gpus]]
    points = grid(axes)
    for point, row in zip(points, rows_of(points, tmp_path), strict=True):
        graph, training = gs.load("gpt2", **dict(point.params)), gs.Training(device=point.gpu)
        memory, need = DEVICES[point.gpu].memory, need_of(source_of(graph), training)
        assert (row["memory_bytes"], row["need_bytes"]) == (memory, need)
        context = context_of(point.gpu, cudnn=False)
        least, most = context.least, context.most
        assert row["fits"] == (need + most <= memory)
        assert row["perhaps"] == (need + least <= memory < need + most)
        seconds = op_seconds(gs.training_step(graph, training), device_of(point.gpu, "cuda")).sum()
        assert row["step_seconds"] == pytest.approx(seconds)
    fits = {
        (dict(point.params)["batch"], point.gpu): row["fits"]
        for point, row in zip(points, rows_of(points, tmp_path), strict=True)
    }
    assert fits[1, "t4"]
    assert not fits[200, "t4"]


def test_the_time_of_many_micro_batches_is_that_of_the_step_written_out(tmp_path):
    (row,) = rows_of(grid([[LENET], [{"accumulation": 9}], [{"gpu": "t4"}]]), tmp_path)
    step = gs.training_step(gs.load("lenet5"), accumulation=9, device="t4")
    assert row["step_seconds"] == pytest.approx(op_seconds(step, DEVICES["t4"]).sum())


def test_a_strategy_schedules_the_step_within_its_budget(tmp_path):
    strategies, budgets = ("none", "sqrt", "greedy"), ("0.7x", "64KiB")
    points = grid(
        [[{"source": "lenet5", "batch": 256}], [{"strategy": s} for s in strategies], [{"budget": b} for b in budgets]]
    )
    step = gs.training_step(gs.load("lenet5", batch=256))
    stored = gs.simulate(step).peak
    rows = rows_of(points, tmp_path)
    for point, row in zip(points, rows, strict=True):
        budget = stored * 7 // 10 if point.budget == "0.7x" else 2**16
        plan = make_plan(step, point.strategy, budget)
        assert (row["budget_bytes"], row["peak_bytes"]) == (budget, plan.peak_bytes)
        assert row["feasible"] == (plan.peak_bytes <= budget)
        assert row["overhead"] == pytest.approx(plan.overhead)
    assert any(row["overhead"] > 0 for row in rows)


def test_a_bad_point_is_a_row_with_an_error(tmp_path):
    listed = [
        {"batch": 4},
        {"batch": 0},
        {"seq": 4},
        {"optimizer": "adamm"},
        {"gpu": "t4", "target": "cpu"},
        {"strategy": "sqrd"},
        {"budget": "much"},
        {"allocator": "toch"},
        {"allocator_options": "limit=1GiB"},
        {"policy": "lazy"},
        {"precision": "amp-fp16", "mode": "dream"},
        {"batch": 8},
    ]
    points = [*grid([[LENET], listed]), Point(source="nosuch"), Point(source="step.json")]
    rows = rows_of(points, tmp_path)
    assert [bool(row["error"]) for row in rows] == [False, *[True] * 10, False, True, True]
    for row, words in zip(
        rows[1:],
        ("batch", "'seq'", "'adam'", "target cuda", "'sqrt'", "not a size", "'torch'", "--allocator", "eager", "mode"),
        strict=False,
    ):
        assert words in row["error"]
        assert row["peak_bytes"] is None
    assert rows[1]["batch"] == 0, "what was asked stays in the row"


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"source": "nosuch"}, UsageError),
        ({"source": "lenet5", "seq": 5}, GraphSimError),
        ({"source": "lenet5", "optimizer": "adamm"}, UnknownNameError),
        ({"source": "lenet5", "gpu": "t5"}, UnknownNameError),
        ({"source": "lenet5", "strategy": "sqrd"}, UnknownNameError),
        ({"source": "step.json"}, UsageError),
    ],
)
def test_what_is_wrong_with_all_points_is_refused_and_nothing_is_left(tmp_path, settings, error):
    with pytest.raises(error):
        sweep(grid([[settings], [{"batch": 1}, {"batch": 2}]]), tmp_path / "out.csv", HERE)
    assert not list(tmp_path.iterdir())


def test_csv_and_parquet_hold_the_same_typed_table(tmp_path):
    import pyarrow.parquet as pq

    listed = [{"source": "gpt2", "layers": 1, "dropout": 0.5, "gpu": "t4"}, {"source": "lenet5", "dropout": True}]
    points = grid([listed, [{"batch": 2}, {"batch": 2**70}]])
    (tmp_path / "a").mkdir()
    rows = rows_of(points, tmp_path / "a")
    summary = sweep(points, tmp_path / "out.parquet", HERE)
    assert summary.rows == tuple(rows)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.metadata[b"schema"] == SCHEMA.encode()
    written = read_table(tmp_path / "a" / "out.csv")
    assert list(written[0]) == table.column_names == list(summary.columns)
    assert [str(table.schema.field(name).type) for name in ("peak_bytes", "fits", "step_seconds", "error")] == [
        "int64",
        "bool",
        "double",
        "string",
    ]
    for text, row, typed in zip(written, rows, table.to_pylist(), strict=True):
        for name in table.column_names:
            plain = typed[name] if not isinstance(typed[name], bool) else str(typed[name]).lower()
            assert text[name] == ("" if plain is None else str(plain))
            if name in RESULTS:
                assert typed[name] == row[name]


def test_columns_are_the_model_its_params_the_options_the_results():
    points = grid([[{"source": "gpt2", "layers": 2}, {"source": "gpt2", "width": "big"}], [{"layers2": 1.5}]])
    names = list(columns(points))
    assert names[:6] == ["source", "batch", "seq", "layers", "layers2", "width"]
    assert names[-len(RESULTS) :] == list(RESULTS)
    assert names[-1] == "schema"
    assert (columns(points)["layers2"], columns(points)["width"], columns(points)["batch"]) == (float, str, int)


def test_text_that_is_no_unicode_does_not_break_a_table():
    header, rows = {"source": str}, [{"source": "bad\udcff,name"}]
    assert list(csv.reader(io.StringIO(to_csv(header, rows).decode()))) == [["source"], ["bad?,name"]]
    assert to_parquet(header, rows)[:4] == b"PAR1"


def test_a_table_that_no_sweep_of_this_journal_wrote_is_not_touched(tmp_path):
    output = tmp_path / "out.csv"
    two, three = ([Point(source="lenet5", params=(("batch", b),)) for b in range(1, n)] for n in (3, 4))
    output.write_text("mine")
    with pytest.raises(UsageError, match="no sweep wrote it"):
        sweep(two, output, HERE)
    assert output.read_text() == "mine"
    output.unlink()
    assert sweep(two, output, HERE).computed == 2
    grown = sweep(three, output, HERE)
    assert (grown.computed, grown.reused) == (1, 2), "a grid that grows computes what is new"
    with pytest.raises(UsageError, match="1 points that are not in this sweep"):
        sweep(two, output, HERE)
    table = output.read_text()
    output.write_text(table + "a note\n")
    with pytest.raises(UsageError, match="has changed"):
        sweep(three, output, HERE)
    output.unlink()
    assert sweep(three, output, HERE).computed == 0
    assert output.read_text() == table


def test_a_spec_that_changes_is_computed_again(tmp_path):
    spec = tmp_path / "mine.toml"
    text = (Path(points_module.__file__).parents[3] / "specs" / "lenet5.toml").read_text()
    spec.write_text(text)
    points = [Point(source=str(spec))]
    before = sweep(points, tmp_path / "out.csv", HERE)
    (tmp_path / "out.csv").unlink()
    spec.write_text(text.replace("out = 120", "out = 130"))
    after = sweep(points, tmp_path / "out.csv", HERE)
    assert after.computed == 1
    assert after.rows[0]["parameters"] > before.rows[0]["parameters"]


def test_a_torch_source_is_captured_for_each_point(tmp_path, monkeypatch):
    (tmp_path / "my_sweep_model.py").write_text(
        "import torch\n\ndef make(batch=4, width=16):\n"
        "    if width == 13:\n        raise RuntimeError('unlucky')\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(width, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))\n"
        "    return model, torch.randn(batch, width)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    source = "torch:my_sweep_model:make"
    axes = [[{"source": source}], [{"width": w} for w in (16, 13, 64)], [{"optimizer": "sgd", "target": "cpu"}]]
    rows = rows_of(grid(axes), tmp_path)
    assert "unlucky" in rows[1]["error"]
    for row, width in ((rows[0], 16), (rows[2], 64)):
        graph = gs.load(source, optimizer="sgd", width=width)
        assert row["peak_bytes"] == gs.simulate(graph).peak
        assert row["batch"] == 4
    assert sweep(grid(axes), tmp_path / "out.csv", HERE).computed == 1, "what the user's code does is tried again"


def test_the_command_tabulates_a_grid_in_processes(tmp_path):
    output = tmp_path / "out.csv"
    command = ("sweep", "gpt2", "lenet5", "--batch", "1,2", "--set", "layers=1", "--precision", "fp32,amp-bf16")
    command += ("--gpu", "t4", "--jobs", "2", "-o", str(output))
    done = graphsim(*command, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["schema"], summary["points"], summary["computed"], summary["failed"]) == (SCHEMA, 8, 8, 4)
    assert summary["fits"] == {"t4": {"fits": 4, "points": 4}}
    rows = read_table(output)
    assert list(rows[0]) == summary["columns"]
    assert [(row["source"], row["batch"], row["precision"]) for row in rows] == list(
        itertools.product(("gpt2", "lenet5"), "12", ("fp32", "amp-bf16"))
    )
    for row in rows[:4]:
        graph = gs.load("gpt2", layers=1, batch=int(row["batch"]))
        assert int(row["peak_bytes"]) == gs.peak(graph, precision=row["precision"], gpu="t4").steady.peak_bytes
    again = graphsim(*command)
    assert "8 points" in again.stdout
    assert "0 computed, 8 reused" in again.stdout
    assert "t4: 4 of 4 fit" in again.stdout
    assert "4 failed" in again.stdout
    assert "no param 'layers'" in again.stdout
    assert read_table(output) == rows


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lenet5", "--batch", "1,x"), "whole numbers"),
        (("lenet5", "--batch", "1,,2"), "separated by commas"),
        (("lenet5", "--set", "batch"), "NAME=VALUE"),
        (("lenet5", "--set", "optimizer=sgd"), "an option of sweep"),
        (("lenet5", "--batch", "1", "--set", "batch=2"), "set twice"),
        (("lenet5", "-o", "out.txt"), "*.csv or *.parquet"),
        (("lenet5", "-o", "nowhere/out.csv"), "no folder"),
        (("lenet5", "--optimizer", "adamm"), "did you mean"),
        (("lenet5", "--jobs", "2", "--scheduler", "tcp://127.0.0.1:1"), "--jobs is for this machine"),
        (("--batch", "1"), "without a model"),
        (("--list", "nowhere.csv"), "No such file"),
    ],
)
def test_a_wrong_command_is_refused_with_one_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    done = graphsim("sweep", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("module", "extra"), [("pyarrow", "sweep"), ("distributed", "dask")])
def test_what_is_missing_names_its_extra(tmp_path, module, extra):
    option = {"sweep": "-o x.parquet", "dask": "--scheduler tcp://127.0.0.1:1"}[extra]
    code = f"import sys; sys.modules['{module}'] = None; sys.argv = 'graphsim sweep lenet5 {option}'.split()\n"
    code += "from graphsim.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert f"{DISTRIBUTION}[{extra}]" in done.stderr
    assert not list(tmp_path.iterdir())
