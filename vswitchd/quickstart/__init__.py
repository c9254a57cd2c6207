"""`vswitchd quickstart`: a controller and three SPs on loopback, with a volume to try."""

from vswitchd.quickstart.app import main

__all__ = ["main"]
