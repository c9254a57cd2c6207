//! A device's threads: as many as are needed, never the caller's, and none that another
//! device's jobs can hold up.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vs_io::device::{self, LABEL_AREA, Options, UNIT};
use vs_io::label::{self, Fresh};
use vs_io::{BlockingDevice, Committer, Device, DeviceError, Full, Kind, Label, Pool};

const SOON: Duration = Duration::from_secs(20);

/// Labels a device that is blank, or knows it again.
fn claim(device: &mut dyn BlockingDevice, cluster: &str, id: &str) -> Result<Label, DeviceError> {
    label::claim(device, cluster, "sp", &Fresh { id, region: UNIT, checksums: false })
}

/// Jobs that end when it is opened or dropped.
struct Gate(Option<Sender<()>>, Arc<Mutex<Receiver<()>>>);

impl Gate {
    fn new() -> Gate {
        let (open, wait) = channel();
        Gate(Some(open), Arc::new(Mutex::new(wait)))
    }

    fn job(&self) -> impl FnOnce() + Send + 'static {
        let wait = Arc::clone(&self.1);
        move || {
            let _opened = wait.lock().unwrap().recv();
        }
    }

    fn open(&mut self) {
        self.0 = None;
    }
}

fn until(mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !ready() {
        assert!(Instant::now() < deadline, "not in time");
        std::thread::yield_now();
    }
}

#[test]
fn threads_come_when_needed_and_go() {
    let pool = Pool::with_limits("test", 2, 100, Duration::from_millis(1));
    assert_eq!(pool.threads(), 0);
    let done = Arc::new(AtomicUsize::new(0));
    let mut gate = Gate::new();
    for _ in 0..10 {
        let (done, job) = (Arc::clone(&done), gate.job());
        let counted = move || {
            job();
            done.fetch_add(1, Ordering::SeqCst);
        };
        pool.submit(counted).unwrap();
    }
    assert_eq!(pool.threads(), 2, "no more than allowed");
    gate.open();
    until(|| done.load(Ordering::SeqCst) == 10);
    until(|| pool.threads() == 0);
    pool.submit(|| ()).unwrap();
    until(|| pool.threads() == 0);
}

#[test]
fn a_full_pool_refuses_and_runs_nothing_on_the_caller() {
    let pool = Pool::with_limits("test", 1, 2, Duration::from_secs(1));
    let mut gate = Gate::new();
    let begun = Arc::new(AtomicUsize::new(0));
    let (count, job) = (Arc::clone(&begun), gate.job());
    let first = move || {
        count.fetch_add(1, Ordering::SeqCst);
        job();
    };
    pool.submit(first).unwrap();
    until(|| begun.load(Ordering::SeqCst) == 1);
    assert_eq!((pool.submit(|| ()), pool.submit(|| ())), (Ok(()), Ok(())));
    assert_eq!(pool.submit(|| panic!("never run")), Err(Full));
    let (sender, posted) = channel();
    pool.post(move || sender.send(()).unwrap());
    gate.open();
    posted.recv_timeout(SOON).expect("the posted job");
    until(|| pool.submit(|| ()) == Ok(()));
}

#[test]
fn a_panic_costs_its_own_job_only() {
    let pool = Pool::with_limits("test", 1, 10, Duration::from_secs(1));
    pool.submit(|| std::panic::resume_unwind(Box::new(()))).unwrap();
    until(|| pool.threads() == 0);
    let (sender, receiver) = channel();
    pool.submit(move || sender.send(()).unwrap()).unwrap();
    receiver.recv_timeout(SOON).expect("a job after it");
}

#[test]
fn what_was_taken_is_done_though_the_pool_is_gone() {
    let (sender, receiver) = channel();
    let mut gate = Gate::new();
    let pool = Pool::new("test", 1);
    pool.submit(gate.job()).unwrap();
    pool.submit(move || sender.send(()).unwrap()).unwrap();
    drop(pool);
    gate.open();
    receiver.recv_timeout(SOON).expect("the second job");
}

fn disk(dir: &tempfile::TempDir, id: &str) -> Arc<Device> {
    let uri = format!("file:{}", dir.path().join(id).display());
    let options = Options { create_size: 8 << 20, ..Options::default() };
    let (kind, mut blocking) = device::open(&uri, &options).unwrap();
    let label = claim(&mut *blocking, "c1", id).unwrap();
    let regions = vs_io::Regions::load(&mut *blocking, &label, "sp").unwrap();
    Arc::new(Device::new(&uri, &label, kind, regions, 4, 0))
}

fn flushed(device: &Arc<Device>) {
    let (sender, receiver) = channel();
    Committer::flush(device, Box::new(move |result| sender.send(result.is_ok()).unwrap()));
    assert!(receiver.recv_timeout(SOON).expect("a flush"));
}

#[test]
fn a_device_that_does_not_answer_holds_up_no_other_and_no_flush() {
    let dir = tempfile::tempdir().unwrap();
    let (stalled, good) = (disk(&dir, "d1"), disk(&dir, "d2"));
    let mut gate = Gate::new();
    let hung = Arc::new(AtomicUsize::new(0));
    for _ in 0..100 {
        let (job, hung) = (gate.job(), Arc::clone(&hung));
        let counted = move || {
            job();
            hung.fetch_add(1, Ordering::SeqCst);
        };
        stalled.pool.submit(counted).unwrap();
    }
    for round in 0..20u8 {
        let (sender, receiver) = channel();
        let device = Arc::clone(&good);
        let read = move || {
            let Kind::File(file) = &device.kind else { panic!("a file") };
            file.write(LABEL_AREA, &[round; 4096]).unwrap();
            let mut data = vec![0; 4096];
            file.read(LABEL_AREA, &mut data).unwrap();
            sender.send(data).unwrap();
        };
        good.pool.submit(read).unwrap();
        assert_eq!(receiver.recv_timeout(SOON).expect("a read"), [round; 4096]);
        flushed(&good);
    }
    flushed(&stalled);
    assert_eq!(hung.load(Ordering::SeqCst), 0, "they hung all the while");
    gate.open();
    until(|| hung.load(Ordering::SeqCst) == 100);
}

#[test]
fn a_pool_rests_when_all_that_it_has_taken_is_done() {
    let pool = Pool::new("vs-test", 2);
    assert!(pool.rest(Instant::now()), "nothing was ever taken");
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let done = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&done);
    pool.submit(move || {
        let _ = gate.recv();
        count.fetch_add(1, Ordering::SeqCst);
    })
    .expect("a thread");
    for _ in 0..5 {
        let count = Arc::clone(&done);
        let job = move || {
            count.fetch_add(1, Ordering::SeqCst);
        };
        pool.submit(job).expect("room");
    }
    assert!(!pool.rest(Instant::now() + Duration::from_millis(20)), "one is not done");
    open.send(()).expect("the gate");
    assert!(pool.rest(Instant::now() + Duration::from_secs(20)));
    assert_eq!(done.load(Ordering::SeqCst), 6);
}
