"""The 24 kinds of the platform are bound to a table: written here once more, by hand, and compared."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import handlers
import wqcore

HANDLERS = Path(handlers.__file__).parent

# kind: (example of the args on the wire, optional fields, queue, serial key, priority, attempts, timeout)
TABLE: dict[str, tuple[dict[str, Any], set[str], str, str | None, int, int, int]] = {
    "events.invokeDispatcher": ({"id": "i", "eventRecordId": "e"}, set(), "default", None, 1, 3, 30),
    "events.deliverScheduled": (
        {"id": "i", "payload": {"ts": "2023-07-01T12:00:00Z", "lastTimestamp": "2023-07-01T11:00:00Z"}},
        set(), "default", None, 1, 5, 60,
    ),
    "connectionCreated": ({"id": "i"}, set(), "default", None, 1, 3, 30),
    "missingConnectionCreated": ({"id": "i"}, set(), "default", None, 1, 3, 30),
    "runFinished": ({"id": "i"}, set(), "default", None, 1, 3, 60),
    "startQueuedRuns": ({"id": "i"}, set(), "queue-operations", "queue-i", 1, 3, 300),
    "registerJob": ({"endpointId": "e", "job": {"id": "j"}}, set(), "default", None, 1, 3, 60),
    "registerSource": ({"endpointId": "e", "source": {"key": "k"}}, set(), "default", None, 1, 3, 60),
    "registerDynamicTrigger": ({"endpointId": "e", "dynamicTrigger": {"id": "t"}}, set(), "default", None, 1, 3, 60),
    "registerDynamicSchedule": ({"endpointId": "e", "dynamicSchedule": {"id": "s"}}, set(), "default", None, 1, 3, 60),
    "activateSource": ({"id": "i", "orphanedEvents": ["push"]}, {"orphanedEvents"}, "default", None, 1, 3, 120),
    "deliverHttpSourceRequest": ({"id": "i"}, set(), "default", None, 1, 5, 30),
    "startRun": ({"id": "i"}, set(), "executions", None, 1, 13, 600),
    "performRunExecution": ({"id": "i"}, set(), "run-executions", "runs-i", 1, 1, 1800),
    "performTaskOperation": ({"id": "i"}, set(), "task-operations", "tasks-i", 1, 3, 300),
    "scheduleEmail": (
        {"to": "a@b.example", "subject": "s", "html": "<p>h</p>", "text": "t"},
        set(), "internal-queue", None, 100, 3, 30,
    ),
    "startInitialProjectDeployment": ({"id": "i"}, set(), "internal-queue", None, 50, 3, 600),
    "stopVM": ({"id": "i"}, set(), "internal-queue", None, 50, 3, 120),
    "organizationCreated": ({"id": "i"}, set(), "internal-queue", None, 50, 3, 60),
    "githubPush": ({"branch": "b", "commitSha": "c", "repository": "o/r"}, set(), "internal-queue", None, 50, 3, 120),
    "githubAppInstallationDeleted": ({"id": "i"}, set(), "internal-queue", None, 50, 3, 60),
    "indexEndpoint": (
        {"id": "i", "source": "HOOK", "sourceData": {"any": [1]}, "reason": "r"},
        {"source", "sourceData", "reason"}, "internal-queue", None, 1, 3, 300,
    ),
    "refreshOAuthToken": ({"organizationId": "o", "connectionId": "c"}, set(), "internal-queue", None, 1, 3, 60),
    "deliverEvent": ({"id": "i"}, set(), "event-dispatcher", None, 1, 3, 120),
}  # fmt: skip

SWEEPS = ["sweepExecutions", "sweepSchedules"]
"""Kinds beside the table: recurring jobs that find what a crash has left."""


def kind_of(name: str) -> wqcore.Kind:
    kind = wqcore.catalog.get(name)
    assert kind is not None
    return kind


def test_the_package_declares_the_24_kinds_and_its_sweeps() -> None:
    declared = {kind.name for kind in wqcore.catalog if kind.args_type.__module__.split(".")[0] == "handlers"}
    assert declared == {*TABLE, *SWEEPS}
    assert len(TABLE) == 24


@pytest.mark.parametrize("name", TABLE)
def test_a_kind_has_the_limits_of_its_row(name: str) -> None:
    _, _, queue, _, priority, attempts, timeout_s = TABLE[name]
    kind = kind_of(name)
    assert (kind.queue, kind.priority, kind.max_attempts, kind.timeout_s) == (queue, priority, attempts, timeout_s)


@pytest.mark.parametrize("name", TABLE)
def test_the_args_of_a_kind_go_over_the_wire_under_the_tables_names(name: str) -> None:
    wire, optional, *_ = TABLE[name]
    kind = kind_of(name)
    args = kind.decode(msgspec.json.encode(wire))
    assert msgspec.json.decode(kind.encode(args)) == wire
    fields = msgspec.structs.fields(kind.args_type)
    assert {field.encode_name for field in fields} == set(wire)
    assert {field.encode_name for field in fields if not field.required} == optional
    assert all(field.name.islower() and field.name.isidentifier() for field in fields)


@pytest.mark.parametrize("name", TABLE)
def test_the_optional_args_of_a_kind_are_left_out_when_they_are_not_given(name: str) -> None:
    wire, optional, *_ = TABLE[name]
    least = {field: value for field, value in wire.items() if field not in optional}
    kind = kind_of(name)
    assert msgspec.json.decode(kind.encode(kind.decode(msgspec.json.encode(least)))) == least


@pytest.mark.parametrize("name", TABLE)
def test_a_required_field_that_is_missing_or_of_another_type_is_refused_by_name(name: str) -> None:
    wire, optional, *_ = TABLE[name]
    for field in wire.keys() - optional:
        with pytest.raises(msgspec.ValidationError, match=f"`{field}`"):
            kind_of(name).decode(msgspec.json.encode({key: wire[key] for key in wire if key != field}))
        with pytest.raises(msgspec.ValidationError, match=rf"`\$\.{field}`"):
            kind_of(name).decode(msgspec.json.encode(wire | {field: 5}))


@pytest.mark.parametrize("name", TABLE)
def test_unknown_fields_are_ignored(name: str) -> None:
    wire = TABLE[name][0]
    kind_of(name).decode(msgspec.json.encode(wire | {"somethingNew": 1}))


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("form", ["struct", "objects", "text", "bytes"])
def test_resolve_queue_gives_the_rows_queue_and_serial_key_for_every_form_of_the_args(name: str, form: str) -> None:
    wire, _, queue, serial_key, *_ = TABLE[name]
    data = msgspec.json.encode(wire)
    forms = {"struct": kind_of(name).decode(data), "objects": wire, "text": data.decode(), "bytes": data}
    assert wqcore.resolve_queue(name, forms[form]) == (queue, serial_key)


def test_the_id_makes_the_serial_key() -> None:
    assert wqcore.resolve_queue("startQueuedRuns", {"id": "q7"}) == ("queue-operations", "queue-q7")
    assert wqcore.resolve_queue("performRunExecution", {"id": "r7"}) == ("run-executions", "runs-r7")
    assert wqcore.resolve_queue("performTaskOperation", {"id": "t7"}) == ("task-operations", "tasks-t7")


def test_a_kind_that_is_not_in_the_table_gets_the_default_queue() -> None:
    assert wqcore.resolve_queue("somethingElse", {"id": "x"}) == ("default", None)


@pytest.mark.parametrize("name", [*TABLE, *SWEEPS])
def test_every_kind_has_a_handler(name: str) -> None:
    kind = kind_of(name)
    assert kind.handler is not None
    assert not kind.planned


def test_handlers_import_only_the_public_names_of_wqcore() -> None:
    for path in HANDLERS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                assert not [name.name for name in node.names if name.name.startswith("wqcore.")], path
            elif isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("wqcore"), path
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "wqcore":
                assert node.attr in wqcore.__all__, f"{path}: wqcore.{node.attr}"


def test_importing_the_handlers_starts_no_thread_opens_no_socket_and_leaves_no_loop() -> None:
    program = (
        "import handlers, threading, os, asyncio\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "links = [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if int(fd) > 2 "
        "and os.path.exists(f'/proc/self/fd/{fd}')]\n"
        "assert not [link for link in links if link.startswith('socket:')], links\n"
        "assert asyncio._get_running_loop() is None\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=HANDLERS.parent)
