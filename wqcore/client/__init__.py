"""The client: inserting jobs, and asking of jobs that exist; what returned is durable.

`Client` is for asyncio, `SyncClient` for everything else; both have the same methods, and both send the same requests
(`db/request.py`). `insert_tx` writes on the caller's own connection, so that the job exists exactly if the caller's
transaction commits. What raised an InsertError was not written.

When the connection is lost during an insert, nobody knows whether it was committed: DatabaseUnavailable says so, and
repeating may insert the job twice, unless it has a job key or is unique.

In reading order::

    front            what both clients share, and that does not wait
    bulk             what `insert_many` has written so far, and what it still owes
    asyncio_client   Client
    sync_client      SyncClient

Their methods over jobs that exist, queues and schedules are in `control/`.
"""

from __future__ import annotations

from wqcore.client.asyncio_client import Client
from wqcore.client.bulk import KEYED_ROWS, PROGRESS_ROWS
from wqcore.client.front import Item
from wqcore.client.sync_client import SyncClient

__all__ = ["KEYED_ROWS", "PROGRESS_ROWS", "Client", "Item", "SyncClient"]
