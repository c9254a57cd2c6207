"""A host's side, with a kernel of the tests' own."""
