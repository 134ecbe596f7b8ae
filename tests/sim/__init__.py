"""A simulated cluster: the production cores on a simulated clock, network and disks, driven by one seed.

``python -m tests.sim --seeds 100`` from the repository root; a failing seed prints itself and reproduces the run.
"""
