"""Three secrets as users have them: in a variable, in a tool's configuration, in a token's file."""

import os
from pathlib import Path

SECRETS = {
    "a variable": "planted0variable0c0ffee",
    "a configuration": "planted0configuration0c0ffee",
    "Ray's token": "planted0token0c0ffee0c0ffee0c0ffee0c0ffee",
}


def plant(home: Path) -> dict[str, str]:
    """Make a home with them; returns the variables with which a run has it. The caches of the real one stay in use."""
    (home / ".ray").mkdir(parents=True, mode=0o700)
    (home / ".ray" / "auth_token").write_text(SECRETS["Ray's token"])
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {SECRETS['a configuration']}\n")
    (home / ".netrc").chmod(0o600)
    real = Path.home() / ".cache"
    return {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(real),
        "HF_HOME": os.environ.get("HF_HOME", str(real / "huggingface")),
        "WANDB_API_KEY": SECRETS["a variable"],
        "HF_TOKEN": SECRETS["a variable"],
    }


def readers(home: Path) -> set[str]:
    """The secrets that a run in this home was given: those in files, as they lie there, and the variable's."""
    found = {"a variable"}
    for name, path in {"Ray's token": ".ray/auth_token", "a configuration": ".netrc"}.items():
        if SECRETS[name] in (home / path).read_text():
            found.add(name)
    return found
