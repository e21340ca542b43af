"""`python -m tasks`: the command line."""

import gc

# What imports make is no garbage, and looking for it takes a tenth of their time.
gc.disable()

from tasks.cli import main  # noqa: E402

gc.enable()

if __name__ == "__main__":
    main()
