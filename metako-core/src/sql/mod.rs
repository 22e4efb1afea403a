//! What can be told of SQL text without a grammar: tokens and names.

mod lexer;
mod name;

pub use lexer::{Kind, Lexer, Token};
pub use name::Name;
