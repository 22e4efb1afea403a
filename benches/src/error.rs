//! What can go wrong with a measurement.

use std::io;
use std::path::Path;

use metako_proxy::playground::PlaygroundError;

/// Says what failed, on which side, and where known what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("PostgreSQL of the benchmark: {0}")]
    Playground(#[from] PlaygroundError),
    #[error("{what}: {source}")]
    Sql { what: String, source: tokio_postgres::Error },
    #[error("{program} failed ({status}): {output}")]
    Program { program: &'static str, status: String, output: String },
    #[error("{program} does not start: {why}")]
    Start { program: &'static str, why: String },
    #[error("{what} cannot be understood: {text:?}")]
    Output { what: &'static str, text: String },
    #[error("{0}")]
    Unfit(String),
}

pub(crate) type Result<T> = std::result::Result<T, BenchError>;

impl BenchError {
    /// Says what was done when an I/O error came.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what: what.into(), source }
    }

    /// Says what was asked of PostgreSQL when an error came.
    pub(crate) fn sql(what: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Sql { what: what.into(), source }
    }
}

/// Reads a text file.
pub(crate) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(BenchError::io(format!("reading {}", path.display())))
}

/// Writes a file.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(BenchError::io(format!("writing {}", path.display())))
}

/// The last lines of what a program wrote.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
