"""How figures are drawn: without a screen, each method in its colour."""

COLORS = {
    "grpo": "tab:blue",
    "sdpo": "tab:red",
    "srpo": "tab:green",
    "srpo_no_dw": "tab:olive",
    "advantage_mix": "tab:purple",
    "sdpo_incorrect_only": "tab:orange",
    "sdpo_correct_only": "tab:brown",
}


def pyplot():
    """matplotlib's pyplot, which takes a second to import, drawing into files alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
