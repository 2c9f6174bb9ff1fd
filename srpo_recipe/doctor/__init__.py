"""The doctor: does this machine hold what a run will need? One small function a check, by subject.

    python -m srpo_recipe.doctor [--json] [Hydra overrides as in training]

Every check returns (status, what was found, fix) and is listed in `examine.CHECKS`; one that raises is a fail of itself alone.
"""
