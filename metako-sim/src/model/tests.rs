//! The model alone, against what was measured on PostgreSQL.

use std::time::Duration;

use metako_core::cluster::{ActionOutcome, Promotion, SettingsChange};
use metako_core::plugin::{NodeAccess, NodeReport, ProbeFailure, ReportedRole};
use metako_core::{Epoch, NodeName, TimelineId};

use super::{Access, Cluster, NodeSpec, Rates};
use crate::executor::run_ready;
use crate::message::{Answer, Body, Place, QueryAnswer, Request, Ticket};
use crate::scenario::{LinkTimings, Span};
use crate::stage::{Event, Stage};

/// A cluster of three without a proxy: what is sent to the proxy is kept.
struct Lab {
    stage: Stage,
    cluster: Cluster,
    to_proxy: Vec<Body>,
    writes: u64,
}

impl Lab {
    fn new(sync_names: &str) -> Self {
        let rates = Rates {
            fsync: Span::millis(1, 1),
            replay_delay: Span::millis(1, 1),
            promote: Span::millis(100, 100),
            start: Span::millis(500, 500),
            retry_interval: Duration::from_millis(200),
            receiver_timeout: Duration::from_secs(2),
        };
        let specs = ["a", "b", "c"].map(|name| NodeSpec {
            name: NodeName::from(name),
            host: name.to_owned(),
            port: 5432,
            application_name: name.to_owned(),
            rates,
        });
        let cluster = Cluster::new(specs.to_vec(), 0, sync_names);
        let stage = Stage::new(1, LinkTimings::default());
        let mut lab = Self { stage, cluster, to_proxy: Vec::new(), writes: 0 };
        lab.cluster.begin(&mut lab.stage);
        lab.pass(1_000);
        lab
    }

    /// Lets so many milliseconds pass.
    fn pass(&mut self, millis: u64) {
        self.pass_micros(millis * 1_000);
    }

    fn pass_micros(&mut self, micros: u64) {
        let end = self.stage.now + Duration::from_micros(micros);
        self.stage.queue.push(end, Event::FaultEnds(0));
        while let Some((at, event)) = self.stage.queue.pop() {
            self.stage.now = at;
            match event {
                Event::FaultEnds(_) => return,
                Event::Node { node, run, event } => {
                    if self.cluster.node(node).run != run {
                    } else if self.cluster.node(node).frozen {
                        self.cluster.keep(node, Event::Node { node, run, event });
                    } else {
                        self.cluster.handle(&mut self.stage, node, event);
                    }
                }
                Event::Arrive(message) => {
                    let Some(message) = self.stage.admit(message) else { continue };
                    match message.to {
                        Place::Proxy => self.to_proxy.push(message.body),
                        Place::Node(node) if self.cluster.node(node).frozen => {
                            self.cluster.keep(node, Event::Arrive(message));
                        }
                        Place::Node(node) => {
                            if let Some(message) = self.cluster.turn_away(&mut self.stage, node, message) {
                                self.cluster.receive(&mut self.stage, node, message.from, message.body);
                            }
                        }
                    }
                }
                event => unreachable!("{event:?}"),
            }
        }
    }

    fn call(&mut self, node: usize, request: Request) {
        let server_run = self.cluster.node(node).run;
        let body = Body::Call { call: 1, server_run, lingers: false, request };
        self.stage.send(Place::Proxy, Place::Node(node), body);
    }

    fn set(&mut self, node: usize, settings: &[(&str, &str)]) {
        let set =
            settings.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned()))).collect();
        let change = SettingsChange { set, resume_replay: false };
        self.call(node, Request::Apply { slots: Vec::new(), change });
    }

    fn freeze_standby(&mut self, node: usize) {
        self.set(node, &[("primary_conninfo", ""), ("primary_slot_name", "token")]);
        self.pass(200);
    }

    fn promote(&mut self, node: usize, token: &str) {
        let (name, token) = (self.cluster.name(node), token.to_owned());
        let promotion = Promotion { node: name, epoch: Epoch(2), timeline: TimelineId(2), token };
        self.call(node, Request::Promote(promotion));
        self.pass(400);
    }

    fn follow(&mut self, node: usize, upstream: &str) {
        let conninfo = format!("host={upstream} port=5432 application_name={}", self.cluster.name(node));
        self.set(node, &[("primary_conninfo", &conninfo), ("primary_slot_name", "")]);
        self.pass(1_000);
    }

    fn write(&mut self, node: usize) {
        self.writes += 1;
        let ticket = Ticket { client: 0, attempt: self.writes, id: self.writes };
        let server_run = self.cluster.node(node).run;
        self.stage.send(
            Place::Proxy,
            Place::Node(node),
            Body::Query { ticket, server_run, write: true, vouched: true },
        );
    }

    /// Answers to writes so far, and forgets them.
    fn answers(&mut self) -> Vec<QueryAnswer> {
        let answer = |body| if let Body::QueryAnswer { answer, .. } = body { Some(answer) } else { None };
        self.to_proxy.drain(..).filter_map(answer).collect()
    }

    fn outcomes(&mut self) -> Vec<ActionOutcome> {
        let outcome = |body| match body {
            Body::Answer { answer: Answer::Action(outcome), .. } => outcome.ok(),
            _ => None,
        };
        self.to_proxy.drain(..).filter_map(outcome).collect()
    }

    fn report(&mut self, node: usize) -> NodeReport {
        let mut access = Access::new(&mut self.cluster, &mut self.stage, node);
        run_ready(access.report()).expect("ready").expect("a report")
    }

    fn streams_from(&self, node: usize) -> Option<usize> {
        self.cluster.node(node).streams_from()
    }
}

fn done(answers: &[QueryAnswer]) -> usize {
    answers.iter().filter(|answer| matches!(answer, QueryAnswer::Done { primary: true, .. })).count()
}

#[test]
fn a_cluster_begins_streaming_and_a_write_reaches_all() {
    let mut lab = Lab::new("");
    lab.write(0);
    lab.pass(100);
    assert_eq!(done(&lab.answers()), 1);
    let position = lab.report(0).position();
    for standby in [1, 2] {
        assert_eq!(lab.streams_from(standby), Some(0));
        assert_eq!(lab.report(standby).position(), position);
    }
    lab.write(1);
    lab.pass(100);
    assert_eq!(lab.answers(), [QueryAnswer::ReadOnly]);
}

#[test]
fn a_synchronous_commit_waits_for_its_quorum() {
    let mut lab = Lab::new("ANY 1 (b, c)");
    lab.write(0);
    lab.pass(100);
    assert_eq!(done(&lab.answers()), 1);
    lab.cluster.kill(&mut lab.stage, 1);
    lab.write(0);
    lab.pass(100);
    assert_eq!(done(&lab.answers()), 1, "one of two is enough");
    lab.cluster.kill(&mut lab.stage, 2);
    lab.write(0);
    lab.pass(5_000);
    assert_eq!(done(&lab.answers()), 0, "nobody is left to confirm it");
    lab.cluster.start(&mut lab.stage, 2);
    lab.pass(2_000);
    assert_eq!(done(&lab.answers()), 1, "it is answered when one is back");
}

#[test]
fn after_the_freeze_of_all_voters_no_commit_is_acknowledged() {
    let mut lab = Lab::new("ANY 1 (b, c)");
    lab.freeze_standby(1);
    lab.freeze_standby(2);
    let frozen = [lab.report(1), lab.report(2)].map(|report| report.position());
    for _ in 0..5 {
        lab.write(0);
    }
    lab.pass(3_000);
    assert_eq!(done(&lab.answers()), 0);
    for (standby, position) in [(1, frozen[0]), (2, frozen[1])] {
        let report = lab.report(standby);
        assert_eq!(report.position(), position);
        let ReportedRole::Standby { receiver_process, startup_wait, settings, .. } = report.role else {
            panic!("a standby");
        };
        assert!(!receiver_process);
        assert_eq!(startup_wait.as_deref(), Some("RecoveryRetrieveRetryInterval"));
        assert_eq!(settings["primary_slot_name"].value, "token");
    }
}

#[test]
fn a_receiver_goes_on_while_replay_is_delayed() {
    let mut lab = Lab::new("ANY 1 (b, c)");
    for standby in [1, 2] {
        lab.set(standby, &[("recovery_min_apply_delay", "3600000")]);
    }
    lab.pass(100);
    lab.write(0);
    lab.pass(100);
    lab.freeze_standby(1);
    lab.freeze_standby(2);
    lab.answers();
    lab.write(0);
    lab.pass(1_000);
    assert_eq!(done(&lab.answers()), 1, "blank settings alone do not stop a receiver");
    let ReportedRole::Standby { receiver_process: true, startup_wait, .. } = lab.report(1).role else {
        panic!("still with a receiver");
    };
    assert_eq!(startup_wait.as_deref(), Some("RecoveryApplyDelay"));
    for standby in [1, 2] {
        lab.set(standby, &[("recovery_min_apply_delay", "0")]);
    }
    lab.pass(1_000);
    lab.answers();
    lab.write(0);
    lab.pass(1_000);
    assert_eq!(done(&lab.answers()), 0);
}

#[test]
fn a_promotion_needs_its_token_takes_time_and_begins_a_timeline() {
    let mut lab = Lab::new("");
    lab.freeze_standby(1);
    lab.outcomes();
    lab.promote(1, "another token");
    assert_eq!(lab.outcomes(), [ActionOutcome::Declined]);
    assert!(!lab.report(1).is_primary());
    lab.promote(1, "token");
    assert_eq!(lab.outcomes(), [ActionOutcome::Done]);
    let report = lab.report(1);
    assert!(report.is_primary());
    assert_eq!(report.timeline, TimelineId(2));
    lab.follow(2, "b");
    assert_eq!(lab.streams_from(2), Some(1));
    assert_eq!(lab.report(2).timeline, TimelineId(2));
}

#[test]
fn a_cascading_standby_follows_the_promotion_of_its_upstream() {
    let mut lab = Lab::new("");
    lab.freeze_standby(1);
    lab.freeze_standby(2);
    lab.follow(2, "b");
    assert_eq!(lab.streams_from(2), Some(1));
    lab.promote(1, "token");
    lab.write(1);
    lab.pass(500);
    assert_eq!(lab.streams_from(2), Some(1));
    let (upstream, standby) = (lab.report(1), lab.report(2));
    assert_eq!((standby.timeline, standby.position()), (TimelineId(2), upstream.position()));
}

#[test]
fn a_standby_ahead_of_the_fork_cannot_follow() {
    let mut lab = Lab::new("");
    lab.freeze_standby(1);
    lab.write(0);
    lab.pass(200);
    lab.promote(1, "token");
    lab.follow(2, "b");
    assert_eq!(lab.streams_from(2), None, "it has what the new timeline has not");
    let text = lab.stage.log.text();
    assert!(text.contains("forked off current database system timeline 1"), "{text}");
}

#[test]
fn a_killed_primary_comes_back_as_a_primary_on_its_old_timeline() {
    let mut lab = Lab::new("ANY 1 (b, c)");
    lab.cluster.kill(&mut lab.stage, 1);
    lab.cluster.kill(&mut lab.stage, 2);
    lab.pass(100);
    lab.write(0);
    lab.pass(100);
    lab.cluster.kill(&mut lab.stage, 0);
    lab.write(0);
    lab.pass(100);
    assert_eq!(lab.answers(), [QueryAnswer::Refused]);
    lab.cluster.start(&mut lab.stage, 0);
    lab.write(0);
    lab.pass(100);
    assert_eq!(lab.answers(), [QueryAnswer::Starting]);
    lab.pass(1_000);
    let report = lab.report(0);
    assert!(report.is_primary());
    assert_eq!(report.timeline, TimelineId(1));
    assert_eq!(lab.cluster.node(0).wal.writes().count(), 1, "the commit that nobody confirmed is there");
}

#[test]
fn a_standby_that_restarts_without_a_primary_has_received_nothing() {
    let mut lab = Lab::new("");
    lab.write(0);
    lab.pass(200);
    let before = lab.report(1).position();
    lab.cluster.kill(&mut lab.stage, 0);
    lab.cluster.kill(&mut lab.stage, 1);
    lab.pass(100);
    lab.cluster.start(&mut lab.stage, 1);
    lab.pass(2_000);
    let report = lab.report(1);
    let ReportedRole::Standby { received, receiver, .. } = &report.role else { panic!("a standby") };
    assert_eq!((received, receiver), (&None, &None));
    assert_eq!(report.position(), before, "what it replayed is still known");
}

#[test]
fn a_frozen_node_answers_nothing_and_then_everything() {
    let mut lab = Lab::new("");
    lab.cluster.freeze(&mut lab.stage, 0);
    lab.write(0);
    lab.pass(5_000);
    assert!(lab.answers().is_empty());
    assert_eq!(lab.streams_from(1), None, "its standbys gave up after wal_receiver_timeout");
    lab.cluster.thaw(&mut lab.stage, 0);
    lab.pass(2_000);
    assert_eq!(done(&lab.answers()), 1);
    assert_eq!(lab.streams_from(1), Some(0));
}

#[test]
fn an_idle_stream_stays_and_its_last_message_is_fresh() {
    let mut lab = Lab::new("");
    lab.pass(60_000);
    let report = lab.report(1);
    let age = report.streaming_receiver().and_then(|receiver| receiver.last_message_age).expect("streams");
    assert!(age <= Duration::from_millis(1_100), "{age:?}");
    let drops = lab.stage.log.text().matches("receiver ended").count();
    assert_eq!(drops, 0);
}

#[test]
fn a_cut_way_holds_messages_back_until_it_is_mended() {
    let mut lab = Lab::new("");
    lab.stage.cut(Place::Proxy, Place::Node(0));
    lab.write(0);
    lab.pass(1_000);
    assert!(lab.answers().is_empty());
    lab.stage.mend(Place::Proxy, Place::Node(0));
    lab.pass(100);
    assert_eq!(done(&lab.answers()), 1);
}

#[test]
fn a_probe_commit_works_on_a_primary_only_and_unknown_questions_are_refused() {
    let mut lab = Lab::new("");
    let before = lab.report(0).position();
    let mut access = Access::new(&mut lab.cluster, &mut lab.stage, 0);
    run_ready(access.commit()).expect("ready").expect("committed");
    let unknown = run_ready(access.query("SELECT 2")).expect("ready");
    assert!(matches!(unknown, Err(ProbeFailure::Unsupported(_))), "{unknown:?}");
    lab.pass(100);
    assert!(lab.report(0).position() > before);
    let mut access = Access::new(&mut lab.cluster, &mut lab.stage, 1);
    let refused = run_ready(access.commit()).expect("ready");
    assert!(matches!(refused, Err(ProbeFailure::ReadOnly(_))), "{refused:?}");
}

#[test]
fn what_was_acknowledged_but_not_shipped_dies_with_the_primary() {
    let mut lost = 0;
    for micros in (0..3_000).step_by(25) {
        let mut lab = Lab::new("");
        lab.write(0);
        lab.pass_micros(micros);
        lab.cluster.kill(&mut lab.stage, 0);
        lab.pass(500);
        let acknowledged = done(&lab.answers());
        let kept = lab.cluster.node(1).wal.writes().count();
        lost += acknowledged.saturating_sub(kept);
    }
    assert!(lost > 0, "an acknowledgement may outrun the walsender");
}

#[test]
fn a_stop_in_order_sends_everything_and_takes_nothing_new() {
    let mut lab = Lab::new("");
    for _ in 0..20 {
        lab.write(0);
    }
    lab.pass(5);
    lab.cluster.stop(&mut lab.stage, 0);
    lab.to_proxy.clear();
    lab.write(0);
    lab.pass(10);
    assert_eq!(lab.answers(), [QueryAnswer::Starting], "57P03");
    lab.pass(1_000);
    let [stopped, one, other] = [0, 1, 2].map(|node| lab.cluster.node(node).wal.clone());
    assert_eq!(lab.cluster.node(0).process, super::Process::Stopped);
    assert_eq!((one.flushed(), other.flushed()), (stopped.flushed(), stopped.flushed()));
    assert!(stopped.is_prefix_of(&one) && stopped.is_prefix_of(&other));
    assert_eq!(lab.streams_from(1), None);
    lab.cluster.start(&mut lab.stage, 0);
    lab.pass(2_000);
    assert!(lab.report(0).is_primary());
}

#[test]
fn a_standby_that_confirms_nothing_holds_a_stop_up_for_a_minute() {
    let mut lab = Lab::new("");
    lab.cluster.freeze(&mut lab.stage, 1);
    lab.cluster.stop(&mut lab.stage, 0);
    lab.pass(50_000);
    assert_eq!(lab.cluster.node(0).process, super::Process::Stopping);
    lab.pass(11_000);
    assert_eq!(lab.cluster.node(0).process, super::Process::Stopped);
}

#[test]
fn a_frozen_node_stops_when_it_goes_on() {
    let mut lab = Lab::new("");
    lab.cluster.freeze(&mut lab.stage, 0);
    lab.cluster.stop(&mut lab.stage, 0);
    lab.pass(1_000);
    assert_eq!(lab.cluster.node(0).process, super::Process::Running);
    lab.cluster.thaw(&mut lab.stage, 0);
    lab.pass(4_000);
    assert_eq!(lab.cluster.node(0).process, super::Process::Stopped);
}

#[test]
fn a_copy_follows_its_upstream_with_what_it_was_told() {
    let mut lab = Lab::new("");
    lab.freeze_standby(1);
    lab.freeze_standby(2);
    lab.promote(1, "token");
    for _ in 0..5 {
        lab.write(0);
        lab.write(1);
    }
    lab.pass(500);
    lab.cluster.kill(&mut lab.stage, 0);
    assert!(!lab.cluster.control_file_is_current(1), "only a checkpoint writes the timeline there");
    lab.call(1, Request::Checkpoint);
    lab.pass(500);
    assert!(lab.cluster.control_file_is_current(1));
    lab.cluster.lock(0, true);
    lab.cluster.start(&mut lab.stage, 0);
    assert_eq!(lab.cluster.node(0).process, super::Process::Stopped, "a hook is at work there");
    lab.cluster.lock(0, false);
    lab.cluster.copy(&mut lab.stage, 0, 1, "host=b port=5432 application_name=a", "");
    lab.cluster.start(&mut lab.stage, 0);
    lab.pass(2_000);
    assert_eq!(lab.streams_from(0), Some(1));
    assert!(!lab.report(0).is_primary());
    assert!(lab.cluster.node(0).wal.is_prefix_of(&lab.cluster.node(1).wal));
}
