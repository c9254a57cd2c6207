//! Devices and what lies on them: files, block devices and NBD servers, their labels, the
//! T1 objects that the labels hold, and the pools on which blocking work is done.

pub mod alloc;
pub mod checksums;
pub mod closing;
pub mod commit;
pub mod device;
pub mod direct;
pub mod error;
pub mod file;
mod gate;
pub mod guard;
mod kept;
pub mod label;
pub mod nbd;
pub mod planted;
pub mod pool;
pub mod regions;
pub mod resident;
pub mod spans;
pub mod survey;
pub mod t1;

pub use checksums::Checksums;
pub use commit::Committer;
pub use device::{BlockingDevice, Device, Kind};
pub use error::{DeviceError, ErrorKind};
pub use file::{FileDevice, Put, Stored, TryRead};
pub use label::{Entry, ExtentSpec, Kept, Label, T1Spec};
pub use planted::planted;
pub use pool::{Full, Pool};
pub use regions::Regions;
pub use resident::{Look, Residency};
pub use survey::Survey;
pub use t1::{T1Object, T1Table};
