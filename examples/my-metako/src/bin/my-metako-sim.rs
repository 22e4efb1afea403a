//! The simulator with the same strategies linked in.

use std::process::ExitCode;

use my_strategies as _;

fn main() -> ExitCode {
    metako_sim::main()
}
