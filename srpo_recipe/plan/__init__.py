"""The planner: what a run will hold in memory and what a step is made of, from the same overrides as training.

    python -m srpo_recipe.plan model=qwen3_8b hardware=gpu8 task=parquet data.train_files=a data.val_files=b

`architecture` knows the model, `device` what it is put on, `setup` what of the config matters, `memory` the arithmetic, `step`
the work of a step, `fixes` what to change, `plan` the whole as data, `show` what is printed. Nothing here needs an accelerator,
the data, or the model's weights.
"""
