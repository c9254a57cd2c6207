//! The Python face of the engine; nothing but conversion lives here. `_engine.pyi` tells
//! what each call does.

// pyo3's macros expand to such conversions.
#![allow(clippy::useless_conversion)]

use std::os::fd::IntoRawFd;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vs_server::{Engine as Inner, Failure};

pyo3::create_exception!(_engine, EngineError, pyo3::exceptions::PyException);

fn raise(failure: Failure) -> PyErr {
    EngineError::new_err((failure.kind, failure.message))
}

/// Every call gives up the interpreter's lock, since every call may wait for the loops.
fn call<T: Send>(py: Python<'_>, work: impl Send + FnOnce() -> Result<T, Failure>) -> PyResult<T> {
    py.detach(work).map_err(raise)
}

/// What `hand_over` gives.
type Given<'py> = (bool, Vec<(i32, &'static str, String)>, Vec<(i32, String, Bound<'py, PyBytes>)>);

#[pyclass(frozen, module = "vswitchd._engine")]
struct Engine(Inner);

#[pymethods]
impl Engine {
    #[new]
    fn new(py: Python<'_>, config: &str) -> PyResult<Self> {
        call(py, || Inner::start(config)).map(Engine)
    }

    fn listen_nbd(&self, py: Python<'_>, address: &str) -> PyResult<String> {
        call(py, || self.0.listen_nbd(address))
    }

    fn listen_iscsi(&self, py: Python<'_>, address: &str) -> PyResult<String> {
        call(py, || self.0.listen_iscsi(address))
    }

    fn set_portal_group(&self, tag: u16, advertised: &str) {
        self.0.set_portal_group(tag, advertised);
    }

    fn access_set(&self, py: Python<'_>, volume_id: &str, access: &str) -> PyResult<()> {
        call(py, || self.0.access_set(volume_id, access))
    }

    fn listen_peer(&self, py: Python<'_>, address: &str) -> PyResult<String> {
        call(py, || self.0.listen_peer(address))
    }

    fn shutdown(&self, py: Python<'_>, seconds: f64) -> bool {
        py.detach(|| self.0.shutdown(seconds))
    }

    /// (clean, [(fd, what is spoken there, address)], [(fd, facts, unread)]): the caller closes what it gets.
    fn hand_over<'py>(&self, py: Python<'py>, seconds: f64) -> Given<'py> {
        let legacy = py.detach(|| self.0.hand_over(seconds));
        let listeners = legacy.listeners.into_iter();
        let sessions = legacy.sessions.into_iter().map(|one| {
            let facts = one.facts();
            (one.fd.into_raw_fd(), facts, PyBytes::new(py, &one.unread))
        });
        let listeners =
            listeners.map(|(fd, speaks, address)| (fd.into_raw_fd(), speaks.name(), address));
        (legacy.clean, listeners.collect(), sessions.collect())
    }

    fn take_listener(&self, py: Python<'_>, fd: i32, speaks: &str) -> PyResult<String> {
        call(py, || {
            let speaks = vs_server::Speaks::named(speaks)?;
            self.0.take_listener(vs_server::given(fd)?, speaks)
        })
    }

    fn take_session(&self, py: Python<'_>, fd: i32, facts: &str, unread: Vec<u8>) -> PyResult<()> {
        call(py, || self.0.take_session(vs_server::given(fd)?, facts, unread))
    }

    fn device_add(
        &self,
        py: Python<'_>,
        uri: &str,
        create_size: u64,
        device_id: &str,
        direct: bool,
        checksums: bool,
    ) -> PyResult<String> {
        let how = vs_server::How { direct, checksums };
        call(py, || self.0.device_add(uri, create_size, device_id, how))
    }

    fn device_remove(&self, py: Python<'_>, device_id: &str) -> PyResult<()> {
        call(py, || self.0.device_remove(device_id))
    }

    fn devices(&self, py: Python<'_>) -> PyResult<String> {
        call(py, || self.0.devices())
    }

    fn t1_put(&self, py: Python<'_>, t1: &str, epoch: u64) -> PyResult<()> {
        call(py, || self.0.t1_put(t1, epoch))
    }

    fn t1_adopt(&self, py: Python<'_>, t1: &str, epoch: u64) -> PyResult<()> {
        call(py, || self.0.t1_adopt(t1, epoch))
    }

    fn t1_fence(
        &self,
        py: Python<'_>,
        t1_id: &str,
        epoch: u64,
        from_epoch: Option<u64>,
        seconds: f64,
    ) -> PyResult<()> {
        call(py, || self.0.t1_fence(t1_id, epoch, from_epoch, seconds))
    }

    fn t1_delete(&self, py: Python<'_>, t1_id: &str, epoch: u64) -> PyResult<()> {
        call(py, || self.0.t1_delete(t1_id, epoch))
    }

    fn t1s(&self, py: Python<'_>, volume_id: &str) -> PyResult<String> {
        call(py, || self.0.t1s(volume_id))
    }

    fn t2_activate(&self, py: Python<'_>, t2: &str, resync: bool, seconds: f64) -> PyResult<u64> {
        call(py, || self.0.t2_activate(t2, resync, seconds))
    }

    fn t2_remove(&self, py: Python<'_>, volume_id: &str, seconds: f64) -> PyResult<()> {
        call(py, || self.0.t2_remove(volume_id, seconds))
    }

    fn t2s(&self, py: Python<'_>, volume_id: &str) -> PyResult<String> {
        call(py, || self.0.t2s(volume_id))
    }

    fn reference_drop(&self, py: Python<'_>, volume_id: &str, t1_id: &str) -> PyResult<()> {
        call(py, || self.0.reference_drop(volume_id, t1_id))
    }

    #[allow(clippy::too_many_arguments)]
    fn copy_start(
        &self,
        py: Python<'_>,
        volume_id: &str,
        path: Vec<usize>,
        start: u64,
        rate: u64,
        adaptive: bool,
        mode: &str,
    ) -> PyResult<()> {
        call(py, || self.0.copy_start(volume_id, path, start, rate, adaptive, mode))
    }

    fn copy_throttle(
        &self,
        py: Python<'_>,
        volume_id: &str,
        path: Vec<usize>,
        rate: u64,
        adaptive: bool,
    ) -> PyResult<()> {
        call(py, || self.0.copy_throttle(volume_id, &path, rate, adaptive))
    }

    fn trouble(&self, py: Python<'_>) -> PyResult<String> {
        call(py, || self.0.trouble())
    }

    fn copy_stop(&self, py: Python<'_>, volume_id: &str, path: Vec<usize>) -> PyResult<()> {
        call(py, || self.0.copy_stop(volume_id, &path))
    }

    fn copies(&self, py: Python<'_>) -> PyResult<String> {
        call(py, || self.0.copies())
    }

    fn labels(&self, py: Python<'_>) -> PyResult<String> {
        call(py, || self.0.labels())
    }

    fn metrics(&self, py: Python<'_>) -> PyResult<String> {
        call(py, || self.0.metrics())
    }
}

#[pymodule]
fn _engine(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("EngineError", module.py().get_type::<EngineError>())?;
    module.add_class::<Engine>()
}
