"""What people and programs ask of jobs that exist: look, wait, cancel, retry, pause, schedule. Requests only; the clients
of `client.py` send them, and the command line uses those.
"""
