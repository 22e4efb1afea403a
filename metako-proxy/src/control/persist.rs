//! Writes journals to their store, one after the other.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use metako_core::cluster::{ActionFailure, ActionId, ActionOutcome, Event, Journal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::driver::Report;
use super::journal::JournalStore;
use crate::env::Env;

/// Journals that may wait for the disk.
const WAITING_MAX: usize = 4;
/// How long the disk may take before the controller is told so.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The task that writes, as the driver sees it.
pub(super) struct JournalWriter {
    queue: mpsc::Sender<(ActionId, Journal)>,
    ended: oneshot::Receiver<()>,
}

impl JournalWriter {
    pub(super) fn spawn<E: Env>(
        env: &E,
        store: Arc<dyn JournalStore>,
        reporter: mpsc::Sender<Report>,
    ) -> Self {
        let (queue, mut waiting) = mpsc::channel::<(ActionId, Journal)>(WAITING_MAX);
        let (end, ended) = oneshot::channel();
        env.spawn(async move {
            while let Some((id, journal)) = waiting.recv().await {
                write(&*store, id, &journal, &reporter).await;
            }
            // Nobody may be waiting for the end.
            let _ = end.send(());
        });
        Self { queue, ended }
    }

    /// Hands a journal over. Gives the answer if it cannot be taken.
    pub(super) fn write(&self, id: ActionId, journal: Journal) -> Option<Event> {
        let refused = self.queue.try_send((id, journal)).err()?;
        let problem = match refused {
            mpsc::error::TrySendError::Full(_) => "the disk is behind with earlier journals",
            mpsc::error::TrySendError::Closed(_) => "the task that writes the journal has ended",
        };
        Some(Event::Done { id, outcome: Err(ActionFailure::Failed(problem.to_owned())) })
    }

    /// Resolves when everything that was handed over has been written.
    pub(super) async fn finish(self) {
        drop(self.queue);
        // An error means that the task is gone, which is an end as well.
        let _ = self.ended.await;
    }
}

/// Writes one journal and reports, early if the disk is slow. Returns only when the store is done with it, so that two
/// writes never overlap.
async fn write(store: &dyn JournalStore, id: ActionId, journal: &Journal, reporter: &mpsc::Sender<Report>) {
    let mut save = pin!(store.save(journal));
    let (outcome, left) = match timeout(TIMEOUT, &mut save).await {
        Ok(Ok(())) => (Ok(ActionOutcome::Done), None),
        Ok(Err(error)) => (Err(ActionFailure::Unknown(error.to_string())), None),
        Err(_) => {
            let problem = format!("the journal did not reach the disk within {TIMEOUT:?}");
            (Err(ActionFailure::Unknown(problem)), Some(save))
        }
    };
    // The driver may have stopped meanwhile.
    let _ = reporter.send(Report::Done(id, outcome)).await;
    if let Some(save) = left
        && let Err(error) = save.await
    {
        tracing::error!(%error, "the journal could not be written");
    }
}
