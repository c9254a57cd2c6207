//! Resident pages: the parts of a file device that are much in use are mapped and locked into
//! memory, so that a request on them is a copy and not a system call.
//!
//! The pages are the kernel's page cache itself. What is stored to them is as safe as what
//! pwrite(2) wrote: it outlives this process, and fdatasync makes it durable. A window is mapped
//! only when it is in use and mostly cached, and stays locked until it is evicted, so that no
//! access waits for a device. Windows are evicted when others are used more and the budget of
//! the process is spent.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::guard;

/// What is mapped, locked and evicted at once. A divisor of the allocation unit, so that a window
/// belongs to one T1 object.
pub const WINDOW: u64 = 1 << 20;
const PAGE: u64 = 4096;
/// Windows that may be locked, whatever the budget: each may cost two of the 65,530 mappings
/// that a process may have (vm.max_map_count).
const MOST_WINDOWS: usize = 16 << 10;
/// Windows that wait to be mapped, of one device.
const MOST_WAITING: usize = 256;
/// Requests on a window before it is worth mapping: while there is room, and when another one
/// has to leave for it.
const WANTED: u32 = 8;
const WANTED_MORE: u32 = 64;

const RESIDENT: u32 = 1 << 31;
const USED: u32 = 1 << 30;
const WAITING: u32 = 1 << 29;
/// Below these bits: requests so far while the window is away, and while it is here when it was
/// last written, by `second`, or 0.
const COUNT: u32 = WAITING - 1;
/// Seconds for which what was written is taken to be still dirty; the kernel writes it back after
/// thirty, or when there is much of it.
const WARM: u32 = 5;

/// The second of a time in milliseconds, as windows keep it.
fn second(millis: u64) -> u32 {
    (millis / 1024) as u32 & COUNT
}

/// What a look for resident memory found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Mapped here. Good until the loop that asked next handles its mailbox.
    Here(*mut u8),
    Away,
    /// Not mapped, and somebody should call `Resident::admit`, on a thread that may wait.
    Wanted,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What they protect is changed by single calls: a panic can't leave it torn.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The budget for all devices of a process.
#[derive(Debug)]
pub struct Residency {
    limit: usize,
    resident: AtomicUsize,
    /// Oldest first; windows that are not resident any more are skipped.
    clock: Mutex<VecDeque<(Weak<Resident>, u32)>>,
    /// The system refuses to lock pages.
    off: AtomicBool,
}

impl Residency {
    /// A budget of so many bytes; none if that is less than a window, or where faults can't
    /// be caught.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Arc<Residency>> {
        let limit = usize::try_from(bytes / WINDOW).unwrap_or(MOST_WINDOWS).min(MOST_WINDOWS);
        (limit > 0 && guard::install()).then(|| {
            Arc::new(Residency {
                limit,
                resident: AtomicUsize::new(0),
                clock: Mutex::default(),
                off: AtomicBool::new(false),
            })
        })
    }

    /// Bytes that are mapped and locked now.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.resident.load(Ordering::Relaxed) as u64 * WINDOW
    }

    fn is_full(&self) -> bool {
        self.resident.load(Ordering::Relaxed) >= self.limit
    }

    /// Makes room for one window; false if all that are here are in use.
    fn reserve(&self) -> bool {
        if self.resident.fetch_add(1, Ordering::Relaxed) < self.limit {
            return true;
        }
        let tries = lock(&self.clock).len();
        for _ in 0..tries {
            let Some((owner, index)) = lock(&self.clock).pop_front() else { break };
            let Some(resident) = owner.upgrade() else { continue };
            let state = resident.windows[index as usize].fetch_and(!USED, Ordering::Relaxed);
            if state & RESIDENT == 0 {
                continue;
            }
            if state & USED != 0 {
                lock(&self.clock).push_back((owner, index));
                continue;
            }
            resident.forget_window(index);
            if self.resident.load(Ordering::Relaxed) <= self.limit {
                return true;
            }
        }
        self.resident.fetch_sub(1, Ordering::Relaxed);
        false
    }
}

/// One file device's mapping.
#[derive(Debug)]
pub struct Resident {
    base: *mut u8,
    length: u64,
    windows: Box<[AtomicU32]>,
    waiting: Mutex<Vec<u32>>,
    /// Held while a window becomes resident or ceases to be.
    change: Mutex<()>,
    residency: Arc<Residency>,
}

// SAFETY: `base` is a mapping that lives as long as this; what is read and written there are bytes
// of a block device, where concurrent access to the same bytes has no order but the hosts'.
unsafe impl Send for Resident {}
// SAFETY: as above; all else in it is synchronised.
unsafe impl Sync for Resident {}

impl Resident {
    /// Reserves address space for a file of `size` bytes; no page of it is touched yet.
    ///
    /// # Errors
    /// When the system has no address space for it, or the file can't be mapped.
    pub fn new(file: &File, size: u64, residency: &Arc<Residency>) -> io::Result<Arc<Resident>> {
        let length = size / WINDOW * WINDOW;
        let bytes = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        if bytes == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), bytes, protection, flags, file.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping was just made. A child must not share the locked pages, nor a
        // core dump hold the hosts' data.
        unsafe {
            libc::madvise(base, bytes, libc::MADV_DONTFORK);
            libc::madvise(base, bytes, libc::MADV_DONTDUMP);
            libc::madvise(base, bytes, libc::MADV_RANDOM);
        }
        let windows = (0..length / WINDOW).map(|_| AtomicU32::new(0)).collect();
        Ok(Arc::new(Resident {
            base: base.cast(),
            length,
            windows,
            waiting: Mutex::default(),
            change: Mutex::default(),
            residency: Arc::clone(residency),
        }))
    }

    fn span(offset: u64, length: u64) -> std::ops::RangeInclusive<usize> {
        (offset / WINDOW) as usize..=((offset + length.max(1) - 1) / WINDOW) as usize
    }

    /// Looks for the range, and counts the request on its windows.
    #[must_use]
    pub fn look(&self, offset: u64, length: u64) -> Look {
        if offset + length > self.length || self.residency.off.load(Ordering::Relaxed) {
            return Look::Away;
        }
        let mut found = Look::Here(self.base.wrapping_add(offset as usize));
        for index in Self::span(offset, length) {
            let window = &self.windows[index];
            let state = window.load(Ordering::Relaxed);
            if state & RESIDENT != 0 {
                if state & USED == 0 {
                    window.fetch_or(USED, Ordering::Relaxed);
                }
                continue;
            }
            if matches!(found, Look::Here(_)) {
                found = Look::Away;
            }
            if state & WAITING == 0 && self.count(index) {
                found = Look::Wanted;
            }
        }
        found
    }

    /// True if the range is likely to be dirty: written not long before `now`, and after `synced`,
    /// which are in milliseconds. A store to a page that is not dirty is a fault.
    #[must_use]
    pub fn is_warm(&self, offset: u64, length: u64, synced: u64, now: u64) -> bool {
        offset + length <= self.length
            && Self::span(offset, length).all(|index| {
                let written = self.windows[index].load(Ordering::Relaxed) & COUNT;
                written > second(synced) && second(now) <= written + WARM
            })
    }

    /// Notes that the range is written at `now`, in milliseconds.
    pub fn note_written(&self, offset: u64, length: u64, now: u64) {
        if offset + length > self.length {
            return;
        }
        for index in Self::span(offset, length) {
            let window = &self.windows[index];
            let state = window.load(Ordering::Relaxed);
            if state & RESIDENT != 0 && state & COUNT != second(now) {
                // If it has changed meanwhile, this note is not worth another try.
                let noted = state & !COUNT | second(now);
                let _ = window.compare_exchange(state, noted, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// Counts a request on a window that is away; true if it waits to be mapped now.
    fn count(&self, index: usize) -> bool {
        let window = &self.windows[index];
        let wanted = if self.residency.is_full() { WANTED_MORE } else { WANTED };
        if window.fetch_add(1, Ordering::Relaxed) & COUNT < wanted {
            return false;
        }
        let mut waiting = lock(&self.waiting);
        if waiting.len() >= MOST_WAITING || window.load(Ordering::Relaxed) & WAITING != 0 {
            return false;
        }
        window.store(WAITING, Ordering::Relaxed);
        waiting.push(index as u32);
        // One call of `admit` takes them all.
        waiting.len() == 1
    }

    /// Maps what waits for it. May wait for the device.
    pub fn admit(self: &Arc<Self>) {
        loop {
            let waiting = std::mem::take(&mut *lock(&self.waiting));
            if waiting.is_empty() {
                return;
            }
            for index in waiting {
                if !self.mostly_cached(index) || !self.residency.reserve() {
                    self.windows[index as usize].store(0, Ordering::Relaxed);
                    continue;
                }
                if self.map(index) {
                    lock(&self.residency.clock).push_back((Arc::downgrade(self), index));
                } else {
                    self.residency.resident.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn at(&self, index: u32) -> *mut libc::c_void {
        self.base.wrapping_add(index as usize * WINDOW as usize).cast()
    }

    /// True if at least half of the window is in the page cache: reading the rest is then no more
    /// than its requests would have read.
    fn mostly_cached(&self, index: u32) -> bool {
        let mut pages = [0u8; (WINDOW / PAGE) as usize];
        // SAFETY: asks about a part of our mapping; the answer has a byte for each page.
        let known = unsafe { libc::mincore(self.at(index), WINDOW as usize, pages.as_mut_ptr()) };
        let cached = pages.iter().filter(|page| **page & 1 != 0).count();
        known == 0 && cached * 2 >= pages.len()
    }

    fn map(&self, index: u32) -> bool {
        let _change = lock(&self.change);
        let window = &self.windows[index as usize];
        if window.load(Ordering::Relaxed) & WAITING == 0 {
            return false;
        }
        // SAFETY: a part of our mapping; locking and populating change no byte of it.
        let locked =
            unsafe { libc::mlock2(self.at(index), WINDOW as usize, libc::MLOCK_ONFAULT as _) };
        if locked != 0 {
            window.store(0, Ordering::Relaxed);
            if !self.residency.off.swap(true, Ordering::Relaxed) {
                eprintln!(
                    "vswitchd engine: can't keep pages in memory ({}): requests will be slower; \
                     raise LimitMEMLOCK, or lower `resident_percent`",
                    io::Error::last_os_error()
                );
            }
            return false;
        }
        // SAFETY: as above.
        let there =
            unsafe { libc::madvise(self.at(index), WINDOW as usize, libc::MADV_POPULATE_READ) };
        if there != 0 {
            // SAFETY: as above.
            unsafe { libc::munlock(self.at(index), WINDOW as usize) };
            window.store(0, Ordering::Relaxed);
            return false;
        }
        window.store(RESIDENT | USED, Ordering::Relaxed);
        true
    }

    fn forget_window(&self, index: u32) {
        let _change = lock(&self.change);
        let state = self.windows[index as usize].swap(0, Ordering::Relaxed);
        if state & RESIDENT == 0 {
            return;
        }
        self.residency.resident.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: a part of our mapping. The page cache keeps what was stored; whoever still
        // uses an address of it has the page come back.
        unsafe {
            libc::munlock(self.at(index), WINDOW as usize);
            libc::madvise(self.at(index), WINDOW as usize, libc::MADV_DONTNEED);
        }
    }

    /// Lets go of the range, which is about to change under the mapping or to belong to somebody
    /// else.
    pub fn forget(&self, offset: u64, length: u64) {
        for index in Self::span(offset, length) {
            if index < self.windows.len() && self.windows[index].load(Ordering::Relaxed) != 0 {
                self.forget_window(index as u32);
            }
        }
    }

    /// Copies to a range that `look` found here.
    ///
    /// # Errors
    /// `Fault` if a page can't be had; some bytes may be stored.
    pub fn store(&self, offset: u64, data: &[u8]) -> Result<(), guard::Fault> {
        assert!(offset + data.len() as u64 <= self.length, "within the mapping");
        let to = self.base.wrapping_add(offset as usize);
        // SAFETY: the range lies in our mapping.
        let done = unsafe { guard::copy(to, data.as_ptr(), data.len()) };
        if done.is_err() {
            self.forget(offset, data.len() as u64);
        }
        done
    }

    /// Where an address lies in the file, if it is one of this mapping.
    #[must_use]
    pub fn offset_of(&self, address: *const u8) -> Option<u64> {
        let offset = (address as usize).checked_sub(self.base as usize)? as u64;
        (offset < self.length).then_some(offset)
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        for index in 0..self.windows.len() as u32 {
            self.forget_window(index);
        }
        // SAFETY: nobody has a reference to this, and addresses that `look` gave are used no
        // longer than the device is kept (`Engine::device_remove` waits for the loops).
        unsafe { libc::munmap(self.base.cast(), self.length as usize) };
    }
}
