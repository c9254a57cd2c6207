//! A link between two SPs that can be stalled and cut.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What tests see of the link.
pub struct Proxy {
    pub address: String,
    held: AtomicBool,
    /// Bytes on their way to the server that wait.
    pub waiting: AtomicU64,
    /// Connections that were made, each with a socket of either end.
    carried: Mutex<Vec<[TcpStream; 2]>>,
}

impl Proxy {
    /// A link to that address. Its threads end with the test's process.
    pub fn start(to: &str) -> Arc<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("an address").to_string();
        let (held, waiting) = (AtomicBool::new(false), AtomicU64::new(0));
        let carried = Mutex::default();
        let proxy = Arc::new(Proxy { address, held, waiting, carried });
        let (link, to) = (Arc::clone(&proxy), to.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&to) else { continue };
                for stream in [&client, &server] {
                    stream.set_nodelay(true).expect("a socket");
                }
                let ends = || [&client, &server].map(|end| end.try_clone().expect("a socket"));
                let [mut to, mut from] = ends();
                link.carried.lock().expect("connections").push(ends());
                let link = Arc::clone(&link);
                thread::spawn(move || link.carry(client, server));
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                });
            }
        });
        proxy
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(count) = from.read(&mut bytes) {
            if count == 0 {
                break;
            }
            self.waiting.fetch_add(count as u64, Ordering::SeqCst);
            while self.held.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            self.waiting.fetch_sub(count as u64, Ordering::SeqCst);
            // What was held when the link was cut finds its socket shut.
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    /// From now on nothing reaches the server, until `open`.
    pub fn hold(&self) {
        self.held.store(true, Ordering::SeqCst);
    }

    pub fn open(&self) {
        self.held.store(false, Ordering::SeqCst);
    }

    /// Ends the connections that there are, with what is held of them; the next ones are carried.
    pub fn cut(&self) {
        for end in self.carried.lock().expect("connections").drain(..).flatten() {
            // One that has ended is no matter.
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}
