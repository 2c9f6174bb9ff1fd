"""A Slurm of two nodes on this machine, from Debian's packages: munged, slurmctld and two slurmd, each with its own address,
port and folder, in the foreground as children of the test. Needs root. `bash scripts/test_cluster.sh` installs the packages.
"""

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import psutil
from cluster_runs import ROOT, SETTINGS, until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
NODES = {"n1": "127.0.0.2", "n2": "127.0.0.3"}
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
CONFIG = """
ClusterName=srpo
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=20
FirstJobId={first_job}
SchedulerParameters=sched_interval=5,batch_sched_delay=1
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.2 Port={ports[1]} CPUs=4
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.3 Port={ports[2]} CPUs=4
PartitionName=main Nodes=n1,n2 Default=YES State=UP
"""


def missing() -> str | None:
    """Why there can be no such Slurm here, or None."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    path = os.environ["PATH"] + ":/usr/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return f"not installed: {', '.join(absent)} (bash scripts/test_cluster.sh installs them)" if absent else None


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


class SlurmCluster:
    """The daemons, and what a test asks of them. `environment` is what Slurm's commands and the jobs see."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder = folder
        config = folder / "slurm.conf"
        self.environment = {**environment, "SLURM_CONF": str(config)}
        self.daemons: list[subprocess.Popen] = []
        for name in ("munge", "state", "spool-n1", "spool-n2"):
            (folder / name).mkdir()
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.first_job = 100_000 + os.getpid() % 100_000 * 100  # the launcher names folders in /tmp after the job
        config.write_text(
            CONFIG.format(host=socket.gethostname(), folder=folder, ports=free_ports(3), first_job=self.first_job)
        )

    def start(self) -> None:
        """Start the daemons; returns when both nodes are idle."""
        munge = self.folder / "munge"
        files = [
            f"--{name}={munge}/{name.removesuffix('-file')}"
            for name in ("key-file", "pid-file", "log-file", "seed-file")
        ]
        self._daemon("munged", "--foreground", "--force", f"--socket={munge}/socket", *files)
        self._daemon("slurmctld", "-D")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node)
        deadline = time.monotonic() + 60
        while self.ask("sinfo", "--noheader", "--format=%D %t", check=False).strip() != "2 idle":
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.5)

    def _daemon(self, name: str, *options: str) -> None:
        program = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")
        with (self.folder / f"{name}{len(self.daemons)}.log").open("w") as log:
            command = [program, *options]
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT))
        time.sleep(1.0)

    def stop(self) -> None:
        """Cancel what runs, wait until it is gone, end the daemons."""
        self.ask("scancel", "--user=root", check=False)
        deadline = time.monotonic() + 60
        while self.ask("squeue", "--noheader", check=False).strip() and time.monotonic() < deadline:
            time.sleep(0.5)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for job in range(self.first_job, self.first_job + 100):  # Ray's folders of jobs that failed
            shutil.rmtree(f"/tmp/srpo-{job}", ignore_errors=True)

    def logs(self) -> str:
        return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))

    def ask(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        """What one of Slurm's commands prints."""
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True, cwd=cwd, timeout=60)
        assert result.returncode == 0 or not check, f"{command}\n{result.stdout}{result.stderr}"
        return result.stdout

    def job(self, number: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        words = self.ask("scontrol", "show", "job", "--oneliner", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def processes(self, number: str, node: str, name: str) -> list[psutil.Process]:
        """Processes of a job on a node, by name."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                same = (environment.get("SLURM_JOB_ID"), environment.get("SLURMD_NODENAME")) == (number, node)
                if same and process.name() == name and environment["SLURM_CONF"] == self.environment["SLURM_CONF"]:
                    found.append(process)
            except psutil.Error:
                pass
        return found


class Job:
    """A submitted run of two nodes under `root`; what it prints goes to root/LOG."""

    def __init__(self, slurm: SlurmCluster, root: Path, options: list[str], overrides: list[str], log: str = "job.log"):
        self.slurm, self.file = slurm, root / log
        options = ["--nodes=2", f"--output={self.file}", *options]
        arguments = [*SETTINGS, f"run.root={root}", *overrides]
        self.number = slurm.ask("sbatch", "--parsable", *options, "scripts/slurm.sbatch", *arguments, cwd=ROOT).strip()

    def state(self) -> str:
        return self.slurm.job(self.number)["JobState"]

    def log(self) -> str:
        nodes = sorted((self.slurm.folder / "logs" / self.number).glob("ray-*.log"))
        texts = [f"{path}:\n{path.read_text()[-3000:]}" for path in [self.file, *nodes] if path.exists()]
        return "\n".join([str(self.slurm.job(self.number)), *texts])

    def steps(self) -> list[int]:
        """The steps that it printed."""
        return [int(step) for step in re.findall(r"step (\d+)/\d+ \|", self.file.read_text())]

    def wait(self, seconds: float) -> None:
        until(lambda: self.state() in ENDED, seconds, self.log)
