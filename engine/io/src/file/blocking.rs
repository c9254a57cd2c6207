//! A file or block device for labels and the control path, where waiting is right.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::{FileDevice, write_dsync};
use crate::device::BlockingDevice;
use crate::error::{DeviceError, ErrorKind};

const BLKFLSBUF: libc::c_ulong = 0x1261;
/// Longest wait for another process that updates a label.
const LOCK_WAIT: Duration = Duration::from_secs(10);

impl BlockingDevice for FileDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        self.read(offset, buffer)
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.write(offset, data)
    }

    fn write_durably(&mut self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        write_dsync(&self.file, offset, data).map_err(|e| DeviceError::os("write", &self.name, &e))
    }

    fn sync(&mut self) -> Result<(), DeviceError> {
        self.sync_data()
    }

    fn zero(&mut self, offset: u64, length: u64) -> Result<(), DeviceError> {
        FileDevice::zero(self, offset, length, true)
    }

    fn forget_cache(&mut self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let fd = self.file.as_raw_fd();
        if self.block {
            // SAFETY: BLKFLSBUF takes no argument.
            unsafe { libc::ioctl(fd, BLKFLSBUF, 0) };
        }
        // SAFETY: posix_fadvise touches no memory of ours. Advice may be ignored, which on one
        // machine is harmless, since all processes share the page cache.
        unsafe {
            libc::posix_fadvise(fd, offset as i64, length as i64, libc::POSIX_FADV_DONTNEED);
        }
        Ok(())
    }

    fn lock(&mut self) -> Result<(), DeviceError> {
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            // SAFETY: flock on an open descriptor touches no memory.
            if unsafe { libc::flock(self.file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EWOULDBLOCK) {
                return Err(DeviceError::os("lock", &self.name, &error));
            }
            if Instant::now() > deadline {
                let text = format!("{}: another process holds its lock", self.name);
                return Err(DeviceError::new(ErrorKind::Timeout, text));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn unlock(&mut self) {
        // SAFETY: flock on an open descriptor touches no memory.
        unsafe { libc::flock(self.file.as_raw_fd(), libc::LOCK_UN) };
    }
}
