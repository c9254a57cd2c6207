//! Copies to and from mapped files that end with an error, instead of the process, where a page
//! can't be had: the kernel says SIGBUS when a mapped page can't be read from its device, when the
//! file has shrunk, or when there is no room for a page that was a hole (mmap(2)).

use std::sync::OnceLock;

/// The page could not be had; how much was copied is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// True where `copy` can catch faults: elsewhere nothing may be mapped.
pub const SUPPORTED: bool = cfg!(all(target_arch = "x86_64", target_os = "linux"));

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
core::arch::global_asm!(
    // usize vs_guarded_copy(to: rdi, from: rsi, length: rdx). The instruction at
    // vs_guarded_copy_at is the only one that touches the memory; the handler goes on at
    // vs_guarded_copy_fault instead of it.
    ".hidden vs_guarded_copy",
    ".globl vs_guarded_copy",
    ".type vs_guarded_copy, @function",
    "vs_guarded_copy:",
    "mov rcx, rdx",
    ".hidden vs_guarded_copy_at",
    ".globl vs_guarded_copy_at",
    "vs_guarded_copy_at:",
    "rep movsb",
    "xor eax, eax",
    "ret",
    ".hidden vs_guarded_copy_fault",
    ".globl vs_guarded_copy_fault",
    "vs_guarded_copy_fault:",
    "mov eax, 1",
    "ret",
    ".size vs_guarded_copy, . - vs_guarded_copy",
);

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
unsafe extern "C" {
    fn vs_guarded_copy(to: *mut u8, from: *const u8, length: usize) -> usize;
    static vs_guarded_copy_at: u8;
    static vs_guarded_copy_fault: u8;
}

static BEFORE: OnceLock<Option<libc::sigaction>> = OnceLock::new();

/// Installs the handler; once for the process. False where the system refuses it.
pub fn install() -> bool {
    SUPPORTED && BEFORE.get_or_init(replace_handler).is_some()
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn replace_handler() -> Option<libc::sigaction> {
    // SAFETY: all-zero sigactions are valid; the handler is async-signal-safe.
    unsafe {
        let mut new: libc::sigaction = std::mem::zeroed();
        let mut old: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
        new.sa_sigaction = handler as usize;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        (libc::sigaction(libc::SIGBUS, &raw const new, &raw mut old) == 0).then_some(old)
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn replace_handler() -> Option<libc::sigaction> {
    None
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
extern "C" fn on_bus_error(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a live ucontext_t; the statics are labels in our own code.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let rip = &mut registers[libc::REG_RIP as usize];
        if *rip as usize == &raw const vs_guarded_copy_at as usize {
            *rip = &raw const vs_guarded_copy_fault as usize as i64;
            return;
        }
        // Somebody else's: as if this handler were not there.
        match BEFORE.get() {
            Some(Some(old)) if old.sa_sigaction > libc::SIG_IGN => {
                if old.sa_flags & libc::SA_SIGINFO != 0 {
                    let next: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                        std::mem::transmute(old.sa_sigaction);
                    next(signal, info, context);
                } else {
                    let next: extern "C" fn(i32) = std::mem::transmute(old.sa_sigaction);
                    next(signal);
                }
            }
            _ => {
                // The instruction runs again, and ends the process.
                libc::signal(libc::SIGBUS, libc::SIG_DFL);
            }
        }
    }
}

/// Copies `length` bytes.
///
/// # Errors
/// `Fault`, for mapped memory whose page can't be had.
///
/// # Safety
/// Both ranges must be mapped, `to` writable, and must not overlap. `install` must have succeeded.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub unsafe fn copy(to: *mut u8, from: *const u8, length: usize) -> Result<(), Fault> {
    // SAFETY: as the caller promises.
    if unsafe { vs_guarded_copy(to, from, length) } == 0 { Ok(()) } else { Err(Fault) }
}

/// Never called: nothing is mapped here.
///
/// # Errors
/// Always.
///
/// # Safety
/// None needed.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub unsafe fn copy(_to: *mut u8, _from: *const u8, _length: usize) -> Result<(), Fault> {
    Err(Fault)
}
