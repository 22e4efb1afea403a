//! What only a server knows of a user: asked for at each log-in, so that what is changed there holds at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use metako_core::config::Secret;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::account::{Manner, Stored};
use super::scram::SALT_LEN;
use crate::turns::{Line, Turns};

/// How long a question may take, the wait for its turn included.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Questions at a time.
const QUESTIONS_MAX: usize = 4;
/// Answers of each kind that are kept.
const KEPT_MAX: usize = 1000;

/// Where secrets of users come from that the configuration does not name.
#[async_trait]
pub trait SecretLookup: Send + Sync {
    /// What a server keeps of a user's password; `None` if there is no such user, or none that may log in by password.
    async fn look_up(&self, user: &str) -> Result<Option<Secret>, LookupError>;
}

/// Who is a member of which role.
#[async_trait]
pub trait RoleLookup: Send + Sync {
    /// The roles that a user is a member of, directly or not, its own among them; none if there is no such user.
    async fn roles_of(&self, user: &str) -> Result<BTreeSet<String>, LookupError>;
}

/// Why it could not be found out what a server knows: for metako's log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LookupError(pub String);

/// [`SecretLookup`] with few questions at a time, a time-out, and answers shared by those who ask at the same time.
pub(super) struct SharedLookup {
    source: Arc<dyn SecretLookup>,
    answers: Answers<Arc<Stored>>,
    /// Of those found.
    manner: Mutex<Option<Manner>>,
}

/// [`RoleLookup`] likewise.
pub(super) struct SharedRoles {
    source: Arc<dyn RoleLookup>,
    answers: Answers<Arc<BTreeSet<String>>>,
}

impl fmt::Debug for SharedLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedLookup")
    }
}

impl fmt::Debug for SharedRoles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedRoles")
    }
}

impl SharedLookup {
    pub(super) fn new(source: Arc<dyn SecretLookup>) -> Self {
        Self { source, answers: Answers::default(), manner: Mutex::default() }
    }

    /// What is kept of the password of a user who connects from there. Cancelling ends the question.
    pub(super) async fn stored(
        &self,
        user: &str,
        from: IpAddr,
        salt: [u8; SALT_LEN],
    ) -> Result<Arc<Stored>, LookupError> {
        let question = async {
            let secret = self.source.look_up(user).await?;
            Ok(Arc::new(secret.map_or(Stored::Nothing, |secret| Stored::read(&secret, salt))))
        };
        let (stored, fresh) = self.answers.get(user, from, question).await?;
        if fresh && *stored != Stored::Nothing {
            let most = self.answers.among_found(|all| Manner::of_most(all.map(Arc::as_ref)));
            *self.manner.lock() = most;
        }
        Ok(stored)
    }

    /// What strangers are to look like: most of the users that were found lately.
    pub(super) fn manner(&self) -> Manner {
        self.manner.lock().unwrap_or(Manner::POSTGRESQL)
    }
}

impl SharedRoles {
    pub(super) fn new(source: Arc<dyn RoleLookup>) -> Self {
        Self { source, answers: Answers::default() }
    }

    /// The roles of a user who connects from there. Cancelling ends the question.
    pub(super) async fn of(&self, user: &str, from: IpAddr) -> Result<Arc<BTreeSet<String>>, LookupError> {
        let question = async { self.source.roles_of(user).await.map(Arc::new) };
        Ok(self.answers.get(user, from, question).await?.0)
    }
}

/// What a server can say of a user.
trait Answer: Clone {
    /// There is no such user.
    fn is_missing(&self) -> bool;
}

impl Answer for Arc<Stored> {
    fn is_missing(&self) -> bool {
        **self == Stored::Nothing
    }
}

impl Answer for Arc<BTreeSet<String>> {
    fn is_missing(&self) -> bool {
        self.is_empty()
    }
}

/// Answers by name. Few questions are asked at a time, and nobody's starve others.
struct Answers<T> {
    turns: Turns,
    kept: Mutex<Kept<T>>,
}

impl<T> Default for Answers<T> {
    fn default() -> Self {
        let kept = Kept { found: BTreeMap::new(), missing: BTreeMap::new() };
        Self { turns: Turns::new(QUESTIONS_MAX), kept: Mutex::new(kept) }
    }
}

/// The last answers. Users found and users missing are kept apart, so that made-up names push out no real ones.
struct Kept<T> {
    found: BTreeMap<String, Given<T>>,
    missing: BTreeMap<String, Given<T>>,
}

struct Given<T> {
    answer: T,
    /// When it was asked for.
    asked: Instant,
}

impl<T: Answer> Answers<T> {
    /// The answer to a question about a user that is asked now, or was while this one waited for its turn; whether it was
    /// this one.
    async fn get(
        &self,
        user: &str,
        from: IpAddr,
        question: impl Future<Output = Result<T, LookupError>>,
    ) -> Result<(T, bool), LookupError> {
        let begun = Instant::now();
        let is_known = self.kept.lock().found.contains_key(user);
        let line = if is_known { Line::Known(user.to_owned()) } else { Line::of(from) };
        let asked = async {
            let turn = self.turns.take(line).await;
            let _turn = turn.map_err(|_| LookupError("too many names are asked for already".to_owned()))?;
            if let Some(answer) = self.kept.lock().asked_since(user, begun) {
                return Ok((answer, false));
            }
            let asked = Instant::now();
            let answer = question.await?;
            self.kept.lock().keep(user, answer.clone(), asked);
            Ok((answer, true))
        };
        tokio::time::timeout(ANSWER_MAX, asked)
            .await
            .unwrap_or_else(|_| Err(LookupError(format!("no answer within {ANSWER_MAX:?}"))))
    }

    fn among_found<R>(&self, look: impl FnOnce(&mut dyn Iterator<Item = &T>) -> R) -> R {
        look(&mut self.kept.lock().found.values().map(|given| &given.answer))
    }
}

impl<T: Answer> Kept<T> {
    fn asked_since(&self, user: &str, time: Instant) -> Option<T> {
        let given = self.found.get(user).or_else(|| self.missing.get(user))?;
        (given.asked >= time).then(|| given.answer.clone())
    }

    fn keep(&mut self, user: &str, answer: T, asked: Instant) {
        let (answers, others) = if answer.is_missing() {
            (&mut self.missing, &mut self.found)
        } else {
            (&mut self.found, &mut self.missing)
        };
        others.remove(user);
        if answers.len() >= KEPT_MAX
            && !answers.contains_key(user)
            && let Some(oldest) =
                answers.iter().min_by_key(|(_, given)| given.asked).map(|(name, _)| name.clone())
        {
            answers.remove(&oldest);
        }
        answers.insert(user.to_owned(), Given { answer, asked });
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

    fn server(secrets: &[(&str, &str)]) -> (Arc<Server>, SharedLookup) {
        let secrets = secrets.iter().map(|(user, secret)| ((*user).to_owned(), (*secret).to_owned()));
        let server = Arc::new(Server { secrets: Mutex::new(secrets.collect()), ..Server::default() });
        (Arc::clone(&server), SharedLookup::new(server))
    }

    async fn ask(lookup: &SharedLookup, user: &str) -> Result<Stored, LookupError> {
        let from = IpAddr::V4([192, 0, 2, 1].into());
        lookup.stored(user, from, [0; SALT_LEN]).await.map(Arc::unwrap_or_clone)
    }

    fn md5(text: &str) -> Stored {
        Stored::Md5(text[3..].to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_changed_on_the_server_holds_at_the_next_log_in() {
        let (server, lookup) = server(&[("ann", MD5)]);
        assert_eq!(ask(&lookup, "ann").await, Ok(md5(MD5)));
        assert_eq!(ask(&lookup, "joe").await, Ok(Stored::Nothing));
        tokio::time::advance(Duration::from_nanos(1)).await;
        server.secrets.lock().insert("joe".to_owned(), MD5.to_owned());
        server.secrets.lock().insert("ann".to_owned(), OTHER_MD5.to_owned());
        assert_eq!(ask(&lookup, "joe").await, Ok(md5(MD5)));
        assert_eq!(ask(&lookup, "ann").await, Ok(md5(OTHER_MD5)));
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_for_their_turn_share_an_answer() {
        let (server, lookup) = server(&[("ann", MD5)]);
        let all = futures_util::future::join_all((0..50).map(|_| ask(&lookup, "ann"))).await;
        assert!(all.iter().all(|stored| *stored == Ok(md5(MD5))));
        assert_eq!(server.asked.load(Ordering::SeqCst), QUESTIONS_MAX);
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
        let lookup = SharedLookup::new(server);
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
        assert_eq!(lookup.answers.kept.lock().missing.len(), KEPT_MAX);
        // Made-up names did not push it out.
        assert!(lookup.answers.kept.lock().found.contains_key("ann"));
    }
}
