//! What may not run twice at once.

use crate::cluster::{Action, ActionId};

pub(super) fn lane_of(action: &Action) -> Option<(ActionId, String)> {
    match action {
        Action::Persist { id, .. } => Some((*id, "journal".to_owned())),
        Action::Sever { id, .. } => Some((*id, "sever".to_owned())),
        Action::Drain { id, .. } => Some((*id, "drain".to_owned())),
        Action::Checkpoint { id, node } => Some((*id, format!("a checkpoint of {node}"))),
        Action::Hook { id, call } => Some((*id, format!("the host of {}", call.node))),
        Action::Freeze { id, node, .. }
        | Action::Unfreeze { id, node, .. }
        | Action::Prepare { id, node, .. }
        | Action::Repoint { id, node, .. }
        | Action::SetSyncStandbys { id, node, .. }
        | Action::DropSlots { id, node, .. }
        | Action::Verify { id, node, .. } => Some((*id, node.to_string())),
        Action::Promote { id, promotion } => Some((*id, promotion.node.to_string())),
        Action::Probe { .. } | Action::Publish { .. } | Action::Record { .. } => None,
    }
}
