//! Any bytes as the body of a request.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lfm2vl_server::check_request;

fuzz_target!(|body: &[u8]| {
    if let Err(error) = check_request(body) {
        // What the client gets is one line of JSON.
        assert!(!error.contains('\n'), "{error}");
    }
});
