"""A machine is told to stop until the machines API has agreed, and what it said is recorded."""

from __future__ import annotations

import pytest

import wqcore
from handlers import ids
from handlers.vms import Machines, StopVM, stop_vm
from tests.fix_endpoint import Answer, EndpointServer, endpoint
from tests.fix_job import make_job
from tests.fix_pg import empty_dsn, pg
from tests.fix_platform import Platform, app_tables, platform
from wqcore.resource import use_app_settings

__all__ = ["empty_dsn", "endpoint", "pg", "platform"]


def use(endpoint: EndpointServer, token: str | None = "canary") -> None:
    """`endpoint` stands for the machines API and agrees."""
    endpoint.will_answer({"ok": True})
    machines = {"api_url": f"http://127.0.0.1:{endpoint.port}"}
    use_app_settings(app_tables(machines=machines if token is None else machines | {"token": token}))


@pytest.fixture
def vm(platform: Platform) -> str:
    """A machine that runs; its id."""
    found = ids.new("vm")
    platform.sql(
        "insert into {s}.vm (id, machine_id, app_name, state_at) values (%s, 'm/1', 'shop', '2000-01-01')", found
    )
    return found


def state(platform: Platform) -> str:
    found: str = platform.one("select state from {s}.vm")
    return found


async def stop(vm: str) -> None:
    await stop_vm(StopVM(vm), make_job())


async def test_a_machine_is_stopped_and_its_state_recorded(
    platform: Platform, endpoint: EndpointServer, vm: str
) -> None:
    use(endpoint)
    await stop(vm)
    [request] = endpoint.requests
    assert (request.method, request.path) == ("POST", "/v1/apps/shop/machines/m%2F1/stop")
    assert (request.headers["authorization"], request.body) == ("Bearer canary", b"{}")
    assert state(platform) == "stopped"
    assert platform.one("select state_at > now() - interval '1 minute' from {s}.vm")


async def test_a_repetition_does_not_ask_again(platform: Platform, endpoint: EndpointServer, vm: str) -> None:
    use(endpoint)
    await stop(vm)
    await stop(vm)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("ended", ["stopped", "destroyed"])
async def test_a_machine_that_has_ended_is_left_alone(
    platform: Platform, endpoint: EndpointServer, vm: str, ended: str
) -> None:
    use(endpoint)
    platform.sql("update {s}.vm set state = %s", ended)
    await stop(vm)
    assert (endpoint.requests, state(platform)) == ([], ended)
    assert platform.one("select state_at = '2000-01-01' from {s}.vm")


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (409, "machine is already stopped"),
        (412, "failed_precondition: unable to stop machine from current state: 'stopped'"),
        (400, "Machine already been stopped"),
    ],
)
async def test_already_stopped_is_done(
    platform: Platform, endpoint: EndpointServer, vm: str, status: int, text: str
) -> None:
    use(endpoint)
    endpoint.will_answer(Answer(status, b'{"error": "%s"}' % text.encode()))
    await stop(vm)
    assert state(platform) == "stopped"


async def test_a_machine_that_the_api_does_not_know_is_destroyed(
    platform: Platform, endpoint: EndpointServer, vm: str
) -> None:
    use(endpoint)
    endpoint.will_answer(Answer(404, b'{"error": "machine not found"}'))
    await stop(vm)
    assert state(platform) == "destroyed"


@pytest.mark.parametrize("answer", [Answer(408), Answer(429, headers={"retry-after": "7"}), Answer(500), Answer(503)])
async def test_an_api_that_cannot_answer_now_is_asked_again(
    platform: Platform, endpoint: EndpointServer, vm: str, answer: Answer
) -> None:
    use(endpoint)
    endpoint.will_answer(answer, {"ok": True})
    with pytest.raises(wqcore.Retry, match=f"answered {answer.status}") as raised:
        await stop(vm)
    assert raised.value.after_s == (7.0 if answer.headers else None)
    assert state(platform) == "started"
    await stop(vm)
    assert state(platform) == "stopped"


async def test_no_api_is_retried(platform: Platform, endpoint: EndpointServer, vm: str) -> None:
    use(endpoint)
    await endpoint.stop()
    with pytest.raises(wqcore.Retry, match="ConnectError"):
        await stop(vm)
    assert state(platform) == "started"


@pytest.mark.parametrize(
    ("status", "text"), [(401, "bad token"), (403, "no"), (409, "lease held"), (422, "not stopped")]
)
async def test_an_api_that_refuses_is_a_permanent_failure_with_its_words(
    platform: Platform, endpoint: EndpointServer, vm: str, status: int, text: str
) -> None:
    use(endpoint)
    endpoint.will_answer(Answer(status, text.encode()))
    with pytest.raises(wqcore.Discard, match=f"stop of machine m/1 of shop at .* answered {status}: {text}"):
        await stop(vm)
    assert state(platform) == "started"


async def test_without_a_token_nothing_is_asked_and_the_setting_is_named(
    platform: Platform, endpoint: EndpointServer, vm: str
) -> None:
    use(endpoint, token=None)
    with pytest.raises(wqcore.Discard, match=r"app\.machines\.token"):
        await stop(vm)
    assert endpoint.requests == []


async def test_an_unknown_vm_is_a_permanent_failure(platform: Platform, endpoint: EndpointServer) -> None:
    use(endpoint)
    with pytest.raises(wqcore.Discard, match="no vm vm_gone"):
        await stop("vm_gone")


async def test_workers_stop_it_once(platform: Platform, endpoint: EndpointServer, vm: str) -> None:
    use(endpoint)
    endpoint.will_answer(Answer(503, headers={"retry-after": "0"}), {"ok": True})
    await platform.client.insert(StopVM(vm))
    await platform.drain()
    assert (len(endpoint.requests), state(platform)) == (2, "stopped")


def test_the_settings_do_not_show_the_token() -> None:
    assert "canary" not in repr(Machines(token="canary"))
