"""Whether the recipe computes on this machine's GPU what it computes on a CPU, in the memory that is planned: one command.

    python -m srpo_recipe.gpu_check [--device cpu] [--quick] [--out FILE]

`parts` is the list of what is looked at, and starts a process for each group of them; `sizes` says how large everything is;
`exact` is the objective in float64, from the equations; `rank` joins verl's engines as training does, without Ray; the other
modules hold a part each. Needed are torch, transformers, tensordict, Hydra and verl's Python; Ray's daemons and vLLM are not.
docs/gpu_check.md has the tolerances.
"""
