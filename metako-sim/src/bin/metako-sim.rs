//! `metako-sim` with the stock strategies.

use std::process::ExitCode;

use metako_strategies as _;

fn main() -> ExitCode {
    metako_sim::main()
}
