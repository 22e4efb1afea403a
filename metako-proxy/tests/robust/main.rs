//! Clients, servers and networks at their worst, on a real cluster: a right error to the right client, nothing left
//! behind, memory bounded.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[allow(dead_code, reason = "shared with the tests of the relay")]
#[path = "../relay/bench.rs"]
mod bench;
mod certificate;
mod frames;
#[allow(dead_code, reason = "shared with the tests of the relay")]
#[path = "../relay/raw.rs"]
mod raw;
#[path = "../running/mod.rs"]
mod running;
mod server_death;
mod slow;
mod vanish;
mod watch;
