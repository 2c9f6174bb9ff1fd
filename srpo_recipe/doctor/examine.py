"""All checks in order, on the config that a run's overrides compose, and the table of what they find."""

from collections.abc import Callable, Sequence
from functools import partial

from srpo_recipe.doctor import cluster, data, machine, model, network, storage, versions
from srpo_recipe.doctor.check import FAIL, PASS, WARN, Answer, Case, Finding, ok, run


def config(case: Case) -> Answer:
    """The overrides compose, and the method accepts them."""
    if case.error:
        return FAIL, case.error, "correct the overrides (docs/reference.md lists groups and keys)"
    trainer = case.config.trainer
    return ok(f"{case.config.run.name}, {trainer.nnodes} node(s) x {trainer.n_gpus_per_node} rank(s)")


CHECKS: dict[str, Callable[[Case], Answer]] = {
    "config": config,
    "python": versions.python,
    **{name: partial(versions.package, name) for name in versions.PACKAGES},
    "verl unmodified": versions.verl_unmodified,
    "plugin": versions.plugin,
    "platform": machine.platform,
    "accelerators": machine.accelerators,
    "device memory": machine.device_memory,
    "host memory": machine.host_memory,
    "shared memory": machine.shared_memory,
    "run.root": storage.run_root,
    "checkpoint space": storage.checkpoint_space,
    "shared files": storage.shared_files,
    "ports": cluster.ports,
    "ray cluster": cluster.ray_cluster,
    "network": network.network,
    "verifier's process": machine.verifier_process,
    "hub": model.hub,
    "model": model.model_files,
    "chat template": model.chat_template,
    "data": data.data,
}


def compose_case(overrides: list[str], ports: list[int]) -> Case:
    """The config as training composes and checks it, or why it cannot."""
    case = Case(overrides, ports=ports)
    try:
        from omegaconf import OmegaConf

        from srpo_recipe.settings import agents
        from srpo_recipe.settings.compose import compose_config
        from srpo_recipe.settings.rules import check

        found = compose_config(overrides)
        OmegaConf.resolve(found)
        check(found)
        # of a task with a folder, the folder: its files follow from it
        missing = sorted(OmegaConf.missing_keys(found), key=lambda key: not key.startswith("task."))
        missing = [key for key in missing if key.startswith(("task.", "data.", "actor_rollout_ref.model."))]
        if missing:
            raise ValueError(f"{missing[0]} has no value: give {missing[0]}=...")
        agents.check(found)
        case.composed = found
    except Exception as error:  # noqa: BLE001  (an installation without verl fails here, too)
        case.error = " ".join(str(error).split()) or type(error).__name__
    return case


def examine(overrides: list[str], ports: list[int] | None = None, skip: Sequence[str] = ()) -> list[Finding]:
    """The findings of all checks but those to skip, in the order of CHECKS."""
    case = compose_case(overrides, ports or [])
    return [run(name, check, case) for name, check in CHECKS.items() if name not in skip]


def table(findings: list[Finding], brief: bool = False) -> str:
    """One row a check; the fix stands under it where there is one. brief: those that pass are only counted."""
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        if brief and finding.status == PASS:
            continue
        lines.append(f"{finding.status}  {finding.check:<{width}}  {finding.found}")
        if finding.fix:
            lines.append(f"      {'':<{width}}  -> {finding.fix}")
    counts = {status: sum(finding.status == status for finding in findings) for status in (PASS, WARN, FAIL)}
    return "\n".join([*lines, ", ".join(f"{count} {status}" for status, count in counts.items())])
