"""What GitHub tells the platform: a pushed commit is deployed once in each project, and what is uninstalled is unlinked.

Each handler is one transaction: a crash leaves nothing of it or all of it, the jobs included. GitHub may tell the same
twice; a project has one deployment of a commit, and only a new one is indexed.
"""

from __future__ import annotations

import msgspec

import wqcore
from handlers import deployments, store


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


@wqcore.handler
async def github_push(args: GithubPush, job: wqcore.Job) -> None:
    """Makes a deployment of the commit for each project that is linked to the branch, and has its endpoint indexed.

    A repository that is not linked changes nothing: installations tell of all their repositories.
    """
    db = await store.open_store()
    async with db.transaction() as tx:
        for link in await tx.rows("projects_to_deploy", repository=args.repository, branch=args.branch):
            commit = deployments.Commit(args.branch, args.commit_sha, args.repository)
            await deployments.deploy(tx, link, commit, source="HOOK")


@wqcore.handler
async def github_app_installation_deleted(args: GithubAppInstallationDeleted, job: wqcore.Job) -> None:
    """Removes the installation's repositories and unlinks their projects; what is deployed stays."""
    db = await store.open_store()
    await db.row("remove_installation", installation=args.id)
