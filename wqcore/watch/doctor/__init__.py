"""`wqcore doctor`: whether database and configuration are as the engine needs them, and what to change.

`gather` asks for facts (`facts.py`, one statement each, none writes), and `findings` judges them: `server.py`, `tables.py` and
`work.py` have the checks, pure functions from facts to findings, shown in this order. What cannot be asked, for want of a
right or of a connection, is a finding that says which grant would allow it; no check ends the others.
"""

from wqcore.watch.doctor import server, tables, work
from wqcore.watch.doctor.facts import Facts, gather
from wqcore.watch.doctor.finding import Finding, findings

__all__ = ["Facts", "Finding", "findings", "gather", "server", "tables", "work"]  # importing a room makes its checks
