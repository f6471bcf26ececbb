"""A Slurm of one's own: munged, slurmctld and slurmd from Debian's packages in a temporary folder, on the loopback alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
START_SECONDS = 30

CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={node}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
MinJobAge=3600
KillWait=5
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def lacking() -> str:
    """Why no Slurm can be started here; empty where one can."""
    missing = [program for program in PROGRAMS if found(program) is None]
    if missing:
        return f"there is no {missing[0]} here (tools/need_slurm installs Slurm)"
    return "" if os.geteuid() == 0 else "only root can start slurmd"


def found(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@contextlib.contextmanager
def running() -> Iterator[Path]:
    """The folder of a Slurm that is up; SLURM_CONF names its configuration. All of it is gone afterwards."""
    # not pytest's folder: a socket's path may have 107 signs
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    processes: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        program = found(command[0])
        assert program is not None
        with (folder / f"{command[0]}.out").open("wb") as log:
            processes.append(
                subprocess.Popen([program, *command[1:]], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            )

    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    conf = folder / "slurm.conf"
    controller, node = free_ports(2)
    conf.write_text(
        CONF.format(folder=folder, host=socket.gethostname().partition(".")[0], controller=controller, node=node)
    )
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(conf)
    try:
        names = {
            "key": "munge.key",
            "socket": "munge.socket",
            "pid": "munge.pid",
            "log": "munged.log",
            "seed": "munge.seed",
        }
        files = [f"--{name}{'' if name == 'socket' else '-file'}={folder / file}" for name, file in names.items()]
        start("munged", "--foreground", "--force", *files)
        wait_until(lambda: (folder / "munge.socket").exists(), folder)
        start("slurmctld", "-D", "-f", str(conf))
        start("slurmd", "-D", "-f", str(conf))
        wait_until(lambda: "idle" in asked("sinfo", "--noheader", "--format=%T"), folder)
        yield folder
    finally:
        with contextlib.suppress(Exception):
            asked("scancel", "--user=root", "--signal=KILL", "--full")
            asked("scancel", "--user=root")
            time.sleep(0.5)
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for number in started_with(conf):  # what is left of jobs
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(folder, ignore_errors=True)


def started_with(conf: Path) -> list[int]:
    """The processes that this Slurm started, of jobs and their steps too: they have its configuration's name from it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            own = f"SLURM_CONF={conf}".encode() in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if own and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def asked(*command: str) -> str:
    """What a command of Slurm's says."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout + done.stderr


def wait_until(true: object, folder: Path, seconds: float = START_SECONDS) -> None:
    """Until `true()`; else the daemons' last lines."""
    assert callable(true)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return
        time.sleep(0.1)
    tails = [f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in sorted(folder.glob("*.[lo][ou][gt]"))]
    raise TimeoutError("\n".join(tails))


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
