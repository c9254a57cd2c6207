//! See docs/engine.md.
