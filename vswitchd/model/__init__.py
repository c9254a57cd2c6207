"""The nouns: pure values that every other room speaks in. Sizes and offsets are bytes."""
