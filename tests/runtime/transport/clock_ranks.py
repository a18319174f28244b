"""Run by test_clock_keeper.py on 2 ranks: signs of life and their answers set a wrong clock right while a loop turns."""

import sys

from mpi4py import MPI

from lemix_hpc.runtime.scheduler.watch import Watch
from lemix_hpc.runtime.transport import messages as m
from lemix_hpc.runtime.transport.clock_keeper import ClockKeeper
from lemix_hpc.runtime.transport.doorbell import hang_doorbell
from lemix_hpc.runtime.transport.heartbeat import heartbeats
from lemix_hpc.runtime.transport.idle_wait import make_waiter
from lemix_hpc.runtime.transport.mailbox import Inbox, Mailbox
from lemix_hpc.runtime.transport.rank_layout import Layout
from lemix_hpc.runtime.transport.run_clock import synchronise

comm = MPI.COMM_WORLD.Dup()
rank = comm.Get_rank()
clock = synchronise(comm)
host = comm.Split_type(MPI.COMM_TYPE_SHARED)
bell = hang_doorbell(comm, host)
waiter = make_waiter(host, bell, "backoff")
mailbox = Mailbox(comm, (Inbox.SCHEDULER, Inbox.STAGE)[rank], bell)
if rank == 0:
    watch, stopped = Watch(60.0, clock.monotonic, Layout(1, 1), mailbox), False
    while not stopped:
        for mail in mailbox.poll():
            if isinstance(mail.message, m.Alive):
                watch.heard(mail.message)
            stopped = isinstance(mail.message, m.Stop)
        waiter.idle(in_transit=mailbox.in_transit)
else:
    right = clock.monotonic() - clock.own()
    clock.told(asked=0.0, theirs=right + 0.2, heard=0.0)
    keeper = ClockKeeper(rank, clock, Mailbox(comm, Inbox.CLOCK, bell))
    with heartbeats(waiter, mailbox, keeper, 0.2, lambda: None):
        while clock.monotonic() - clock.own() > right + 0.1:
            waiter.idle(in_transit=mailbox.in_transit)
    mailbox.send(0, Inbox.SCHEDULER, m.Stop())
    while not mailbox.sent_all:
        waiter.idle(in_transit=True)
    print("the clock was set", file=sys.stderr)
