"""Gives `new_cluster`: PostgreSQL servers of a test's own, which it may crash, freeze, fill, switch to read-only, and promote.

    cluster = new_cluster()                                        crash(), start(), freeze(), thaw(): tests/chaos/cluster.py
    small = new_cluster(settings={"max_connections": "300"})
    standby = new_cluster("standby", copy_of=primary)              streams from `primary` until it is promoted
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.chaos.cluster import Cluster

NewCluster = Callable[..., Cluster]


@pytest.fixture
def new_cluster() -> Iterator[NewCluster]:
    """Makes clusters with the arguments of `Cluster`, but for the folder; they end with the test."""
    yield from _clusters()


@pytest.fixture(scope="module")
def module_cluster() -> Iterator[NewCluster]:
    """The same for clusters that the tests of a module share."""
    yield from _clusters()


def _clusters() -> Iterator[NewCluster]:
    folder = Path(tempfile.mkdtemp(prefix="wq-cluster-"))
    folder.chmod(0o755)  # the server's user must reach its folder in it
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)

        def make(name: str = "pg", **keywords: Any) -> Cluster:
            cluster = Cluster(folder, name, **keywords)
            stack.callback(cluster.stop)
            return cluster

        yield make


def admin(cluster: Cluster) -> psycopg.Connection[Any]:
    """A connection that may write, whatever the server's default says."""
    return psycopg.connect(
        cluster.dsn, autocommit=True, connect_timeout=10, options="-c default_transaction_read_only=off"
    )


def either(*clusters: Cluster, database: str = "postgres") -> str:
    """A DSN with the hosts of all of them."""
    hosts = [str(conninfo_to_dict(cluster.dsn)["host"]) for cluster in clusters]
    return make_conninfo("", host=",".join(hosts), user="postgres", dbname=database)
