//! Which run of its server a connection is to.

use bytes::Buf;
use metako_core::plugin::ServerRun;
use metako_core::wire::write;
use tokio::io::{AsyncRead, AsyncWrite};

use super::authenticate::{parameter, server_error};
use super::error::ConnectErrorKind;
use super::frames::Frames;
use super::{Backend, remember, send};

/// Asks an idle server connection which run of its server it is to. What tells two runs of one start apart is the
/// checkpointer: whoever has not the rights to see processes of others sees that there is one of this id, and that it is nobody's
/// session. The answer names `checkpointer` if it is there, and else none.
///
/// One round trip; good for every user of PostgreSQL 13 to 18, whatever `search_path` its sessions begin with.
///
/// Has no time-out of its own. Dropped, it leaves the connection in the middle of an answer: close it then.
///
/// # Errors
///
/// [`ConnectErrorKind::Server`] where the server answers with an error, such as that of a time-out; what the connection runs
/// into; [`ConnectErrorKind::Protocol`] if the answer is none to this question. Close the connection.
pub async fn run_of<S: AsyncRead + AsyncWrite + Unpin>(
    backend: &mut Backend<S>,
    checkpointer: Option<i32>,
) -> Result<ServerRun, ConnectErrorKind> {
    let mut query = Vec::new();
    write::query(&mut query, question(checkpointer).as_bytes());
    send(&mut backend.stream, &query).await?;
    let mut frames = Frames::after_log_in(&mut backend.stream);
    let mut run = None;
    let mut ready = false;
    while !ready || !frames.is_empty() {
        let message = frames.next().await?;
        match message.tag {
            b'D' if run.is_none() => run = Some(row(&message.body).ok_or_else(unexpected)?),
            b'T' | b'C' if !ready => {}
            b'Z' if !ready && message.body.as_ref() == b"I" => ready = true,
            b'S' => {
                let (name, value) = parameter(&message.body)?;
                remember(&mut backend.parameters, name, value);
            }
            b'N' => backend.notices.push(false, &message.body),
            b'A' => {}
            b'E' => return Err(server_error(&message.body)),
            _ => return Err(unexpected()),
        }
    }
    run.ok_or_else(unexpected)
}

/// Nothing in it depends on `search_path` nor on defaults of transactions, which the client may have set.
fn question(checkpointer: Option<i32>) -> String {
    let process = checkpointer.unwrap_or_default();
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED NOT DEFERRABLE; SELECT (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8, \
         coalesce((SELECT a.pid FROM pg_catalog.pg_stat_get_activity({process}) AS a \
         WHERE a.datid IS NULL AND a.usesysid IS NULL), 0); COMMIT"
    )
}

/// Reads the DataRow of the answer.
fn row(body: &[u8]) -> Option<ServerRun> {
    let mut rest = body;
    if rest.try_get_i16().ok()? != 2 {
        return None;
    }
    let started_at = column(&mut rest)?.parse().ok()?;
    let process: i32 = column(&mut rest)?.parse().ok()?;
    rest.is_empty().then_some(ServerRun { started_at, checkpointer: (process != 0).then_some(process) })
}

/// Takes a column; `None` if it is broken, or null.
fn column<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let length = usize::try_from(rest.try_get_i32().ok()?).ok()?;
    let (text, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    std::str::from_utf8(text).ok()
}

fn unexpected() -> ConnectErrorKind {
    ConnectErrorKind::Protocol("no answer to the question when the server was started".to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::super::Notices;
    use super::*;

    /// What is made of this answer.
    async fn asked(answer: &[u8]) -> (Result<ServerRun, ConnectErrorKind>, Backend<DuplexStream>) {
        let (stream, mut server) = duplex(1 << 20);
        let mut backend = Backend {
            stream,
            parameters: Vec::new(),
            process_id: 1,
            secret_key: vec![0; 4],
            notices: Notices::default(),
        };
        let serve = async {
            let mut asked = vec![0; 1 << 10];
            let read = server.read(&mut asked).await.unwrap();
            assert!(asked[..read].starts_with(b"Q") && asked[..read].ends_with(b"\0"));
            server.write_all(answer).await.unwrap();
            drop(server);
        };
        let (result, ()) = tokio::join!(run_of(&mut backend, Some(4711)), serve);
        (result, backend)
    }

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        write::frame(&mut frame, tag, |frame| frame.extend_from_slice(body));
        frame
    }

    const BOTH: &[u8] = b"\0\x02\0\0\0\x05-1234\0\0\0\x044711";
    const NO_CHECKPOINTER: &[u8] = b"\0\x02\0\0\0\x05-1234\0\0\0\x010";

    fn answer(row: &[u8]) -> Vec<u8> {
        let done = |tag: &[u8]| frame(b'C', tag);
        [
            done(b"BEGIN\0"),
            frame(b'T', b"\0\0"),
            frame(b'D', row),
            done(b"SELECT 1\0"),
            done(b"COMMIT\0"),
            frame(b'Z', b"I"),
        ]
        .concat()
    }

    #[tokio::test]
    async fn the_answer_is_read_with_what_the_server_says_beside_it() {
        let run = |checkpointer| Ok(ServerRun { started_at: -1234, checkpointer });
        assert_eq!(asked(&answer(BOTH)).await.0, run(Some(4711)));
        assert_eq!(asked(&answer(NO_CHECKPOINTER)).await.0, run(None));
        let beside = [frame(b'N', b"M\0"), frame(b'S', b"a\0b\0"), answer(BOTH)].concat();
        let (result, backend) = asked(&beside).await;
        assert_eq!(result, run(Some(4711)));
        assert_eq!(backend.parameters, [("a".to_owned(), "b".to_owned())]);
        assert_eq!(backend.notices.last, frame(b'N', b"M\0"));
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        let broken: [Vec<u8>; 6] = [
            answer(b""),
            answer(b"\0\x01\0\0\0\x05-1234"),
            answer(b"\0\x02\0\0\0\x05-1234\0\0\0\x09471"),
            answer(b"\0\x02\xff\xff\xff\xff\xff\xff\xff\xff"),
            frame(b'Z', b"I"),
            [frame(b'D', BOTH), frame(b'Z', b"E")].concat(),
        ];
        for answer in broken {
            assert!(matches!(asked(&answer).await.0, Err(ConnectErrorKind::Protocol(_))), "{answer:?}");
        }
        let refusal = [frame(b'E', b"SERROR\0C57014\0Mno\0\0"), frame(b'Z', b"I")].concat();
        assert!(
            matches!(asked(&refusal).await.0, Err(ConnectErrorKind::Server(error)) if error.sqlstate == "57014")
        );
        assert!(matches!(asked(&frame(b'D', BOTH)).await.0, Err(ConnectErrorKind::Closed(_))));
    }

    proptest! {
        #[test]
        fn no_row_makes_the_reader_panic(row in proptest::collection::vec(any::<u8>(), 0..40), whole in 0..24_usize) {
            let _ = super::row(&row);
            let _ = super::row(&[&BOTH[..whole.min(BOTH.len())], &row].concat());
        }
    }
}
