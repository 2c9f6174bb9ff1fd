"""Data for training and evaluation: published benchmarks, mathematics, a user's own rows, into verl's parquet schema.

    source (hub, split files, own files)  ->  formats  ->  checks  ->  train.parquet, test.parquet, manifest.json
    sources.py                                formats.py   checks.py   prepare.py, manifest.py

tasks.py is the table of what can be prepared by name. `python -m srpo_recipe.data --help` is the command; request.py makes of its
arguments what prepare.py is asked for. Nothing here imports verl, ray or torch.
"""
