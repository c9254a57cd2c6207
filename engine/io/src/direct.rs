//! A device's data past the page cache (O_DIRECT): for devices that are faster than copying, and
//! for hosts' data that should not push everything else out of memory.
//!
//! The kernel takes whole blocks at block offsets, from aligned memory; hosts send any bytes. So
//! everything goes through an aligned buffer, and the blocks at the ends of an unaligned write
//! are read, changed and written back.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::ptr::NonNull;
use std::sync::{PoisonError, RwLock};

use crate::error::{DeviceError, ErrorKind};

/// Block and memory alignment where the kernel does not tell; no disk asks for more.
const ALIGNMENT: u32 = 4096;
/// Most bytes in one read or write, and so in one buffer.
const CHUNK: u64 = 1 << 20;
/// The page cache's grain: zeroes that the filesystem makes are made in whole ones of these, so
/// that it never takes part of a block into the cache.
const PAGE: u64 = 4096;

/// Memory that the kernel can read a device into.
struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
}

impl Buffer {
    fn new(length: u64, alignment: usize) -> io::Result<Buffer> {
        let size = usize::try_from(length).map_err(io::Error::other)?.max(1);
        let layout = Layout::from_size_align(size, alignment).map_err(io::Error::other)?;
        // SAFETY: the layout's size is not 0.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Ok(Buffer { start, layout })
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` has so many initialised bytes, and is ours.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// A file or block device opened past the page cache.
#[derive(Debug)]
pub struct Direct {
    file: File,
    /// Offsets and lengths are multiples of this, and addresses of `memory`.
    block: u64,
    memory: usize,
    /// Shared by whoever writes whole blocks, exclusive for reading, changing and writing one:
    /// between its read and its write nobody else's bytes may come into that block.
    blocks: RwLock<()>,
}

impl Direct {
    /// Opens the same file past the page cache. `name` is for errors.
    ///
    /// # Errors
    /// `Invalid` where the filesystem can't.
    pub fn open(name: &str, file: &File) -> Result<Direct, DeviceError> {
        let refused = || {
            let text = format!(
                "{name}: its filesystem can't go past the page cache (O_DIRECT); add the device \
                 without --direct, or put it on one that can (ext4, XFS, a block device)"
            );
            DeviceError::new(ErrorKind::Invalid, text)
        };
        let (block, memory) = match alignments(file) {
            Ok(Some((0, _))) => return Err(refused()),
            Ok(Some((block, memory))) => (block, memory),
            // An older kernel, or a filesystem that does not say.
            Ok(None) | Err(_) => (ALIGNMENT, ALIGNMENT),
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_CLOEXEC | libc::O_DIRECT);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let file = options.open(path).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL | libc::EOPNOTSUPP) => refused(),
            _ => DeviceError::os("open past the page cache", name, &error),
        })?;
        if !block.is_power_of_two() || !memory.is_power_of_two() || u64::from(block) > CHUNK {
            let text = format!("{name}: asks for blocks of {block} bytes; add it without --direct");
            return Err(DeviceError::new(ErrorKind::Invalid, text));
        }
        let memory = memory.max(block) as usize;
        Ok(Direct { file, block: u64::from(block), memory, blocks: RwLock::default() })
    }

    fn floor(&self, at: u64) -> u64 {
        at & !(self.block - 1)
    }

    fn ceil(&self, at: u64) -> u64 {
        self.floor(at + self.block - 1)
    }

    /// Reads any range that lies in whole blocks of the device.
    ///
    /// # Errors
    /// Whatever the device says.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset + into.len() as u64;
        let mut at = self.floor(offset);
        let mut buffer = Buffer::new((self.ceil(end) - at).min(CHUNK), self.memory)?;
        let mut into = into;
        let mut skip = (offset - at) as usize;
        while !into.is_empty() {
            let take = (self.ceil(end) - at).min(CHUNK) as usize;
            self.file.read_exact_at(&mut buffer[..take], at)?;
            let count = (take - skip).min(into.len());
            let (now, rest) = into.split_at_mut(count);
            now.copy_from_slice(&buffer[skip..skip + count]);
            into = rest;
            skip = 0;
            at += take as u64;
        }
        Ok(())
    }

    /// Writes any range that lies in whole blocks of the device. As with any write to a disk, a
    /// crash may leave some of its blocks written and others not.
    ///
    /// # Errors
    /// Whatever the device says; some of it may have been written.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let end = offset + data.len() as u64;
        let (first, last) = (self.ceil(offset), self.floor(end));
        if first > last {
            return self.change_block(offset, data);
        }
        let (head, rest) = data.split_at((first - offset) as usize);
        let (whole, tail) = rest.split_at((last - first) as usize);
        if !head.is_empty() {
            self.change_block(offset, head)?;
        }
        let mut at = first;
        let mut buffer = Buffer::new((last - first).min(CHUNK), self.memory)?;
        for part in whole.chunks(CHUNK as usize) {
            buffer[..part.len()].copy_from_slice(part);
            let _shared = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
            self.file.write_all_at(&buffer[..part.len()], at)?;
            at += part.len() as u64;
        }
        if !tail.is_empty() {
            self.change_block(last, tail)?;
        }
        Ok(())
    }

    /// Writes a part of one block.
    fn change_block(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = self.floor(offset);
        let within = (offset - start) as usize;
        let mut buffer = Buffer::new(self.block, self.memory)?;
        let _alone = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        self.file.read_exact_at(&mut buffer, start)?;
        buffer[within..within + data.len()].copy_from_slice(data);
        self.file.write_all_at(&buffer, start)
    }

    /// Zeroes a range: whole pages of it by `make`, which the filesystem or the disk does, the
    /// ends by writing them.
    ///
    /// # Errors
    /// Whatever the device or `make` says.
    pub fn zero(
        &self,
        offset: u64,
        length: u64,
        make: impl FnOnce(u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let grain = self.block.max(PAGE);
        let (end, first) = (offset + length, offset.next_multiple_of(grain));
        let last = end / grain * grain;
        if first >= last {
            return self.write(offset, &vec![0; length as usize]);
        }
        {
            let _shared = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
            make(first, last - first)?;
        }
        self.write(offset, &vec![0; (first - offset) as usize])?;
        self.write(last, &vec![0; (end - last) as usize])
    }
}

/// (block, memory) alignment as the kernel says; the block is 0 where it can't.
fn alignments(file: &File) -> io::Result<Option<(u32, u32)>> {
    // SAFETY: an all-zero statx is valid, the path is an empty string, and the call writes one
    // statx.
    let found = unsafe {
        let mut found: libc::statx = std::mem::zeroed();
        let fd = file.as_raw_fd();
        let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
        if libc::statx(fd, path, flags, libc::STATX_DIOALIGN, &raw mut found) != 0 {
            return Err(io::Error::last_os_error());
        }
        found
    };
    let told = found.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(told.then_some((found.stx_dio_offset_align, found.stx_dio_mem_align)))
}
