//! The command line: `metako [COMMAND] --config FILE`.

mod check;
mod history;
mod operate;
mod remote;
mod strategies;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use metako_core::NodeName;
use metako_core::cluster::OperatorCommand;

/// How long the end of the process waits for that of its tasks.
const SHUTDOWN: Duration = Duration::from_secs(1);

/// What a command ended with. 0 is success; clap itself exits with 2 on wrong usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Refused, failed, or an expectation broken; one line on standard error says why.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// Nothing could be reached.
    Unreachable = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Pools connections to PostgreSQL, sends writes to the primary and reads to the replicas, and promotes a replica when
/// the primary dies.
#[derive(Debug, Parser)]
#[command(name = "metako", version, about, max_term_width = 100)]
struct Cli {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = "configs/example.yaml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy until SIGTERM or SIGINT; SIGHUP reads the configuration again (the default command).
    Run,
    /// Check the configuration, and the files that it names, without starting anything.
    Check {
        /// Print facts as JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the strategies that are linked into this binary, with options, defaults and docs.
    Strategies {
        /// Print facts as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show nodes, roles, lag and traffic of the running proxy.
    Status {
        /// Print facts as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make the running proxy read its configuration again. A bad file changes nothing.
    Reload {
        /// Print facts as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what was decided and why, also of a proxy that does not run any more.
    History {
        /// So many of the last decisions.
        #[arg(long, value_name = "COUNT", default_value_t = 50)]
        last: usize,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Make another node primary without a failed transaction or a lost row, while the present one is well.
    Switchover {
        /// The node; without it, the best.
        #[arg(long, value_name = "NAME")]
        to: Option<String>,
        #[command(flatten)]
        how: operate::How,
    },
    /// Promote a standby because the primary fails, where metako may not decide alone. Never while it may be alive.
    Failover {
        /// The node; without it, the best.
        #[arg(long, value_name = "NAME")]
        to: Option<String>,
        /// Also where the most advanced standby lacks more than failover.max_lag_on_failover allows.
        #[arg(long)]
        allow_data_loss: bool,
        #[command(flatten)]
        how: operate::How,
    },
    /// Have the running proxy decide nothing: no failover, no change of any node. Clients are served.
    Pause {
        #[command(flatten)]
        how: operate::How,
    },
    /// Have it decide again.
    Resume {
        #[command(flatten)]
        how: operate::How,
    },
    /// Take a node for the primary on your word, when the running proxy cannot make sure by itself.
    Adopt {
        /// The node.
        #[arg(long, value_name = "NAME")]
        primary: String,
        #[command(flatten)]
        how: operate::How,
    },
    /// Start a throw-away cluster with metako in front of it; needs PostgreSQL's server programs.
    Demo(crate::demo::DemoOptions),
}

/// The stock binary and every user's own: parses the command line, runs the command, and says how it ended. Strategies
/// must be linked in by the caller (`use my_strategies as _;`); the stock ones are.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = metako_core::plugin::verify() {
        eprintln!("metako: {error}");
        return Exit::Failed.into();
    }
    // Clients have threads of their own (`env`): this one is for everything else.
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("metako: cannot start: {error}");
            return Exit::Failed.into();
        }
    };
    let exit = runtime.block_on(dispatch(cli));
    // What still runs, such as hooks, is ended before the process is. Control connections may sit in a blocking name
    // look-up: they must not keep it for longer.
    runtime.shutdown_timeout(SHUTDOWN);
    exit.into()
}

async fn dispatch(cli: Cli) -> Exit {
    match cli.command.unwrap_or(Command::Run) {
        Command::Run => crate::app::run(&cli.config).await,
        Command::Check { json } => check::check(&cli.config, json),
        Command::Strategies { json } => strategies::strategies(json),
        Command::Status { json } => remote::status(&cli.config, json).await,
        Command::Reload { json } => remote::reload(&cli.config, json).await,
        Command::History { last, json } => history::history(&cli.config, last, json),
        Command::Switchover { to, how } => {
            operate::run(&cli.config, OperatorCommand::Switchover { to: to.map(NodeName::from) }, how).await
        }
        Command::Failover { to, allow_data_loss, how } => {
            let command = OperatorCommand::Failover { to: to.map(NodeName::from), allow_data_loss };
            operate::run(&cli.config, command, how).await
        }
        Command::Pause { how } => operate::run(&cli.config, OperatorCommand::Pause, how).await,
        Command::Resume { how } => operate::run(&cli.config, OperatorCommand::Resume, how).await,
        Command::Adopt { primary, how } => {
            operate::run(&cli.config, OperatorCommand::Adopt(NodeName::from(primary)), how).await
        }
        Command::Demo(options) => crate::demo::run(options).await,
    }
}

/// Ends a command whose output could not be written; a reader that went away (`| head`) is no failure.
fn written(result: io::Result<()>, exit: Exit) -> Exit {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("metako: cannot write: {error}");
            Exit::Failed
        }
        _ => exit,
    }
}
