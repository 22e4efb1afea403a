//! Notices that say something about a commit.

/// The function of PostgreSQL's in which a commit waits for synchronous standbys. Texts are translated and any trigger can
/// raise a warning, but the function is what it is.
pub const SYNC_WAIT: &str = "SyncRepWaitForLSN";

/// The SQLSTATE of a wait that ends together with its connection.
const ENDS: &[u8] = b"57P01";

/// Reads the body of a NoticeResponse, part by part, and keeps none of it: the function that raised it comes last, behind
/// texts of any length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NoticeReader {
    at: At,
    waited: bool,
    ends: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum At {
    /// The type of a field comes next.
    #[default]
    Kind,
    /// In a field that is of no interest.
    Value,
    /// In a field that is equal to what it is compared with, so far.
    Compared { with: &'static [u8], matched: usize },
    /// Behind the last field.
    End,
}

impl NoticeReader {
    /// Takes the next part.
    pub fn read(&mut self, part: &[u8]) {
        let mut rest = part;
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            self.at = match self.at {
                At::End => return,
                At::Kind => match byte {
                    0 => At::End,
                    b'R' => At::Compared { with: SYNC_WAIT.as_bytes(), matched: 0 },
                    b'C' => At::Compared { with: ENDS, matched: 0 },
                    _ => At::Value,
                },
                At::Compared { with, matched } if byte == 0 => {
                    let whole = matched == with.len();
                    self.waited |= whole && with == SYNC_WAIT.as_bytes();
                    self.ends |= whole && with == ENDS;
                    At::Kind
                }
                At::Compared { with, matched } if with.get(matched) == Some(&byte) => {
                    At::Compared { with, matched: matched + 1 }
                }
                At::Compared { .. } => At::Value,
                At::Value if byte == 0 => At::Kind,
                At::Value => {
                    rest = memchr::memchr(0, rest).map_or(&[], |end| &rest[end..]);
                    At::Value
                }
            };
        }
    }

    /// Whether it says that a commit's wait for synchronous standbys was cancelled, and success follows all the same.
    /// Where the connection ends with it, no success follows.
    pub fn is_cancelled_wait(&self) -> bool {
        self.waited && !self.ends
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::write;

    /// A notice with fields as PostgreSQL sends them.
    pub(crate) fn notice(code: &str, message: &str, routine: &str) -> Vec<u8> {
        let mut out = Vec::new();
        write::frame(&mut out, b'N', |out| {
            let fields = [('S', "WARNUNG"), ('V', "WARNING"), ('C', code), ('M', message), ('R', routine)];
            for (kind, value) in fields {
                out.extend_from_slice(format!("{kind}{value}\0").as_bytes());
            }
            out.push(0);
        });
        out
    }

    /// What PostgreSQL says of a wait that was cancelled.
    pub(crate) fn cancelled_wait() -> Vec<u8> {
        notice("01000", "canceling wait for synchronous replication due to user request", "SyncRepWaitForLSN")
    }

    fn is_cancelled_wait(body: &[u8], cuts: &[usize]) -> bool {
        let (mut reader, mut begin) = (NoticeReader::default(), 0);
        for end in cuts.iter().map(|cut| cut % (body.len() + 1)).chain([body.len()]) {
            reader.read(&body[begin.min(end)..end]);
            begin = begin.max(end);
        }
        reader.is_cancelled_wait()
    }

    proptest! {
        #[test]
        fn the_function_that_raised_a_notice_is_what_counts(
            code in "01000|57P01|01W01|[A-Z0-9]{0,6}",
            message in "[a-zR ]{0,40}|SyncRepWaitForLSN|R?SyncRepWaitForLSN",
            routine in "SyncRepWaitForLSN|exec_stmt_raise|SyncRepWaitForLS|SyncRepWaitForLSNs|",
            mut cuts in prop::collection::vec(0_usize..120, 0..6),
        ) {
            let frame = notice(&code, &message, &routine);
            cuts.sort_unstable();
            let expected = routine == "SyncRepWaitForLSN" && code != "57P01";
            prop_assert_eq!(is_cancelled_wait(&frame[5..], &cuts), expected);
        }

        #[test]
        fn garbage_never_panics(body in prop::collection::vec(any::<u8>(), 0..64)) {
            is_cancelled_wait(&body, &[]);
        }
    }
}
