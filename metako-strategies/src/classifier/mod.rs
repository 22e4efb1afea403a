//! Query classifiers.

mod catalog;
mod head;
mod keyword;
mod statement;

pub use keyword::{Keyword, KeywordSpec};

#[cfg(test)]
mod tests;
