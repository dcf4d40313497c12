"""A machine with a real systemd, booted in namespaces over a throw-away overlay of this one's files. Needs root.

It has this machine's files, programs and Python environments, and nothing of what runs here: its own processes, mounts,
/dev, /tmp, /run, cgroup, and a network that is loopback alone. What is written in it is gone at its end. The
kernel's settings and devices are out of its reach: by https://systemd.io/CONTAINER_INTERFACE, systemd leaves alone what
it finds read-only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

SYSTEMD = Path("/lib/systemd/systemd")
PROGRAMS = ("unshare", "nsenter", "ip", "mount", "pivot_root", "systemctl", "journalctl", "systemd-analyze")
BOOT_S = 60.0
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}

# $1: an empty directory; $2: the cgroup to be in; $3: the unit that is started; the others:
# directories that are on file systems of their own.
BOOT = r"""
set -e
echo $$ > "$2/cgroup.procs"
exec unshare --pid --fork --kill-child --mount --uts --ipc --net --cgroup --propagation private bash -c '
  set -e
  root=$1 target=$3; shift 3
  mount -t tmpfs tmpfs "$root"
  mkdir "$root"/upper "$root"/work "$root"/root
  mount -t overlay overlay -o lowerdir=/,upperdir="$root/upper",workdir="$root/work" "$root/root"
  for directory; do mount --rbind "$directory" "$root/root$directory"; done
  root=$root/root
  mount -t tmpfs -o mode=755 tmpfs "$root/dev"
  mkdir "$root/dev/shm" "$root/dev/pts"
  for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
  done
  mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
  ln -s pts/ptmx "$root/dev/ptmx"
  ln -s /proc/self/fd "$root/dev/fd"
  mount -t proc proc "$root/proc"
  mount -t sysfs sysfs "$root/sys"
  ip link set lo up
  ip route add 224.0.0.0/4 dev lo
  mount --bind "$root/proc/sys" "$root/proc/sys"
  mount -o remount,bind,ro "$root/proc/sys"
  mount -o remount,ro "$root/sys"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  mount -t tmpfs -o mode=755 tmpfs "$root/run"
  mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
  printf %s "$target" >"$root/etc/systemd/system/test-machine.target"
  for unit in systemd-modules-load.service systemd-timesyncd.service dev-hugepages.mount sys-kernel-debug.mount; do
    ln -s /dev/null "$root/etc/systemd/system/$unit"
  done
  # Not chroot: in one, services cannot have user namespaces.
  cd "$root"
  mkdir mnt/before
  pivot_root . mnt/before
  umount -l /mnt/before
  rmdir /mnt/before
  mount --make-rshared /  # else the credentials of services stay in the process that mounts them
  exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=test-machine.target --log-target=journal
' machine "$@"
"""
TARGET_UNIT = """\
[Unit]
Requires=basic.target systemd-journald.service
Wants=dbus.socket systemd-logind.service
After=basic.target
AllowIsolate=yes
"""


def why_not() -> str | None:
    """Why no machine can be booted here; None when one can, as far as one sees before trying."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "only root can boot a systemd in namespaces"
    if not SYSTEMD.exists():
        return "systemd is not installed (Debian package systemd)"
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"not installed: {', '.join(missing)}"
    if Path(__file__).is_relative_to("/tmp"):
        return "this tree is in /tmp, which the machine, and every service with PrivateTmp, has one of its own of"
    if _cgroups() is None:
        return "no cgroup2 that can be written to"
    return None


class Machine:
    """A booted machine. Commands run in it as root, unless told otherwise."""

    def __init__(self, init_pid: int) -> None:
        self._init_pid = init_pid

    def path(self, inside: str | Path) -> Path:
        """A file of the machine, as this side reaches it."""
        return Path(f"/proc/{self._init_pid}/root") / str(inside).lstrip("/")

    def command(self, *arguments: str | Path, env: dict[str, str] | None = None) -> list[str]:
        """The command line, on this side, that runs a command in there."""
        enter = ["nsenter", "-t", str(self._init_pid), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"]
        variables = [f"{name}={value}" for name, value in {**ENVIRONMENT, **(env or {})}.items()]
        return [*enter, "env", "-i", *variables, *map(str, arguments)]

    def run(
        self,
        *arguments: str | Path,
        check: bool = True,
        env: dict[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end. With ``check``, the test fails with what it said if it fails."""
        command = self.command(*arguments, env=env)
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
        )
        if check:
            assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def show(self, unit: str, name: str) -> str:
        """One property of a unit, as ``systemctl show`` says it."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).stdout.strip()

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Entries of the journal, oldest first."""
        said = self.run("journalctl", "--quiet", "--no-pager", "--output=json", "--all", *matches).stdout
        return [json.loads(line) for line in said.splitlines()]


@contextlib.contextmanager
def booted() -> Iterator[Machine]:
    """A machine that is up. Raises RuntimeError with what it said when it does not come up."""
    cgroups = _cgroups()
    assert cgroups is not None
    cgroup = cgroups / f"pupil-bridge-test-{os.getpid()}"
    root = Path(tempfile.mkdtemp(prefix="pupil-bridge-machine-"))
    log = root.with_suffix(".log")
    cgroup.mkdir()
    process: subprocess.Popen[bytes] | None = None
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", BOOT, "boot", str(root), str(cgroup), TARGET_UNIT, *_separate_file_systems()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        yield Machine(_wait_for_boot(process, log))
    finally:
        if process is not None:
            with contextlib.suppress(OSError):
                (cgroup / "cgroup.kill").write_text("1")
            process.kill()
            process.wait()
        _remove_cgroups(cgroup)
        root.rmdir()
        log.unlink()


def _wait_for_boot(process: subprocess.Popen[bytes], log: Path) -> int:
    """The process id, on this side, of the machine's init, once it is up."""
    deadline = time.monotonic() + BOOT_S
    state = "nothing"
    while time.monotonic() < deadline and process.poll() is None:
        children = psutil.Process(process.pid).children()
        if children and _is_systemd(children[0].pid):
            machine = Machine(children[0].pid)
            machine.path("/run/systemd/system").mkdir(parents=True, exist_ok=True)
            state = machine.run("systemctl", "is-system-running", check=False).stdout.strip()
            if state in ("running", "degraded"):
                return children[0].pid
        time.sleep(0.1)
    raise RuntimeError(f"systemd did not come up: {state}; {log.read_text(errors='replace')}")


def _is_systemd(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == "systemd"
    return False


def _cgroups() -> Path | None:
    """This process's directory in the cgroup2 hierarchy, if it can be written to."""
    mount = next((line.split()[1] for line in _lines("/proc/self/mounts") if line.split()[2] == "cgroup2"), None)
    own = next((line.split("::", 1)[1] for line in _lines("/proc/self/cgroup") if line.startswith("0::")), None)
    if mount is None or own is None:
        return None
    directory = Path(mount) / own.strip("/")
    return directory if os.access(directory / "cgroup.procs", os.W_OK) else None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _separate_file_systems() -> list[str]:
    """Mount points, other than /, that this Python and this repository are on: the overlay does not show them."""
    found = set()
    for start in (Path(__file__), Path(sys.prefix), Path(sys.base_prefix)):
        point = start.resolve()
        while not point.is_mount():
            point = point.parent
        found.add(str(point))
    return sorted(found - {"/"})


def _remove_cgroups(top: Path) -> None:
    """Removes an empty tree of cgroups; waits for its last processes to be gone."""
    deadline = time.monotonic() + 10.0
    while top.exists():
        for directory, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        assert time.monotonic() < deadline, f"{top} is still in use"
        time.sleep(0.02)
