"""A bridge in a network namespace of its own, with one link to the host and one to each node.

The bridge is kept out of the host's namespace because firewalls there (Docker's, for one) drop bridged traffic.
"""

import json
from pathlib import Path

from vcluster.commands import run
from vcluster.plan import NODES, Plan

STEP = "network"
NAMESPACES = Path("/run/netns")


def taken_networks() -> set[str]:
    """First three octets of every IPv4 route on this machine."""
    routes = json.loads(run("ip", "-json", "-4", "route", "show", "table", "all", step=STEP))
    return {route["dst"].partition("/")[0].rpartition(".")[0] for route in routes}


def create(plan: Plan) -> None:
    _ip("netns", "add", plan.switch)
    _in_switch(plan, "link", "add", "br0", "type", "bridge")
    _in_switch(plan, "link", "set", "br0", "up")
    _ip("link", "add", plan.host_link, "type", "veth", "peer", "name", "host", "netns", plan.switch)
    _in_switch(plan, "link", "set", "host", "master", "br0", "up")
    _ip("addr", "add", f"{plan.gateway}/24", "dev", plan.host_link)
    _ip("link", "set", plan.host_link, "up")
    for node in NODES:
        namespace = plan.namespace(node)
        _ip("netns", "add", namespace)
        _in_switch(plan, "link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _in_switch(plan, "link", "set", node, "master", "br0", "up")
        _ip("-n", namespace, "addr", "add", f"{plan.address(node)}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        _ip("-n", namespace, "link", "set", "lo", "up")


def remove(tag: str) -> None:
    """Take away every namespace and link whose name starts with the cluster's tag; none need exist."""
    links = json.loads(run("ip", "-json", "link", "show", step=STEP))
    for name in (link["ifname"] for link in links):
        if name == f"{tag}-up":
            _ip("link", "delete", name)
    for path in NAMESPACES.glob(f"{tag}-*"):
        _ip("netns", "delete", path.name)


def set_link(plan: Plan, node: str, state: str) -> None:
    """Plug the node's cable in (``up``) or out (``down``) at the switch's end."""
    _in_switch(plan, "link", "set", node, state)


def _in_switch(plan: Plan, *arguments: str) -> None:
    _ip("-n", plan.switch, *arguments)


def _ip(*arguments: str) -> None:
    run("ip", *arguments, step=STEP)
