"""vswitchd: block volumes in user space, restructured while hosts use them."""

__version__ = "0.1.0"
