"""Whether a file that names code to run can have been written by nobody but us and the administrator."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
from pathlib import Path


def problem(path: str | Path, found: os.stat_result) -> str | None:
    """Why the open file is not to be trusted, with the fix; None when it is.

    `found` is that of the descriptor that is read, so that nobody can exchange the file between the look and the reading;
    symbolic links have been followed by then. A file of root that only root may write, as a ConfigMap of Kubernetes is
    mounted, is fine.
    """
    quoted, us = shlex.quote(str(path)), os.geteuid()
    if found.st_uid not in (0, us):
        return (
            f"the configuration {path} belongs to {_user(found.st_uid)}, who could have modules of his own run by "
            f"{_user(us)}: make it yours (chown {_user(us)} {quoted}), or root's"
        )
    if found.st_mode & stat.S_IWOTH:
        return f"the configuration {path} can be written by everybody, and the modules that it names are run: chmod o-w {quoted}"
    if found.st_mode & stat.S_IWGRP and not _only_owner_in(found.st_gid, found.st_uid):
        return (
            f"the configuration {path} can be written by the group {_group(found.st_gid)}, and the modules that it names "
            f"are run: chmod g-w {quoted}"
        )
    return None


def _only_owner_in(gid: int, uid: int) -> bool:
    """Whether the group is the user's private one, as most systems make one with each user: a umask of 002, under which all
    files of such a user can be written by his group, lets nobody else in."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return False
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == user.pw_name and gid == user.pw_gid and set(group.gr_mem) <= {user.pw_name}


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
