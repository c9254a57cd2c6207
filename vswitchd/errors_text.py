"""What error codes mean, for `vswitchctl explain`."""

EXPLAIN: dict[str, tuple[str, str]] = {}
