//! Secrets of users that the configuration does not name: asked for, and kept for a while.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use metako_core::config::Secret;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::account::{Manner, Stored};
use super::scram::SALT_LEN;

/// How long a question may take, the wait for its turn included.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Questions at a time.
const QUESTIONS_MAX: usize = 4;
/// How long an answer holds: one with a secret, and one without.
const FOUND_FOR: Duration = Duration::from_secs(30);
const MISSING_FOR: Duration = Duration::from_secs(3);
/// After a log-in that failed the secret may have changed; but it is not asked for again at every guess.
const DOUBTED_AFTER: Duration = Duration::from_secs(1);
/// Answers of each kind that are kept.
const KEPT_MAX: usize = 1000;

/// Where secrets of users come from that the configuration does not name.
#[async_trait]
pub trait SecretLookup: Send + Sync {
    /// What a server keeps of a user's password; `None` if there is no such user, or none that may log in by password.
    async fn look_up(&self, user: &str) -> Result<Option<Secret>, LookupError>;
}

/// Why it could not be found out what a server keeps of a user's password: for metako's log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LookupError(pub String);

/// [`SecretLookup`] with few questions at a time, a time-out, and answers that are kept for a while.
pub(super) struct CachedLookup {
    source: Arc<dyn SecretLookup>,
    turns: Semaphore,
    kept: Mutex<Kept>,
}

impl fmt::Debug for CachedLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CachedLookup")
    }
}

/// Users found and users missing are kept apart, so that made-up names push out no real ones.
#[derive(Default)]
struct Kept {
    found: BTreeMap<String, Answer>,
    missing: BTreeMap<String, Answer>,
    /// Of those found.
    manner: Option<Manner>,
}

struct Answer {
    stored: Stored,
    at: Instant,
}

impl CachedLookup {
    pub(super) fn new(source: Arc<dyn SecretLookup>) -> Self {
        Self { source, turns: Semaphore::new(QUESTIONS_MAX), kept: Mutex::default() }
    }

    /// What is kept of a user's password. Cancelling ends the question.
    pub(super) async fn stored(&self, user: &str, salt: [u8; SALT_LEN]) -> Result<Stored, LookupError> {
        if let Some(stored) = self.kept.lock().find(user) {
            return Ok(stored);
        }
        let question = async {
            let _turn = self.turns.acquire().await.map_err(|error| LookupError(error.to_string()))?;
            // While it waited, the same may have been asked.
            if let Some(stored) = self.kept.lock().find(user) {
                return Ok(stored);
            }
            let secret = self.source.look_up(user).await?;
            let stored = secret.map_or(Stored::Nothing, |secret| Stored::read(&secret, salt));
            self.kept.lock().keep(user, stored.clone());
            Ok(stored)
        };
        tokio::time::timeout(ANSWER_MAX, question)
            .await
            .unwrap_or_else(|_| Err(LookupError(format!("no answer within {ANSWER_MAX:?}"))))
    }

    /// What strangers are to look like: most of the users that were found lately.
    pub(super) fn manner(&self) -> Manner {
        self.kept.lock().manner.unwrap_or(Manner::POSTGRESQL)
    }

    /// A log-in by the secret failed: it may be out of date, so that the next log-in asks again.
    pub(super) fn doubt(&self, user: &str) {
        let mut kept = self.kept.lock();
        let Kept { found, missing, .. } = &mut *kept;
        for answers in [found, missing] {
            if answers.get(user).is_some_and(|answer| answer.at.elapsed() >= DOUBTED_AFTER) {
                answers.remove(user);
            }
        }
    }
}

impl Kept {
    fn find(&self, user: &str) -> Option<Stored> {
        let fresh = |answers: &BTreeMap<String, Answer>, limit| {
            answers.get(user).filter(|answer| answer.at.elapsed() < limit).map(|answer| answer.stored.clone())
        };
        fresh(&self.found, FOUND_FOR).or_else(|| fresh(&self.missing, MISSING_FOR))
    }

    fn keep(&mut self, user: &str, stored: Stored) {
        let (answers, others, limit) = if stored == Stored::Nothing {
            (&mut self.missing, &mut self.found, MISSING_FOR)
        } else {
            (&mut self.found, &mut self.missing, FOUND_FOR)
        };
        others.remove(user);
        if answers.len() >= KEPT_MAX {
            answers.retain(|_, answer| answer.at.elapsed() < limit);
        }
        if answers.len() >= KEPT_MAX
            && let Some(oldest) =
                answers.iter().min_by_key(|(_, answer)| answer.at).map(|(name, _)| name.clone())
        {
            answers.remove(&oldest);
        }
        answers.insert(user.to_owned(), Answer { stored, at: Instant::now() });
        self.manner = Manner::of_most(self.found.values().map(|answer| &answer.stored)).or(self.manner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[derive(Default)]
    struct Server {
        secrets: Mutex<BTreeMap<String, String>>,
        asked: AtomicUsize,
        at_once: AtomicUsize,
        most_at_once: AtomicUsize,
        stuck: bool,
        go: Notify,
    }

    #[async_trait]
    impl SecretLookup for Server {
        async fn look_up(&self, user: &str) -> Result<Option<Secret>, LookupError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_at_once.fetch_max(now, Ordering::SeqCst);
            if self.stuck {
                self.go.notified().await;
            }
            tokio::task::yield_now().await;
            self.at_once.fetch_sub(1, Ordering::SeqCst);
            match self.secrets.lock().get(user) {
                Some(secret) if secret == "broken" => Err(LookupError("broken".to_owned())),
                secret => Ok(secret.map(Secret::new)),
            }
        }
    }

    const MD5: &str = "md50123456789abcdef0123456789abcdef";
    const OTHER_MD5: &str = "md5ffffffffffffffffffffffffffffffff";

    fn server(secrets: &[(&str, &str)]) -> (Arc<Server>, CachedLookup) {
        let secrets = secrets.iter().map(|(user, secret)| ((*user).to_owned(), (*secret).to_owned()));
        let server = Arc::new(Server { secrets: Mutex::new(secrets.collect()), ..Server::default() });
        (Arc::clone(&server), CachedLookup::new(server))
    }

    async fn ask(lookup: &CachedLookup, user: &str) -> Result<Stored, LookupError> {
        lookup.stored(user, [0; SALT_LEN]).await
    }

    fn md5(text: &str) -> Stored {
        Stored::Md5(text[3..].to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn answers_hold_for_a_while() {
        let (server, lookup) = server(&[("ann", MD5)]);
        for _ in 0..3 {
            assert_eq!(ask(&lookup, "ann").await, Ok(md5(MD5)));
            assert_eq!(ask(&lookup, "joe").await, Ok(Stored::Nothing));
        }
        assert_eq!(server.asked.load(Ordering::SeqCst), 2);
        server.secrets.lock().insert("joe".to_owned(), MD5.to_owned());
        server.secrets.lock().insert("ann".to_owned(), OTHER_MD5.to_owned());
        tokio::time::advance(MISSING_FOR).await;
        assert_eq!(ask(&lookup, "joe").await, Ok(md5(MD5)));
        assert_eq!(ask(&lookup, "ann").await, Ok(md5(MD5)));
        tokio::time::advance(FOUND_FOR).await;
        assert_eq!(ask(&lookup, "ann").await, Ok(md5(OTHER_MD5)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_in_that_failed_has_it_asked_again_but_not_at_every_guess() {
        let (server, lookup) = server(&[("ann", MD5)]);
        assert_eq!(ask(&lookup, "ann").await, Ok(md5(MD5)));
        server.secrets.lock().insert("ann".to_owned(), OTHER_MD5.to_owned());
        lookup.doubt("ann");
        assert_eq!(ask(&lookup, "ann").await, Ok(md5(MD5)));
        tokio::time::advance(DOUBTED_AFTER).await;
        lookup.doubt("ann");
        assert_eq!(ask(&lookup, "ann").await, Ok(md5(OTHER_MD5)));
        assert_eq!(server.asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_told_and_not_kept() {
        let (server, lookup) = server(&[("ann", "broken")]);
        assert_eq!(ask(&lookup, "ann").await, Err(LookupError("broken".to_owned())));
        server.secrets.lock().insert("ann".to_owned(), MD5.to_owned());
        assert_eq!(ask(&lookup, "ann").await, Ok(md5(MD5)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_without_answer_ends() {
        let server = Arc::new(Server { stuck: true, ..Server::default() });
        let lookup = CachedLookup::new(server);
        let error = ask(&lookup, "ann").await.unwrap_err();
        assert!(error.to_string().contains("no answer within 5s"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn few_questions_are_asked_at_a_time_and_few_answers_kept() {
        let (server, lookup) = server(&[("ann", MD5)]);
        assert_eq!(ask(&lookup, "ann").await, Ok(md5(MD5)));
        let names: Vec<String> = (0..2 * KEPT_MAX).map(|number| format!("user {number}")).collect();
        let all = futures_util::future::join_all(names.iter().map(|name| ask(&lookup, name))).await;
        assert!(all.iter().all(|stored| *stored == Ok(Stored::Nothing)));
        assert_eq!(server.most_at_once.load(Ordering::SeqCst), QUESTIONS_MAX);
        assert_eq!(lookup.kept.lock().missing.len(), KEPT_MAX);
        // Made-up names did not push it out.
        let asked = server.asked.load(Ordering::SeqCst);
        assert_eq!(ask(&lookup, "ann").await, Ok(md5(MD5)));
        assert_eq!(server.asked.load(Ordering::SeqCst), asked);
    }
}
