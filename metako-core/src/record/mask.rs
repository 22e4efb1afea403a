//! No secret is written down: what may hold one is masked by the name under which it stands.

use serde_json::Value;

use crate::cluster::conninfo;
use crate::config::Secret;

/// Masks what may hold secrets in what is written down, wherever it stands: in a node's report, in a change of its
/// settings, in the former settings of the journal. Passwords of the configuration mask themselves ([`Secret`]). Masking
/// twice is masking once.
pub(super) fn mask(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                mask_field(name, field);
            }
        }
        Value::Array(items) => {
            if let [Value::String(name), field] = items.as_mut_slice() {
                mask_field(name, field);
            } else {
                items.iter_mut().for_each(mask);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn mask_field(name: &str, field: &mut Value) {
    match (name, field) {
        ("primary_conninfo", field) => mask_text(field, conninfo::mask),
        // A command line may hold anything, and nothing depends on which it is.
        ("restore_command", field) => mask_text(field, |_| Secret::MASK.to_owned()),
        (_, field) => mask(field),
    }
}

fn mask_text(field: &mut Value, with: impl Fn(&str) -> String) {
    match field {
        Value::String(text) if !text.is_empty() => *text = with(text),
        Value::Object(setting) => {
            if let Some(value) = setting.get_mut("value") {
                mask_text(value, with);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_masked_in_each_form_that_settings_have() {
        let conninfo = "host=db password=lion sslpassword='l\\'ion' application_name=b";
        let masked = "host='db' password='***' sslpassword='***' application_name='b'";
        let mut value = json!({
            "saved": { "b": { "primary_conninfo": conninfo, "restore_command": "fetch --key lion", "primary_slot_name": null } },
            "settings": { "primary_conninfo": { "value": conninfo, "changeable": true }, "restore_command": { "value": "", "changeable": true } },
            "set": [["primary_conninfo", conninfo], ["primary_slot_name", "s"], ["restore_command", null]],
            "uri": [["primary_conninfo", "postgres://u:lion@h:1/d"]],
            "unreadable": [["primary_conninfo", "host='lion"]],
            "plain": [["primary_conninfo", "host=db  user=u"]],
        });
        mask(&mut value);
        let expected = json!({
            "saved": { "b": { "primary_conninfo": masked, "restore_command": "***", "primary_slot_name": null } },
            "settings": { "primary_conninfo": { "value": masked, "changeable": true }, "restore_command": { "value": "", "changeable": true } },
            "set": [["primary_conninfo", masked], ["primary_slot_name", "s"], ["restore_command", null]],
            "uri": [["primary_conninfo", "user='u' password='***' host='h' port='1' dbname='d'"]],
            "unreadable": [["primary_conninfo", "***"]],
            "plain": [["primary_conninfo", "host=db  user=u"]],
        });
        assert_eq!(value, expected);
        mask(&mut value);
        assert_eq!(value, expected, "masking twice is masking once");
    }

    proptest! {
        #[test]
        fn no_password_survives_in_a_conninfo(password in "[a-z' \\\\%@]{6,12}", quoted in any::<bool>()) {
            let inside = password.replace('\\', "\\\\").replace('\'', "\\'");
            let conninfo = if quoted {
                format!("host=h password='{inside}' user=u")
            } else {
                format!("user=u password={}", inside.replace(' ', "\\ "))
            };
            let mut value = json!({ "primary_conninfo": conninfo });
            mask(&mut value);
            let text = value.to_string();
            prop_assert!(!text.contains(&password) && !text.contains(&inside), "{}", text);
            prop_assert!(text.contains("***"), "{}", text);
        }
    }
}
