//! A device: how it is named, opened and reached.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use vs_wire::nbd::uri::NbdUri;

use crate::checksums::Checksums;
use crate::commit::Committer;
use crate::error::{DeviceError, ErrorKind};
use crate::file::FileDevice;
use crate::label::{self, Known, Label};
use crate::nbd::NbdBlocking;
use crate::pool::Pool;
use crate::regions::Regions;
use crate::resident::Residency;
use crate::survey::Survey;

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
    pub cluster: String,
    pub uri: String,
    pub size: u64,
    pub kind: Kind,
    /// Where what would block a loop is done, of a file device.
    pub pool: Pool,
    /// Group commit of a file device, on a thread of its own.
    pub committer: Committer,
    /// Its label as it was last seen. Held by whoever reads or changes that: not every device can
    /// be locked by its own means, an NBD server can't.
    pub known: Mutex<Option<Known>>,
    /// Its label, for views.
    pub survey: Survey,
    /// This SP's write-intent map of it.
    pub regions: Regions,
    /// FUA writes that are under way.
    pub through: AtomicU64,
    /// Counts up over all devices of the process, so that loops can keep counters in an array.
    pub slot: usize,
}

impl Device {
    /// A device of that label, with at most `threads` threads for what would block a loop.
    #[must_use]
    pub fn new(
        uri: &str,
        label: &Label,
        kind: Kind,
        regions: Regions,
        threads: usize,
        slot: usize,
    ) -> Device {
        Device {
            id: label.device.clone(),
            cluster: label.cluster.clone(),
            uri: uri.to_owned(),
            size: label.size,
            kind,
            pool: Pool::new("vs-device", threads),
            committer: Committer::default(),
            known: Mutex::default(),
            survey: Survey::new(label),
            regions,
            through: AtomicU64::new(0),
            slot,
        }
    }

    /// True if hosts' data goes past this machine's page cache by the administrator's wish.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        matches!(&self.kind, Kind::File(file) if file.is_direct())
    }

    /// The checksums of its data, if it has some.
    #[must_use]
    pub fn checksums(&self) -> Option<&Arc<Checksums>> {
        match &self.kind {
            Kind::File(file) => file.checksums(),
            Kind::Nbd(_) => None,
        }
    }

    /// What its label says now.
    ///
    /// # Errors
    /// When it can't be read, or is another device's.
    pub fn label(&self) -> Result<Arc<Label>, DeviceError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        label::current(&mut *self.blocking()?, &self.cluster, &self.id, &mut known)
    }

    /// Changes its label.
    ///
    /// # Errors
    /// `change`'s, and those of `label`.
    pub fn change_label<R>(
        &self,
        change: impl FnOnce(&mut Label) -> Result<R, DeviceError>,
    ) -> Result<R, DeviceError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        label::update(&mut *self.blocking()?, &self.cluster, &self.id, &mut known, change)
    }

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

/// How a device is to be opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// A file that does not exist is made sparse to so many bytes; 0: it must exist.
    pub create_size: u64,
    /// Hosts' data goes past the page cache.
    pub direct: bool,
    /// It is to have checksums: refused where that can't be. Whether it has says its label.
    pub checksums: bool,
    /// Where files and block devices may lie; empty: anywhere.
    pub roots: &'a [PathBuf],
    /// The budget for what stays mapped of it.
    pub residency: Option<&'a Arc<Residency>>,
}

/// Opens what a URI names.
///
/// # Errors
/// `Invalid` for a URI or size that can't be, for a path outside the roots, and for `direct` and
/// `checksums` where that can't be.
pub fn open(
    uri: &str,
    options: &Options<'_>,
) -> Result<(Kind, Box<dyn BlockingDevice>), DeviceError> {
    if uri.starts_with("nbd:") || uri.starts_with("nbd+unix:") {
        let parsed = NbdUri::parse(uri)
            .map_err(|e| DeviceError::new(ErrorKind::Invalid, format!("{uri}: {e}")))?;
        if options.direct {
            let text = format!(
                "{uri}: an NBD device has no page cache here to go past; add it without --direct,                  and have its server go past its own"
            );
            return Err(DeviceError::new(ErrorKind::Invalid, text));
        }
        if options.checksums {
            return Err(no_checksums(uri));
        }
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
    let path = checked_path(path, options.roots)?;
    let mut file = FileDevice::open(uri, &path, block, options.create_size)?;
    let blocking = file.reopen()?;
    if options.direct {
        file.go_direct()?;
    }
    if let Some(residency) = options.residency {
        file.keep_resident(residency);
    }
    Ok((Kind::File(file), Box::new(blocking)))
}

impl Kind {
    /// Does with checksums what the device's label says about them.
    ///
    /// # Errors
    /// `Invalid` for an NBD device, and when the process is out of descriptors.
    pub fn keep_checksums(&mut self, uri: &str, label: &Label) -> Result<(), DeviceError> {
        match self {
            _ if !label.checksums => Ok(()),
            Kind::File(file) => file.keep_checksums(&label.device, label.size),
            Kind::Nbd(_) => Err(no_checksums(uri)),
        }
    }
}

fn no_checksums(uri: &str) -> DeviceError {
    let text = format!(
        "{uri}: checksums are kept of files and block devices, not over NBD; add it without \
         --checksums, or add at the machine of its server what that exports"
    );
    DeviceError::new(ErrorKind::Invalid, text)
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
