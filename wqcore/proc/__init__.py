"""Processes: a master that does almost nothing, the board it shares with its children, and what the children run.

`master`, `children`, `board` and `signals` name neither the database driver nor the event loop nor any handler: nothing
in them can hang the master. The children's modules are imported by name, from a list that the master is given.
"""
