"""A deterministic simulation: the real controller and VSMs over a simulated clock, network, stores
and disks, with hosts that know what every block may hold. See docs/simulation.md."""
