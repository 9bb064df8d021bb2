"""What GitHub tells the platform: commits to deploy and installations that are gone."""

from __future__ import annotations

import msgspec

import wqcore


@wqcore.kind("githubPush", queue="internal-queue", priority=50, max_attempts=3, timeout_s=120)
class GithubPush(msgspec.Struct, frozen=True, rename="camel"):
    """Deploys a commit to each project that is linked to its repository and branch.

    Attributes:
        branch (str): the branch's name.
        commit_sha (str): the commit.
        repository (str): owner/name.
    """

    branch: str
    commit_sha: str
    repository: str


@wqcore.kind("githubAppInstallationDeleted", queue="internal-queue", priority=50, max_attempts=3, timeout_s=60)
class GithubAppInstallationDeleted(msgspec.Struct, frozen=True, rename="camel"):
    """Unlinks the repositories of an installation.

    Attributes:
        id (str): the installation.
    """

    id: str
