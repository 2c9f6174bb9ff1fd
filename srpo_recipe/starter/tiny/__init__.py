"""The quickstart's model, built from nothing: a tiny Qwen3 that can add, under bad habits.

`network` has its parts, `warm_start` its training, `acceptance` what it must be able to do, `build` all of it in order.
"""
