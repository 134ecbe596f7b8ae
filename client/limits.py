"""Pure. Every bound and every time of the client, in one place, with its reason. Times are seconds."""

from __future__ import annotations

from typing import Final

# --- the session with the metadata service --------------------------------------------------------

SLOTS: Final = 64
"""Requests of one session that may be outstanding at once; more callers wait for a free slot."""
WAITING_MAX: Final = 4096
"""Requests that may wait for a slot. More is a runaway caller: it is told OVERLOADED (EAGAIN)."""
EXPIRING_SLACK: Final = 1024
"""Calls that are over and still in the row of those that expire, beyond as many as there are under way."""

CONNECT_TIMEOUT_S: Final = 1.0
"""A replica that has not finished the handshake by then is passed over (its host may be gone without a word)."""
ATTACH_TIMEOUT_S: Final = 5.0
"""A replica that does not attach us by then is passed over: attaching is ordered, so a group that is changing
its view needs a moment, but a replica that is cut off from the group would never answer."""
PING_BUSY_S: Final = 0.05
"""Between pings while something is outstanding: a caller is waiting, so a dead replica must be noticed soon."""
PING_IDLE_S: Final = 1.0
SILENT_PINGS_MIN: Final = 5
"""So many pings in a row without any frame, and one interval more: the replica is taken for dead. At the least, 0.3 s
after we asked: no sooner than the group itself would suspect it (vsync.limits.SILENCE_MIN), and going elsewhere for
nothing costs one ordered request."""
SILENT_PINGS_MAX: Final = 20
"""At the most (1 s), however long the silences were that ended by themselves."""
STANDBY_AFTER_S: Final = 0.02
"""After attaching: what is outstanding goes first, then the standby connection is made."""
STANDBY_PAUSE_MAX_S: Final = 2.0
"""Between attempts at a standby connection while they fail; they begin BACKOFF_FIRST_S apart."""
NOT_SERVING_S: Final = 1.0
"""A replica that says it is not serving for so long is left: it may be cut off from the others."""
BACKOFF_FIRST_S: Final = 0.05
"""Pause after all replicas were tried in vain; doubled up to BACKOFF_MAX_S."""
BACKOFF_MAX_S: Final = 1.0
OVERLOADED_FIRST_S: Final = 0.02
"""Pause before a call is sent again that a full queue refused; doubled up to OVERLOADED_MAX_S."""
OVERLOADED_MAX_S: Final = 0.5
CLOSE_HANDLES_S: Final = 0.05
"""Closed handles are collected so long into one message: all that waits for it is the space of removed files."""
CLOSE_HANDLES_MAX: Final = 256
"""Inodes in one CloseHandles."""
CLOSE_TIMEOUT_S: Final = 2.0
"""Unmounting waits so long for the session to be closed; left open it expires by itself."""

assert 4 <= SILENT_PINGS_MIN <= SILENT_PINGS_MAX, "several pings may wait in a busy peer before it is taken for dead"
assert PING_BUSY_S <= PING_IDLE_S
assert PING_BUSY_S * SILENT_PINGS_MAX <= CONNECT_TIMEOUT_S
assert BACKOFF_FIRST_S <= STANDBY_PAUSE_MAX_S
assert CONNECT_TIMEOUT_S < ATTACH_TIMEOUT_S
assert BACKOFF_FIRST_S <= BACKOFF_MAX_S and OVERLOADED_FIRST_S <= OVERLOADED_MAX_S

# --- connections to storage targets ---------------------------------------------------------------

TARGET_BACKOFF_FIRST_S: Final = 0.05
TARGET_BACKOFF_MAX_S: Final = 1.0
TARGET_PING_S: Final = 1.0
"""Between pings to a target that owes us an answer."""
TARGET_SILENCE_S: Final = 10.0
"""No frame from a target for so long while it owes an answer: dial it again. Longer than for a replica: a
target may be in the midst of a large fsync. One that is marked offline is left at once."""
TARGET_INFLIGHT_MAX: Final = 16 << 20
"""Bytes of unanswered writes per target; what is unanswered is sent again after a reconnect, so this also
bounds the burst (below wire.peer.OUTBOUND_MAX)."""
TARGET_LOOK_S: Final = 0.3
"""A target that says nothing for so long while it owes an answer: the storage map is looked at."""
TARGET_TOLD_S: Final = 1.0
"""A call that finds nobody to carry it out for so long is logged."""
CHAIN_PAUSE_MAX_S: Final = 0.1
"""Between attempts at a chain that nobody serves at the moment: a keeper needs some tenths of a second."""
FRESH_REFUSED_S: Final = 30.0
"""A target that refuses fresh capabilities as expired for so long has another clock than the replicas: EACCES.
The same when the service has none to give for so long."""
RENEW_LOOK_S: Final = 15.0
"""How often capabilities are looked at that should be renewed: they live some 40 times as long."""
STAT_TIMEOUT_S: Final = 2.0
"""statfs leaves out a target that does not tell its space by then."""
STAT_CACHE_S: Final = 1.0

# --- file data ------------------------------------------------------------------------------------

EXTENT_MAX: Final = 4 << 20
"""Bytes of one ObjectWrite or ObjectRead (at most wire.framing.BULK_MAX; half of it, so that two are in flight)."""
GATHER_MAX: Final = 1 << 20
"""Bytes of small writes gathered per file when its stripes are larger than this."""
COPY_BELOW: Final = 32 << 10
"""Writes smaller than this are copied together; larger ones are kept and sent as they are."""
FILE_INFLIGHT_MAX: Final = 8 << 20
"""Bytes of one file on their way to targets; a writer that is faster waits."""
MOUNT_DIRTY_MAX: Final = 64 << 20
"""Bytes gathered or on their way in the whole mount: the memory that writing may take."""
GATHER_AGE_S: Final = 1.0
"""Written bytes are sent to the targets after this time at the latest."""
COMMIT_AGE_S: Final = 3.0
"""A file that is written for long has its size and times committed this often."""
READ_AHEAD_FIRST: Final = 256 << 10
READ_AHEAD_MAX: Final = 4 << 20
"""Bytes read ahead of a sequential reader: first window, doubled up to the largest."""
READ_AHEAD_AGE_S: Final = 1.0
"""Data read ahead is not used when it is older: another mount may have written meanwhile."""
KERNEL_READ_AHEAD: Final = 4 << 20
"""What the kernel may read ahead of a sequential reader, into its own cache: a few of the largest requests that FUSE
knows (1 MiB). It begins with little and doubles, so small files and random reads cost no more."""
ACCESSES_AGE_S: Final = 1.0
"""That files were read from (atime) is told to the service this often, all in one request."""
ACCESSES_MAX: Final = 16384
"""Files whose atime waits to be told; more within ACCESSES_AGE_S keep theirs."""
QUOTA_ROOM_AGE_S: Final = 1.0
"""How much room a quota has is asked again after this time: other mounts use it as well."""
QUOTA_ROOMS_MAX: Final = 1024
"""Quotas of which that is remembered."""
GROW_FIRST_S: Final = 0.01
GROW_MAX_S: Final = 0.2
"""A file that another mount changes while it grows out here is tried again after so long, at first and at most."""
PATCH_PIECES: Final = 1024
"""Pieces apart from each other that wait to be told of one small file; whoever writes another one tells them first. One
message takes four times as many (wire.inline.PIECES_MAX): those on their way may come back to those that wait, and
writers that were let in at once may each add one."""
TRIM_RETRIES: Final = 8
"""Times a truncation is tried again after TRUNCATIONS_UNSETTLED (others may truncate at the same time)."""

assert OVERLOADED_FIRST_S <= CHAIN_PAUSE_MAX_S
assert GATHER_MAX <= EXTENT_MAX <= FILE_INFLIGHT_MAX <= TARGET_INFLIGHT_MAX <= MOUNT_DIRTY_MAX
assert READ_AHEAD_FIRST <= READ_AHEAD_MAX

# --- the mount ------------------------------------------------------------------------------------

READDIR_BATCH: Final = 512
"""Entries asked for at once; at most that many wait in one directory handle."""
GROUPS_CACHE_S: Final = 0.5
"""Supplementary groups of a process are read from /proc at most this often."""
GROUPS_CACHE_MAX: Final = 1024
FUSE_TASKS_IDLE: Final = 8
"""Idle workers kept for the kernel's requests, so that they are not started and ended all the time."""
FUSE_TASKS_MAX: Final = 512
"""Kernel requests in work at once. Above this the kernel queues; a process that waits in the queue can be killed."""
KILL_CHECK_S: Final = 0.5
"""How often requests that wait are checked for a caller that was killed meanwhile."""
MOUNT_TIMEOUT_S: Final = 30.0
"""A mount fails when no replica has taken our session by then."""
UNMOUNT_FLUSH_S: Final = 10.0
"""SIGTERM writes what is buffered for so long in all; what nobody has taken then is lost, and logged. The end comes at
most CLOSE_TIMEOUT_S later, and what the kernel needs to unmount."""
CAPABILITY_CACHE_S: Final = 1.0
"""The kernel asks for ``security.capability`` before every write; that there is none is remembered so long."""

CACHE_KEEP_S: Final = 0.08
"""How often the cache lease is extended: twice, at least, within the lease a replica gives (up to 220 ms)."""
CACHE_ASK_S: Final = 0.02
"""A lapsed lease is asked for at most this often by operations that find it so (no view may be active)."""
CACHE_IDLE_S: Final = 1.0
"""A mount that has not used its cache for so long lets the lease run out; what it keeps is good again after the next
extension, unless the replica says otherwise."""

# --- directory delegations (client.delegations) -------------------------------------------------------

BURST_CREATES: Final = 3
"""So many files made one after the other in a directory, each within..."""
BURST_S: Final = 1.0
"""...of the first: the directory is asked for. Who makes one or two files would only have to give it back."""
BURSTS_MAX: Final = 1024
"""Directories of which that is remembered, and of which it is that they were refused."""
REFUSED_FIRST_S: Final = 1.0
REFUSED_MAX_S: Final = 60.0
"""A directory that was refused, or called back, is not asked for during so long; twice as long each time that it
happens again soon after. Several mounts that work in one directory are better off without."""
DELEGATED_MAX: Final = 56
"""Directories delegated to this mount at once, some less than the service gives a session; before another one is asked
for, those used longest ago are given back..."""
DELEGATED_TOGETHER: Final = 8
"""...so many in one request."""
ASKING_MAX: Final = 4
"""Directories asked for at once."""
DELEGATED_IDLE_S: Final = 2.0
"""A directory in which no file was made for so long is given back: whoever wants to look need not ask for it."""
DELEGATED_LOOK_S: Final = 0.5
LIST_PAGES: Final = 16
"""A directory of up to so many pages of READDIR_BATCH names is listed when it is delegated: else each new name has to
be asked for, which waits for the births before it..."""
LIST_PAUSE_S: Final = 1.0
"""...and again, where that has become void, at most this often."""
NUMBER_BLOCKS: Final = 4
"""Blocks of inode numbers that are used from. The service remembers the last 16 of a session."""
NUMBER_BLOCKS_USED: Final = 12
"""No more are asked for while a file with a number of so many blocks ago is yet to be ordered."""
NUMBERS_LOW: Final = 224
"""With fewer numbers left more are asked for: most of a block, since 96 were used up (3,000 files/s) before more came
whenever an answer took 30 ms, and then creates had to wait."""
UNBORN_MAX: Final = 128
"""Files made here that are not ordered yet. Who makes more waits for half of them."""
SLOTS_ASIDE: Final = 16
"""Slots that are kept for births and for what is about delegations. All others may wait for somebody else's delegation,
and he for one of ours, which is given back when what was made there is born."""
LAPSE_S: Final = 1.5
"""A mount whose cache lease had ended so long before it was attached anew may have had delegations taken away, which
takes the service twice as long (mds.limits): it takes none for its own any more."""
BIRTHS_UNDER_WAY: Final = 48
"""Of those, sent and not answered: fewer than a session has slots, so that others need not queue behind them."""
BIRTHS_TOGETHER: Final = 16
"""While some are under way those that are ready are collected up to so many, and sent together."""
BIRTH_AGE_S: Final = 0.01
"""After so long a file is ordered even if it is open and nobody waits for it. This, and what ordering takes, is what
the crash of a client may lose."""

assert NUMBER_BLOCKS < NUMBER_BLOCKS_USED <= 16 - ASKING_MAX
assert DELEGATED_MAX + ASKING_MAX < 64
assert BIRTHS_TOGETHER < BIRTHS_UNDER_WAY < min(SLOTS, UNBORN_MAX)
