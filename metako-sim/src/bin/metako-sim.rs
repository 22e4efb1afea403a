//! metako-sim.
fn main() {}
