//! What is set on a node to freeze it, to let it follow another, and to give it back what it had; and the proof that a
//! frozen node is frozen.

use std::collections::BTreeMap;

use super::{SavedSettings, SettingsChange, SyncRule, conninfo};
use crate::config::{ClusterSettings, Node, Secret};
use crate::plugin::{NodeReport, ReportedRole, SettingValue};
use crate::{Epoch, Lsn, NodeName};

pub(super) const CONNINFO: &str = "primary_conninfo";
pub(super) const SLOT: &str = "primary_slot_name";
pub(super) const RESTORE: &str = "restore_command";
const DELAYS: [&str; 2] = ["recovery_min_apply_delay", "max_standby_streaming_delay"];
pub(super) const SYNC_NAMES: &str = "synchronous_standby_names";
const TOKEN: &str = "metako_epoch_";

/// The wait events of a startup process that has replayed all local WAL and waits for more: only there does it obey a
/// blanked `primary_conninfo`.
const AT_END_OF_WAL: [&str; 2] = ["RecoveryWalStream", "RecoveryRetrieveRetryInterval"];

/// The freeze token of an epoch.
pub(super) fn token(epoch: Epoch) -> String {
    format!("{TOKEN}{epoch}")
}

fn settings(report: &NodeReport) -> Option<&BTreeMap<String, SettingValue>> {
    match &report.role {
        ReportedRole::Standby { settings, .. } => Some(settings),
        ReportedRole::Primary { .. } => None,
    }
}

/// A setting of a standby, as it is in force.
pub(super) fn setting<'a>(report: &'a NodeReport, name: &str) -> Option<&'a str> {
    settings(report)?.get(name).map(|setting| setting.value.as_str())
}

/// Whether a standby carries the freeze token of any epoch.
pub(super) fn has_token(report: &NodeReport) -> bool {
    setting(report, SLOT).is_some_and(|slot| slot.starts_with(TOKEN))
}

/// Whether a standby gets its WAL from an archive and has no upstream by its owner's wish.
pub(super) fn fed_by_archive(report: &NodeReport) -> bool {
    setting(report, CONNINFO) == Some("")
        && setting(report, RESTORE).is_some_and(|command| !command.is_empty())
}

/// The values that a freeze replaces.
pub(super) fn save(report: &NodeReport) -> SavedSettings {
    let kept = |name: &str| {
        let value = setting(report, name)?;
        let untouched = match name {
            CONNINFO | SLOT => false,
            RESTORE => value.is_empty(),
            _ => value == "0",
        };
        (!untouched).then(|| (name.to_owned(), (!value.is_empty()).then(|| value.to_owned())))
    };
    NodeReport::SETTINGS.iter().filter_map(|name| kept(name)).collect()
}

/// What freezes a standby; an error says why it cannot be frozen.
pub(super) fn freeze(report: &NodeReport, token: &str) -> Result<SettingsChange, String> {
    let mut set = vec![(CONNINFO, String::new()), (SLOT, token.to_owned())];
    if setting(report, RESTORE).is_some_and(|command| !command.is_empty()) {
        set.push((RESTORE, String::new()));
    }
    for delay in DELAYS {
        if setting(report, delay).is_some_and(|value| value != "0") {
            set.push((delay, "0".to_owned()));
        }
    }
    let fixed = |name: &&str| {
        settings(report).and_then(|all| all.get(*name)).is_some_and(|setting| !setting.changeable)
    };
    if let Some(name) = set.iter().map(|(name, _)| name).find(|name| fixed(name)) {
        return Err(format!("{name} is fixed where ALTER SYSTEM cannot change it"));
    }
    let set = set.into_iter().map(|(name, value)| (name.to_owned(), Some(value))).collect();
    Ok(SettingsChange { set, resume_replay: true })
}

/// Whether a standby receives nothing and waits for more WAL than it has.
pub(super) fn is_at_end_of_wal(report: &NodeReport) -> bool {
    matches!(
        &report.role,
        ReportedRole::Standby { receiver: None, receiver_process: false, startup_wait: Some(wait), .. }
            if AT_END_OF_WAL.contains(&wait.as_str())
    )
}

/// The position at which a standby is proven to stand still, or what the proof still lacks.
pub(super) fn proof(report: &NodeReport, token: &str) -> Result<Lsn, String> {
    let ReportedRole::Standby { receiver, receiver_process, .. } = &report.role else {
        return Err("it is not in recovery".to_owned());
    };
    if setting(report, SLOT) != Some(token) {
        return Err(format!("the token {token} does not show in primary_slot_name yet"));
    }
    if setting(report, CONNINFO) != Some("")
        || setting(report, RESTORE).is_some_and(|value| !value.is_empty())
    {
        return Err("primary_conninfo or restore_command is not blank yet".to_owned());
    }
    if DELAYS.iter().any(|name| setting(report, name).is_some_and(|value| value != "0")) {
        return Err("replay may still be delayed".to_owned());
    }
    if receiver.is_some() || *receiver_process {
        return Err("its WAL receiver still runs".to_owned());
    }
    if !is_at_end_of_wal(report) {
        return Err("it has not replayed all WAL that it has".to_owned());
    }
    report.position().ok_or_else(|| "it reports no position".to_owned())
}

/// What gives a standby back exactly what it had.
pub(super) fn unfreeze(saved: &SavedSettings) -> SettingsChange {
    SettingsChange {
        set: saved.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        resume_replay: false,
    }
}

/// What a new primary needs no more: the freeze token and the blanked conninfo; the rest gets its former value.
pub(super) fn leftovers(saved: &SavedSettings) -> SettingsChange {
    let mut set = vec![(CONNINFO.to_owned(), None), (SLOT.to_owned(), None)];
    set.extend(others(saved));
    SettingsChange { set, resume_replay: false }
}

/// What makes `standby` follow `upstream`, with its former settings otherwise.
pub(super) fn follow(
    cluster: &ClusterSettings,
    saved: &SavedSettings,
    standby: &Node,
    upstream: &Node,
) -> SettingsChange {
    let mut set = vec![
        (CONNINFO.to_owned(), Some(conninfo_to(saved, standby, upstream).reveal().to_owned())),
        (SLOT.to_owned(), Some(slot_of(cluster, saved, &standby.name))),
    ];
    set.extend(others(saved));
    SettingsChange { set, resume_replay: false }
}

/// The `primary_conninfo` by which `standby` reaches `upstream`.
pub(super) fn conninfo_to(saved: &SavedSettings, standby: &Node, upstream: &Node) -> Secret {
    let former = saved.get(CONNINFO).and_then(Option::as_deref);
    Secret::new(conninfo::rewrite(former, standby, upstream))
}

fn others(saved: &SavedSettings) -> impl Iterator<Item = (String, Option<String>)> + '_ {
    saved
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), CONNINFO | SLOT))
        .map(|(name, value)| (name.clone(), value.clone()))
}

/// The replication slot of a standby: the one that it had, else one named after it.
pub(super) fn slot_of(cluster: &ClusterSettings, saved: &SavedSettings, standby: &NodeName) -> String {
    let former = saved.get(SLOT).and_then(Option::as_deref).filter(|slot| !slot.starts_with(TOKEN));
    former.map_or_else(|| own_slot(cluster, standby), ToOwned::to_owned)
}

fn own_slot(cluster: &ClusterSettings, standby: &NodeName) -> String {
    let plain = |name: &NodeName| -> String {
        let plain =
            |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '_' };
        let own: String = name.as_str().chars().take(50).map(plain).collect();
        // A node whose slot looks like a token would pass for a frozen one for ever.
        if format!("metako_{own}").starts_with(TOKEN) { format!("node_{own}") } else { own }
    };
    let own = plain(standby);
    let earlier = cluster.nodes.iter().take_while(|node| node.name != *standby);
    match earlier.filter(|node| plain(&node.name) == own).count() {
        0 => format!("metako_{own}"),
        namesakes => format!("metako_{own}_{namesakes}"),
    }
}

/// `synchronous_standby_names` of a rule.
pub(super) fn sync_names(cluster: &ClusterSettings, rule: &SyncRule) -> String {
    match rule {
        SyncRule::Async => String::new(),
        SyncRule::Quorum { acks, voters } => {
            let quoted = |name: &NodeName| {
                let name = cluster.node(name.as_str()).map_or(name.as_str(), |node| &node.application_name);
                format!("\"{}\"", name.replace('"', "\"\""))
            };
            format!("ANY {acks} ({})", voters.iter().map(quoted).collect::<Vec<_>>().join(","))
        }
    }
}

/// How many of whom `synchronous_standby_names` asks for, if that is written as [`sync_names`] writes it, of nodes that are
/// configured.
pub(super) fn read_sync_names(cluster: &ClusterSettings, names: &str) -> Option<(usize, Vec<NodeName>)> {
    let (acks, list) = names.strip_prefix("ANY ")?.split_once(" (")?;
    let mut rest = list.strip_suffix(')')?;
    let mut found = Vec::new();
    loop {
        let mut name = String::new();
        rest = rest.strip_prefix('"')?;
        loop {
            let (part, after) = rest.split_once('"')?;
            name.push_str(part);
            if let Some(after) = after.strip_prefix('"') {
                name.push('"');
                rest = after;
            } else {
                rest = after;
                break;
            }
        }
        found.push(cluster.nodes.iter().find(|node| node.application_name == name)?.name.clone());
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None => break,
        }
    }
    if rest.is_empty() { Some((acks.parse().ok()?, found)) } else { None }
}

/// Sets `synchronous_standby_names` to what the rule says; takes it back where it is not metako's to set.
pub(super) fn sync_change(cluster: &ClusterSettings, rule: &SyncRule) -> SettingsChange {
    let kept = cluster.failover.synchronous.is_some() || *rule != SyncRule::Async;
    let names = kept.then(|| sync_names(cluster, rule));
    SettingsChange { set: vec![(SYNC_NAMES.to_owned(), names)], resume_replay: false }
}
