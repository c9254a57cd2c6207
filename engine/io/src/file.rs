//! Files and block devices, through the page cache or past it.

mod blocking;
mod checked;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::device::{LABEL_AREA, UNIT};
use crate::direct::Direct;
use crate::error::{DeviceError, ErrorKind};
use crate::planted::planted;
use crate::resident::{Look, Residency, Resident};

const BLKZEROOUT: libc::c_ulong = 0x127f;
/// Zeroes are written in pieces of this where the kernel can't make them.
const ZERO_CHUNK: u64 = 1 << 20;
/// Writes of up to this are stored into resident pages whether these are dirty or not.
const SMALL: usize = 64 << 10;
/// Milliseconds after an fdatasync during which another one is likely.
const SYNCED_OFTEN: u64 = 100;
/// Commits of one device that may run at a time: while one waits for the disk, the next has begun.
pub const LANES: usize = 3;
/// Milliseconds of a write that has waited for something, and for how long others are then
/// expected to.
const SLOW: u64 = 20;
const SLOW_FOR: u64 = 1000;

/// What came of a read that must not block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryRead {
    Done,
    /// Not all of it is in the page cache: read it on the pool.
    WouldBlock,
}

/// What came of a write that must not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Done,
    /// It is done, and `FileDevice::admit` should be called.
    Wanted,
    /// Nothing was done: write on the pool.
    WouldBlock,
}

/// What came of a store into resident memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    Done,
    /// Nothing was done.
    No,
    /// Nothing was done, and `FileDevice::admit` should be called.
    Wanted,
}

/// A regular file or block device.
#[derive(Debug)]
pub struct FileDevice {
    name: String,
    file: File,
    /// The same file opened once more for each fdatasync that may run at a time. The kernel
    /// tells each open file once of an error: two that share one could have the error of both
    /// told to one of them. Opened with the device, since a later one may miss what came before.
    lanes: Mutex<Vec<File>>,
    /// The same for `write_through`; as many as have run at a time.
    through: Mutex<Vec<File>>,
    size: u64,
    block: bool,
    /// Set where the hosts' data goes past the page cache. Labels never do.
    direct: Option<Direct>,
    /// Somebody else's process or machine answers for the filesystem.
    foreign: bool,
    resident: Option<Arc<Resident>>,
    /// Set where every block of hosts' data has a checksum.
    checksums: Option<checked::Keeper>,
    /// When it was last made durable, by `millis`.
    synced: AtomicU64,
    slow_until: AtomicU64,
}

/// Milliseconds by a clock that costs nothing to read and steps every few of them; never 0.
fn millis() -> u64 {
    // SAFETY: an all-zero timespec is valid, and the call writes one.
    let now = unsafe {
        let mut now: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now);
        now
    };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000 + 1
}

impl FileDevice {
    /// Opens `path` for reading and writing.
    ///
    /// # Errors
    /// `Invalid` if it is not what the URI says, has another size, or is too small.
    pub fn open(
        name: &str,
        path: &Path,
        block: bool,
        create_size: u64,
    ) -> Result<FileDevice, DeviceError> {
        let os = |what: &str, e: &io::Error| DeviceError::os(what, name, e);
        let invalid =
            |text: String| DeviceError::new(ErrorKind::Invalid, format!("{name}: {text}"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_CLOEXEC);
        let file = match options.open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound && create_size > 0 && !block => {
                if create_size < LABEL_AREA + UNIT {
                    return Err(invalid(format!(
                        "size {create_size} is too small; 5 MiB at least"
                    )));
                }
                let file = options.create_new(true).open(path).map_err(|e| os("create", &e))?;
                file.set_len(create_size).map_err(|e| os("set the size", &e))?;
                file
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound && !block => {
                return Err(DeviceError::new(
                    ErrorKind::NotFound,
                    format!("{name}: no such file; give a size to have it made"),
                ));
            }
            Err(e) => return Err(os("open", &e)),
        };
        let kind = file.metadata().map_err(|e| os("stat", &e))?;
        let size = if kind.file_type().is_block_device() {
            // SAFETY: lseek on an open descriptor touches no memory.
            let end = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_END) };
            u64::try_from(end).map_err(|_| os("find the size", &io::Error::last_os_error()))?
        } else {
            kind.len()
        };
        if block != kind.file_type().is_block_device() {
            return Err(invalid("file: is for regular files, block: for block devices".into()));
        }
        if !block && create_size > 0 && create_size != size {
            return Err(invalid(format!("exists already with {size} bytes; leave the size away")));
        }
        if size < LABEL_AREA + UNIT {
            return Err(invalid(format!("{size} bytes are too small; 5 MiB at least")));
        }
        let device = FileDevice::of(name.to_owned(), file, size, block);
        for _ in 0..LANES {
            let lane = device.reopen()?.file;
            device.lanes().push(lane);
        }
        Ok(device)
    }

    /// The same file opened once more. Not a duplicate: a write-back error is reported once
    /// to each open file, so a label's sync must not take it away from a host's flush; and
    /// locks are held by an open file.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn reopen(&self) -> Result<FileDevice, DeviceError> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_CLOEXEC);
        let file = options.open(path).map_err(|e| DeviceError::os("open", &self.name, &e))?;
        Ok(FileDevice::of(self.name.clone(), file, self.size, self.block))
    }

    fn of(name: String, file: File, size: u64, block: bool) -> FileDevice {
        let (synced, slow_until) = (AtomicU64::default(), AtomicU64::default());
        let foreign = is_foreign(&file);
        let (lanes, through) = (Mutex::default(), Mutex::default());
        let (direct, resident, checksums) = (None, None, None);
        FileDevice {
            name,
            file,
            lanes,
            through,
            size,
            block,
            direct,
            foreign,
            resident,
            checksums,
            synced,
            slow_until,
        }
    }

    /// Has the hosts' data go past the page cache from now on.
    ///
    /// # Errors
    /// `Invalid` where the filesystem can't.
    pub fn go_direct(&mut self) -> Result<(), DeviceError> {
        self.direct = Some(Direct::open(&self.name, &self.file)?);
        Ok(())
    }

    /// True if the hosts' data goes past the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// True if a loop may try to read it and write to it: there is a page cache between, which
    /// nobody else has to be asked for.
    #[must_use]
    pub fn may_inline(&self) -> bool {
        self.direct.is_none() && !self.foreign
    }

    /// Has what is much used of it stay mapped, within that budget, where that is of use: behind
    /// somebody else's filesystem even a store to a page in memory may have to wait.
    pub fn keep_resident(&mut self, residency: &Arc<Residency>) {
        if !self.may_inline() {
            return;
        }
        match Resident::new(&self.file, self.size, residency) {
            Ok(resident) => self.resident = Some(resident),
            Err(error) => eprintln!("vswitchd engine: {}: can't be mapped: {error}", self.name),
        }
    }

    /// Where the range lies in memory, if it does. The page cache's own pages: what is there
    /// changes as others write it.
    #[must_use]
    pub fn look(&self, offset: u64, length: u64) -> Look {
        self.resident.as_ref().map_or(Look::Away, |resident| resident.look(offset, length))
    }

    /// Maps what `look` said is wanted. May wait for the device.
    pub fn admit(&self) {
        if let Some(resident) = &self.resident {
            resident.admit();
        }
    }

    /// Lets go of resident pages of the range, before somebody else may have it.
    pub fn forget(&self, offset: u64, length: u64) {
        if let Some(resident) = &self.resident {
            resident.forget(offset, length);
        }
    }

    /// A page that `look` found in this range could not be had: it is mapped no more, so that
    /// requests get their error from the kernel. Nothing, if the address is of another device.
    pub fn faulted(&self, address: *const u8, length: u64) {
        if let Some(resident) = &self.resident
            && let Some(offset) = resident.offset_of(address)
        {
            resident.forget(offset, length);
        }
    }

    /// Stores into resident memory where that is quicker than `write`. Each fdatasync makes the
    /// kernel take away the right to store to what it cleans, page by page, so between frequent
    /// ones `write` is quicker, and so it is for large pieces that are not dirty yet.
    pub fn store(&self, offset: u64, data: &[u8]) -> Stored {
        let Some(resident) = &self.resident else { return Stored::No };
        let (begun, synced) = (millis(), self.synced.load(Ordering::Relaxed));
        let length = data.len() as u64;
        if begun < synced + SYNCED_OFTEN
            || (data.len() > SMALL && !resident.is_warm(offset, length, synced, begun))
        {
            return Stored::No;
        }
        match resident.look(offset, length) {
            Look::Here(_) => {
                let done = resident.store(offset, data);
                resident.note_written(offset, length, begun);
                self.judge(begun);
                if done.is_ok() { Stored::Done } else { Stored::No }
            }
            Look::Away => Stored::No,
            Look::Wanted => Stored::Wanted,
        }
    }

    /// True while writes to it have to wait, such as when the kernel slows down whoever dirties
    /// too many pages: then they are better done on the pool.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        let until = self.slow_until.load(Ordering::Relaxed);
        !self.may_inline() || (until > 0 && millis() < until)
    }

    /// Notes how long a write took that began then.
    fn judge(&self, begun: u64) {
        let now = millis();
        if now - begun > SLOW {
            self.slow_until.store(now + SLOW_FOR, Ordering::Relaxed);
        }
    }

    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    fn try_read_unchecked(&self, offset: u64, buffer: &mut [u8]) -> Result<TryRead, DeviceError> {
        if !self.may_inline() {
            return Ok(TryRead::WouldBlock);
        }
        let mut done = 0usize;
        while done < buffer.len() {
            let rest = &mut buffer[done..];
            let iov = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
            // SAFETY: `iov` points into `buffer`, which outlives the call and is exclusive.
            let count = unsafe {
                libc::preadv2(
                    self.file.as_raw_fd(),
                    &raw const iov,
                    1,
                    (offset + done as u64) as i64,
                    libc::RWF_NOWAIT,
                )
            };
            match count {
                0 => return Err(self.short("read", offset)),
                count if count > 0 => done += count as usize,
                _ => {
                    let error = io::Error::last_os_error();
                    match error.raw_os_error() {
                        Some(libc::EINTR) => {}
                        Some(libc::EAGAIN | libc::EOPNOTSUPP) => return Ok(TryRead::WouldBlock),
                        _ => return Err(DeviceError::os("read", &self.name, &error)),
                    }
                }
            }
        }
        Ok(TryRead::Done)
    }

    fn read_unchecked(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let done = match &self.direct {
            Some(direct) => direct.read(offset, buffer),
            None => self.file.read_exact_at(buffer, offset),
        };
        done.map_err(|e| DeviceError::os("read", &self.name, &e))
    }

    fn write_unchecked(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let data = if planted("half_a_write") { &data[..data.len() / 2] } else { data };
        let done = if let Some(direct) = &self.direct {
            direct.write(offset, data)
        } else {
            let begun = millis();
            let done = self.file.write_all_at(data, offset);
            if let Some(resident) = &self.resident {
                resident.note_written(offset, data.len() as u64, begun);
            }
            self.judge(begun);
            done
        };
        done.map_err(|e| DeviceError::os("write", &self.name, &e))
    }

    /// fdatasync; at most `LANES` at once.
    ///
    /// # Errors
    /// Whatever the device says; never retry into success.
    pub fn sync_data(&self) -> Result<(), DeviceError> {
        self.synced.store(millis(), Ordering::Relaxed);
        let lane = self.lanes().pop();
        let done = lane.as_ref().unwrap_or(&self.file).sync_data();
        if let Some(lane) = lane {
            self.lanes().push(lane);
        }
        done.map_err(|e| DeviceError::os("flush", &self.name, &e))
    }

    /// Writes, and waits until these bytes are durable: `write` and `sync_data` of them alone.
    ///
    /// # Errors
    /// Whatever the device says.
    pub fn write_through(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        // Not a lane of `sync_data`: an error of what others wrote before would be told here, and
        // then no more to the flush that must tell of it. And one for each write at a time, so
        // that none is told of another's error instead of its own.
        let spare = self.through().pop();
        let file = match spare {
            Some(file) => file,
            None => self.reopen()?.file,
        };
        let done = write_dsync(&file, offset, data);
        self.through().push(file);
        done.map_err(|e| DeviceError::os("write", &self.name, &e))
    }

    fn through(&self) -> std::sync::MutexGuard<'_, Vec<File>> {
        self.through.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn lanes(&self) -> std::sync::MutexGuard<'_, Vec<File>> {
        // It is changed by single calls only: a panic can't leave it torn.
        self.lanes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn zero_unchecked(&self, offset: u64, length: u64, punch: bool) -> Result<(), DeviceError> {
        self.forget(offset, length);
        let make = |offset, length| {
            let keep = libc::FALLOC_FL_KEEP_SIZE;
            if self.block {
                self.range_ioctl(BLKZEROOUT, offset, length)
            } else if punch {
                self.fallocate(libc::FALLOC_FL_PUNCH_HOLE | keep, offset, length)
            } else {
                self.fallocate(libc::FALLOC_FL_ZERO_RANGE | keep, offset, length)
            }
        };
        let done = match &self.direct {
            Some(direct) => direct.zero(offset, length, make),
            None => make(offset, length),
        };
        match done {
            Ok(()) => Ok(()),
            Err(e) if unsupported(&e) => {
                let zeroes = vec![0; ZERO_CHUNK.min(length) as usize];
                let mut at = 0;
                while at < length {
                    let take = ZERO_CHUNK.min(length - at);
                    self.write_unchecked(offset + at, &zeroes[..take as usize])?;
                    at += take;
                }
                Ok(())
            }
            Err(e) => Err(DeviceError::os("write zeroes", &self.name, &e)),
        }
    }

    /// True if zeroing is quicker than writing zeroes.
    #[must_use]
    pub fn zeroes_fast(&self) -> bool {
        !self.block && !self.foreign
    }

    /// Gives the range back; it reads as zeroes afterwards, so that all legs of a mirror agree.
    ///
    /// # Errors
    /// Whatever the device says.
    pub fn trim(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.zero(offset, length, true)
    }

    /// Appends (length, `base:allocation` flags) runs that cover the range.
    ///
    /// # Errors
    /// Whatever the device says.
    pub fn status(
        &self,
        offset: u64,
        length: u64,
        out: &mut Vec<(u64, u32)>,
    ) -> Result<(), DeviceError> {
        const HOLE: u32 = 3;
        if self.block {
            out.push((length, 0));
            return Ok(());
        }
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let data = self.seek(at, libc::SEEK_DATA)?.unwrap_or(end).min(end);
            if data > at {
                out.push((data - at, HOLE));
                at = data;
                continue;
            }
            let hole = self.seek(at, libc::SEEK_HOLE)?.unwrap_or(end).min(end);
            if hole <= at {
                out.push((end - at, 0));
                break;
            }
            out.push((hole - at, 0));
            at = hole;
        }
        Ok(())
    }

    fn seek(&self, at: u64, whence: i32) -> Result<Option<u64>, DeviceError> {
        // SAFETY: lseek on an open descriptor touches no memory. The file position that it
        // moves is used by nothing else: all I/O here is positional.
        let found = unsafe { libc::lseek(self.file.as_raw_fd(), at as i64, whence) };
        match u64::try_from(found) {
            Ok(found) => Ok(Some(found)),
            Err(_) => {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::ENXIO) => Ok(None),
                    _ => Err(DeviceError::os("find holes", &self.name, &error)),
                }
            }
        }
    }

    fn fallocate(&self, mode: i32, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: fallocate on an open descriptor touches no memory of ours.
        let result =
            unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset as i64, length as i64) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn range_ioctl(&self, request: libc::c_ulong, offset: u64, length: u64) -> io::Result<()> {
        let range = [offset, length];
        // SAFETY: these ioctls read two u64 from `range`, which outlives the call.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), request, range.as_ptr()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn short(&self, what: &str, offset: u64) -> DeviceError {
        let text = format!("{}: {what} past the end at {offset}; has it shrunk?", self.name);
        DeviceError::new(ErrorKind::Io, text)
    }
}

/// True if the filesystem asks another process or another machine for everything.
fn is_foreign(file: &File) -> bool {
    // FUSE, NFS, CIFS, SMB2, Ceph, 9P, AFS: linux/magic.h and the filesystems' own sources.
    const MAGICS: [u32; 7] =
        [0x6573_5546, 0x6969, 0xff53_4d42, 0xfe53_4d42, 0x00c3_6400, 0x0102_1997, 0x5346_414f];
    // SAFETY: an all-zero statfs is valid, and the call writes one.
    let (told, found) = unsafe {
        let mut found: libc::statfs = std::mem::zeroed();
        (libc::fstatfs(file.as_raw_fd(), &raw mut found), found)
    };
    // A filesystem that can't be asked is not one to wait for on a loop.
    told != 0 || MAGICS.contains(&(found.f_type as u32))
}

/// Writes all of it, and waits until it is durable.
fn write_dsync(file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < data.len() {
        let rest = &data[done..];
        let iov = libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
        let at = (offset + done as u64) as i64;
        // SAFETY: `iov` points into `data`, which pwritev2 only reads.
        let count =
            unsafe { libc::pwritev2(file.as_raw_fd(), &raw const iov, 1, at, libc::RWF_DSYNC) };
        if count > 0 {
            done += count as usize;
            continue;
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
    Ok(())
}

fn unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL | libc::ENOSYS)
    )
}
