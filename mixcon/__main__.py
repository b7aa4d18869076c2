"""`python -m mixcon` is the `mixcon` command."""

from mixcon.cli import main

if __name__ == "__main__":
    main()
