//! Bugs that are planted to see whether the tests find them. Without the feature `planted`, which
//! nothing that is shipped has, the compiler takes every one of them out.

/// True if this is the bug that `VSWITCHD_PLANTED` names.
#[cfg(feature = "planted")]
#[must_use]
pub fn planted(bug: &str) -> bool {
    static NAMED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    NAMED.get_or_init(|| std::env::var("VSWITCHD_PLANTED").ok()).as_deref() == Some(bug)
}

/// False.
#[cfg(not(feature = "planted"))]
#[must_use]
#[inline(always)]
pub const fn planted(_: &str) -> bool {
    false
}
