"""What people and programs ask of jobs that exist: look, wait, cancel, retry, pause, schedule. All are requests;
`asyncio_control.py` and `sync_control.py` have the methods by which the clients of `client/` send them.
"""
