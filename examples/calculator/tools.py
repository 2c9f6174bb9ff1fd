"""The tool: a calculator that adds. verl reads this file (actor_rollout_ref.rollout.multi_turn.function_tool_path)."""

from verl.tools.function_tool import function_tool


@function_tool
def add(a: int, b: int) -> str:
    """Add two whole numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return str(int(a) + int(b))
