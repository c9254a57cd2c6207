#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vs_fuzz::pdu(data));
