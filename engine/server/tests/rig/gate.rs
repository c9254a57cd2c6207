//! An NBD server in memory, as a device: it can be told to hold its answers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What tests see of the server.
pub struct Gate {
    pub address: String,
    data: Mutex<Vec<u8>>,
    held: AtomicBool,
    /// Reads of data fail until something is written: (offset, end), or none if equal.
    rotten: Mutex<(u64, u64)>,
    /// Requests that have come and wait for the gate to open.
    pub waiting: AtomicU64,
    /// Clients that said goodbye, and those that just went.
    pub farewells: AtomicU64,
    pub dropped: AtomicU64,
}

impl Gate {
    pub fn start(size: usize) -> Arc<Gate> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let gate = Arc::new(Gate {
            address: listener.local_addr().expect("an address").to_string(),
            data: Mutex::new(vec![0; size]),
            held: AtomicBool::new(false),
            rotten: Mutex::default(),
            waiting: AtomicU64::new(0),
            farewells: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let server = Arc::clone(&gate);
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = Arc::clone(&server);
                thread::spawn(move || {
                    let end = if server.serve(stream).is_ok() {
                        &server.farewells
                    } else {
                        &server.dropped
                    };
                    end.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        gate
    }

    pub fn uri(&self) -> String {
        format!("nbd://{}/disk", self.address)
    }

    /// From now on requests for data wait, until `open`.
    pub fn hold(&self) {
        self.held.store(true, Ordering::SeqCst);
    }

    pub fn open(&self) {
        self.held.store(false, Ordering::SeqCst);
    }

    /// From now on these bytes can't be read, until they are written.
    pub fn rot(&self, offset: u64, length: u64) {
        *self.rotten.lock().expect("rot") = (offset, offset + length);
    }

    pub fn is_rotten(&self) -> bool {
        let (start, end) = *self.rotten.lock().expect("rot");
        start < end
    }

    pub fn bytes(&self, offset: u64, length: u64) -> Vec<u8> {
        self.data.lock().expect("data")[offset as usize..(offset + length) as usize].to_vec()
    }

    /// Ok when the client has said goodbye.
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
        let mut flags = [0; 4];
        stream.read_exact(&mut flags)?;
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        assert_eq!(header[11], 7, "the engine begins with GO");
        let mut rest =
            vec![0; u32::from_be_bytes([header[12], header[13], header[14], header[15]]) as usize];
        stream.read_exact(&mut rest)?;
        let reply = |kind: u32, data: &[u8]| {
            let mut out = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
            out.extend_from_slice(&7u32.to_be_bytes());
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(&(data.len() as u32).to_be_bytes());
            out.extend_from_slice(data);
            out
        };
        let mut export = vec![0, 0];
        export.extend_from_slice(&(self.data.lock().expect("data").len() as u64).to_be_bytes());
        // Flags, flush, FUA, trim, write-zeroes, several connections.
        export.extend_from_slice(&0x16du16.to_be_bytes());
        stream.write_all(&reply(3, &export))?;
        stream.write_all(&reply(1, &[]))?;
        loop {
            let mut header = [0; 28];
            stream.read_exact(&mut header)?;
            let word = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("8"));
            let length = u32::from_be_bytes(header[24..].try_into().expect("4")) as usize;
            let (command, cookie, offset) = (header[7], word(8), word(16) as usize);
            let mut payload = vec![0; if command == 1 { length } else { 0 }];
            stream.read_exact(&mut payload)?;
            if command == 2 {
                return Ok(());
            }
            // Labels and flushes always pass.
            if command != 3 && offset as u64 >= super::DATA && self.held.load(Ordering::SeqCst) {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                while self.held.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(1));
                }
                self.waiting.fetch_sub(1, Ordering::SeqCst);
            }
            let mut rotten = self.rotten.lock().expect("rot");
            let (from, end) = (offset as u64, (offset + length) as u64);
            let bad = command == 0 && from < rotten.1 && end > rotten.0;
            if command == 1 && from <= rotten.0 && end >= rotten.1 {
                *rotten = (0, 0);
            }
            drop(rotten);
            let mut out = 0x6744_6698u32.to_be_bytes().to_vec();
            out.extend_from_slice(&if bad { 5u32 } else { 0 }.to_be_bytes());
            out.extend_from_slice(&cookie.to_be_bytes());
            let mut data = self.data.lock().expect("data");
            match command {
                0 if bad => {}
                0 => out.extend_from_slice(&data[offset..offset + length]),
                1 => data[offset..offset + length].copy_from_slice(&payload),
                6 => data[offset..offset + length].fill(0),
                _ => {}
            }
            drop(data);
            stream.write_all(&out)?;
        }
    }
}
