"""How figures are drawn: without a screen, each method in its colour."""

COLORS = {
    "grpo": "tab:blue",
    "sdpo": "tab:red",
    "srpo": "tab:green",
    "srpo_no_dw": "tab:olive",
    "advantage_mix": "tab:purple",
}


def pyplot():
    """matplotlib's pyplot, drawing into files. It is imported here, since that costs a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


_pyplot = pyplot
