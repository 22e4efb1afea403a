//! The statements by which nodes are changed, and their answers taken apart.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use metako_core::Epoch;
use metako_core::cluster::SettingsChange;
use metako_core::plugin::NodeReport;

use super::connection::Row;

/// Settings that may be changed: those that a standby reports, and the synchronous standbys.
const CHANGEABLE: [&str; 6] = {
    let [first, second, third, fourth, fifth] = NodeReport::SETTINGS;
    [first, second, third, fourth, fifth, "synchronous_standby_names"]
};

/// The advisory lock that guards a node's settings and promotion: "metako" in ASCII.
macro_rules! lock_key {
    () => {
        "120282511666031"
    };
}

pub(super) const TRY_LOCK: &str = concat!("SELECT pg_try_advisory_lock(", lock_key!(), ")");
pub(super) const UNLOCK: &str = concat!("SELECT pg_advisory_unlock(", lock_key!(), ")");
pub(super) const LOAD_TIME: &str = "SELECT pg_conf_load_time()";
pub(super) const RELOAD: &str = "SELECT pg_reload_conf()";
pub(super) const RESUME_REPLAY: &str = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_wal_replay_resume() END";

/// A change of settings that is refused before anything is sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChangeError {
    #[error("`{0}` is no setting that metako changes")]
    Setting(String),
    #[error("the value for `{0}` has a character that ALTER SYSTEM cannot write")]
    Value(String),
}

/// Text as a literal. Sessions run with `standard_conforming_strings`.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// One statement for each setting.
pub(super) fn alter_system(change: &SettingsChange) -> Result<Vec<String>, ChangeError> {
    change
        .set
        .iter()
        .map(|(name, value)| {
            if !CHANGEABLE.contains(&name.as_str()) {
                return Err(ChangeError::Setting(name.clone()));
            }
            match value {
                Some(value) if value.contains(['\0', '\n', '\r']) => Err(ChangeError::Value(name.clone())),
                Some(value) => Ok(format!("ALTER SYSTEM SET {name} = {}", literal(value))),
                None => Ok(format!("ALTER SYSTEM RESET {name}")),
            }
        })
        .collect()
}

/// A setting as it is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InForce {
    value: String,
    is_text: bool,
}

pub(super) fn settings_in_force(change: &SettingsChange) -> String {
    let mut question = "SELECT name, setting, vartype FROM pg_settings WHERE name IN (NULL".to_owned();
    for (name, _) in &change.set {
        let _ = write!(question, ", {}", literal(name));
    }
    question.push(')');
    question
}

pub(super) fn parse_in_force(rows: &[Row]) -> BTreeMap<String, InForce> {
    rows.iter()
        .filter_map(|row| match row.as_slice() {
            [Some(name), Some(value), Some(kind)] => {
                Some((name.clone(), InForce { value: value.clone(), is_text: kind == "string" }))
            }
            _ => None,
        })
        .collect()
}

/// Settings that are not in force as they were set. One with a unit is shown in another form than it was given, and
/// is not compared unless it was given as a bare number.
pub(super) fn differing<'a>(
    change: &'a SettingsChange,
    in_force: &BTreeMap<String, InForce>,
) -> Vec<&'a str> {
    let differs = |name: &str, wanted: &str| match in_force.get(name) {
        Some(found) => {
            let comparable = found.is_text || wanted.parse::<i64>().is_ok();
            comparable && found.value != wanted
        }
        None => true,
    };
    change
        .set
        .iter()
        .filter(|(name, value)| value.as_ref().is_some_and(|value| differs(name, value)))
        .map(|(name, _)| name.as_str())
        .collect()
}

/// Creates a physical slot that keeps WAL from now on, unless there is one of that name; answers with its kind.
pub(super) fn create_slot(slot: &str) -> String {
    let slot = literal(slot);
    format!(
        "SELECT coalesce((SELECT slot_type FROM pg_replication_slots WHERE slot_name = {slot}), \
         (SELECT 'created' FROM pg_create_physical_replication_slot({slot}, true)))"
    )
}

/// Drops those of the slots that are physical and not in use.
pub(super) fn drop_slots(slots: &[String]) -> String {
    let names: Vec<String> = slots.iter().map(|slot| literal(slot)).collect();
    format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
         WHERE slot_type = 'physical' AND NOT active AND slot_name IN (NULL, {})",
        names.join(", ")
    )
}

/// CASE evaluates its arms in order and stops at the first that holds: so the call happens under its conditions or not at
/// all. The lock is given up with the statement.
pub(super) fn promote(token: &str) -> String {
    format!(
        "SELECT CASE WHEN NOT pg_is_in_recovery() THEN 'primary' \
         WHEN current_setting('primary_slot_name') <> {} THEN 'token' \
         WHEN NOT pg_try_advisory_xact_lock({}) THEN 'locked' \
         WHEN pg_promote(false) THEN 'sent' ELSE 'not sent' END",
        literal(token),
        lock_key!()
    )
}

/// What the statement of [`promote`] answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PromotionAnswer {
    Sent,
    AlreadyPrimary,
    OtherToken,
    Locked,
    NotSent,
    Strange,
}

pub(super) fn parse_promotion(rows: &[Row]) -> PromotionAnswer {
    match rows.first().and_then(|row| row.first()?.as_deref()) {
        Some("sent") => PromotionAnswer::Sent,
        Some("primary") => PromotionAnswer::AlreadyPrimary,
        Some("token") => PromotionAnswer::OtherToken,
        Some("locked") => PromotionAnswer::Locked,
        Some("not sent") => PromotionAnswer::NotSent,
        _ => PromotionAnswer::Strange,
    }
}

/// Ends sessions that still wait for standbys in an earlier try of [`verify`]: nobody waits for their answer, they do not
/// notice that by themselves, and while standbys are missing each try would leave one more.
pub(super) const END_FORMER_VERIFICATIONS: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
     WHERE pid <> pg_backend_pid() AND application_name = 'metako' AND wait_event = 'SyncRep' \
     AND query LIKE '/* metako: verify */%'";

/// A transaction that marks the epoch in the WAL and waits for standbys as far as the node's own setting of
/// `synchronous_standby_names` asks.
pub(super) fn verify(epoch: Epoch) -> String {
    commit_that_waits(&format!("epoch {epoch}"))
}

/// A transaction that writes a message to the WAL and waits for standbys. No statement time-out may end that wait: it would
/// be answered as a success.
pub(super) fn commit_that_waits(message: &str) -> String {
    format!(
        "/* metako: verify */ BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL statement_timeout = 0; \
         SELECT CASE WHEN pg_is_in_recovery() THEN 'in recovery' \
         ELSE pg_logical_emit_message(true, 'metako', {})::text END; COMMIT",
        literal(message)
    )
}

/// Whether a change may make commits wait for standbys that did not before.
pub(super) fn is_about_waiting(change: &SettingsChange) -> bool {
    change.set.iter().any(|(name, _)| name == "synchronous_standby_names")
}

/// Whether commits should wait for standbys, by the setting as this session has it.
pub(super) const COMMITS_SHOULD_WAIT: &str =
    "SELECT NOT pg_is_in_recovery() AND current_setting('synchronous_standby_names') <> ''";

pub(super) const OWN_PROCESS: &str = "SELECT pg_backend_pid()";

/// Whether a session is seen waiting for standbys while it is looked at many times in a row: such a wait may last less than
/// a question and its answer take.
pub(super) fn waits_for_standbys(process: &str) -> String {
    format!(
        "SELECT EXISTS (SELECT FROM generate_series(1, 1000) AS look, \
         LATERAL (SELECT wait_event FROM pg_stat_get_activity({process} + 0 * look)) AS session \
         WHERE wait_event = 'SyncRep')"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn change(set: &[(&str, Option<&str>)]) -> SettingsChange {
        let set = set.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect();
        SettingsChange { set, resume_replay: false }
    }

    #[test]
    fn settings_are_changed_one_statement_each_and_only_those_of_the_list() {
        let both =
            change(&[("primary_conninfo", Some("host=a password='x y'")), ("primary_slot_name", None)]);
        assert_eq!(
            alter_system(&both).unwrap(),
            [
                "ALTER SYSTEM SET primary_conninfo = 'host=a password=''x y'''",
                "ALTER SYSTEM RESET primary_slot_name"
            ]
        );
        let other = change(&[("archive_command", Some("rm"))]);
        assert_eq!(alter_system(&other), Err(ChangeError::Setting("archive_command".to_owned())));
        let newline = change(&[("primary_conninfo", Some("a\nb"))]);
        assert_eq!(alter_system(&newline), Err(ChangeError::Value("primary_conninfo".to_owned())));
    }

    #[test]
    fn a_setting_that_stays_as_it_was_is_found() {
        let wanted = change(&[
            ("primary_conninfo", Some("")),
            ("recovery_min_apply_delay", Some("0")),
            ("max_standby_streaming_delay", Some("5s")),
            ("restore_command", None),
        ]);
        let row = |name: &str, value: &str, kind: &str| {
            vec![Some(name.to_owned()), Some(value.to_owned()), Some(kind.to_owned())]
        };
        let mut rows = vec![
            row("primary_conninfo", "host=a", "string"),
            row("recovery_min_apply_delay", "60000", "integer"),
            row("max_standby_streaming_delay", "5000", "integer"),
            row("restore_command", "cp", "string"),
        ];
        assert_eq!(
            differing(&wanted, &parse_in_force(&rows)),
            ["primary_conninfo", "recovery_min_apply_delay"]
        );
        rows[0] = row("primary_conninfo", "", "string");
        rows[1] = row("recovery_min_apply_delay", "0", "integer");
        assert!(differing(&wanted, &parse_in_force(&rows)).is_empty());
        assert_eq!(
            differing(&wanted, &BTreeMap::new()).len(),
            3,
            "a setting that is not shown counts as differing"
        );
    }

    proptest! {
        #[test]
        fn no_text_gets_out_of_its_quotes(text in ".*") {
            let quoted = literal(&text);
            let inner = quoted.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).unwrap();
            prop_assert_eq!(inner.replace("''", ""), text.replace('\'', ""));
            prop_assert_eq!(inner.replace("''", "'"), text);
        }
    }
}
