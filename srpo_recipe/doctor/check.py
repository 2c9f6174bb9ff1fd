"""What a check is given, what it answers, and how it is run."""

from collections.abc import Callable
from dataclasses import dataclass, field

from omegaconf import DictConfig

PASS, WARN, FAIL = "pass", "warn", "fail"
Answer = tuple[str, str, str]  # status, what was found, fix


class NotChecked(Exception):
    """The check needs something that another check has found missing; its text says what."""


@dataclass
class Case:
    """What is looked at: a run's overrides, and the config that they compose; `error` is why there is none.

    nodes: addresses of the cluster's nodes, once a check has asked the cluster.
    """

    overrides: list[str] = field(default_factory=list)
    composed: DictConfig | None = None
    error: str = ""
    ports: list[int] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)

    @property
    def config(self) -> DictConfig:
        if self.composed is None:
            raise NotChecked("the config (see above)")
        return self.composed


@dataclass(frozen=True)
class Finding:
    """A row of the table."""

    check: str
    status: str
    found: str
    fix: str


def ok(found: str) -> Answer:
    return PASS, found, ""


def run(name: str, check: Callable[[Case], Answer], case: Case) -> Finding:
    """The check's answer; whatever it raises is its own fail, never the end of the doctor."""
    try:
        return Finding(name, *check(case))
    except NotChecked as missing:
        return Finding(name, WARN, f"not checked: it needs {missing}", "fix that first")
    except Exception as error:  # noqa: BLE001  (a broken machine raises anything)
        text = f"{type(error).__name__}: {error}".split("\n")[0]
        if error.__cause__:  # Ray's own error says no more than that there was one
            text += f" ({' '.join(str(error.__cause__).split())})"
        return Finding(name, FAIL, text, "the check itself failed on this error")
