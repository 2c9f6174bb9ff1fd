"""verl imports this module in every process that imports verl (entry point group `verl.plugins`).

It makes a machine without an accelerator usable. The method itself is registered by `srpo_recipe.training.register`, in
the processes that use it, since that costs seconds. verl swallows whatever a plugin raises (verl/__init__.py:79, logged
at DEBUG), so failures are reported here.
"""

import sys
import traceback

try:
    from srpo_recipe.machine import on_cpu

    if on_cpu():
        from srpo_recipe import cpu

        cpu.install()
except Exception:
    print("[srpo_recipe] the plugin failed to load; verl goes on without it:", file=sys.stderr)
    traceback.print_exc()
    raise


def assert_discovered() -> None:
    """Raise RuntimeError unless verl finds this plugin in every process, as it must."""
    import os
    from importlib.metadata import entry_points

    names = [point.name for point in entry_points(group="verl.plugins") if point.value == "srpo_recipe.plugin"]
    allowed = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    if not names or not (allowed == "auto" or names[0] in allowed.split(",")):
        raise RuntimeError(
            "verl does not load the plugin of srpo_recipe: install the package (pip install -e .) and leave "
            "VERL_USE_EXTERNAL_PLUGINS at auto, or name srpo in it"
        )
