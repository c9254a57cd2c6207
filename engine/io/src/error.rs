//! What goes wrong with a device, in words that name it.

use std::fmt;
use std::io;

/// What an error means to whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    Io,
    NoSpace,
    ReadOnly,
    NotFound,
    /// The request makes no sense for this device or object.
    Invalid,
    /// The thing exists already, as something else.
    Exists,
    /// It is there, and made another way than was asked for.
    Unlike,
    /// A later state is already recorded.
    Stale,
    /// Refused for the data's safety: foreign data, another cluster's device.
    Unsafe,
    Timeout,
}

/// An error of a device, label or T1 object.
#[derive(Clone, Debug)]
pub struct DeviceError {
    pub kind: ErrorKind,
    pub message: String,
}

impl DeviceError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> DeviceError {
        DeviceError { kind, message: message.into() }
    }

    /// From an error of the operating system, while doing `what` on `device`.
    #[must_use]
    pub fn os(what: &str, device: &str, error: &io::Error) -> DeviceError {
        let kind = match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => ErrorKind::NoSpace,
            Some(libc::EROFS | libc::EACCES | libc::EPERM) => ErrorKind::ReadOnly,
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => ErrorKind::NotFound,
            Some(libc::EINVAL) => ErrorKind::Invalid,
            Some(libc::ETIMEDOUT) => ErrorKind::Timeout,
            _ => ErrorKind::Io,
        };
        DeviceError::new(kind, format!("{device}: {what}: {error}"))
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DeviceError {}
