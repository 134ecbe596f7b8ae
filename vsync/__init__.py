"""Group communication: total order, views, virtual synchrony.

Every module here is pure: events and the present time go into :class:`vsync.machine.Machine`, effects come
out.  Sockets, the log on disk and timers belong to the shells (mds, ossd).
"""
