"""`python -m vswitchd.cli` is `vswitchctl`."""

from vswitchd.cli.app import main

if __name__ == "__main__":
    raise SystemExit(main())
