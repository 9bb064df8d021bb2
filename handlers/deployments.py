"""Deployments of linked projects: one a project and commit, each followed by one index of its endpoint.

startInitialProjectDeployment: look whether it is made, ask GitHub for the branch's commit, then write the deployment and
its indexEndpoint in one transaction. A crash before that leaves nothing; after it, the repetition finds the deployment.
"""

from __future__ import annotations

import time
from typing import Annotated, Final, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta

import wqcore
from handlers import ids, outgoing, store
from handlers.endpoints import IndexEndpoint

GITHUB_API_VERSION: Final = "2022-11-28"
RATE_LIMIT_WAIT_S: Final = 60.0
"""What GitHub asks for when a limit is reached and no header says how long ("wait for at least one minute")."""


class Github(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings `[app.github]`: where commits are looked up.

    Attributes:
        api_url (str): default `https://api.github.com`; that of a GitHub Enterprise Server ends with `/api/v3`.
        token (str | None): needed for private repositories, and for more than 60 requests an hour. Default none. Give it
            as `WQCORE_APP__GITHUB__TOKEN`.
    """

    api_url: Annotated[str, Meta(pattern="^https?://.*[^/]$")] = "https://api.github.com"
    token: Annotated[str, Meta(pattern="^[!-~]+$")] | None = None

    def __repr__(self) -> str:
        return "<Github>"


github = wqcore.settings_for("github", Github)


@wqcore.kind("startInitialProjectDeployment", queue="internal-queue", priority=50, max_attempts=3, timeout_s=600)
class StartInitialProjectDeployment(msgspec.Struct, frozen=True, rename="camel"):
    """Makes the first deployment of a project that was linked.

    Attributes:
        id (str): the project.
    """

    id: str


class Commit(msgspec.Struct, frozen=True):
    """What is deployed. It goes into the index's `sourceData`.

    Attributes:
        branch (str): its name.
        commit (str): the SHA.
        repository (str): owner/name.
    """

    branch: str
    commit: str
    repository: str


class Head(msgspec.Struct, frozen=True):
    """GitHub's description of a commit, as far as it is needed."""

    sha: Annotated[str, Meta(pattern="^[0-9a-f]{40,64}$")]


@wqcore.handler
async def start_initial_project_deployment(args: StartInitialProjectDeployment, job: wqcore.Job) -> None:
    """Deploys the newest commit of the linked branch, once a project.

    Raises:
        wqcore.Discard: the project is not linked, or GitHub has no such repository, branch or commit.
        wqcore.Retry: GitHub did not answer, failed, or its rate limit is reached (until it allows more).
    """
    db = await store.open_store()
    link = await db.row("linked_project", project=args.id)
    if link is None:
        raise wqcore.Discard(f"project {args.id} is not linked to a repository")
    if link.is_deployed:
        return
    sha = await head_commit(link.full_name, link.branch)
    async with db.transaction() as tx:
        await deploy(tx, link, Commit(link.branch, sha, link.full_name), source="INTERNAL", initial=True)


async def deploy(
    tx: store.Transaction,
    link: store.Row,
    commit: Commit,
    *,
    source: Literal["HOOK", "INTERNAL"],
    initial: bool = False,
) -> None:
    """Makes the deployment of a commit in the project of `link` and enqueues the index of its endpoint, if it is new.

    `link` has project_id, repository_id and endpoint_id. The serial key keeps one endpoint's indexes in their order.
    """
    made = await tx.row(
        "insert_deployment",
        id=ids.new("dep"),
        project=link.project_id,
        repository=link.repository_id,
        branch=commit.branch,
        commit=commit.commit,
        initial=initial,
    )
    if made is not None and link.endpoint_id is not None:
        index = IndexEndpoint(link.endpoint_id, source=source, source_data=msgspec.to_builtins(commit))
        await tx.enqueue(index, serial_key=f"endpoint-{link.endpoint_id}")


async def head_commit(repository: str, branch: str) -> str:
    """The SHA of the newest commit of a branch, from GitHub. Raises wqcore.Discard or wqcore.Retry."""
    url = f"{github().api_url}/repos/{quote(repository)}/commits/{quote(branch, safe='')}"
    what = f"commit of {repository} {branch} at {github().api_url}"
    headers = {"accept": "application/vnd.github+json", "x-github-api-version": GITHUB_API_VERSION}
    if github().token is not None:
        headers["authorization"] = f"Bearer {github().token}"
    # a repository that was renamed answers 301
    answer = await outgoing.request("GET", url, what=what, headers=headers, follow_redirects=True)
    if not answer.ok:
        wait_s = _rate_limit_s(answer)
        if wait_s is not None:
            raise wqcore.Retry(f"{what}: GitHub's rate limit is reached", after=wait_s)
        raise outgoing.refusal(answer, what)
    try:
        return msgspec.json.decode(answer.body, type=Head).sha
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise wqcore.Discard(f"{what}: the answer does not fit: {error}") from error


def _rate_limit_s(answer: outgoing.Answer) -> float | None:
    """How long GitHub's rate limit holds; None when it is not that. A 403 is one if a header or the text says so.

    See docs.github.com, "Rate limits for the REST API", "Exceeding the rate limit".
    """
    if answer.status not in (403, 429):
        return None
    after_s = outgoing.retry_after_s(answer.headers)
    if after_s is not None:
        return after_s
    reset = answer.headers.get("x-ratelimit-reset", "")
    if answer.headers.get("x-ratelimit-remaining") == "0" and reset.isascii() and reset.isdigit():
        return min(max(float(reset) - time.time(), 0.0) + 1.0, outgoing.RETRY_AFTER_MAX_S)
    return RATE_LIMIT_WAIT_S if answer.status == 429 or "rate limit" in answer.beginning().lower() else None
