//! What the fuzz targets run. `metako-core/tests/fuzz_bodies.rs` runs the same on a stable compiler.

#![forbid(unsafe_code)]

pub mod bodies;
