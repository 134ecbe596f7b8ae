"""The namespace: inodes, directories, permissions; queries; one module per operation in :mod:`mds.namespace.ops`."""
