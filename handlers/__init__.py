"""Importing this package declares the 24 kinds of the platform and two sweeps, and attaches a handler to each.

One module per family; each holds the args types of its kinds and their handlers:

    events          deliverEvent, events.invokeDispatcher
    schedules       events.deliverScheduled, registerDynamicSchedule, sweepSchedules
    runs            startRun, performRunExecution, runFinished, startQueuedRuns, sweepExecutions
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
    matcher         whether a filter passes a payload
    executions      one execution of a run, and the sweep of those that lost their job
    protocol        bodies and answers of calls that execute runs
    fetching        the operation `fetch` of a task
    declared        what an endpoint says of itself in its index
    registration    what registrations share
    activation, deliveries   the event that activates a source; a request to a source, on its way
    outgoing        every outgoing request: limits, and the guard against private addresses
    calls           how the platform calls an endpoint
    secrets, ids    what is kept encrypted; names of rows
    smtp            how mails reach the mail server
    records         what people ask for: organizations, endpoints, runs
    api/, cli       the HTTP side, `python -m handlers.api`; the command line, `python -m handlers.cli`

On the wire the fields are camelCase, in Python snake_case; fields that a type does not know are ignored. Of wqcore these
modules use only its public names. docs/howto/platform.md shows all of it at work.
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
