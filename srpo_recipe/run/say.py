"""What a process of a run tells its user: marked lines, which Ray carries to the driver and its screen (screen.py) shows."""

MARK = "srpo| "
PHASE = "done: "  # a phase of the start is over; the screen adds its seconds
ENGINE = "rollout engine"  # the last phase before steps are made
END = "trained"  # the phase that says that no line comes after it


def say(text: str) -> None:
    """Show these lines to the user. For any process of the run but the driver, whose own way is its Screen."""
    print("\n".join(f"{MARK}{line}" for line in text.splitlines()), flush=True)


def phase_done(name: str) -> None:
    """Tell that this phase of the start has ended."""
    say(f"{PHASE}{name}")
