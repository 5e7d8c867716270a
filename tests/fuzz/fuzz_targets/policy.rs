#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| moat_host_bridge::fuzz::policy(data));
