"""vswitchctl: a client of the public API and nothing else."""
