"""One page about runs: their curves, and their rollouts down to the token. `python -m srpo_recipe.inspect RUN ...`."""
