//! The one question that a health report is made of, and its answer taken apart.
//!
//! The order of the columns matters: PostgreSQL evaluates them from left to right. What proves that a standby has
//! nothing more to receive or to read (settings, receiver process, wait of the startup process) stands before its
//! positions, so that a position is never older than its proof.

use std::collections::BTreeMap;
use std::time::Duration;

use metako_core::plugin::{NodeReport, ProbeFailure, Receiver, ReportedRole, Sender, SettingValue};
use metako_core::{Lsn, SystemId, TimelineId};
use serde::Deserialize;

use super::connection::Row;

/// Everything about a node but the timeline of a standby without a receiver. Good for PostgreSQL 13 to 18. Functions
/// that fail in recovery are guarded by CASE: a node that has left recovery does not go back, so the guard cannot be
/// overtaken. A sender that has not begun is left out: it may be a session of metako's own.
pub(super) const QUESTION: &str = "\
SELECT pg_is_in_recovery() AS in_recovery,
  pg_has_role(current_user, 'pg_monitor', 'usage') AS may_look,
  current_setting('server_version_num') AS version,
  (SELECT system_identifier FROM pg_control_system()) AS system_id,
  (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint AS started_at,
  (SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer') AS checkpointer,
  CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END AS timeline,
  CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() END AS flushed,
  CASE WHEN NOT pg_is_in_recovery() THEN (SELECT json_agg(json_build_object(
      'application_name', application_name, 'streaming', coalesce(state = 'streaming', false), 'flushed', flush_lsn,
      'replayed', replay_lsn, 'synchronous', coalesce(sync_state IN ('sync', 'quorum'), false))
      ORDER BY application_name, pid) FROM pg_stat_replication WHERE state <> 'startup') END AS senders,
  current_setting('synchronous_standby_names') AS synchronous_standby_names,
  current_setting('default_transaction_read_only') AS read_only,
  CASE WHEN pg_is_in_recovery() THEN (SELECT json_object_agg(name, json_build_object('value', setting, 'changeable',
      context <> 'postmaster' AND source NOT IN ('command line', 'environment variable', 'override')
      AND current_setting('allow_alter_system', true) IS DISTINCT FROM 'off'))
    FROM pg_settings WHERE name IN ('primary_conninfo', 'primary_slot_name', 'restore_command',
      'recovery_min_apply_delay', 'max_standby_streaming_delay')) END AS settings,
  EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver') AS receiver_process,
  (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup') AS startup_wait,
  (SELECT json_build_object('streaming', status = 'streaming', 'host', sender_host, 'port', sender_port,
      'timeline', received_tli, 'slot', slot_name,
      'age_us', (extract(epoch FROM clock_timestamp() - last_msg_receipt_time) * 1000000)::bigint)
    FROM pg_stat_wal_receiver) AS receiver,
  pg_last_wal_receive_lsn() AS received,
  pg_last_wal_replay_lsn() AS replayed,
  CASE WHEN pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn() THEN 0
    ELSE (extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000000)::bigint
    END AS replay_lag_us,
  pg_size_bytes(current_setting('wal_segment_size')) AS wal_segment_size";

/// What the answer says, but for a standby's timeline where it has no receiver, and for the time that the answer took.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) system_id: SystemId,
    pub(super) version: u32,
    pub(super) started_at: i64,
    pub(super) wal_segment_size: u64,
    pub(super) checkpointer: Option<i32>,
    pub(super) timeline: Option<TimelineId>,
    pub(super) role: ReportedRole,
}

impl Answer {
    pub(super) fn into_report(self, timeline: TimelineId, latency: Duration) -> NodeReport {
        let Self { system_id, version, started_at, checkpointer, wal_segment_size, role, .. } = self;
        NodeReport { system_id, version, started_at, checkpointer, wal_segment_size, timeline, role, latency }
    }
}

#[derive(Deserialize)]
struct SenderRow {
    application_name: String,
    streaming: bool,
    flushed: Option<Lsn>,
    replayed: Option<Lsn>,
    synchronous: bool,
}

#[derive(Deserialize)]
struct ReceiverRow {
    streaming: bool,
    host: Option<String>,
    port: Option<u16>,
    timeline: TimelineId,
    slot: Option<String>,
    age_us: Option<i64>,
}

/// Takes the answer to [`QUESTION`] apart.
pub(super) fn parse(rows: &[Row]) -> Result<Answer, ProbeFailure> {
    let [row] = rows else {
        return Err(ProbeFailure::Unexpected(format!("{} rows instead of one", rows.len())));
    };
    let mut columns = Columns(row.iter());
    let in_recovery = columns.flag()?;
    if !columns.flag()? {
        return Err(ProbeFailure::Unexpected(
            "metako's user may not see what it must: run GRANT pg_monitor TO it on the primary".to_owned(),
        ));
    }
    let version = columns.parsed("version")?;
    // Shown as a signed number.
    let system_id = SystemId(columns.parsed::<i64>("system_id")?.cast_unsigned());
    let started_at = columns.parsed("started_at")?;
    let checkpointer = columns.parsed_if_any("checkpointer")?;
    let written = columns.optional()?.map(hexadecimal_timeline).transpose()?;
    let flushed = columns.optional()?.map(position).transpose()?;
    let senders = columns.json::<Vec<SenderRow>>("senders")?.unwrap_or_default();
    let synchronous_standby_names = columns.text("synchronous_standby_names")?.to_owned();
    let read_only = columns.text("read_only")? == "on";
    let settings: Option<BTreeMap<String, SettingValue>> = columns.json("settings")?;
    let receiver_process = columns.flag()?;
    let startup_wait = columns.optional()?.map(str::to_owned);
    let receiver = columns.json::<ReceiverRow>("receiver")?.map(receiver);
    let received = columns.optional()?.map(position).transpose()?;
    let replayed = columns.optional()?.map(position).transpose()?;
    let replay_lag = columns.optional()?.map(microseconds).transpose()?;
    let wal_segment_size = columns.parsed("wal_segment_size")?;
    let (timeline, role) = if in_recovery {
        let timeline = receiver.as_ref().map(|receiver| receiver.timeline);
        let settings = settings.ok_or_else(|| {
            ProbeFailure::Unexpected("it left recovery while it was asked; the next answer tells".to_owned())
        })?;
        let role = ReportedRole::Standby {
            received,
            replayed,
            replay_lag,
            receiver,
            receiver_process,
            startup_wait,
            settings,
        };
        (timeline, role)
    } else {
        let missing = |what: &str| ProbeFailure::Unexpected(format!("a primary without {what}"));
        let role = ReportedRole::Primary {
            flushed: flushed.ok_or_else(|| missing("a flush position"))?,
            senders: senders.into_iter().map(sender).collect(),
            synchronous_standby_names,
            read_only,
        };
        (Some(written.ok_or_else(|| missing("a timeline"))?), role)
    };
    Ok(Answer { system_id, version, started_at, wal_segment_size, checkpointer, timeline, role })
}

/// The timeline in the answer to IDENTIFY_SYSTEM: on a standby, the one that it replays.
pub(super) fn parse_identify_system(rows: &[Row]) -> Result<TimelineId, ProbeFailure> {
    rows.first()
        .and_then(|row| row.get(1)?.as_deref()?.parse().ok())
        .map(TimelineId)
        .ok_or_else(|| ProbeFailure::Unexpected("IDENTIFY_SYSTEM gave no timeline".to_owned()))
}

fn sender(row: SenderRow) -> Sender {
    let SenderRow { application_name, streaming, flushed, replayed, synchronous } = row;
    Sender { application_name, streaming, flushed, replayed, synchronous }
}

fn receiver(row: ReceiverRow) -> Receiver {
    Receiver {
        streaming: row.streaming,
        sender_host: row.host.unwrap_or_default(),
        sender_port: row.port.unwrap_or_default(),
        timeline: row.timeline,
        last_message_age: row.age_us.map(span),
        slot: row.slot,
    }
}

/// Clocks of two nodes may differ: a span that would be negative is none.
fn span(microseconds: i64) -> Duration {
    Duration::from_micros(u64::try_from(microseconds).unwrap_or(0))
}

fn microseconds(text: &str) -> Result<Duration, ProbeFailure> {
    text.parse().map(span).map_err(|_| ProbeFailure::Unexpected(format!("`{text}` is no span of time")))
}

fn position(text: &str) -> Result<Lsn, ProbeFailure> {
    text.parse().map_err(|problem| ProbeFailure::Unexpected(format!("{problem}")))
}

fn hexadecimal_timeline(text: &str) -> Result<TimelineId, ProbeFailure> {
    u32::from_str_radix(text, 16)
        .map(TimelineId)
        .map_err(|_| ProbeFailure::Unexpected(format!("`{text}` does not begin the name of a WAL file")))
}

/// The columns of a row, taken one after the other.
struct Columns<'a>(std::slice::Iter<'a, Option<String>>);

impl<'a> Columns<'a> {
    fn optional(&mut self) -> Result<Option<&'a str>, ProbeFailure> {
        let column =
            self.0.next().ok_or_else(|| ProbeFailure::Unexpected("a column is missing".to_owned()))?;
        Ok(column.as_deref())
    }

    fn text(&mut self, what: &str) -> Result<&'a str, ProbeFailure> {
        self.optional()?.ok_or_else(|| ProbeFailure::Unexpected(format!("{what} is null")))
    }

    fn flag(&mut self) -> Result<bool, ProbeFailure> {
        Ok(self.text("a flag")? == "t")
    }

    fn parsed<T: std::str::FromStr>(&mut self, what: &str) -> Result<T, ProbeFailure> {
        self.parsed_if_any(what)?.ok_or_else(|| ProbeFailure::Unexpected(format!("{what} is null")))
    }

    fn parsed_if_any<T: std::str::FromStr>(&mut self, what: &str) -> Result<Option<T>, ProbeFailure> {
        let Some(text) = self.optional()? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| ProbeFailure::Unexpected(format!("{what} is `{text}`")))
    }

    fn json<T: serde::de::DeserializeOwned>(&mut self, what: &str) -> Result<Option<T>, ProbeFailure> {
        let Some(text) = self.optional()? else { return Ok(None) };
        serde_json::from_str(text)
            .map(Some)
            .map_err(|error| ProbeFailure::Unexpected(format!("{what}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(columns: &[Option<&str>; 19]) -> Row {
        columns.iter().map(|column| column.map(str::to_owned)).collect()
    }

    fn standby() -> Row {
        row(&[
            Some("t"),
            Some("t"),
            Some("150018"),
            Some("-1"),
            Some("1795533330812266"),
            Some("4711"),
            None,
            None,
            None,
            Some(""),
            Some("off"),
            Some(r#"{"primary_slot_name" : {"value" : "n1", "changeable" : true}}"#),
            Some("t"),
            Some("RecoveryWalStream"),
            Some(
                r#"{"streaming" : true, "host" : "127.0.0.1", "port" : 5432, "timeline" : 3, "slot" : null, "age_us" : -5}"#,
            ),
            Some("0/3000060"),
            Some("0/3000000"),
            Some("1500000"),
            Some("16777216"),
        ])
    }

    fn primary() -> Row {
        let senders = r#"[{"application_name" : "n1", "streaming" : true, "flushed" : "0/3000060", "replayed" : null, "synchronous" : false}]"#;
        let mut row = standby();
        row[0] = Some("f".to_owned());
        row[6] = Some("0000000A".to_owned());
        row[7] = Some("0/3000060".to_owned());
        row[8] = Some(senders.to_owned());
        row[10] = Some("on".to_owned());
        row
    }

    #[test]
    fn a_standby_is_read_with_its_receivers_timeline() {
        let answer = parse(&[standby()]).unwrap();
        assert_eq!((answer.timeline, answer.system_id), (Some(TimelineId(3)), SystemId(u64::MAX)));
        assert_eq!(answer.checkpointer, Some(4711));
        let ReportedRole::Standby { received, replay_lag, receiver: Some(receiver), settings, .. } =
            answer.role
        else {
            panic!()
        };
        assert_eq!((received, replay_lag), (Some(Lsn(0x300_0060)), Some(Duration::from_millis(1500))));
        assert_eq!(
            receiver.last_message_age,
            Some(Duration::ZERO),
            "clocks that differ give no negative age"
        );
        assert_eq!(settings["primary_slot_name"].value, "n1");
    }

    #[test]
    fn a_standby_without_a_receiver_leaves_its_timeline_open() {
        let mut row = standby();
        row[14] = None;
        assert_eq!(parse(&[row]).unwrap().timeline, None);
        let identified =
            ["7711756926004959880", "2", "0/3000060", "postgres"].map(|text| Some(text.to_owned()));
        assert_eq!(parse_identify_system(&[identified.to_vec()]), Ok(TimelineId(2)));
        assert!(parse_identify_system(&[]).is_err());
    }

    /// A promotion between two columns: what a standby without any settings seems to say is no answer at all.
    #[test]
    fn a_standby_that_is_promoted_while_it_answers_is_asked_again() {
        let mut row = standby();
        row[11] = None;
        let failure = parse(&[row]).unwrap_err();
        assert!(failure.to_string().contains("left recovery while it was asked"), "{failure}");
    }

    #[test]
    fn a_primary_is_read_with_its_hexadecimal_timeline() {
        let answer = parse(&[primary()]).unwrap();
        assert_eq!(answer.timeline, Some(TimelineId(10)));
        let ReportedRole::Primary { senders, read_only, .. } = answer.role else { panic!() };
        assert_eq!((senders.len(), senders[0].replayed, read_only), (1, None, true));
    }

    #[test]
    fn a_user_that_may_not_look_is_told_what_to_grant() {
        let mut row = primary();
        row[1] = Some("f".to_owned());
        let failure = parse(&[row]).unwrap_err();
        assert!(failure.to_string().contains("GRANT pg_monitor"), "{failure}");
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_parser_panic(
            whole in any::<bool>(),
            at in 0_usize..19,
            text in prop::option::of(".{0,20}"),
            columns in 0_usize..21,
        ) {
            let mut row = if whole { standby() } else { primary() };
            row[at] = text;
            row.resize(columns, None);
            let _ = parse(&[row]);
        }
    }
}
