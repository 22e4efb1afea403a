//! metako.
fn main() {}
