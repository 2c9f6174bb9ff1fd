"""Mathematics in parts: the published rule, and those of the strict one (verify/math.py)."""
