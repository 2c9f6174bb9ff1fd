"""Prints the services of docker/compose.yaml for scripts/image.sh, a line each in the order in which they start:

name|image|size of /dev/shm|NAME=VALUE ...|VOLUME:FOLDER ...|command|command that tells whether it is healthy
"""

import shlex
from pathlib import Path

import yaml

COMPOSE = Path(__file__).parent / "compose.yaml"
# What image.sh does for every service, and so has to stand there; how an image is built is its own affair.
SAME = {"init": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
READ = {"image", "build", "shm_size", "environment", "volumes", "depends_on", "command", "healthcheck"}


def line(name: str, service: dict, before: list[str]) -> str:
    """One service. before: those that start earlier. Raises ValueError for what image.sh would not do as compose does."""
    for key, value in SAME.items():
        if service.get(key) != value:
            raise ValueError(f"{name}: {key} is {service.get(key)}, and scripts/image.sh knows {value} alone")
    if strange := set(service) - set(SAME) - READ:
        raise ValueError(f"{name}: scripts/image.sh does not know {', '.join(sorted(strange))}")
    if late := set(service.get("depends_on", ())) - set(before):
        raise ValueError(f"{name} stands before {', '.join(sorted(late))}, on which it depends")
    settings = [f"{key}={value}" for key, value in service.get("environment", {}).items()]
    kind, *health = service.get("healthcheck", {}).get("test", ["CMD", "true"])
    fields = [
        name,
        service["image"],
        service["shm_size"].removesuffix("b"),  # as `mount` has it: 2g
        " ".join(settings),
        " ".join(service.get("volumes", [])),
        shlex.join(shlex.split(service["command"])),
        shlex.join(health),
    ]
    words = [*settings, *service.get("volumes", [])]
    if kind != "CMD" or any("|" in field for field in fields) or any(" " in word for word in words):
        raise ValueError(f"{name}: a word with a space, a '|', or a health check that is not CMD")
    return "|".join(fields)


def lines(compose: dict) -> list[str]:
    """All services of a compose file that is read. Raises ValueError as `line` does."""
    services = compose["services"]
    names = list(services)
    return [line(name, service, names[:at]) for at, (name, service) in enumerate(services.items())]


if __name__ == "__main__":
    print(*lines(yaml.safe_load(COMPOSE.read_text())), sep="\n")
