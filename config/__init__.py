"""Hydra configuration, installed as the package `srpo_recipe_config`."""
