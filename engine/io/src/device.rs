//! A device: how it is named, opened and reached.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vs_wire::nbd::uri::NbdUri;

use crate::commit::Committer;
use crate::error::{DeviceError, ErrorKind};
use crate::file::FileDevice;
use crate::nbd::NbdBlocking;
use crate::resident::Residency;

/// Bytes kept for the label at the start of a device.
pub const LABEL_AREA: u64 = 4 << 20;
/// Extents are multiples of this.
pub const UNIT: u64 = 1 << 20;

/// Blocking access, for labels and for zeroing on the control path.
pub trait BlockingDevice: Send {
    fn name(&self) -> &str;
    fn size(&self) -> u64;
    /// # Errors
    /// Whatever the device says; a short read is an error.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError>;
    /// # Errors
    /// Whatever the device says; a short write is an error.
    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), DeviceError>;
    /// Writes these bytes durably, without waiting for others that were written before.
    /// # Errors
    /// Whatever the device says; a short write is an error.
    fn write_durably(&mut self, offset: u64, data: &[u8]) -> Result<(), DeviceError>;
    /// Makes all that was written durable.
    /// # Errors
    /// Whatever the device says.
    fn sync(&mut self) -> Result<(), DeviceError>;
    /// Afterwards the range reads as zeroes.
    /// # Errors
    /// Whatever the device says.
    fn zero(&mut self, offset: u64, length: u64) -> Result<(), DeviceError>;
    /// Drops cached pages of the range, which another host may have changed.
    /// # Errors
    /// Whatever the device says.
    fn forget_cache(&mut self, offset: u64, length: u64) -> Result<(), DeviceError>;
    /// Excludes other processes of this machine until `unlock`, where the device can.
    /// # Errors
    /// `Timeout` when another holds it for too long.
    fn lock(&mut self) -> Result<(), DeviceError>;
    fn unlock(&mut self);
}

/// How a device is reached on the I/O path.
#[derive(Debug)]
pub enum Kind {
    File(FileDevice),
    Nbd(NbdUri),
}

/// An open device that carries this cluster's label.
#[derive(Debug)]
pub struct Device {
    pub id: String,
    pub uri: String,
    pub size: u64,
    pub kind: Kind,
    /// Group commit of a file device.
    pub committer: Committer,
    /// Counts up over all devices of the process, so that loops can keep counters in an array.
    pub slot: usize,
}

impl Device {
    /// Blocking access through a handle of its own.
    ///
    /// # Errors
    /// When the device can't be reached.
    pub fn blocking(&self) -> Result<Box<dyn BlockingDevice>, DeviceError> {
        match &self.kind {
            Kind::File(file) => Ok(Box::new(file.reopen()?)),
            Kind::Nbd(uri) => Ok(Box::new(NbdBlocking::connect(&self.uri, uri)?)),
        }
    }
}

/// Opens what a URI names, creating a file sparse to `create_size` if it does not exist
/// and `create_size` is not 0.
///
/// # Errors
/// `Invalid` for a URI or size that can't be, and for a path outside `roots`.
pub fn open(
    uri: &str,
    create_size: u64,
    roots: &[PathBuf],
    residency: Option<&Arc<Residency>>,
) -> Result<(Kind, Box<dyn BlockingDevice>), DeviceError> {
    if uri.starts_with("nbd:") || uri.starts_with("nbd+unix:") {
        let parsed = NbdUri::parse(uri)
            .map_err(|e| DeviceError::new(ErrorKind::Invalid, format!("{uri}: {e}")))?;
        let blocking = NbdBlocking::connect(uri, &parsed)?;
        return Ok((Kind::Nbd(parsed), Box::new(blocking)));
    }
    let (path, block) = match (uri.strip_prefix("file:"), uri.strip_prefix("block:")) {
        (Some(path), _) => (path, false),
        (_, Some(path)) => (path, true),
        _ => {
            let text = format!(
                "{uri}: a device is file:/path, block:/dev/x, nbd://host:port/export or \
                 nbd+unix:///export?socket=/path"
            );
            return Err(DeviceError::new(ErrorKind::Invalid, text));
        }
    };
    let path = checked_path(path, roots)?;
    let mut file = FileDevice::open(uri, &path, block, create_size)?;
    let blocking = file.reopen()?;
    if let Some(residency) = residency {
        file.keep_resident(residency);
    }
    Ok((Kind::File(file), Box::new(blocking)))
}

fn checked_path(path: &str, roots: &[PathBuf]) -> Result<PathBuf, DeviceError> {
    let invalid = |text: String| DeviceError::new(ErrorKind::Invalid, text);
    let path = Path::new(path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(invalid(format!("{}: not a device's path", path.display())));
    };
    if !path.is_absolute() {
        return Err(invalid(format!("{}: the path must be absolute", path.display())));
    }
    let resolved = match path.canonicalize() {
        Ok(resolved) => resolved,
        Err(_) => parent
            .canonicalize()
            .map_err(|e| DeviceError::os("open", &path.display().to_string(), &e))?
            .join(name),
    };
    let allowed = roots.is_empty() || roots.iter().any(|root| resolved.starts_with(root));
    if !allowed {
        let text = format!(
            "{}: outside the allowed device roots; add its directory to `device_roots`",
            resolved.display()
        );
        return Err(DeviceError::new(ErrorKind::Invalid, text));
    }
    Ok(resolved)
}

/// A device shared by the loops and the control path.
pub type Shared = Arc<Device>;
