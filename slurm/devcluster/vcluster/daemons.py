"""The four daemons of the cluster, each started and waited for in the order that works."""

from dataclasses import dataclass

from vcluster.commands import output, run, wait_until
from vcluster.layout import Layout
from vcluster.plan import Plan

DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld")
START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Daemons:
    """They run on the host itself; clients and nodes reach them there."""

    layout: Layout
    environment: dict[str, str]

    def start_munged(self) -> None:
        run_dir, etc = self.layout.run, self.layout.etc
        options = {"key": etc / "munge.key", "pid": run_dir / "munged.own.pid", "seed": run_dir / "munge.seed"}
        options["log"] = self.layout.log / "detail" / "munged.log"
        files = [f"--{name}-file={path}" for name, path in options.items()]
        socket_option = f"--socket={self.layout.munge_socket}"
        # --force: the state directory may lie in a checkout that belongs to another user, as on CI machines.
        command = ["munged", "--foreground", "--force", "--origin=127.0.0.1", socket_option, *files]
        process = self.layout.process("munged")
        process.start(command, self.environment)
        encode = ("munge", "--no-input", f"--socket={self.layout.munge_socket}")
        wait_until("munged", lambda: bool(output(*encode, env=self.environment)), START_TIMEOUT_S, process)
        credential = run(*encode, step="munge", env=self.environment)
        run("unmunge", f"--socket={self.layout.munge_socket}", step="unmunge", env=self.environment, text=credential)

    def start_database(self) -> None:
        """MariaDB without a TCP port: root alone may connect, through the socket, and needs no password."""
        where = ["--no-defaults", "--user=root", f"--datadir={self.layout.database}"]
        install = [*where, "--auth-root-authentication-method=socket", "--auth-root-socket-user=root", "--skip-test-db"]
        run("mariadb-install-db", *install, "--skip-name-resolve", step="database", env=self.environment)
        memory = ["--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M", "--performance-schema=OFF"]
        own = [f"--socket={self.layout.database_socket}", f"--pid-file={self.layout.run}/mariadbd.own.pid"]
        process = self.layout.process("mariadbd")
        process.start(["mariadbd", *where, "--skip-networking", *own, *memory], self.environment)
        client = ("--no-defaults", f"--socket={self.layout.database_socket}")
        ping = ("mariadb-admin", *client, "ping")
        wait_until("mariadbd", lambda: bool(output(*ping, env=self.environment)), START_TIMEOUT_S, process)
        run("mariadb", *client, "-e", "create database slurm_acct_db", step="database", env=self.environment)

    def start_accounting(self) -> None:
        process = self.layout.process("slurmdbd")
        # The client library takes "localhost" for a Unix socket, and its path from this variable.
        process.start(["slurmdbd", "-D"], {**self.environment, "MYSQL_UNIX_PORT": str(self.layout.database_socket)})
        probe = ("sacctmgr", "-n", "-P", "list", "qos", "format=name")
        wait_until("slurmdbd", lambda: bool(output(*probe, env=self.environment)), START_TIMEOUT_S, process)

    def start_controller(self) -> None:
        process = self.layout.process("slurmctld")
        process.start(["slurmctld", "-D"], self.environment)
        wait_until("slurmctld", self.controller_answers, START_TIMEOUT_S, process)

    def controller_answers(self) -> bool:
        return " is UP" in output("scontrol", "ping", env=self.environment)

    def wait_for_registration(self, plan: Plan) -> None:
        """Before slurmdbd knows the controller's port, jobs' records may reach it late."""
        listing = ("sacctmgr", "-n", "-P", "list", "cluster", "format=cluster,controlport")
        wait_until(
            "registration with slurmdbd",
            lambda: f"{plan.tag}|{plan.controller_port}" in output(*listing, env=self.environment).splitlines(),
            START_TIMEOUT_S,
            self.layout.process("slurmdbd"),
        )
