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
            "uncertain": [["primary_conninfo", "postgres://u:li/on@h/d"]],
            "unknown": [["primary_conninfo", "host=db lions=3"]],
            "plain": [["primary_conninfo", "host=db  user=u"]],
        });
        mask(&mut value);
        let expected = json!({
            "saved": { "b": { "primary_conninfo": masked, "restore_command": "***", "primary_slot_name": null } },
            "settings": { "primary_conninfo": { "value": masked, "changeable": true }, "restore_command": { "value": "", "changeable": true } },
            "set": [["primary_conninfo", masked], ["primary_slot_name", "s"], ["restore_command", null]],
            "uri": [["primary_conninfo", "user='u' password='***' host='h' port='1' dbname='d'"]],
            "unreadable": [["primary_conninfo", "***"]],
            "uncertain": [["primary_conninfo", "***"]],
            "unknown": [["primary_conninfo", "host='db' lions='***'"]],
            "plain": [["primary_conninfo", "host=db  user=u"]],
        });
        assert_eq!(value, expected);
        mask(&mut value);
        assert_eq!(value, expected, "masking twice is masking once");
    }

    /// All but letters as `%41`.
    fn encoded(text: &str) -> String {
        let one = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        };
        text.bytes().map(one).collect()
    }

    /// Texts that somebody may have written with this password, right or wrong.
    fn forms(password: &str) -> Vec<String> {
        let inside = password.replace('\\', "\\\\").replace('\'', "\\'");
        let mut forms = vec![
            format!("user=u password={}", inside.replace(' ', "\\ ")),
            format!("dbname='postgres://u:{}@h/d' host=h", encoded(password)),
        ];
        for keyword in ["password", "sslpassword", "oauth_client_secret", "scram_client_key", "of_later"] {
            forms.push(format!("host=h {keyword}='{inside}' user=u"));
            forms.push(format!("{keyword} = '{inside}'"));
            forms.push(format!("host=h {keyword}='{password}' user=u"));
            forms.push(format!("user=u {keyword}={password}"));
        }
        for password in [password, &encoded(password)] {
            for scheme in ["postgres", "postgresql"] {
                forms.push(format!("{scheme}://u:{password}@h:5432/d?sslmode=require"));
                forms.push(format!(" {scheme}://:{password}@/d"));
                forms.push(format!("{scheme}://u@h/d?password={password}&sslmode=require"));
                forms.push(format!("{scheme}:///d?host=h&pass%77ord={password}"));
            }
        }
        forms
    }

    proptest! {
        #[test]
        fn no_password_survives_in_a_conninfo(
            before in "[a-z' \\\\%@/?&=#:,]{0,6}",
            after in "[a-z' \\\\%@/?&=#:,]{2,6}",
        ) {
            // An upper-case letter, so that it cannot stand there by chance.
            let password = format!("{before}Q{after}");
            let password = password.trim();
            for conninfo in forms(password) {
                let mut value = json!({ "primary_conninfo": conninfo });
                mask(&mut value);
                let masked = value["primary_conninfo"].as_str().unwrap_or_default();
                let inside = password.replace('\\', "\\\\").replace('\'', "\\'");
                for form in [password, &inside, &encoded(password)] {
                    prop_assert!(!masked.contains(form), "{:?} is left {:?}", conninfo, masked);
                }
                prop_assert!(masked.contains("***"), "{:?} is left {:?}", conninfo, masked);
                let once = value.clone();
                mask(&mut value);
                prop_assert_eq!(value, once);
            }
        }
    }
}
