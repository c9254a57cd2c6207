//! Sockets without waiting: listeners, connections, epoll.

use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// A connected socket, without blocking. TLS will be a second variant.
#[derive(Debug)]
pub enum Stream {
    Plain(OwnedFd),
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// An option of a socket that is a number.
pub fn option(fd: RawFd, name: i32) -> io::Result<i32> {
    let mut value = 0i32;
    let mut length = size_of::<i32>() as u32;
    // SAFETY: passes pointers to live variables of the right sizes.
    let result = unsafe {
        let place = (&raw mut value).cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, name, place, &raw mut length)
    };
    check(result as isize)?;
    Ok(value)
}

impl Stream {
    pub fn tcp(stream: TcpStream) -> io::Result<Stream> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Stream::Plain(stream.into()))
    }

    pub fn unix(stream: UnixStream) -> io::Result<Stream> {
        stream.set_nonblocking(true)?;
        Ok(Stream::Plain(stream.into()))
    }

    /// Begins to connect; writable when done, and `connect_error` tells how it went.
    pub fn connect_tcp(address: &str) -> io::Result<Stream> {
        let target = address.to_socket_addrs()?.next().ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("{address}: no such host"))
        })?;
        let family = if target.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: socket takes no pointers.
        let fd = unsafe { libc::socket(family, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let one = 1i32;
        // SAFETY: passes a pointer to a live i32 with its size.
        unsafe {
            let length = size_of::<i32>() as u32;
            let value = (&raw const one).cast();
            libc::setsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, value, length);
        }
        let result = match target {
            std::net::SocketAddr::V4(v4) => {
                let address = libc::sockaddr_in {
                    sin_family: libc::AF_INET as u16,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                let length = size_of::<libc::sockaddr_in>() as u32;
                // SAFETY: passes a live sockaddr_in with its size.
                unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), length) }
            }
            std::net::SocketAddr::V6(v6) => {
                let address = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as u16,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                let length = size_of::<libc::sockaddr_in6>() as u32;
                // SAFETY: passes a live sockaddr_in6 with its size.
                unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), length) }
            }
        };
        if result < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EINPROGRESS) {
                return Err(error);
            }
        }
        Ok(Stream::Plain(fd))
    }

    pub fn connect_unix(path: &str) -> io::Result<Stream> {
        // Connecting to a unix socket is quick or fails: the backlog is the only wait.
        Stream::unix(UnixStream::connect(path)?)
    }

    pub fn connect_error(&self) -> io::Result<()> {
        let error = option(self.fd(), libc::SO_ERROR)?;
        if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
    }

    /// The address at which the other side has reached this one; empty if it has none.
    pub fn local(&self) -> String {
        let Stream::Plain(fd) = self;
        let stream = fd.as_fd().try_clone_to_owned().map(TcpStream::from);
        let address = stream.and_then(|stream| stream.local_addr());
        address.map(|address| address.to_string()).unwrap_or_default()
    }

    pub fn fd(&self) -> RawFd {
        match self {
            Stream::Plain(fd) => fd.as_raw_fd(),
        }
    }

    /// True if the other side has ended its direction, or all of it: it sends no more.
    pub fn is_ended(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.fd(), events: libc::POLLRDHUP, revents: 0 };
        // SAFETY: passes one live pollfd.
        unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
    }

    /// Copies what there is to receive into `buffer`, and leaves it there.
    pub fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
        // SAFETY: writes at most `buffer.len()` bytes into `buffer`.
        check(unsafe { libc::recv(self.fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) })
    }

    /// Receives into `buffer`; 0 is the end of the stream.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: writes at most `buffer.len()` bytes into `buffer`.
        check(unsafe {
            libc::recv(self.fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
        })
    }

    /// Sends what it can of these pieces, in one call.
    pub fn send(&self, pieces: &[libc::iovec]) -> io::Result<usize> {
        // SAFETY: an all-zero msghdr is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_ptr().cast_mut();
        message.msg_iovlen = pieces.len() as _;
        // SAFETY: the caller's iovecs point to live memory; sendmsg only reads them.
        check(unsafe {
            libc::sendmsg(self.fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
        })
    }
}

/// A listening socket; a unix one removes its file when dropped, if it is its own.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf, AtomicBool),
}

impl Listener {
    /// Listens at "host:port" or "unix:/path"; a stale socket file is replaced.
    pub fn bind(address: &str) -> io::Result<Listener> {
        if let Some(path) = address.strip_prefix("unix:") {
            if let Err(error) = UnixStream::connect(path)
                && error.kind() == io::ErrorKind::ConnectionRefused
            {
                std::fs::remove_file(path)?;
            }
            let listener = UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            return Ok(Listener::Unix(listener, path.into(), AtomicBool::new(true)));
        }
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Listener::Tcp(listener))
    }

    pub fn address(&self) -> io::Result<String> {
        match self {
            Listener::Tcp(listener) => Ok(listener.local_addr()?.to_string()),
            Listener::Unix(_, path, _) => Ok(format!("unix:{}", path.display())),
        }
    }

    pub fn fd(&self) -> RawFd {
        match self {
            Listener::Tcp(listener) => listener.as_raw_fd(),
            Listener::Unix(listener, ..) => listener.as_raw_fd(),
        }
    }

    pub fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Tcp(listener) => Stream::tcp(listener.accept()?.0),
            Listener::Unix(listener, ..) => Stream::unix(listener.accept()?.0),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path, own) = self
            && own.load(Ordering::Relaxed)
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Level-triggered epoll.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

pub const IN: u32 = libc::EPOLLIN as u32;
pub const OUT: u32 = libc::EPOLLOUT as u32;
/// The other side sends no more.
pub const ENDED: u32 = libc::EPOLLRDHUP as u32;

impl Epoll {
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and nobody else owns it.
        Ok(Epoll(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn control(&self, what: i32, fd: RawFd, events: u32, data: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: data };
        // SAFETY: passes a live epoll_event.
        let done = unsafe { libc::epoll_ctl(self.0.as_raw_fd(), what, fd, &raw mut event) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub fn add(&self, fd: RawFd, events: u32, data: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, data)
    }

    pub fn modify(&self, fd: RawFd, events: u32, data: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events, data)
    }

    pub fn remove(&self, fd: RawFd) {
        let _ = self.control(libc::EPOLL_CTL_DEL, fd, 0, 0);
    }

    /// Waits for at most `millis` (-1: for ever), and gives how many events came.
    pub fn wait(&self, events: &mut [libc::epoll_event], millis: i32) -> usize {
        // SAFETY: writes at most `events.len()` events.
        let count = unsafe {
            let room = events.len() as i32;
            libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), room, millis)
        };
        usize::try_from(count).unwrap_or(0)
    }
}
