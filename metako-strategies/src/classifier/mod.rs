//! Query classifiers.

mod catalog;
mod head;
mod keyword;
mod lexer;
mod name;
mod statement;

pub use keyword::{Keyword, KeywordSpec};

#[cfg(test)]
mod tests;
