"""Who can have written a file, or can put another in its place: only the user and root, or others.

Compiled kernels are read as pickles, which run what they say, so nobody else may write to them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

if os.name == "posix":
    import grp
    import pwd


def is_private(
    status: os.stat_result, *, user: int, groups: Collection[int] = (), above: bool = False
) -> bool:
    """Tell whether only root and `user` can change what a path holds. Access lists count as groups.

    Parameters
    ----------
    status
        Of the path itself, links not followed.
    user
        The user's number.
    groups
        Groups that only root or the user are in.
    above
        Whether it is a directory above the one meant: in a sticky one nobody can replace what
        belongs to the user, and one that such a group may write to, as umask 002 makes it, will do.
    """
    if status.st_uid not in (0, user) or stat.S_ISLNK(status.st_mode):
        return False
    if above and status.st_mode & stat.S_ISVTX:
        return True
    if status.st_mode & stat.S_IWOTH:
        return False
    return not status.st_mode & stat.S_IWGRP or (above and status.st_gid in groups)


def find_anothers(path: Path) -> Path | None:
    """Return the first of `path` and the directories above it that others can write to.

    Windows keeps access in other ways, and a user's files private by default.

    Parameters
    ----------
    path
        A resolved path, which leads through no link.

    Raises
    ------
    OSError
        The path, or one above it, can't be looked at.
    """
    if os.name != "posix":
        return None
    user = os.geteuid()
    groups = _private_groups(user)
    for each in reversed(path.parents):
        if not is_private(each.lstat(), user=user, groups=groups, above=True):
            return each
    return None if is_private(path.lstat(), user=user) else path


def is_private_file(path: str) -> bool:
    """Tell whether a file, of which `find_anothers` has checked the directory, is safe to read."""
    return os.name != "posix" or is_private(os.lstat(path), user=os.geteuid())


def _private_groups(user: int) -> set[int]:
    """Return the groups named after root and the user that have no other member."""
    groups = set()
    for each in (0, user):
        try:
            account = pwd.getpwuid(each)
            group = grp.getgrgid(account.pw_gid)
        except KeyError:  # a container's user is often listed nowhere
            continue
        if group.gr_name == account.pw_name and {*group.gr_mem} <= {account.pw_name, "root"}:
            groups.add(group.gr_gid)
    return groups
