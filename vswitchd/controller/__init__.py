"""The controller's shell: collects, plans with the pure rooms, carries plans out, reconciles."""
