"""Runs functions that may hang, die or print without end, each call under a hard limit, in processes that are replaced.

    client.py    in the program: hands calls over and gets an answer to each, whatever happens
    server.py    a process of its own: starts the workers, ends those that take too long, and all that they started
    handle.py    a worker as the server sees it
    worker.py    a process that makes one call after the other
    confined.py  no network and no file outside a folder, for a worker that asks for it
    family.py    the processes that a process has started
    openers.py   what a worker can be asked to run: a verifier, a reward function

Calls go to a worker as text of the caller's own making, answers come back as JSON: nothing that a worker says is ever unpickled.
"""
