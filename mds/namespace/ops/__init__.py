"""Pure. One module per operation: its rules of POSIX, and ``apply(scope, op)``.

``apply`` changes the state through the scope and returns the result, or raises
:class:`wire.errors.FileSystemError`: the machine then undoes whatever it had changed.
"""
