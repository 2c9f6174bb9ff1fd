"""The campaign of faults: what is done to a run, what it has to say, and whether the same command goes on."""
