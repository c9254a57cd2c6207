"""The benchmark: our volumes beside nbdkit, qemu-nbd and nbd-server, in one run."""
