//! What `fieldstream bench` is told.

use crate::args::{Ack, ServerArgs};
use crate::exit::Failure;
use clap::Args;
use std::path::PathBuf;

/// The steps of `--find-max`, in instructions per second.
const STEPS: &[u32] = &[
    1_000, 2_000, 3_000, 4_000, 5_000, 6_000, 8_000, 10_000, 12_000, 15_000, 20_000, 22_000, 24_000, 27_000, 30_000,
    35_000, 40_000, 45_000, 50_000, 60_000, 80_000,
];

/// Bytes of a payload's head, which says what instruction it is of.
pub(super) const HEAD_BYTES: usize = 12;

/// The largest text: what fits an instruction with its envelope.
const SIZE_BYTES_MAX: usize = 200_000;

/// The longest run in seconds: what is kept of each instruction is kept until its end.
const SECONDS_MAX: f64 = 3_600.0;

#[derive(Debug, Clone, Args)]
pub(crate) struct BenchArgs {
    /// Clients, each on a connection of its own
    #[arg(long, value_name = "C", default_value = "1000", value_parser = count)]
    pub(crate) clients: usize,
    /// Documents; client i watches document i mod D and writes to it [default: clients / watchers]
    #[arg(long, value_name = "D", value_parser = count, conflicts_with = "watchers_per_doc")]
    pub(crate) docs: Option<usize>,
    /// Watchers of each document, the one that writes among them
    #[arg(long, value_name = "W", default_value = "3", value_parser = count)]
    pub(crate) watchers_per_doc: usize,
    /// Instructions per second, all clients together, whatever the server answers; 15k is 15000
    #[arg(long, value_name = "R", default_value = "2000", value_parser = rate, conflicts_with_all = ["find_max", "rates"])]
    pub(crate) rate: f64,
    /// Raise the rate step by step until it is not sustained, and say the highest that was
    #[arg(long)]
    pub(crate) find_max: bool,
    /// The steps; without --find-max each is run, once
    #[arg(long, value_name = "R,…", value_delimiter = ',', value_parser = rate)]
    pub(crate) rates: Vec<f64>,
    /// Seconds that are measured
    #[arg(long, value_name = "T", default_value = "10", value_parser = seconds)]
    pub(crate) seconds: f64,
    /// Seconds before them at the same rate
    #[arg(long, value_name = "S", default_value = "3", value_parser = seconds)]
    pub(crate) warmup: f64,
    /// Seconds to wait afterwards for what is under way; fewer if all came or nothing did for 3 s
    #[arg(long, value_name = "S", default_value = "30", value_parser = seconds)]
    pub(crate) drain: f64,
    /// Bytes of text that each instruction puts
    #[arg(long, value_name = "BYTES", default_value = "500", value_parser = size)]
    pub(crate) size: usize,
    /// When an instruction counts as done
    #[arg(long, value_name = "LEVEL", value_enum, default_value = "applied")]
    pub(crate) ack: Ack,
    /// Documents that are put first, each once, until they are stored; nobody watches them
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) fill: Option<usize>,
    /// Server processes, to tell their CPU and memory; their children count with them
    #[arg(long, value_name = "PID,…", value_delimiter = ',')]
    pub(crate) pids: Vec<u32>,
    /// What the names of documents begin with; the run and a number follow, so that runs do not meet
    #[arg(long, value_name = "PREFIX", default_value = "bench/")]
    pub(crate) prefix: String,
    /// Connections that are opened at once
    #[arg(long, value_name = "N", default_value = "64", value_parser = count)]
    pub(crate) handshakes: usize,
    /// The server's profile, repeated in the result
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(crate) profile_name: String,
    /// Anything worth knowing of this run, repeated in the result
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) note: String,
    /// Draw latency over load into an SVG file; takes --rates or --find-max
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

impl BenchArgs {
    /// Documents used.
    pub(crate) fn documents(&self) -> usize {
        self.docs.unwrap_or(self.clients / self.watchers_per_doc).clamp(1, self.clients)
    }

    /// The rates to try, in turn.
    pub(crate) fn steps(&self) -> Vec<f64> {
        match (self.rates.is_empty(), self.find_max) {
            (false, _) => self.rates.clone(),
            (true, true) => STEPS.iter().map(|rate| f64::from(*rate)).collect(),
            (true, false) => vec![self.rate],
        }
    }

    /// What single values cannot say.
    ///
    /// # Errors
    /// What contradicts itself.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let steps = self.steps();
        if self.find_max && steps.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(Failure::usage("--rates must rise for --find-max"));
        }
        if self.plot.is_some() && steps.len() < 2 {
            return Err(Failure::usage("--plot needs several rates: give --rates or --find-max"));
        }
        if self.seconds * steps.iter().fold(f64::MAX, |least, rate| least.min(*rate)) < 1.0 {
            return Err(Failure::usage("nothing would be measured: give more --seconds or a higher rate"));
        }
        let most = steps.iter().fold(0.0, |most: f64, rate| most.max(*rate)) * (self.warmup + self.seconds);
        if most > f64::from(u32::MAX / 2) {
            return Err(Failure::usage("so many seconds at so high a rate are too many instructions"));
        }
        Ok(())
    }
}

fn number(text: &str) -> Option<f64> {
    let (digits, factor) = text.strip_suffix('k').map_or((text, 1.0), |digits| (digits, 1_000.0));
    digits.parse::<f64>().ok().map(|number| number * factor).filter(|number| number.is_finite())
}

fn rate(text: &str) -> Result<f64, String> {
    number(text).filter(|rate| (0.01..=10_000_000.0).contains(rate)).ok_or("expected a rate such as 2000 or 15k".into())
}

fn count(text: &str) -> Result<usize, String> {
    let whole = number(text).filter(|number| number.fract() == 0.0 && (1.0..=1_000_000.0).contains(number));
    whole.map(|number| number as usize).ok_or("expected a number such as 1000 or 10k".into())
}

fn seconds(text: &str) -> Result<f64, String> {
    number(text).filter(|s| (0.0..=SECONDS_MAX).contains(s)).ok_or(format!("expected seconds, {SECONDS_MAX} at most"))
}

fn size(text: &str) -> Result<usize, String> {
    let range = HEAD_BYTES..=SIZE_BYTES_MAX;
    count(text)
        .ok()
        .filter(|size| range.contains(size))
        .ok_or(format!("expected a number of bytes from {HEAD_BYTES} to {SIZE_BYTES_MAX}"))
}
