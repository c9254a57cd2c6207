//! Hosts' data on a file or block device, held against its checksums where it has some.

use std::sync::Arc;

use super::{FileDevice, Put, Stored, TryRead, write_dsync};
use crate::checksums::{Checksums, Medium};
use crate::error::DeviceError;

/// A device's hold on its checksums: whoever closes their pages ends when it is gone.
#[derive(Debug)]
pub struct Keeper(Arc<Checksums>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.retire();
    }
}

impl Medium for FileDevice {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.read_unchecked(offset, buffer)
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, DeviceError> {
        Ok(self.try_read_unchecked(offset, buffer)? == TryRead::Done)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.write_unchecked(offset, data)
    }

    fn write_durably(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        write_dsync(&self.file, offset, data).map_err(|e| DeviceError::os("write", &self.name, &e))
    }
}

impl FileDevice {
    /// Holds the hosts' data against checksums from now on, those of the device of that id and
    /// labelled size. Nothing of it stays resident: what is lent from there could not be checked.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn keep_checksums(&mut self, id: &str, size: u64) -> Result<(), DeviceError> {
        // Through the page cache, as labels, also where the data goes past it.
        let pages = Box::new(self.reopen()?);
        let checksums = Checksums::new(&self.name, id, size, pages);
        self.checksums = Some(Keeper(Arc::new(checksums)));
        self.resident = None;
        Ok(())
    }

    /// Its checksums, if it has some.
    #[must_use]
    pub fn checksums(&self) -> Option<&Arc<Checksums>> {
        self.checksums.as_ref().map(|keeper| &keeper.0)
    }

    /// Reads what the page cache has, without waiting for the device. What has checksums and does
    /// not match them has to be read on the pool, which makes sure of it.
    ///
    /// # Errors
    /// Whatever the device says.
    pub fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<TryRead, DeviceError> {
        let Some(checksums) = self.checksums() else {
            return self.try_read_unchecked(offset, buffer);
        };
        let done = checksums.try_read(self, offset, buffer)?;
        Ok(if done { TryRead::Done } else { TryRead::WouldBlock })
    }

    /// Reads, waiting for the device.
    ///
    /// # Errors
    /// Whatever the device says; `Io` where a checksum does not match.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        match self.checksums() {
            Some(checksums) => checksums.read(self, offset, buffer),
            None => self.read_unchecked(offset, buffer),
        }
    }

    /// Writes all of it, into the page cache unless it is direct.
    ///
    /// # Errors
    /// Whatever the device says; `Io` where what is left of a block does not match its checksum.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        match self.checksums() {
            Some(checksums) => checksums.write(self, offset, data, true).map(drop),
            None => self.write_unchecked(offset, data),
        }
    }

    /// Writes all of it to a device that is not slow, if nothing else has to be waited for: with
    /// checksums that the region is opened, or a part of a block read. A `commit` that follows is
    /// quicker without stores to resident pages.
    ///
    /// # Errors
    /// Whatever the device says.
    pub fn put(&self, offset: u64, data: &[u8], commit: bool) -> Result<Put, DeviceError> {
        if let Some(checksums) = self.checksums() {
            let done = checksums.write(self, offset, data, false)?;
            return Ok(if done { Put::Done } else { Put::WouldBlock });
        }
        let stored = if commit { Stored::No } else { self.store(offset, data) };
        if stored != Stored::Done {
            self.write_unchecked(offset, data)?;
        }
        Ok(if stored == Stored::Wanted { Put::Wanted } else { Put::Done })
    }

    /// True while writes to the range have to wait: the device is slow, or the checksums' page has
    /// to be opened first.
    #[must_use]
    pub fn holds_up(&self, offset: u64, length: u64) -> bool {
        self.is_slow() || self.checksums().is_some_and(|sums| !sums.is_open(offset, length))
    }

    /// Makes the range read as zeroes; leaves a hole where `punch` allows and the kernel can.
    ///
    /// # Errors
    /// Whatever the device says; `Io` where what is left of a block does not match its checksum.
    pub fn zero(&self, offset: u64, length: u64, punch: bool) -> Result<(), DeviceError> {
        if length == 0 {
            return Ok(());
        }
        let Some(checksums) = self.checksums() else {
            return self.zero_unchecked(offset, length, punch);
        };
        let make = |offset, length| self.zero_unchecked(offset, length, punch);
        checksums.zero(self, offset, length, make)
    }
}
