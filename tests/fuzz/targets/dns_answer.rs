#![no_main]

#[path = "../../src/fuzz.rs"]
#[allow(dead_code, reason = "each target uses one of its checks")]
mod checks;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = checks::dns_answer(input);
});
