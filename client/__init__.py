"""The client: sessions with the metadata service, failover, striped I/O, the FUSE mount and a Python API.

:mod:`client.session`, :mod:`client.striping`, :mod:`client.gather`, :mod:`client.attributes`, :mod:`client.options`
and :mod:`client.limits` are pure; the other modules are shells.
"""
