//! The assembly: configuration, control plane, data plane, admin socket; start, reload, end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use metako_core::NodeName;
use metako_core::cluster::{ClusterView, OperatorCommand};
use metako_core::config::{Change, Config, changes};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;

use crate::admin::{Admin, Reply};
use crate::check::load_file;
use crate::cli::Exit;
use crate::control::{Driver, DriverHandle, FileJournal, Recorder, Status};
use crate::data::DataPlane;
use crate::env::{Env, TokioEnv};
use crate::shared::{EvidenceSender, Traffic, ViewCell};
use crate::{logging, state_dir};

/// How long clients may finish their transactions after SIGTERM.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// `metako run`: runs until SIGTERM or SIGINT.
pub(crate) async fn run(path: &Path) -> Exit {
    let loaded = match load_file(path) {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("{problems}");
            return Exit::Usage;
        }
    };
    if let Err(problem) = logging::start(&loaded.config.log) {
        eprintln!("metako: {problem}");
        return Exit::Usage;
    }
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let app = match App::start(TokioEnv::new(), loaded.config, path.to_owned()).await {
        Ok(app) => app,
        Err(error) => {
            eprintln!("metako: {error}");
            return Exit::Failed;
        }
    };
    match follow_signals(&app).await {
        Ok(()) => {
            app.shutdown().await;
            Exit::Done
        }
        Err(error) => {
            eprintln!("metako: cannot listen for signals: {error}");
            Exit::Failed
        }
    }
}

async fn follow_signals(app: &App<TokioEnv>) -> std::io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                // What came of it is logged by the reload itself.
                let _ = app.reload().await;
            }
            _ = terminate.recv() => {
                tracing::info!("SIGTERM: no new clients; open transactions may end");
                return Ok(());
            }
            _ = interrupt.recv() => {
                tracing::info!("SIGINT: no new clients; open transactions may end");
                return Ok(());
            }
        }
    }
}
