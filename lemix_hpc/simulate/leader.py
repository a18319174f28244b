"""A node's leader, as `lemix_hpc.runtime.leader`: batches formed per iteration, and what their results mean."""

from __future__ import annotations

from lemix_hpc.policy.compiled import compiled
from lemix_hpc.runtime.leader import AHEAD
from lemix_hpc.simulate.heap import pop, push
from lemix_hpc.simulate.world import FINISHED, NONE, SERVES, Setting, World, append, take


@compiled
def supply_first_stage(world: World, setting: Setting, node: int) -> None:
    """Keep the first stage supplied with batches, as far as there are requests."""
    leader = world.nodes[node]
    while leader.at_first_stage < AHEAD and leader.in_flight <= setting.stages:
        batch = _form(world, setting, node)
        if batch == NONE:
            return
        leader.at_first_stage += 1
        leader.in_flight += 1
        world.batches[batch].since, world.batches[batch].epoch = world.run[0].now, 0
        append(world.queues[4 * node * setting.stages + SERVES], world.batches, batch)


@compiled
def _form(world: World, setting: Setting, node: int) -> int:
    """The next batch: as many requests as the limits allow, at least one if any is there. Those that generate go first."""
    requests, leader, ready = world.requests, world.nodes[node], world.ready[node]
    number = leader.free
    batch, size, tokens, squares, cached, prefills = world.batches[number], 0, 0, 0.0, 0.0, 0
    while size < setting.max_requests:
        request = ready.head if ready.head != NONE else leader.waiting
        if request == NONE:
            break
        length = requests[request].length
        if size > 0 and tokens + length > setting.max_tokens:
            break
        if ready.head != NONE:
            take(ready, requests)
        else:
            leader.waiting = pop(requests, request)
        world.members[number, size] = request
        size += 1
        tokens += length
        squares += float(length) * length
        cached += requests[request].cached
        prefills += length > 1
    if size == 0:
        return NONE
    leader.free = batch.next
    leader.batches += 1
    batch.number, batch.size, batch.tokens, batch.squares = leader.batches, size, tokens, squares
    batch.cached, batch.prefills = cached, prefills
    return number


@compiled
def take_results(world: World, node: int, number: int) -> None:
    """A batch has left the last stage: its requests are finished, or go on to their next token."""
    batch, now = world.batches[number], world.run[0].now
    for position in range(batch.size):
        task = world.members[number, position]
        request = world.requests[task]
        if request.first_version == NONE:
            request.first_version, request.first_token = batch.version, now
        request.last_version = batch.version
        request.produced += request.output > 0
        if request.produced >= request.output:
            request.outcome, request.finished = FINISHED, now
            _bring_follower(world, request.follower, now + request.think)
        else:
            request.cached += request.length
            request.length = 1
            append(world.ready[node], world.requests, task)
    world.nodes[node].in_flight -= 1


@compiled
def _bring_follower(world: World, follower: int, arrival: float) -> None:
    """The next turn of a conversation comes, if there is one."""
    if follower != NONE:
        run = world.run[0]
        world.requests[follower].arrival = world.requests[follower].key = arrival
        run.due = push(world.requests, run.due, follower)


@compiled
def free_batch(world: World, node: int, number: int) -> None:
    """Nobody looks at a batch's members any more."""
    world.batches[number].next = world.nodes[node].free
    world.nodes[node].free = number
