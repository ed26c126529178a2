"""`graphsim report` and `graphsim peak --plot`: the files they write, and what they refuse."""

from __future__ import annotations

import html
import json
import re
import shlex

import pytest
from command_line import graphsim

import graphsim as gs


def data_of(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)[1])


def test_a_report_is_one_file_with_the_peak_of_the_step(tmp_path):
    page = tmp_path / "page.html"
    done = graphsim("report", "lenet5", "--batch", "16", "--optimizer", "adam", "-o", str(page))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{page}: {page.stat().st_size:,} bytes\n"
    data = data_of(page)
    report = gs.peak(gs.load("lenet5", batch=16), optimizer="adam", allocator="torch")
    assert data["peak"]["bytes"] == report.steady.peak_bytes
    assert data["allocation"]["reserved_peak"] == report.steady.reserved_peak_bytes
    facts = dict(data["facts"])
    assert (facts["batch"], facts["optimizer"], facts["step"]) == ("16", "adam (foreach)", "2 and later")
    assert data["plans"] == []
    assert list(tmp_path.iterdir()) == [page]


def test_a_report_compares_strategies_and_shows_one(tmp_path):
    page = tmp_path / "page.html"
    done = graphsim(
        *("report", "lenet5", "--strategy", "sqrt", "--compare", "--budget", "3MiB", "--first"),
        *("--allocator", "none", "-o", str(page)),
    )
    assert done.returncode == 0, done.stderr
    data = data_of(page)
    assert data["allocation"] is None
    assert data["order"] is not None
    assert "recompute" in {data["phases"][code][0] for code in data["phase"]}
    assert {plan["budget"] for plan in data["plans"]} == {None, 3 * 2**20}
    assert {plan["strategy"] for plan in data["plans"]} >= {"none", "sqrt"}
    assert dict(data["facts"])["step"].startswith("1,")


def test_the_page_says_first_whether_it_fits_and_how_it_was_made(tmp_path):
    setting = {"batch": 5120, "optimizer": "momentum"}
    verdicts = {}
    for source, gpu, params in (("seed_cnn", "t4", {}), ("lenet5", "a100-80g", {"classes": 10})):
        page = gs.report(source, gpu=gpu, params=params, **setting)
        verdicts[gpu] = re.search(r'id="verdict">(.*?)</p>', page)[1]
    assert "does not fit on t4 (14.56 GiB)" in verdicts["t4"]
    need = gs.fit("seed_cnn", gpu="t4", **setting).need_bytes
    assert f"reserves {gs.units.format_bytes(need)} for it" in verdicts["t4"]
    assert "fits on a100-80g" in verdicts["a100-80g"]
    assert "activations are" in verdicts["a100-80g"]
    command = html.unescape(re.search(r'id="command">(.*?)</code>', page)[1])
    assert command == "graphsim report lenet5 --batch 5120 --optimizer momentum --gpu a100-80g --set classes=10"
    graphsim(*shlex.split(command)[1:], "-o", str(tmp_path / "again.html"))
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page
    assert 'id="command"></code>' in gs.report(gs.load("lenet5", batch=4), allocator="none"), "a graph has no words"


def test_a_report_of_a_graph_file(tmp_path):
    graph = gs.training_step(gs.load("lenet5", batch=4), optimizer="sgd", target="cpu")
    (tmp_path / "step.json").write_text(graph.to_json())
    done = graphsim("report", str(tmp_path / "step.json"), "-o", str(tmp_path / "page.html"))
    assert done.returncode == 0, done.stderr
    data = data_of(tmp_path / "page.html")
    assert data["peak"]["bytes"] == gs.simulate(graph).peak
    assert dict(data["facts"])["optimizer"].startswith("sgd"), "the graph knows how it is trained"


def test_a_plain_dag_is_shown_without_a_word_on_training(tmp_path):
    done = graphsim("report", "layered:40", "-o", str(tmp_path / "page.html"), "--strategy", "greedy")
    assert done.returncode == 0, done.stderr
    assert dict(data_of(tmp_path / "page.html")["facts"]) == {"strategy": "greedy"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", "1GiB"), "--budget is for --strategy or --compare"),
        (("--strategy", "sqrt", "--budget", "1GiB", "--budget", "2GiB"), "one --budget"),
        (("--strategy", "squirt"), "did you mean 'sqrt'"),
        (("--allocator", "torhc"), "did you mean 'torch'"),
        (("-o", "/no/such/folder/page.html"), "No such file or directory"),
    ],
)
def test_a_wrong_report_is_one_message(arguments, message, tmp_path):
    done = graphsim("report", "lenet5", "-o", str(tmp_path / "page.html"), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_peak_draws_beside_its_answer(tmp_path):
    pytest.importorskip("matplotlib")
    done = graphsim("peak", "lenet5", "--plot", str(tmp_path / "out.SVG"))
    assert done.returncode == 0, done.stderr
    assert "Live at the peak" in done.stdout
    assert (tmp_path / "out.SVG").read_bytes().startswith(b"<?xml")
    refused = graphsim("peak", "lenet5", "--plot", str(tmp_path / "out.gif"))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert not (tmp_path / "out.gif").exists()
