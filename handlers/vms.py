"""Machines that run deployments: a machine is told to stop until the machines API has agreed, and its state recorded.

The API is asked first and the state written after it. A crash between the two asks again, which the API answers with
"already stopped": the same as done. A machine that the API does not know is destroyed.
"""

from __future__ import annotations

import re
from typing import Annotated, Final
from urllib.parse import quote

import msgspec
from msgspec import Meta

import wqcore
from handlers import outgoing, store

ENDED: Final = frozenset({"stopped", "destroyed"})
ALREADY_STOPPED: Final = re.compile(
    r"already (been )?stopped|(current )?state:? ?[\"']?stopped|machine is stopped", re.I
)
"""How a refusal says that there is nothing to stop."""


class Machines(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings `[app.machines]`: the API that runs the machines.

    Attributes:
        api_url (str): of an API of the shape of Fly Machines; default `https://api.machines.dev`.
        token (str | None): its bearer token; default none, and then no machine can be stopped. Give it as
            `WQCORE_APP__MACHINES__TOKEN`.
    """

    api_url: Annotated[str, Meta(pattern="^https?://.*[^/]$")] = "https://api.machines.dev"
    token: Annotated[str, Meta(pattern="^[!-~]+$")] | None = None

    def __repr__(self) -> str:
        return "<Machines>"


machines = wqcore.settings_for("machines", Machines)


@wqcore.kind("stopVM", queue="internal-queue", priority=50, max_attempts=3, timeout_s=120)
class StopVM(msgspec.Struct, frozen=True, rename="camel"):
    """Stops a machine and records its state.

    Attributes:
        id (str): the vm.
    """

    id: str


@wqcore.handler
async def stop_vm(args: StopVM, job: wqcore.Job) -> None:
    """Asks the machines API to stop the machine, unless it is recorded as stopped or destroyed.

    A stop that the API accepted is recorded as stopped: it ends the machine with a signal and, after a grace time, by
    force, and nothing that the platform would do depends on when.

    Raises:
        wqcore.Discard: no such vm, no token, or the API refused.
        wqcore.Retry: the API did not answer, failed (5xx, 408), or wants fewer requests (429).
    """
    db = await store.open_store()
    vm = await db.row("vm", id=args.id)
    if vm is None:
        raise wqcore.Discard(f"no vm {args.id}")
    if vm.state not in ENDED:
        await db.row("vm_ended", id=vm.id, state=await stop(vm.app_name, vm.machine_id))


async def stop(app: str, machine: str) -> str:
    """Tells the API to stop a machine; the state that follows, `stopped` or `destroyed`.

    Raises wqcore.Discard or wqcore.Retry.
    """
    api = machines()
    if api.token is None:
        raise wqcore.Discard("app.machines.token is not set, so no machine can be stopped")
    what = f"stop of machine {machine} of {app} at {api.api_url}"
    url = f"{api.api_url}/v1/apps/{quote(app, safe='')}/machines/{quote(machine, safe='')}/stop"
    headers = {"authorization": f"Bearer {api.token}", "content-type": "application/json"}
    answer = await outgoing.request("POST", url, what=what, headers=headers, body=b"{}")
    if answer.ok:
        return "stopped"
    if answer.status == 404:
        return "destroyed"
    if 400 <= answer.status < 500 and ALREADY_STOPPED.search(answer.beginning()):
        return "stopped"
    raise outgoing.refusal(answer, what)
