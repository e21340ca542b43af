"""`python -m tasks`: the command line."""

from tasks.cli import main

if __name__ == "__main__":
    main()
