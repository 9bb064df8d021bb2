"""The first deployment of a linked project: of the branch's newest commit, once, and patient with GitHub's limits."""

from __future__ import annotations

import asyncio
import time

import pytest

import wqcore
from handlers.deployments import Github, StartInitialProjectDeployment, start_initial_project_deployment
from handlers.github import GithubPush, github_push
from tests.fix_endpoint import Answer, EndpointServer, endpoint
from tests.fix_job import make_job
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import Platform, app_tables, platform
from tests.handlers.test_github import SHA, deployments, indexes, link, repository
from wqcore.resource import use_app_settings

__all__ = ["empty_dsn", "endpoint", "pg", "platform"]


def use(endpoint: EndpointServer, **more: str) -> None:
    """`endpoint` stands for GitHub and answers with a commit."""
    endpoint.will_answer({"sha": SHA, "commit": {"message": "first"}})
    use_app_settings(app_tables(github={"api_url": f"http://127.0.0.1:{endpoint.port}"} | more))


async def start(project: str) -> None:
    await start_initial_project_deployment(StartInitialProjectDeployment(project), make_job())


@pytest.fixture
def project(platform: Platform) -> str:
    """A project linked to the branch `feature/#1` of acme/shop."""
    return link(platform, repository(platform), branch="feature/#1")[0]


async def test_the_newest_commit_of_the_branch_is_deployed(
    platform: Platform, endpoint: EndpointServer, project: str
) -> None:
    use(endpoint, token="canary")
    await start(project)
    [request] = endpoint.requests
    assert (request.method, request.path) == ("GET", "/repos/acme/shop/commits/feature%2F%231")
    wanted = {
        "accept": "application/vnd.github+json", "authorization": "Bearer canary", "x-github-api-version": "2022-11-28",
        "user-agent": "wqcore",
    }  # fmt: skip
    assert {name: request.headers.get(name) for name in wanted} == wanted
    assert deployments(platform) == [(project, "feature/#1", SHA, "PENDING", True)]
    [(serial_key, args)] = indexes(platform)
    assert serial_key == f"endpoint-{args['id']}"
    assert (args["source"], args["sourceData"]) == (
        "INTERNAL", {"branch": "feature/#1", "commit": SHA, "repository": "acme/shop"},
    )  # fmt: skip


async def test_without_a_token_none_is_sent(endpoint: EndpointServer, project: str) -> None:
    use(endpoint)
    await start(project)
    assert "authorization" not in endpoint.requests[0].headers


async def test_a_repetition_does_not_ask_again(platform: Platform, endpoint: EndpointServer, project: str) -> None:
    use(endpoint)
    await start(project)
    endpoint.will_answer({"sha": "b" * 40})
    await start(project)
    assert (len(endpoint.requests), len(deployments(platform)), len(indexes(platform))) == (1, 1, 1)


async def test_two_at_once_make_one(platform: Platform, endpoint: EndpointServer, project: str) -> None:
    use(endpoint)
    endpoint.will_answer({"sha": SHA}, {"sha": "b" * 40})  # a push between the two
    await asyncio.gather(start(project), start(project))
    assert (len(deployments(platform)), len(indexes(platform))) == (1, 1)


async def test_a_commit_that_a_push_has_deployed_is_not_deployed_twice(
    platform: Platform, endpoint: EndpointServer, project: str
) -> None:
    use(endpoint)
    await github_push(GithubPush("feature/#1", SHA, "acme/shop"), make_job())
    await start(project)
    assert (len(deployments(platform)), len(indexes(platform))) == (1, 1)


async def test_a_renamed_repository_is_followed(platform: Platform, endpoint: EndpointServer, project: str) -> None:
    use(endpoint)
    endpoint.will_answer(Answer(301, b"", {"location": "/repositories/7/commits/x"}), {"sha": SHA})
    await start(project)
    assert len(deployments(platform)) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 409, 422])
async def test_what_github_refuses_is_a_permanent_failure(
    platform: Platform, endpoint: EndpointServer, project: str, status: int
) -> None:
    use(endpoint)
    endpoint.will_answer(Answer(status, b'{"message": "Not Found"}'))
    with pytest.raises(wqcore.Discard, match=f"acme/shop feature/#1 at .* answered {status}: .*Not Found"):
        await start(project)
    assert deployments(platform) == []


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"sha": "main"}', b'{"sha": null}'])
async def test_an_answer_that_does_not_fit_is_a_permanent_failure(
    platform: Platform, endpoint: EndpointServer, project: str, body: bytes
) -> None:
    use(endpoint)
    endpoint.will_answer(Answer(body=body))
    with pytest.raises(wqcore.Discard, match="does not fit"):
        await start(project)
    assert deployments(platform) == []


@pytest.mark.parametrize(
    ("status", "headers", "body", "least_s", "most_s"),
    [
        (403, {"retry-after": "30"}, b"", 30, 30),
        (429, {"retry-after": "30"}, b"", 30, 30),
        (403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "+900"}, b"", 890, 901),
        (429, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "-5"}, b"", 0, 2),
        (429, {}, b"", 60, 60),
        (403, {}, b'{"message": "You have exceeded a secondary rate limit."}', 60, 60),
    ],
)
async def test_at_githubs_rate_limit_it_waits_as_long_as_that_holds(
    platform: Platform,
    endpoint: EndpointServer,
    project: str,
    status: int,
    headers: dict[str, str],
    body: bytes,
    least_s: float,
    most_s: float,
) -> None:
    use(endpoint)
    if "x-ratelimit-reset" in headers:
        headers = headers | {"x-ratelimit-reset": str(int(time.time()) + int(headers["x-ratelimit-reset"]))}
    endpoint.will_answer(Answer(status, body, headers), {"sha": SHA})
    with pytest.raises(wqcore.Retry, match="rate limit") as raised:
        await start(project)
    assert raised.value.after_s is not None
    assert least_s <= raised.value.after_s <= most_s
    await start(project)
    assert len(deployments(platform)) == 1


@pytest.mark.parametrize("answer", [Answer(500), Answer(502, headers={"retry-after": "1"}), Answer(closes=True)])
async def test_github_failing_is_retried(
    platform: Platform, endpoint: EndpointServer, project: str, answer: Answer
) -> None:
    use(endpoint)
    endpoint.will_answer(answer, answer, {"sha": SHA})
    with pytest.raises(wqcore.Retry):
        await start(project)
    assert deployments(platform) == []


async def test_a_project_that_is_not_linked_is_a_permanent_failure(
    platform: Platform, endpoint: EndpointServer, project: str
) -> None:
    use(endpoint)
    with pytest.raises(wqcore.Discard, match="is not linked"):
        await start(platform.project)
    platform.sql("update {s}.repository set removed_at = now()")
    with pytest.raises(wqcore.Discard, match="is not linked"):
        await start(project)
    assert endpoint.requests == []


def test_the_settings_do_not_show_the_token() -> None:
    assert "canary" not in repr(Github(token="canary"))
