//! The proxy with our strategies linked in, beside the stock ones.

use std::process::ExitCode;

use my_strategies as _;

fn main() -> ExitCode {
    metako_proxy::main()
}
