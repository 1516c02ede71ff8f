"""`python -m lossdoctor` is the command line."""

from __future__ import annotations

from lossdoctor.cli import main

if __name__ == "__main__":
    main(prog_name="lossdoctor")
