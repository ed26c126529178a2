"""The folk formulas reproduce the published figures from the question's own counts."""

from __future__ import annotations

import pytest

import graphsim as gs
from graphsim.answers.folk import Counts, accepted, asker, folk_bytes, states_only

MIB = 2**20
QUESTION = Counts(activations=532_752, parameters=19_072_984, inputs=180 * 50 * 1, batch=128)


def test_the_askers_224_69_mb_are_mebibytes_cut_off():
    assert asker(QUESTION) == 235_614_816
    assert int(asker(QUESTION) / MIB * 100) / 100 == 224.69
    assert round(asker(QUESTION) / 1e6, 2) == 235.61


def test_the_accepted_answers_742_34_mb_are_mebibytes_of_rounded_parts():
    activations = 2 * 128 * round(532_752 * 4 / MIB, 2)
    parameters = round(3 * 19_072_984 * 4 / MIB, 2)
    inputs = round(128 * 9_000 * 4 / MIB, 2)
    assert round(activations + parameters + inputs, 2) == 742.34
    assert accepted(QUESTION) == 779_021_856
    assert round(accepted(QUESTION) / MIB, 2) == 742.93
    assert round(accepted(QUESTION) / 1e6, 2) == 779.02


def test_states_only_counts_parameters_gradients_and_states():
    assert states_only(QUESTION._replace(states=2 * 19_072_984)) == 4 * 19_072_984 * 4


def test_the_seed_spec_counts_as_the_question_does():
    graph = gs.load("seed_cnn", batch=128)
    report = gs.peak(graph, optimizer="sgd")
    assert (report.activations, report.parameters) == (532_752, 19_072_984)
    assert report.folk == folk_bytes(QUESTION)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_folk_formulas_are_far_off_for_the_seed_network(optimizer):
    report = gs.peak(gs.load("seed_cnn", batch=128), optimizer=optimizer, target="cpu")
    assert report.folk["asker"] < 0.75 * report.steady.peak_bytes
