//! Configuration: file < environment < flags, through the `config` crate.
//!
//! One table ([`keys`]) says what there is; [`layers`] puts the sources together and finds every
//! problem with its value, key and place; [`settings`] gives the values their types.

pub(crate) mod commented;
pub(crate) mod keys;
mod layers;
pub(crate) mod parse;
mod settings;
#[cfg(test)]
mod tests;

pub(crate) use layers::{DEFAULT_FILE, Flags, Inputs, Layers, Origin};
pub(crate) use settings::{Profile, Settings};

use crate::exit::{Exit, Failure};

/// Reads the configuration.
///
/// # Errors
/// All problems at once, with exit code 78.
pub(crate) fn load(inputs: &Inputs) -> Result<(Settings, Layers), Failure> {
    let refused = |problems: Vec<String>| {
        Failure::new(Exit::Configuration, problems.join("\n"))
            .help("`fieldstream config show --origin` lists every key, `fieldstream init` writes a commented file")
    };
    let layers = Layers::read(inputs).map_err(refused)?;
    let settings = Settings::read(&layers).map_err(refused)?;
    Ok((settings, layers))
}
