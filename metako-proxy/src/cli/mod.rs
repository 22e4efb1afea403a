//! The subcommands that need no running proxy. Each prints facts on stdout and the rest on stderr, and returns the exit
//! status: 0 done, 1 failed, 2 wrong usage or configuration.

mod check;
mod strategies;

pub use check::check;
pub use strategies::strategies;

use std::io::{self, Write};

/// Ends a command whose output could not be written; a reader that went away (`| head`) is no failure.
fn written(result: io::Result<()>, status: i32) -> i32 {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr(), "metako: cannot write: {error}");
            1
        }
        _ => status,
    }
}
