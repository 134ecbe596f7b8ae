"""What two LockstepFS processes must agree on: ids, messages, codec, framing, errors.

The room's only shell is :mod:`wire.peer`; every other module here is pure.
"""
