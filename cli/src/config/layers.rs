//! Putting the layers together: defaults < file < environment < flags, each value with its origin.

use super::keys::{self, Form, KEYS, Key, SECTIONS};
use super::parse::nearest;
use config::{ConfigError, FileFormat, Map, Source, Value, ValueKind};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The file that is read without being named.
pub(crate) const DEFAULT_FILE: &str = "fieldstream.toml";

/// Variables with our prefix that are no configuration keys.
const OTHER_VARIABLES: [&str; 6] = ["SERVER", "CA", "TOKEN", "CLIENT_ID", "NATS_SERVER", "CONFIG"];
const PREFIX: &str = "FIELDSTREAM_";

/// What the configuration is made of.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    /// The file named on the command line.
    pub(crate) file: Option<PathBuf>,
    /// Environment variables.
    pub(crate) environment: HashMap<String, String>,
    /// Values given by flags.
    pub(crate) flags: Flags,
}

impl Inputs {
    /// The real environment and no file that was named.
    pub(crate) fn from_process(file: Option<PathBuf>, flags: Flags) -> Inputs {
        let utf8 = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Inputs { file, environment: std::env::vars_os().filter_map(utf8).collect(), flags }
    }
}

/// Values given by flags: key, value, and the flag's own name for messages.
#[derive(Debug, Default, Clone)]
pub(crate) struct Flags(Vec<(&'static str, String, &'static str)>);

impl Flags {
    /// Adds a flag that was given.
    pub(crate) fn set(mut self, key: &'static str, flag: &'static str, value: Option<impl ToString>) -> Flags {
        self.0.extend(value.map(|value| (key, value.to_string(), flag)));
        self
    }
}

impl Source for Flags {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        let value = |(key, value, flag): &(&str, String, &str)| {
            ((*key).to_owned(), Value::new(Some(&format!("flag {flag}")), value.as_str()))
        };
        Ok(self.0.iter().map(value).collect())
    }
}

/// Where a value came from, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nobody set it.
    Default,
    /// File, variable or flag.
    Set(String),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Set(origin) => f.write_str(origin),
        }
    }
}

/// Every key's value and origin, checked by form.
#[derive(Debug)]
pub(crate) struct Layers {
    values: BTreeMap<&'static str, (String, Origin)>,
}

impl Layers {
    /// Reads all layers.
    ///
    /// # Errors
    /// Every problem there is, one line each.
    pub(crate) fn read(inputs: &Inputs) -> Result<Layers, Vec<String>> {
        let merged = merge(inputs).map_err(|problem| vec![problem])?;
        let mut layers =
            Layers { values: KEYS.iter().map(|k| (k.name, (k.default.to_owned(), Origin::Default))).collect() };
        let mut problems = Vec::new();
        let variables = Variables(&inputs.environment);
        let mut sections: Vec<_> = merged.into_iter().collect();
        sections.sort_by(|a, b| a.0.cmp(&b.0));
        for (section, value) in sections {
            layers.take_section(&section, value, &variables, &mut problems);
        }
        if problems.is_empty() { Ok(layers) } else { Err(problems) }
    }

    fn take_section(&mut self, section: &str, value: Value, variables: &Variables<'_>, problems: &mut Vec<String>) {
        let origin = origin_of(&value);
        let known = SECTIONS.iter().any(|(name, _)| *name == section);
        match value.kind {
            ValueKind::Table(table) if known => {
                let mut table: Vec<_> = table.into_iter().collect();
                table.sort_by(|a, b| a.0.cmp(&b.0));
                for (name, value) in table {
                    self.take_key(section, &name, value, variables, problems);
                }
            }
            ValueKind::Table(table) => {
                // The section's own origin is that of whoever came first; its values know better.
                let origin = table.values().next().map_or(origin, origin_of);
                let name = table.keys().next().map_or_else(|| section.to_owned(), |key| format!("{section}.{key}"));
                let meant = suggestion(section, &name, &origin);
                problems.push(format!("unknown section `{section}` {}{meant}", variables.place(&origin, &name)));
            }
            _ if known => {
                let place = variables.place(&origin, section);
                problems
                    .push(format!("`{section}` is a section, not a value, {place}; write its keys under [{section}]"));
            }
            _ => {
                let meant = suggestion(section, section, &origin);
                problems.push(format!("unknown key `{section}` {}{meant}", variables.place(&origin, section)));
            }
        }
    }

    fn take_key(
        &mut self,
        section: &str,
        name: &str,
        value: Value,
        variables: &Variables<'_>,
        problems: &mut Vec<String>,
    ) {
        let full = format!("{section}.{name}");
        let origin = origin_of(&value);
        let place = variables.place(&origin, &full);
        let Some(key) = keys::find(&full) else {
            let meant = suggestion(section, &full, &origin);
            problems.push(format!("unknown key `{full}` {place}{meant}"));
            return;
        };
        let Some(text) = scalar(key, &value) else {
            problems.push(format!("`{full}` must be a single value, {place}"));
            return;
        };
        if let Err(expected) = key.form.check(&text) {
            problems.push(format!("invalid value \"{text}\" for `{full}` {place}: {expected}"));
            return;
        }
        let origin = match origin.as_deref() {
            Some(ENVIRONMENT) => Origin::Set(format!("variable {}", variables.name(&full))),
            Some(other) => Origin::Set(other.to_owned()),
            None => Origin::Default,
        };
        self.values.insert(key.name, (text, origin));
    }

    /// A key's value; empty for a key that does not exist.
    pub(crate) fn value(&self, key: &str) -> &str {
        self.values.get(key).map_or("", |(value, _)| value)
    }

    /// Where a key's value came from.
    pub(crate) fn origin(&self, key: &str) -> &Origin {
        self.values.get(key).map_or(&Origin::Default, |(_, origin)| origin)
    }
}

/// What the config crate says of values from [`config::Environment`].
const ENVIRONMENT: &str = "the environment";

fn merge(inputs: &Inputs) -> Result<Map<String, Value>, String> {
    let mut builder = config::Config::builder();
    if let Some(file) = file_to_read(inputs.file.as_deref())? {
        builder = builder.add_source(config::File::from(file.as_path()).format(FileFormat::Toml));
    }
    let ours = |(name, _): &(&String, &String)| is_key_variable(name);
    let environment = inputs.environment.iter().filter(ours).map(|(n, v)| (n.clone(), v.clone())).collect();
    builder = builder
        .add_source(
            config::Environment::with_prefix("FIELDSTREAM")
                .prefix_separator("_")
                .separator("__")
                .source(Some(environment)),
        )
        .add_source(inputs.flags.clone());
    let merged = builder.build().map_err(|error| error.to_string().trim_end().replace('\n', "\n  "))?;
    merged.collect().map_err(|error| error.to_string())
}

fn is_key_variable(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    !OTHER_VARIABLES.contains(&rest) && !rest.starts_with("TEST_")
}

fn file_to_read(named: Option<&Path>) -> Result<Option<PathBuf>, String> {
    match named {
        Some(file) => match std::fs::File::open(file) {
            Ok(_) => Ok(Some(file.to_owned())),
            Err(error) => Err(format!("cannot read {} (from flag --config): {error}", file.display())),
        },
        None => Ok(Some(PathBuf::from(DEFAULT_FILE)).filter(|file| file.exists())),
    }
}

fn origin_of(value: &Value) -> Option<String> {
    value.origin().map(str::to_owned)
}

/// A value as text, `None` for lists and tables.
fn scalar(key: &Key, value: &Value) -> Option<String> {
    match &value.kind {
        ValueKind::String(text) => Some(text.trim().to_owned()),
        ValueKind::Boolean(value) => Some(value.to_string()),
        // TOML reads 0664 as an error and 664 as decimal; both mean the digits people wrote.
        ValueKind::I64(n) => Some(n.to_string()),
        ValueKind::I128(n) => Some(n.to_string()),
        ValueKind::U64(n) => Some(n.to_string()),
        ValueKind::U128(n) => Some(n.to_string()),
        ValueKind::Float(n) => Some(n.to_string()),
        ValueKind::Nil if matches!(key.form, Form::Text | Form::NatsUrl | Form::HistoryRules) => Some(String::new()),
        ValueKind::Nil | ValueKind::Table(_) | ValueKind::Array(_) => None,
    }
}

/// `; did you mean …?`, in the spelling of the place where it stands.
fn suggestion(section: &str, full: &str, origin: &Option<String>) -> String {
    // A key of the same section is more likely meant than a similar one elsewhere.
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        KEYS.iter().map(|k| k.name).partition(|n| n.split('.').next() == Some(section));
    let flattened = |name: &str| name.replace(['.', '_'], "");
    let by_name = |names: &[&'static str]| nearest(full, names.iter().copied());
    let meant = by_name(&here)
        .or_else(|| by_name(&elsewhere))
        // FIELDSTREAM_GATEWAY_LISTEN: one underscore where two are needed.
        .or_else(|| KEYS.iter().map(|k| k.name).find(|name| flattened(name) == flattened(full)))
        // The right name in the wrong section, or none.
        .or_else(|| KEYS.iter().map(|k| k.name).find(|name| name.rsplit('.').next() == full.rsplit('.').next()));
    let spelled = match (meant.and_then(keys::find), origin.as_deref()) {
        (Some(key), Some(ENVIRONMENT)) => key.variable(),
        (Some(key), _) => format!("`{}`", key.name),
        (None, _) => return "; `fieldstream config show` lists all keys".to_owned(),
    };
    format!("; did you mean {spelled}?")
}

/// The environment, to find the spelling in which a key was given.
struct Variables<'a>(&'a HashMap<String, String>);

impl Variables<'_> {
    fn name(&self, key: &str) -> String {
        let is_it = |name: &&String| {
            name.to_lowercase().strip_prefix(&PREFIX.to_lowercase()).is_some_and(|rest| rest.replace("__", ".") == key)
        };
        let by_rule = || format!("{PREFIX}{}", key.replace('.', "__").to_uppercase());
        self.0.keys().find(is_it).cloned().unwrap_or_else(by_rule)
    }

    fn place(&self, origin: &Option<String>, key: &str) -> String {
        match origin.as_deref() {
            Some(ENVIRONMENT) => format!("in variable {}", self.name(key)),
            Some(origin) if origin.starts_with("flag ") => format!("from {origin}"),
            Some(file) => format!("in {file}"),
            None => "in the defaults".to_owned(),
        }
    }
}
