#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| metako_fuzz::bodies::startup(data));
