//! Faults of the scenario, as they begin and end.

use metako_core::cluster::OperatorCommand;

use super::World;
use crate::log::LogEvent;
use crate::message::Place;
use crate::scenario::{Ask, End, Fault, Target};

/// What ends with a fault.
#[derive(Debug)]
pub(super) enum Undo {
    Start(usize),
    Thaw(usize),
    Unstall(usize),
    Recovered(usize),
    Mend(Vec<(Place, Place)>),
    StartProxy,
}

impl World {
    pub(super) fn fault_begins(&mut self, index: usize) {
        let fault = self.faults[index].fault.clone();
        let undo = match &fault {
            Fault::KillProxy => {
                self.log_fault("kill metako");
                self.kill_proxy();
                Some(Undo::StartProxy)
            }
            Fault::Kill(target) => self.on_node("kill", target, |world, node| {
                world.cluster.kill(&mut world.stage, node);
                Some(Undo::Start(node))
            }),
            Fault::Start(target) => self.on_node("start", target, |world, node| {
                world.cluster.start(&mut world.stage, node);
                None
            }),
            Fault::Freeze(target) => self.on_node("freeze", target, |world, node| {
                world.cluster.freeze(&mut world.stage, node);
                Some(Undo::Thaw(node))
            }),
            Fault::Stall(target) => self.on_node("stall", target, |world, node| {
                world.cluster.stall(node);
                Some(Undo::Unstall(node))
            }),
            Fault::Recover(target) => self.on_node("recover", target, |world, node| {
                world.cluster.recover(&mut world.stage, node);
                Some(Undo::Recovered(node))
            }),
            Fault::Promote(target) => self.on_node("promote", target, |world, node| {
                world.cluster.hand_over(&mut world.stage, node);
                None
            }),
            Fault::Ask { what, to } => {
                self.ask_for(*what, to.as_ref());
                None
            }
            Fault::Cut { from, to, one_way } => Some(self.cut(from, to, *one_way)),
        };
        self.undo[index] = undo;
    }

    pub(super) fn fault_ends(&mut self, index: usize) {
        let Some(undo) = self.undo[index].take() else { return };
        match undo {
            Undo::Start(node) => {
                self.log_fault(&format!("start {}", self.cluster.node(node).name));
                self.cluster.start(&mut self.stage, node);
            }
            Undo::Thaw(node) => {
                self.log_fault(&format!("thaw {}", self.cluster.node(node).name));
                self.cluster.thaw(&mut self.stage, node);
            }
            Undo::Unstall(node) => {
                self.log_fault(&format!("unstall {}", self.cluster.node(node).name));
                self.cluster.unstall(&mut self.stage, node);
            }
            Undo::Recovered(node) => {
                self.log_fault(&format!("{} has recovered", self.cluster.node(node).name));
                self.cluster.recovered(&mut self.stage, node);
            }
            Undo::Mend(ways) => {
                self.log_fault(&format!("mend {}", self.describe(&ways)));
                for (from, to) in ways {
                    self.stage.mend(from, to);
                }
            }
            Undo::StartProxy => {
                self.log_fault("start metako");
                if self.proxy.is_none() {
                    self.start_proxy();
                }
            }
        }
    }

    fn ask_for(&mut self, what: Ask, to: Option<&Target>) {
        let named = to.map(|target| self.target(target));
        if named == Some(None) {
            return self.log_fault(&format!("ask {what:?} to {to:?}: there is none now"));
        }
        let to = named.flatten().map(|index| self.cluster.node(index).name.clone());
        self.ask(match what {
            Ask::Switchover => OperatorCommand::Switchover { to },
            Ask::Failover => OperatorCommand::Failover { to, allow_data_loss: false },
            Ask::Pause => OperatorCommand::Pause,
            Ask::Resume => OperatorCommand::Resume,
        });
    }

    fn on_node(
        &mut self,
        verb: &str,
        target: &Target,
        act: impl FnOnce(&mut Self, usize) -> Option<Undo>,
    ) -> Option<Undo> {
        let Some(node) = self.target(target) else {
            self.log_fault(&format!("{verb} {target:?}: there is none now"));
            return None;
        };
        self.log_fault(&format!("{verb} {}", self.cluster.node(node).name));
        act(self, node)
    }

    fn cut(&mut self, from: &End, to: &End, one_way: bool) -> Undo {
        let mut ways = Vec::new();
        for from in self.places(from) {
            for to in self.places(to) {
                if from != to {
                    ways.push((from, to));
                    if !one_way {
                        ways.push((to, from));
                    }
                }
            }
        }
        ways.sort_unstable();
        ways.dedup();
        self.log_fault(&format!("cut {}", self.describe(&ways)));
        for (from, to) in &ways {
            self.stage.cut(*from, *to);
        }
        Undo::Mend(ways)
    }

    fn places(&self, end: &End) -> Vec<Place> {
        match end {
            End::Proxy => vec![Place::Proxy],
            End::AllNodes => (0..self.cluster.len()).map(Place::Node).collect(),
            End::Node(target) => self.target(target).map(Place::Node).into_iter().collect(),
        }
    }

    fn target(&self, target: &Target) -> Option<usize> {
        match target {
            Target::Primary => self.primaries.last().copied(),
            Target::OldPrimary => self.primaries.iter().rev().nth(1).copied(),
            Target::Named(name) => self.cluster.find(name),
        }
    }

    fn describe(&self, ways: &[(Place, Place)]) -> String {
        let name = |place: &Place| match place {
            Place::Proxy => "metako".to_owned(),
            Place::Node(index) => self.cluster.node(*index).name.to_string(),
        };
        let texts: Vec<String> =
            ways.iter().map(|(from, to)| format!("{}->{}", name(from), name(to))).collect();
        texts.join(" ")
    }

    fn log_fault(&mut self, text: &str) {
        self.stage.log(LogEvent::Fault(text.to_owned()));
    }
}
