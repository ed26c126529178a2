"""Differences between steps: they add up, nothing is made up, and a gate says no when it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import graphsim
from generators import training_steps
from hypothesis import given, settings

import graphsim as gs
from graphsim.answers.diff import Diff, changed, is_report, load_report
from graphsim.errors import SpecError, UsageError


def report(graph: gs.Graph) -> dict:
    return json.loads(gs.peak(graph, largest=None).to_json())


def of(name: str, **options) -> dict:
    params = {key: options.pop(key) for key in ("batch", "seq", "layers", "dropout") if key in options}
    return json.loads(gs.peak(gs.load(name, **params), largest=None, **options).to_json())


@given(graph=training_steps())
@settings(max_examples=50)
def test_a_step_does_not_differ_from_itself(graph):
    found = changed(report(graph), report(graph))
    assert found.same
    assert found.grown == 0
    assert found.tensors == ()
    assert not found.exceeds()


@given(a=training_steps(), b=training_steps())
@settings(max_examples=100)
def test_differences_add_up_to_that_of_the_peaks(a, b):
    found = changed(report(a), report(b))
    change = gs.simulate(b).peak - gs.simulate(a).peak
    assert found.steady.bytes == change
    assert sum(role.bytes for role in found.roles) == change
    assert sum(tensor.bytes for tensor in found.tensors) == change
    assert sum(layer.bytes for layer in found.layers) == change
    assert found.unlisted == (0, 0)


@given(a=training_steps(), b=training_steps())
@settings(max_examples=50)
def test_the_other_way_round_every_change_has_the_other_sign(a, b):
    there, back = changed(report(a), report(b)), changed(report(b), report(a))
    assert there.steady.bytes == -back.steady.bytes
    assert {t.name: t.bytes for t in there.tensors} == {t.name: -t.bytes for t in back.tensors}


def test_what_a_tensor_is_called_is_enough_to_find_it_again():
    found = changed(of("gpt2", layers=2, seq=64, batch=64), of("gpt2", layers=2, seq=64, batch=128))
    doubled = [t for t in found.tensors if t.a is not None and t.b is not None and t.role == "saved_activations"]
    assert doubled
    assert all(t.b == 2 * t.a for t in doubled if t.a > 1000)
    assert not any(t.role == "parameters" for t in found.tensors)


def test_without_dropout_its_masks_are_gone():
    found = changed(of("gpt2", layers=2, seq=64, batch=64), of("gpt2", layers=2, seq=64, batch=64, dropout=0.0))
    gone = [t for t in found.tensors if t.b is None and "dropout" in t.name]
    assert gone
    assert found.steady.bytes < 0


def test_growth_is_that_of_the_worse_of_both_steps():
    a, b = of("lenet5", optimizer="sgd"), of("lenet5", optimizer="sgd")
    b["first"]["peak_bytes"] += 100
    found = changed(a, b)
    assert (found.steady.bytes, found.grown) == (0, 100)
    assert found.exceeds()
    assert found.exceeds("99")
    assert not found.exceeds("100")
    share = 100 * 100 / a["first"]["peak_bytes"]
    assert found.exceeds(f"{share * 0.99:.6f}%")
    assert not found.exceeds(f"{share * 1.01:.6f}%")


@pytest.mark.parametrize("text", ["lots", "-1", "1%%", "%"])
def test_a_tolerance_is_bytes_or_a_share(text):
    same: Diff = changed(of("lenet5"), of("lenet5"))
    with pytest.raises(UsageError):
        same.exceeds(text)


# -- saved results ---------------------------------------------------------------------------------


def test_a_saved_result_stands_for_the_run(tmp_path):
    saved = tmp_path / "memory.json"
    saved.write_text(graphsim("peak", "lenet5", "--json", "--largest", "0").stdout)
    assert is_report(str(saved))
    done = graphsim("diff", str(saved), "lenet5", "--budget", "1GiB")
    assert done.returncode == 0, done.stderr
    assert "No change." in done.stdout
    assert "within 1.00 GiB" in done.stdout


def test_what_a_short_list_leaves_out_is_said(tmp_path):
    saved = tmp_path / "memory.json"
    saved.write_text(graphsim("peak", "lenet5", "--json", "--largest", "2").stdout)
    found = changed(load_report(str(saved)), of("lenet5"))
    assert found.unlisted[0] > 0
    assert found.unlisted[1] == 0
    assert "--largest 0" in graphsim("diff", str(saved), "lenet5").stdout


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: "{", "not JSON"),
        (lambda data: json.dumps({**data, "schema": "graphsim-report/0"}), "not a report of this version"),
        (lambda data: json.dumps({**data, "steady": 3}), "'steady' is missing"),
        (lambda data: json.dumps({**data, "ops": "many"}), "'ops'"),
        (lambda data: json.dumps({**data, "first": {**data["first"], "peak_bytes": -1}}), "'first.peak_bytes'"),
        (lambda data: json.dumps({**data, "steady": {**data["steady"], "largest": [{}]}}), "'steady.largest'"),
        (lambda data: json.dumps({**data, "steady": {**data["steady"], "by_role_at_peak": []}}), "by_role_at_peak"),
    ],
)
def test_a_damaged_result_gets_one_message(tmp_path, change, says):
    saved = tmp_path / "memory.json"
    saved.write_text(change(of("lenet5")))
    with pytest.raises(SpecError, match=says) as error:
        load_report(str(saved))
    assert str(saved) in str(error.value)


# -- the command -----------------------------------------------------------------------------------


def test_the_command_is_a_gate():
    grown = graphsim("diff", "lenet5", "lenet5", "--batch", "8", "--b", "batch=16")
    assert grown.returncode == 1
    assert "B needs" in grown.stdout
    assert graphsim("diff", "lenet5", "lenet5", "--batch", "16", "--b", "batch=8").returncode == 0
    allowed = graphsim("diff", "lenet5", "lenet5", "--batch", "8", "--b", "batch=16", "--tolerance", "1GiB")
    assert allowed.returncode == 0
    above = graphsim("diff", "lenet5", "lenet5", "--budget", "1KiB")
    assert above.returncode == 1
    assert "above 1.00 KiB" in above.stdout


def test_options_may_hold_for_one_side_only():
    done = graphsim("diff", "resnet18", "resnet18", "--b", "precision=bf16", "--b", "optimizer=sgd", "--json")
    data = json.loads(done.stdout)
    assert data["schema"] == "graphsim-diff/1"
    assert data["steady"]["b"] == of("resnet18", precision="bf16", optimizer="sgd")["steady"]["peak_bytes"]
    assert data["steady"]["a"] == of("resnet18")["steady"]["peak_bytes"]
    assert {"grown_bytes", "tensors", "layers", "roles", "exceeds_tolerance", "above_budget"} <= set(data)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("lenet5", "lenet6"), "lenet5"),
        (("lenet5", "lenet5", "--b", "wat=3"), "wat"),
        (("lenet5", "lenet5", "--b", "precision=bf61"), "bf16"),
        (("lenet5", "lenet5", "--budget", "much"), "much"),
        (("lenet5", "lenet5", "--tolerance", "some"), "some"),
    ],
)
def test_wrong_command_lines_get_one_message(arguments, says):
    done = graphsim("diff", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_commands_of_the_documented_gate_run(tmp_path, monkeypatch):
    """The workflow of the module's docstring, for a spec of ours."""
    import graphsim.answers.diff as module

    monkeypatch.chdir(tmp_path)
    commands = [line.strip() for line in (module.__doc__ or "").splitlines() if "graphsim diff memory.json" in line]
    assert len(commands) == 1
    spec = str(Path(__file__).parents[2] / "specs" / "lenet5.toml")
    save = graphsim("peak", spec, "--batch", "32", "--json", "--largest", "0")
    Path("memory.json").write_text(save.stdout)
    arguments = commands[0].partition("graphsim ")[2].replace("specs/my_model.toml", spec).split()
    assert graphsim(*arguments).returncode == 0
