//! The log as text: one stable line per entry.

use std::fmt;

use metako_core::Lsn;
use metako_core::cluster::{
    Action, Journal, JournalPhase, OperatorCommand, Phase, SettingsChange, SyncRule, Writes,
};
use metako_core::plugin::{NodeReport, ReportedRole};

use super::{ClientEvent, EndState, Entry, HookChange, LogEvent, NodeChange};

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12} {}", self.at.to_string(), self.event)
    }
}

impl fmt::Display for LogEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(text) => write!(f, "fault    {text}"),
            Self::Asked { command, refusal: None } => write!(f, "asked    {}", Command(command)),
            Self::Asked { command, refusal: Some(why) } => {
                write!(f, "asked    {}: refused: {why}", Command(command))
            }
            Self::Hook { node, kind, change } => {
                write!(f, "hook     {} on the host of {node} ", kind.name())?;
                match change {
                    HookChange::Began => f.write_str("began"),
                    HookChange::Ended(Ok(())) => f.write_str("is done"),
                    HookChange::Ended(Err(why)) => write!(f, "failed: {why}"),
                }
            }
            Self::Node { node, change } => write!(f, "{node:<8} {change}"),
            Self::Action(action) => write_action(f, action),
            Self::Answered { id, outcome: Ok(outcome) } => write!(f, "answer   #{}: {outcome:?}", id.0),
            Self::Answered { id, outcome: Err(failure) } => write!(f, "answer   #{}: {failure}", id.0),
            Self::Probed { id, node, result: Ok(report) } => {
                write!(f, "probed   {} {node}: {}", id.0, Report(report))
            }
            Self::Probed { id, node, result: Err(failure) } => {
                write!(f, "probed   {} {node}: {failure}", id.0)
            }
            Self::ServerLost { node, loss } => write!(f, "lost     {node}: {loss:?}"),
            Self::JournalSynced(journal) => write!(f, "journal  synced: {}", JournalText(journal)),
            Self::Decision(decision) => {
                write!(f, "decision {} ", decision.kind.name())?;
                if let Some(node) = &decision.node {
                    write!(f, "{node} ")?;
                }
                write!(f, "(epoch {}): {}", decision.epoch, decision.reason)
            }
            Self::View { version, epoch, phase, writes } => write_view(f, *version, epoch.0, phase, writes),
            Self::Opened { primary, epoch, holds } => {
                write!(f, "opened   {primary} in epoch {epoch}, with {} writes", holds.len())
            }
            Self::Severed { node, epoch } => write!(f, "severed  {node}, epochs before {epoch}"),
            Self::ProxyKilled => f.write_str("metako   killed"),
            Self::ProxyStarted { epoch: Some(epoch) } => {
                write!(f, "metako   started, journal of epoch {epoch}")
            }
            Self::ProxyStarted { epoch: None } => f.write_str("metako   started without a journal"),
            Self::Client(event) => write!(f, "client   {event}"),
            Self::Broken(text) => write!(f, "BROKEN   {text}"),
            Self::End(end) => write_end(f, end),
        }
    }
}

impl fmt::Display for NodeChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed => f.write_str("killed"),
            Self::Stopping => f.write_str("shuts down"),
            Self::Stopped { position } => write!(f, "stopped in order at {position}"),
            Self::Checkpointed => f.write_str("wrote a checkpoint"),
            Self::Copied { upstream, position } => {
                write!(f, "is a copy of {upstream} up to {position}, and its standby")
            }
            Self::Starting => f.write_str("starting"),
            Self::Ready { primary, timeline, position } => {
                let role = if *primary { "primary" } else { "standby" };
                write!(f, "ready as {role} on timeline {timeline} at {position}")
            }
            Self::Frozen => f.write_str("frozen"),
            Self::Thawed => f.write_str("thawed"),
            Self::Promoting => f.write_str("received the request to promote"),
            Self::Promoted { timeline, fork, ahead } => {
                write!(f, "is primary on timeline {timeline}, forked at {fork}")?;
                if !ahead.is_empty() {
                    write!(f, " (further: {ahead:?})")?;
                }
                Ok(())
            }
            Self::Streaming { upstream, timeline } => {
                write!(f, "streams timeline {timeline} from {upstream}")
            }
            Self::ReceiverGone { reason } => write!(f, "receiver ended: {reason}"),
            Self::Reloaded { changed } => {
                f.write_str("reloaded")?;
                changed.iter().try_for_each(|(name, value)| write!(f, " {name}='{}'", shown(value)))
            }
            Self::DivergedUnnoticed { upstream } => {
                write!(f, "DIVERGED from {upstream} under the same timeline number, and streams from it")
            }
        }
    }
}

impl fmt::Display for ClientEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { id } => write!(f, "write {id:x} held"),
            Self::Sent { id, node, epoch } => write!(f, "write {id:x} to {node} (epoch {epoch})"),
            Self::Acknowledged { id, node, timeline, epoch } => {
                write!(f, "write {id:x} acknowledged by {node} (timeline {timeline}, epoch {epoch})")
            }
            Self::Unknown { id, reason } => write!(f, "write {id:x} outcome unknown: {reason}"),
            Self::Failed { id, reason } => write!(f, "write {id:x} failed: {reason}"),
            Self::Discarded { id, node } => write!(f, "write {id:x}: late answer of {node} discarded"),
            Self::Read { client, node, primary, timeline, on_history, behind, held_by: _ } => {
                let role = if *primary { "primary" } else { "standby" };
                write!(f, "read of {client} by {node} ({role}, timeline {timeline}")?;
                if !behind.is_zero() {
                    write!(f, ", {}us behind", behind.as_micros())?;
                }
                f.write_str(if *on_history { ")" } else { ", of ANOTHER history)" })
            }
            Self::ReadSent { client, node } => write!(f, "read of {client} goes on to {node}"),
            Self::ReadHeld { client } => write!(f, "read of {client} held"),
            Self::ReadFailed { client, reason } => write!(f, "read of {client} failed: {reason}"),
        }
    }
}

fn write_action(f: &mut fmt::Formatter<'_>, action: &Action) -> fmt::Result {
    match action {
        Action::Probe { id, node, timeout } => {
            write!(f, "action   probe {} {node} within {}ms", id.0, timeout.as_millis())
        }
        Action::Persist { id, journal } => write!(f, "action   #{} persist {}", id.0, JournalText(journal)),
        Action::Sever { id, node, epoch } => {
            write!(f, "action   #{} sever {node} before epoch {epoch}", id.0)
        }
        Action::Freeze { id, node, change } => {
            write!(f, "action   #{} freeze {node}:{}", id.0, Change(change))
        }
        Action::Unfreeze { id, node, change } => {
            write!(f, "action   #{} unfreeze {node}:{}", id.0, Change(change))
        }
        Action::DropSlots { id, node, slots } => {
            write!(f, "action   #{} drop slots {slots:?} on {node}", id.0)
        }
        Action::Prepare { id, node, slots, change } => {
            write!(f, "action   #{} prepare {node}: slots {slots:?}{}", id.0, Change(change))
        }
        Action::Promote { id, promotion } => write!(
            f,
            "action   #{} promote {} to timeline {} (epoch {}, token {})",
            id.0, promotion.node, promotion.timeline, promotion.epoch, promotion.token
        ),
        Action::Verify { id, node, epoch } => write!(f, "action   #{} verify {node} for epoch {epoch}", id.0),
        Action::Repoint { id, node, upstream, change } => {
            write!(f, "action   #{} repoint {node} to {upstream}:{}", id.0, Change(change))
        }
        Action::SetSyncStandbys { id, node, change } => {
            write!(f, "action   #{} synchronous standbys of {node}:{}", id.0, Change(change))
        }
        Action::Checkpoint { id, node } => write!(f, "action   #{} checkpoint {node}", id.0),
        Action::Drain { id, node, epoch, limit } => {
            write!(f, "action   #{} drain {node} before epoch {epoch} within {}ms", id.0, limit.as_millis())
        }
        Action::Hook { id, call } => {
            write!(f, "action   #{} hook {} of {}", id.0, call.kind.name(), call.node)?;
            match &call.upstream {
                Some(upstream) => write!(f, " to {upstream} (epoch {})", call.epoch),
                None => write!(f, " (epoch {})", call.epoch),
            }
        }
        Action::Publish { view } => write!(f, "action   publish view {}", view.version),
        Action::Record { decision } => write!(f, "action   record {}", decision.kind.name()),
    }
}

fn write_view(
    f: &mut fmt::Formatter<'_>,
    version: u64,
    epoch: u64,
    phase: &Phase,
    writes: &Writes,
) -> fmt::Result {
    write!(f, "view     {version}: epoch {epoch}, {}, ", phase.name())?;
    match writes {
        Writes::Open { primary } => write!(f, "writes to {primary}"),
        Writes::Held { reason } => write!(f, "writes held: {reason}"),
    }
}

fn write_end(f: &mut fmt::Formatter<'_>, end: &EndState) -> fmt::Result {
    match &end.primary {
        Some(primary) => write!(f, "end      writes to {primary}")?,
        None => f.write_str("end      writes closed")?,
    }
    for node in &end.nodes {
        let role = if node.primary { "primary" } else { "standby" };
        write!(f, "; {} {role} {} at {}", node.node, node.timeline, node.position)?;
        if let Some(upstream) = &node.streams_from {
            write!(f, " from {upstream}")?;
        }
        write!(f, " with {} writes", node.holds.len())?;
        if !node.well {
            f.write_str(" (not well)")?;
        }
        if !node.on_history {
            f.write_str(" (diverged)")?;
        }
    }
    Ok(())
}

struct Change<'a>(&'a SettingsChange);

impl fmt::Display for Change<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.0.set {
            match value {
                Some(value) => write!(f, " {name}='{}'", shown(value))?,
                None => write!(f, " reset {name}")?,
            }
        }
        if self.0.resume_replay { f.write_str(" and resume replay") } else { Ok(()) }
    }
}

struct Command<'a>(&'a OperatorCommand);

impl fmt::Display for Command<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            OperatorCommand::Adopt(node) => write!(f, "adopt {node}"),
            OperatorCommand::Switchover { to: Some(to) } => write!(f, "switchover to {to}"),
            OperatorCommand::Switchover { to: None } => f.write_str("switchover"),
            OperatorCommand::Failover { to, allow_data_loss } => {
                f.write_str("failover")?;
                if let Some(to) = to {
                    write!(f, " to {to}")?;
                }
                f.write_str(if *allow_data_loss { ", data may be lost" } else { "" })
            }
            OperatorCommand::Pause => f.write_str("pause"),
            OperatorCommand::Resume => f.write_str("resume"),
        }
    }
}

struct JournalText<'a>(&'a Journal);

impl fmt::Display for JournalText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Journal {
            epoch,
            primary,
            timeline,
            phase,
            sync,
            attempts,
            tainted,
            saved,
            displaced,
            paused,
            ..
        } = self.0;
        write!(f, "epoch {epoch}, primary {primary}, timeline {timeline}, ")?;
        match phase {
            JournalPhase::Steady => f.write_str("steady")?,
            JournalPhase::Fencing => f.write_str("fencing")?,
            JournalPhase::Promoting { candidate, timeline, fork } => {
                write!(f, "promoting {candidate} to timeline {timeline} at {fork}")?;
            }
        }
        match sync {
            SyncRule::Async => f.write_str(", async")?,
            SyncRule::Quorum { acks, voters } => write!(f, ", any {acks} of {voters:?}")?,
        }
        if !attempts.is_empty() {
            f.write_str(", attempts")?;
            attempts.iter().try_for_each(|attempt| write!(f, " {}@{}", attempt.node, attempt.timeline))?;
        }
        if !tainted.is_empty() {
            write!(f, ", tainted {tainted:?}")?;
        }
        if !displaced.is_empty() {
            write!(f, ", displaced {displaced:?}")?;
        }
        if *paused {
            f.write_str(", paused")?;
        }
        if saved.is_empty() { Ok(()) } else { write!(f, ", settings kept of {:?}", saved.keys()) }
    }
}

struct Report<'a>(&'a NodeReport);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.role {
            ReportedRole::Primary { flushed, senders, synchronous_standby_names, .. } => {
                write!(f, "primary {} at {flushed}", self.0.timeline)?;
                if !synchronous_standby_names.is_empty() {
                    write!(f, ", waits for {synchronous_standby_names}")?;
                }
                senders.iter().try_for_each(|sender| {
                    let state = if sender.streaming { "" } else { " (not streaming)" };
                    write!(f, ", {}{state}", sender.application_name)
                })
            }
            ReportedRole::Standby {
                received, replayed, receiver, receiver_process, startup_wait, ..
            } => {
                let shown = |lsn: &Option<Lsn>| lsn.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string());
                let (received, replayed) = (shown(received), shown(replayed));
                write!(f, "standby {} received {received} replayed {replayed}", self.0.timeline)?;
                match (receiver, receiver_process) {
                    (Some(receiver), _) => {
                        write!(f, ", streams from {}:{}", receiver.sender_host, receiver.sender_port)?;
                    }
                    (None, true) => f.write_str(", receiver connecting")?,
                    (None, false) => f.write_str(", no receiver")?,
                }
                startup_wait.as_ref().map_or(Ok(()), |wait| write!(f, ", {wait}"))
            }
        }
    }
}

/// The value of a setting without the password that a connection string may hold.
fn shown(value: &str) -> String {
    let Some((before, after)) = value.split_once("password=") else { return value.to_owned() };
    let password = match after.strip_prefix('\'') {
        // The closing quote is the first that no backslash stands before.
        Some(quoted) => {
            let mut escaped = false;
            let end = quoted.find(|c: char| {
                let closes = c == '\'' && !escaped;
                escaped = c == '\\' && !escaped;
                closes
            });
            end.map_or(after.len(), |end| end + 2)
        }
        None => after.find(char::is_whitespace).unwrap_or(after.len()),
    };
    format!("{before}password=(secret){}", &after[password..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        for (value, expected) in [
            ("host=a password=word user=b", "host=a password=(secret) user=b"),
            (r"password='it\'s a \\' user='b'", "password=(secret) user='b'"),
            ("password='cut off", "password=(secret)"),
            ("host=a", "host=a"),
        ] {
            assert_eq!(shown(value), expected);
        }
    }
}
