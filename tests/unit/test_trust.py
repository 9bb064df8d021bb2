"""A configuration names modules that are run, so one that others could have written is refused."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from wqcore import trust
from wqcore.errors import ConfigError
from wqcore.settings import load

TEXT = '[database]\ndsn = "x"\n[process]\nhandlers = ["shop"]\n[queues.default]\n'
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: only root can give files away")
NOBODY = 65534


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "wq.toml"
    path.write_text(TEXT)
    path.chmod(0o644)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, environ={})
    [problem] = caught.value.problems
    return problem


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o444])
def test_a_file_that_only_we_can_write_is_read(config: Path, mode: int) -> None:
    config.chmod(mode)
    assert load(config, environ={}).process.handlers == ["shop"]


@pytest.mark.parametrize("mode", [0o646, 0o602, 0o666, 0o777])
def test_a_file_that_everybody_can_write_is_refused_with_the_command_that_mends_it(config: Path, mode: int) -> None:
    config.chmod(mode)
    problem = refused(config)
    assert f"{config} can be written by everybody" in problem
    assert f"chmod o-w {config}" in problem
    os.system(problem.rsplit(": ", 1)[1])
    config.chmod(config.stat().st_mode & ~0o020)
    assert load(config, environ={})


def test_a_file_of_a_careless_umask_is_refused(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = tmp_path / "made.toml"
        path.write_text(TEXT)
    finally:
        os.umask(before)
    assert "everybody" in refused(path)


@ROOT_ONLY
def test_a_file_that_a_group_of_others_can_write_is_refused(config: Path) -> None:
    os.chown(config, 0, NOBODY)
    config.chmod(0o664)
    assert f"by the group {grp.getgrgid(NOBODY).gr_name}" in refused(config)
    assert f"chmod g-w {config}" in refused(config)
    config.chmod(0o644)
    assert load(config, environ={})


@pytest.mark.parametrize(
    ("group", "members", "primary", "trusted"),
    [
        ("ann", [], 500, True),
        ("ann", ["ann"], 500, True),
        ("ann", ["ann", "bob"], 500, False),
        ("staff", [], 500, False),  # others may have it as their first group, which no list of members shows
        ("ann", [], 501, False),
        (None, [], 500, False),
    ],
)
def test_a_group_that_can_write_is_fine_only_when_it_is_the_private_one_of_the_owner(
    config: Path, monkeypatch: pytest.MonkeyPatch, group: str | None, members: list[str], primary: int, trusted: bool
) -> None:
    """A umask of 002 with a group for each user, as many systems have it: everything is 664 and nobody else gets in."""

    def getgrgid(gid: int) -> SimpleNamespace:
        if group is None:
            raise KeyError
        return SimpleNamespace(gr_name=group, gr_mem=members)

    monkeypatch.setattr(trust.grp, "getgrgid", getgrgid)
    monkeypatch.setattr(trust.pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="ann", pw_gid=primary))
    fields = list(config.stat())
    fields[0], fields[5] = 0o100664, 500
    problem = trust.problem(config, os.stat_result(fields))
    assert (problem is None) == trusted, problem


@ROOT_ONLY
def test_a_file_of_another_user_is_refused_whatever_its_mode(config: Path) -> None:
    os.chown(config, NOBODY, NOBODY)
    config.chmod(0o400)
    problem = refused(config)
    assert f"belongs to {pwd.getpwuid(NOBODY).pw_name}" in problem
    assert f"chown {pwd.getpwuid(0).pw_name} {config}" in problem


def test_a_file_of_root_is_fine_for_everybody(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = list(config.stat())
    fields[4] = 0
    monkeypatch.setattr(trust.os, "geteuid", lambda: 1000)
    assert trust.problem(config, os.stat_result(fields)) is None
    fields[4] = 1001
    assert "belongs to" in (trust.problem(config, os.stat_result(fields)) or "")


def test_what_a_symbolic_link_leads_to_is_judged_not_the_link(config: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.toml"
    link.symlink_to(config)
    assert load(link, environ={})  # the link itself has the mode 777
    config.chmod(0o666)
    assert "everybody" in refused(link)


def test_a_config_map_of_kubernetes_is_read(tmp_path: Path) -> None:
    """wq.toml → ..data/wq.toml → ..2026_01_01/wq.toml, in a folder that everybody may write, as the kubelet mounts it."""
    (tmp_path / "..2026_01_01").mkdir()
    (tmp_path / "..2026_01_01" / "wq.toml").write_text(TEXT)
    (tmp_path / "..2026_01_01" / "wq.toml").chmod(0o644)
    (tmp_path / "..data").symlink_to("..2026_01_01")
    (tmp_path / "wq.toml").symlink_to("..data/wq.toml")
    tmp_path.chmod(0o777)
    assert load(tmp_path / "wq.toml", environ={}).queues


def test_the_file_that_is_judged_is_the_one_that_is_read(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody exchanges it at the moment between the look and the reading: what is read is what was looked at."""
    other = config.with_name("theirs.toml")
    other.write_text(TEXT.replace("shop", "trap"))
    judge = trust.problem

    def exchange(path: Path, found: os.stat_result) -> str | None:
        other.replace(config)
        return judge(path, found)

    monkeypatch.setattr(trust, "problem", exchange)
    assert load(config, environ={}).process.handlers == ["shop"]
