"""A Slurm of one node, this machine: its daemons run in a folder of their own, until stopped.

Needs Debian's packages `slurm-wlm` and `munge`, and root, as which jobs then run. Nothing outside
of the folder is written; `stop` ends the daemons and removes it. There is no accounting (`sacct`).

    apt-get install --no-install-recommends slurm-wlm munge
    eval "$(python tests/clusters/slurm.py start /tmp/slurm)"     # sets SLURM_CONF
    sinfo
    python tests/clusters/slurm.py stop /tmp/slurm
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo")
DAEMONS = ("slurmd", "slurmctld", "munged")
PATIENCE_SECONDS = 600.0  # of tiny fits on a busy machine
# A requeued job may begin once the old one's credentials have expired.
CONFIGURATION = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=lab Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no Slurm can be started here, or nothing."""
    lacking = [name for name in NEEDED if _program(name) is None]
    if lacking:
        return f"{lacking[0]} is not installed: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "Slurm's daemons are started as root here"


def start(folder: Path) -> Path:
    """Start the daemons; returns the configuration once the node is idle."""
    if reason := missing():
        raise RuntimeError(reason)
    folder.mkdir(mode=0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    configuration = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    text = CONFIGURATION.format(host=host, folder=folder, ports=_free_ports())
    configuration.write_text(text)
    files = {"key-file": key, "socket": folder / "munge.socket"}
    files |= {f"{kind}-file": folder / f"munged.{kind}" for kind in ("pid", "log", "seed")}
    _run("munged", "--force", *(f"--{kind}={path}" for kind, path in files.items()))
    _run("slurmctld", "-f", str(configuration))
    _run("slurmd", "-f", str(configuration), "-N", host)
    wait(lambda: "idle" in said(configuration, "sinfo", "-h", "-o", "%T"), "sinfo says idle", 60.0)
    return configuration


def stop(folder: Path) -> None:
    """End the daemons, and with them whatever runs, and remove the folder."""
    if (configuration := folder / "slurm.conf").is_file():
        said(configuration, "scancel", "--signal=KILL", "--full", "-u", "root")
        said(configuration, "scancel", "-u", "root")
    for name in DAEMONS:
        if (file := folder / f"{name}.pid").is_file():
            _end(int(file.read_text()))
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """A Slurm for as long as a block runs; its configuration."""
    try:
        yield start(folder)
    finally:
        stop(folder)


def said(configuration: Path, *command: str) -> str:
    """What one of Slurm's commands prints."""
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout


def wait(until: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until something is so."""
    limit = time.monotonic() + seconds
    while not until():
        if time.monotonic() > limit:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _run(name: str, *arguments: str) -> None:
    done = subprocess.run([_program(name) or name, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr}")


def _free_ports() -> list[int]:
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _end(pid: int) -> None:
    """End a daemon that was started here, and wait for its end."""
    for number, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        with suppress(TimeoutError):
            wait(lambda: not Path(f"/proc/{pid}").exists(), f"end of {pid}", seconds)
            return


def main() -> None:
    """Start or stop it from the command line."""
    verb, place = sys.argv[1:]
    if verb == "start":
        print(f"export SLURM_CONF={start(Path(place).resolve())}")
    else:
        stop(Path(place).resolve())


if __name__ == "__main__":
    main()
