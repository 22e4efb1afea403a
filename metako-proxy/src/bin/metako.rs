//! The stock binary.

fn main() -> std::process::ExitCode {
    metako_proxy::main()
}
