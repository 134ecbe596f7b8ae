"""``python -m admin`` is the `lockstep` command; this is how it starts its own daemons."""

from admin.cli import main

if __name__ == "__main__":
    main()
