//! The demo with the real metako.

use std::path::Path;

use metako_core::cluster::OperatorCommand;

use super::{DemoOptions, Metako, Outcome, run_with};
use crate::app::App;
use crate::check::load_file;
use crate::cli::Exit;
use crate::control::Status;
use crate::env::TokioEnv;

/// `metako demo`.
pub(crate) async fn run(options: DemoOptions) -> Exit {
    match run_with(options, launch).await {
        Ok(outcome) if outcome.as_ref().is_none_or(Outcome::passed) => Exit::Done,
        Ok(_) => Exit::Failed,
        Err(error) => {
            eprintln!("metako: {error}");
            Exit::Failed
        }
    }
}

async fn launch(path: &Path) -> Result<App<TokioEnv>, String> {
    let loaded = load_file(path).map_err(|problems| problems.to_string())?;
    App::start(TokioEnv::new(), loaded.config, path).await.map_err(|error| error.to_string())
}

impl Metako for App<TokioEnv> {
    fn status(&self) -> Status {
        Self::status(self)
    }

    async fn switchover(&self) -> Result<(), String> {
        Self::operate(self, OperatorCommand::Switchover { to: None }).await
    }

    async fn shutdown(self) {
        Self::shutdown(self).await;
    }
}
