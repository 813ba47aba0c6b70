//! How a command ends: a message for people and an exit code for scripts.

use std::fmt;
use std::process::ExitCode;

/// Exit codes, in the words of `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0   done
  1   failed: refused, not converged, or a role stopped for good
  2   the command line is wrong
  69  NATS or the Fieldstream server cannot be reached
  75  timed out; try again
  78  the configuration is wrong

Results go to stdout, everything else to stderr. NO_COLOR turns colours off.";

/// The kinds of failure that scripts can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Anything that has no code of its own.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// NATS or the server cannot be reached.
    Unavailable = 69,
    /// Not done in time; trying again makes sense.
    TimedOut = 75,
    /// The configuration is wrong.
    Configuration = 78,
}

/// A command that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The exit code; `None` ends quietly with 0 (the reader of stdout went away).
    pub(crate) exit: Option<Exit>,
    /// What went wrong and where, one line per problem.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) help: Option<String>,
    /// Whether it lies in the log, so that the role may go on later.
    pub(crate) trouble: Option<Trouble>,
}

/// What is wrong with the log, from a role's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The log was purged or moved ahead of where the role was, or is another one than it or a storer
    /// still has: starting again is enough.
    Outrun,
    /// It is damaged: the role can start again once it is repaired.
    Damaged,
    /// A repair was begun and is not finished: it is to be continued.
    Unfinished,
    /// The storer's file is of another log: like damage to this storer, and none to the others.
    OtherFile,
}

impl Failure {
    /// A failure with a code.
    pub(crate) fn new(exit: Exit, message: impl fmt::Display) -> Failure {
        Failure { exit: Some(exit), message: message.to_string(), help: None, trouble: None }
    }

    /// Exit code 1.
    pub(crate) fn failed(message: impl fmt::Display) -> Failure {
        Failure::new(Exit::Failed, message)
    }

    /// Exit code 2.
    pub(crate) fn usage(message: impl fmt::Display) -> Failure {
        Failure::new(Exit::Usage, message).help("`--help` shows how the command is used")
    }

    /// The reader of stdout has what it wanted (`… | head`): not an error.
    pub(crate) fn pipe_closed() -> Failure {
        Failure { exit: None, message: String::new(), help: None, trouble: None }
    }

    /// What went wrong stands on stdout already.
    pub(crate) fn told(exit: Exit) -> Failure {
        Failure::new(exit, "")
    }

    /// Adds what to do about it.
    pub(crate) fn help(mut self, help: impl fmt::Display) -> Failure {
        self.help = Some(help.to_string());
        self
    }

    /// Prints the failure and gives its code.
    pub(crate) fn report(&self) -> ExitCode {
        let Some(exit) = self.exit else { return ExitCode::SUCCESS };
        let (red, cyan, plain) =
            if crate::output::colours_on_stderr() { ("\x1b[1;31m", "\x1b[36m", "\x1b[0m") } else { ("", "", "") };
        for line in self.message.lines() {
            eprintln!("{red}error:{plain} {line}");
        }
        if let Some(help) = &self.help {
            eprintln!("  {cyan}help:{plain} {help}");
        }
        ExitCode::from(exit as u8)
    }
}
