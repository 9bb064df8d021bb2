"""A push is deployed once in each project that is linked to it; what is uninstalled is deployed no more."""

from __future__ import annotations

import asyncio
from typing import Any

from handlers import ids
from handlers.github import GithubAppInstallationDeleted, GithubPush, github_app_installation_deleted, github_push
from tests.fix_job import make_job
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import Platform, platform

__all__ = ["empty_dsn", "pg", "platform"]

SHA = "a" * 40


def repository(platform: Platform, name: str = "acme/shop", installation: str = "42") -> str:
    """A repository of an installation; its id."""
    found = ids.new("repo")
    platform.sql(
        "insert into {s}.repository (id, installation_id, full_name) values (%s, %s, %s)", found, installation, name
    )
    return found


def link(
    platform: Platform,
    repository_id: str,
    *,
    branch: str = "main",
    endpoint: bool = True,
    url: str = "http://e.example/",
) -> tuple[str, str | None]:
    """A project that is linked to a branch of the repository; its id, and its endpoint's."""
    project = ids.new("proj")
    platform.sql(
        "insert into {s}.project (id, organization_id, name, slug) values (%s, %s, 'P', %s)",
        project, platform.organization, project,
    )  # fmt: skip
    endpoint_id = platform.add_endpoint(url, slug=project) if endpoint else None
    platform.sql(
        "insert into {s}.project_link (project_id, repository_id, branch, endpoint_id) values (%s, %s, %s, %s)",
        project, repository_id, branch, endpoint_id,
    )  # fmt: skip
    return project, endpoint_id


def deployments(platform: Platform) -> list[tuple[Any, ...]]:
    return platform.sql(
        "select project_id, branch, commit_sha, status, initial from {s}.deployment order by created_at, project_id"
    )


def indexes(platform: Platform) -> list[tuple[Any, ...]]:
    """(serial key, args) of the indexEndpoint jobs that wait."""
    return platform.sql("select serial_key, args from {wq}.jobs where kind = 'indexEndpoint' order by id")


async def push(branch: str = "main", commit: str = SHA, name: str = "acme/shop") -> None:
    await github_push(GithubPush(branch, commit, name), make_job())


async def test_a_push_is_deployed_in_each_project_that_is_linked_to_the_branch(platform: Platform) -> None:
    shop, other = repository(platform), repository(platform, "acme/other")
    linked = sorted(link(platform, shop) for _ in range(2))
    link(platform, shop, branch="staging")
    link(platform, other)
    await push()
    assert deployments(platform) == [(project, "main", SHA, "PENDING", False) for project, _ in linked]
    source_data = {"branch": "main", "commit": SHA, "repository": "acme/shop"}
    assert indexes(platform) == [
        (f"endpoint-{endpoint}", {"id": endpoint, "source": "HOOK", "sourceData": source_data})
        for _, endpoint in linked
    ]


async def test_a_repetition_makes_nothing_new(platform: Platform) -> None:
    link(platform, repository(platform))
    await push()
    await push()
    assert (len(deployments(platform)), len(indexes(platform))) == (1, 1)


async def test_the_same_push_many_times_at_once_is_deployed_once(platform: Platform) -> None:
    shop = repository(platform)
    for _ in range(3):
        link(platform, shop)
    await asyncio.gather(*(push() for _ in range(6)))
    assert (len(deployments(platform)), len(indexes(platform))) == (3, 3)


async def test_the_next_commit_is_deployed_too(platform: Platform) -> None:
    link(platform, repository(platform))
    await push()
    await push(commit="b" * 40)
    assert [row[2] for row in deployments(platform)] == [SHA, "b" * 40]


async def test_a_project_without_an_endpoint_is_deployed_and_not_indexed(platform: Platform) -> None:
    link(platform, repository(platform), endpoint=False)
    await push()
    assert (len(deployments(platform)), indexes(platform)) == (1, [])


async def test_a_repository_that_nobody_linked_changes_nothing(platform: Platform) -> None:
    repository(platform)
    await push()
    await push(name="acme/unknown")
    assert deployments(platform) == indexes(platform) == []


async def test_an_unlinked_project_is_not_deployed(platform: Platform) -> None:
    link(platform, repository(platform))
    platform.sql("update {s}.project_link set unlinked_at = now()")
    await push()
    assert deployments(platform) == []


async def test_what_is_uninstalled_is_removed_and_unlinked_and_deployed_no_more(platform: Platform) -> None:
    gone, _ = link(platform, repository(platform))
    kept, _ = link(platform, repository(platform, "bob/shop", installation="43"))
    await github_app_installation_deleted(GithubAppInstallationDeleted("42"), make_job())
    await push()
    await push(name="bob/shop")
    assert [row[0] for row in deployments(platform)] == [kept]
    assert platform.sql("select full_name from {s}.repository where removed_at is not null") == [("acme/shop",)]
    assert platform.sql("select project_id from {s}.project_link where unlinked_at is not null") == [(gone,)]


async def test_uninstalling_twice_changes_nothing_more(platform: Platform) -> None:
    link(platform, repository(platform))
    times = "select removed_at, unlinked_at from {s}.repository r join {s}.project_link l on l.repository_id = r.id"
    await github_app_installation_deleted(GithubAppInstallationDeleted("42"), make_job())
    first = platform.sql(times)
    await github_app_installation_deleted(GithubAppInstallationDeleted("42"), make_job())
    await github_app_installation_deleted(GithubAppInstallationDeleted("unknown"), make_job())
    assert platform.sql(times) == first


async def test_a_repository_that_is_installed_again_is_deployed_again(platform: Platform) -> None:
    link(platform, repository(platform))
    await github_app_installation_deleted(GithubAppInstallationDeleted("42"), make_job())
    again, _ = link(platform, repository(platform, installation="44"))
    await push()
    assert [row[0] for row in deployments(platform)] == [again]


async def test_a_link_made_while_the_installation_goes_is_unlinked_with_it(platform: Platform) -> None:
    shop = repository(platform)
    link(platform, shop)
    await github_app_installation_deleted(GithubAppInstallationDeleted("42"), make_job())
    late, _ = link(platform, shop)
    await github_app_installation_deleted(GithubAppInstallationDeleted("42"), make_job())
    assert platform.one("select unlinked_at is not null from {s}.project_link where project_id = %s", late)
