"""Judges a run by its history: `python -m tests.check FOLDER` reads one that was kept and names everything that is wrong.

history   what was recorded, as structs              record   how it is recorded while masters run
rules     one function for each thing that may not happen
verdict   all rules over a history, and the line that sums them up
"""
