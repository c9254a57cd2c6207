"""The storage processor's shell: the VSM, its durable state, the adapter to the engine."""
