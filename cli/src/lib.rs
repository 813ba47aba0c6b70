//! The `fieldstream` program: every role in one binary, `up`, and the client commands.
//!
//! This crate is a shell: it reads arguments and configuration, starts roles, and prints. It
//! decides nothing about instructions and documents; that is in `fieldstream-shared` and the
//! roles' cores. Within one process, too, the roles know each other only through NATS.
//!
//! A deployment with instructions of its own builds its own binary:
//!
//! ```no_run
//! use fieldstream_shared::{change::{Change, Primitive}, code::Code, document::Document};
//! use fieldstream_shared::registry::{CustomInstruction, Registry};
//!
//! struct Clear;
//! impl CustomInstruction for Clear {
//!     fn name(&self) -> &str {
//!         "clear"
//!     }
//!     fn apply(&self, _document: &Document, _arguments: &[u8]) -> Result<Change, Code> {
//!         Ok(vec![Primitive::SetText(String::new())])
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     fieldstream_cli::run(Registry::default().with(Clear))
//! }
//! ```

mod admin;
mod args;
mod bench;
mod client;
mod config;
mod dead_letters;
mod exit;
mod init;
mod logging;
mod nats;
mod operator;
mod output;
mod repair;
mod replay;
mod report;
mod roles;
mod signals;
mod status;
mod storers;
mod supervise;
mod svg;
mod trace;
mod up;
mod version;

use crate::args::{Cli, Command, ConfigCommand, StorerArgs};
use crate::config::{Flags, Inputs, commented};
use crate::exit::Failure;
use clap::Parser as _;
use fieldstream_shared::registry::Registry;
use std::process::ExitCode;
use std::time::Instant;

/// Runs the program with the process' own arguments. Processors know the instructions of
/// `registry` besides the built-in ones.
pub fn run(registry: Registry) -> ExitCode {
    let begun = Instant::now();
    // Whoever is first to use TLS would choose a provider otherwise; a second choice panics.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("note: another TLS provider was installed before");
    }
    #[cfg(feature = "defects")]
    if let Err(failure) = activate_defect() {
        return failure.report();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match dispatch(cli, registry, begun) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Switches on the defect that the environment names, in a program built to test the tests.
#[cfg(feature = "defects")]
fn activate_defect() -> Result<(), Failure> {
    let Ok(name) = std::env::var("FIELDSTREAM_DEFECT") else { return Ok(()) };
    let defect = fieldstream_shared::defect::activate(&name).map_err(Failure::failed)?;
    eprintln!("note: built with defects for tests, and {} is switched on", defect.name());
    Ok(())
}

fn dispatch(cli: Cli, registry: Registry, begun: Instant) -> Result<(), Failure> {
    let flags = Flags::default().set("log.level", "--log-level", cli.log_level.as_ref());
    let load = |flags: Flags| config::load(&Inputs::from_process(cli.config.clone(), flags));
    let serve = |flags: Flags| {
        let (settings, _) = load(flags)?;
        logging::start(&settings.log.level, &settings.log.format);
        Ok::<_, Failure>(settings)
    };
    match &cli.command {
        Command::Up(args) => {
            let settings = serve(args.flags(flags))?;
            block_on(up::run(&settings, registry, begun))
        }
        Command::Gateway(args) => {
            let settings = serve(args.flags(flags))?;
            block_on(roles::gateway(&settings, args.nats.create_streams, begun))
        }
        Command::Processor(args) => {
            let settings = serve(args.flags(flags))?;
            block_on(roles::processor(&settings, registry, args.nats.create_streams, begun))
        }
        Command::Storer(StorerArgs { command: Some(command), .. }) => {
            logging::start(cli.log_level.as_deref().unwrap_or("warn"), "text");
            block_on(storers::run(command, cli.config.clone()))
        }
        Command::Storer(args) => {
            let settings = serve(args.flags(flags))?;
            block_on(roles::storer(&settings, args.nats.create_streams, begun))
        }
        Command::Init(args) => init::run(args),
        Command::Config(ConfigCommand::Show { origin, json }) => {
            let (_, layers) = load(flags)?;
            output::line(&commented::shown(&layers, *origin, *json))
        }
        Command::Config(ConfigCommand::Check) => {
            load(flags)?;
            eprintln!("the configuration is right");
            Ok(())
        }
        Command::Version { json } => version::run(*json),
        Command::Status(args) => {
            logging::start(cli.log_level.as_deref().unwrap_or("warn"), "text");
            block_on(status::run(args, cli.config.clone()))
        }
        Command::Repair(args) => {
            logging::start(cli.log_level.as_deref().unwrap_or("warn"), "text");
            block_on(repair::run(args, cli.config.clone()))
        }
        Command::DeadLetters(command) => {
            logging::start(cli.log_level.as_deref().unwrap_or("warn"), "text");
            block_on(dead_letters::run(command, cli.config.clone()))
        }
        Command::Bench(args) => {
            logging::start(cli.log_level.as_deref().unwrap_or("warn"), "text");
            bench::run(args)
        }
        Command::Report(args) => {
            logging::start(cli.log_level.as_deref().unwrap_or("warn"), "text");
            report::run(args)
        }
        Command::Put(_)
        | Command::Append(_)
        | Command::Splice(_)
        | Command::Merge(_)
        | Command::Add(_)
        | Command::Delete(_)
        | Command::Get(_)
        | Command::Ls(_)
        | Command::Watch(_)
        | Command::Trace(_)
        | Command::Replay(_) => {
            logging::start(cli.log_level.as_deref().unwrap_or("warn"), "text");
            block_on(client_command(&cli.command))
        }
    }
}

async fn client_command(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Put(args) => client::put(args).await,
        Command::Append(args) => client::append(args).await,
        Command::Splice(args) => client::splice(args).await,
        Command::Merge(args) => client::merge(args).await,
        Command::Add(args) => client::add(args).await,
        Command::Delete(args) => client::delete(args).await,
        Command::Get(args) => client::get(args).await,
        Command::Ls(args) => client::ls(args).await,
        Command::Watch(args) => client::watch(args).await,
        Command::Trace(args) => trace::run(args).await,
        Command::Replay(args) => replay::run(args).await,
        _ => Ok(()),
    }
}

fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(format_args!("cannot start threads: {error}")))?;
    let result = runtime.block_on(command);
    // What is left by now has been told to end; a thread that reads stdin must not hold us up.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    result
}
