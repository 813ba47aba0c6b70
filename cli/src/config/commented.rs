//! The commented configuration file, and what `config show` prints.

use super::keys::{KEYS, Key, SECTIONS};
use super::layers::Layers;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A file with every key, its explanation and its default; `instead` replaces some defaults.
pub(crate) fn file(instead: &BTreeMap<&str, String>) -> String {
    let mut text = String::from(
        "# Configuration of Fieldstream. Every key is here with its default.\n\
         # Environment variables go before this file, flags before both:\n\
         # gateway.listen is FIELDSTREAM_GATEWAY__LISTEN and --listen.\n\
         # Sizes are written as 64MiB, durations as 30s.\n",
    );
    for (section, about) in SECTIONS {
        text.push('\n');
        comment(&mut text, about);
        let _ = writeln!(text, "[{section}]");
        for key in KEYS.iter().filter(|key| key.parts().0 == *section) {
            comment(&mut text, key.about);
            let value = instead.get(key.name).map_or(key.default, String::as_str);
            let _ = writeln!(text, "{} = {}\n", key.parts().1, toml_value(key, value));
        }
        text.pop();
    }
    text
}

fn comment(text: &mut String, about: &str) {
    about.lines().for_each(|line| {
        let _ = writeln!(text, "# {line}");
    });
}

fn toml_value(key: &Key, value: &str) -> String {
    if key.form.is_bare() {
        return value.to_owned();
    }
    // JSON's escapes are a subset of those of TOML's basic strings.
    serde_json::Value::String(value.to_owned()).to_string()
}

/// All keys with the values that count, as TOML or as JSON, on request with their origins.
pub(crate) fn shown(layers: &Layers, origins: bool, json: bool) -> String {
    if json {
        let entries = KEYS.iter().map(|key| {
            let value = serde_json::json!({
                "value": hide_password(layers.value(key.name)),
                "origin": layers.origin(key.name).to_string(),
            });
            (key.name.to_owned(), value)
        });
        return serde_json::Value::Object(entries.collect()).to_string();
    }
    let mut text = String::new();
    for (section, _) in SECTIONS {
        let _ = writeln!(text, "{}[{section}]", if text.is_empty() { "" } else { "\n" });
        for key in KEYS.iter().filter(|key| key.parts().0 == *section) {
            let line = format!("{} = {}", key.parts().1, toml_value(key, &hide_password(layers.value(key.name))));
            let _ = match origins {
                true => writeln!(text, "{line:<48} # {}", layers.origin(key.name)),
                false => writeln!(text, "{line}"),
            };
        }
    }
    text.pop();
    text
}

/// A URL without the password in it.
pub(crate) fn hide_password(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else { return value.to_owned() };
    match rest.rsplit_once('@') {
        Some((login, host)) => {
            let user = login.split_once(':').map_or("", |(user, _)| user);
            format!("{scheme}://{user}:***@{host}")
        }
        None => value.to_owned(),
    }
}
