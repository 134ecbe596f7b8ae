"""Rare interleavings told as dialogues: what is done, and what the production machines did (``*.txt``).

``python -m tests.scenarios`` from the repository root writes the answers anew; the test compares them.
"""
