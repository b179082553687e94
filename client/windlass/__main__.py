"""`python -m windlass`: the command line, for where no script was installed."""

from windlass.cli import main

if __name__ == "__main__":
    main()
