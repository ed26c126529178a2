"""Output files: whole or not at all, through links, and never in place of a device."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from unittest.mock import patch

import pytest

from graphsim.cli.output import write_output
from graphsim.errors import UsageError


def test_a_file_is_made_with_the_mode_of_a_new_file_and_keeps_the_one_it_has(tmp_path):
    file = tmp_path / "step.csv"
    before = os.umask(0o027)
    try:
        write_output(file, b"one")
    finally:
        os.umask(before)
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"one", 0o640)
    file.chmod(0o604)
    write_output(file, b"two")
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"two", 0o604)
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_stays_a_link_and_what_it_points_to_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "real.csv", tmp_path / "link.csv"
    link.symlink_to(target)
    for content in (b"new", b"again"):
        write_output(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content


def test_what_is_no_regular_file_is_left_alone(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    to_pipe = tmp_path / "to_pipe"
    to_pipe.symlink_to(pipe)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path, reason in ((pipe, "is a pipe"), (to_pipe, "is a pipe"), (tmp_path, "is a directory"), (loop, "loop")):
        with pytest.raises(UsageError, match=reason):
            write_output(path, b"x")
    with pytest.raises(UsageError, match="is a device"):
        write_output("/dev/null", b"x")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    for path in (tmp_path / "no" / "folder", tmp_path / ("n" * 300), tmp_path / "a\0b"):
        with pytest.raises(UsageError):
            write_output(path, b"x")


def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "step.csv"
    write_output(file, b"old")
    full = OSError(28, "No space left on device")
    with patch.object(Path, "replace", side_effect=full), pytest.raises(UsageError, match="No space left"):
        write_output(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_dash_is_standard_output(capfdbinary):
    write_output("-", b"\x00binary\xff")
    assert capfdbinary.readouterr().out == b"\x00binary\xff"
