//! Stock strategies.
