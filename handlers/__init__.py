"""Importing this package declares all 24 kinds of the platform and attaches the handlers that exist.

One module per family; each holds the args types of its kinds and, when they are written, their handlers:

    events          deliverEvent, events.invokeDispatcher
    schedules       events.deliverScheduled, registerDynamicSchedule
    runs            startRun, performRunExecution, runFinished, startQueuedRuns
    tasks           performTaskOperation
    endpoints       indexEndpoint, registerJob
    sources         registerSource, activateSource, deliverHttpSourceRequest, registerDynamicTrigger
    connections     connectionCreated, missingConnectionCreated, refreshOAuthToken
    email           scheduleEmail
    github          githubPush, githubAppInstallationDeleted
    deployments     startInitialProjectDeployment
    vms             stopVM
    organizations   organizationCreated

    platform        the settings, and the declaration of the tables (sql/migrations)
    store           transactions on the tables, with the jobs that follow; one statement a file in sql/
    ingest          events come in
    secrets, ids    what is kept encrypted; names of rows
    calls           how the platform calls an endpoint
    smtp            how mails reach the mail server

`scheduleEmail` and `indexEndpoint` have handlers. The other kinds are `planned`: their types and limits are fixed, and
inserting one raises `wqcore.PlannedKind`. On the wire the fields are camelCase, in Python snake_case; fields that a
type does not know are ignored. Of wqcore these modules use only its public names.
"""

from __future__ import annotations

from handlers import (
    connections,
    deployments,
    email,
    endpoints,
    events,
    github,
    organizations,
    platform,
    runs,
    schedules,
    secrets,
    sources,
    tasks,
    vms,
)

__all__ = [
    "connections",
    "deployments",
    "email",
    "endpoints",
    "events",
    "github",
    "organizations",
    "platform",
    "runs",
    "schedules",
    "secrets",
    "sources",
    "tasks",
    "vms",
]
