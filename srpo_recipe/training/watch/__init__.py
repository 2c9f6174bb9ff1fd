"""Ends a run whose rollout engine, or any other worker, died or got stuck, and says why. verl 0.9.1 may wait for ever.

`trainer_watch` looks from the trainer's process, `sync_watch` from a training worker. Both ask `actors` who is dead and
who answers, and `logs` what a process said last. Whoever knows the cause calls `report.report`: the first report of a
Ray job stays in the cluster's key-value store. `driver` prints it last and writes it to failure.txt. Nothing here
touches a request or a weight.
"""
