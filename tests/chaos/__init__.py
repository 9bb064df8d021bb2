"""`python -m tests.chaos --seed S --seconds N`: masters, a server and a network that fail at random, and a judgement.

cluster    a PostgreSQL of the campaign's own, which may be crashed and frozen
world      two masters, the proxies between them and the server, and the history of what happens
masters    how their processes are found
kinds      what the jobs do                load       clients that insert, replace, cancel and reschedule
faults     what is done to whom            campaign   a seed becomes a plan; inject, heal, drain, check
engines    broken copies of wqcore         scenarios  what shows each of them to be broken
"""
