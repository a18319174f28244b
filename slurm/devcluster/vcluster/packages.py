"""What the machine must offer: Debian packages, root, namespaces."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vcluster.errors import DevclusterError, MissingPrerequisiteError

# Slurm's pmix plugin loads libpmix.so by that name, which only the -dev package holds; nothing depends on it.
PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server", "libpmix-dev", "iproute2", "util-linux")
POLICY = Path("/usr/sbin/policy-rc.d")


def missing_packages() -> list[str]:
    """Those of PACKAGES that dpkg does not count as installed."""
    if shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
        raise MissingPrerequisiteError(
            "this machine has no apt: the one-machine cluster needs Debian 12 or a close relative "
            f"with the packages {', '.join(PACKAGES)}"
        )
    query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *PACKAGES]
    # dpkg-query exits with 1 when it knows nothing of a package, which then is missing from its output.
    listing = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    installed = {line.split()[0] for line in listing.splitlines() if line.endswith(" installed")}
    return [package for package in PACKAGES if package not in installed]


def install() -> str:
    """Install what is missing; a sentence about what was done."""
    missing = missing_packages()
    if not missing:
        return "All packages are there already."
    _require_root(f"installing {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "--yes", "--option", "DPkg::Lock::Timeout=300"]
    with _services_held_back():
        for arguments in (["update"], ["install", "--no-install-recommends", *missing]):
            if subprocess.run([*apt, *arguments], env=environment, check=False).returncode != 0:
                raise DevclusterError(f"`apt-get {' '.join(arguments)}` failed; its messages are above")
    return f"Installed {', '.join(missing)}."


def require_machine() -> None:
    """Refuse to start where the cluster cannot run, saying what to do."""
    missing = missing_packages()
    if missing:
        raise MissingPrerequisiteError(f"missing packages: {' '.join(missing)}; run `devcluster install` as root")
    require_root_for_namespaces()


def require_root_for_namespaces() -> None:
    _require_root("starting virtual nodes")
    probe = ["unshare", "--net", "--uts", "--mount", "--ipc", "--pid", "--fork", "--mount-proc", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MissingPrerequisiteError(
            f"the kernel refuses new namespaces ({done.stderr.strip()}); in a container, run it with --privileged"
        )


def _require_root(what: str) -> None:
    if os.geteuid() != 0:
        raise MissingPrerequisiteError(f"{what} needs root; run this command with sudo")


@contextmanager
def _services_held_back() -> Iterator[None]:
    """Keep packages from starting services of their own (Debian policy: exit code 101 of policy-rc.d says no)."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
