"""Evaluation: a model, questions, n samples of each, verdicts, and numbers with intervals.

questions.py    rows of verl's parquet files, and which verifier judges them
sampling.py     vLLM, with one seed for every sample
scoring.py      the verifiers of training, under their time limit
store.py        settings.json and samples.jsonl: an interrupted evaluation goes on where it was
estimators.py   avg@k, pass@k, maj@k and their bootstrap intervals; numpy alone
model.py        what is evaluated: a folder, a name on the hub, a checkpoint of training
report.py       results.json, results.md, pass_at_k.png
validation.py   training's own validation, by the same estimators
evaluate.py     all of them in order, as python -m srpo_recipe.eval asks for it
"""
