"""README and docs/ tell the truth: what they show is what the code prints, their figures are what it computes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from exhaustive import only
from shown import PAGES, ROOT, blocks, run, said, steady
from test_accuracy import ACCURACY

README = ROOT / "README.md"
TEXT = README.read_text()


@pytest.mark.parametrize("page", only([README], [README, *PAGES]), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_shows_what_its_commands_print_and_its_code_runs(page, tmp_path):
    def check(command: str, output: str, today: str) -> None:
        assert steady(output) == steady(today), command

    run(page.read_text(), tmp_path, check)


def test_the_blocks_of_a_page_are_found_in_order(tmp_path):
    page = (
        '```text title="a.txt"\nhello\n```\n\n```console\n$ cat a.txt\nhello\n$ cat a.txt | wc -w\n1\n```\n'
        "<!-- not run: it never ends -->\n```bash\nsleep 9999\n```\n```python\nopen('b.txt', 'w').close()\n```\n"
    )
    assert [block.kind for block in blocks(page)] == ["text", "console", "bash", "python"]
    assert list(said(list(blocks(page))[1].body)) == [("cat a.txt", "hello\n"), ("cat a.txt | wc -w", "1\n")]
    seen = []
    assert run(page.replace("\n1\n", "\n2\n"), tmp_path, lambda *told: seen.append(told)) == page
    assert seen == [("cat a.txt", "hello\n", "hello\n"), ("cat a.txt | wc -w", "2\n", "1\n")]
    assert (tmp_path / "b.txt").exists()


def test_a_command_that_fails_is_seen(tmp_path):
    for page in ("```bash\ngraphsim peak no_such_model\n```\n", "```python\n1 / 0\n```\n"):
        with pytest.raises(AssertionError):
            run(page, tmp_path, lambda *_: None)


def test_there_is_a_real_output_to_show():
    assert any(output for block in blocks(TEXT) if block.kind == "console" for _, output in said(block.body))


def test_readme_is_one_screen():
    assert len(TEXT.splitlines()) <= 130


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", TEXT)
    assert len(links) > 10
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_accuracy_table_holds_todays_predictions():
    text = (ROOT / "docs" / "accuracy.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "foreach=" in line]
    predicted = [
        [
            ACCURACY.SPECS[case.model],
            f"{case.batch}x{case.sequence}" if case.sequence else str(case.batch),
            case.optimizer,
            f"{measured['peak_steady']:,}",
            f"{ACCURACY.predict(case)['peak_steady']:,}",
            f"{ACCURACY.predict(case)['peak_steady'] - measured['peak_steady']:+,}",
        ]
        for case, measured in ACCURACY.reference()
    ]
    assert [row for row in rows if len(row) == 6] == predicted
    equal = sum(row[-1] == "+0" for row in predicted)
    assert f"in {equal} of {len(predicted)} rows" in TEXT


def test_the_two_commands_need_only_python_and_pip():
    for mark in ("main command", "test command"):
        (command,) = re.findall(rf"<!-- {mark} -->\n```bash\n(.*)\n```", TEXT)
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")


def test_every_page_is_reached():
    """The site's navigation names each page, so that none is written for nobody."""
    named = (ROOT / ".mkdocs.yml").read_text()
    for page in [*PAGES, *(ROOT / "docs" / "examples").glob("*.ipynb")]:
        assert str(page.relative_to(ROOT / "docs")) in named


def test_notebooks_are_kept_without_outputs():
    import json

    notebooks = list((ROOT / "docs" / "examples").glob("*.ipynb"))
    assert len(notebooks) >= 2
    for notebook in notebooks:
        for cell in json.loads(Path(notebook).read_text())["cells"]:
            assert not cell.get("outputs"), notebook
